"""The command that compares audits: a real case whose numbers are known, workdirs, its files, and every refusal."""

import csv
import json
import re
import shutil
import sys

import made_audits
import numpy as np
import pytest

from side_jax import main
from side_jax.commands import cli, out_folder
from side_jax.commands.compare import distinct_names
from side_jax.memorization.statistics import intervals
from side_jax.report import comparison_page
from side_jax.report.page import render

SHORT = (
    "--config.evaluate.distribution=False",
    "--config.evaluate.controls=False",
    "--config.evaluate.metrics=('rmse',)",
)
MEMBERS, HELDOUT = [f"m{i}" for i in range(20)], [f"h{i}" for i in range(20)]


def start(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["side-jax", "compare", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return ended.value.code


def noise(n, seed):
    """Images in which nothing is near anything."""
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 1), np.uint8)


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def audits(tmp_path_factory):
    """Three audits of images alone, 100 each, whose first 10, 5 and 0 copy members 0, 1, ... of 20; only read them."""
    folder = tmp_path_factory.mktemp("audits")
    members = noise(20, 0)
    images = {"members": members, "heldout": noise(20, 1)}
    images |= {f"{k}": np.concatenate([members[:k], noise(100 - k, 2 + k)]) for k in (10, 5, 0)}
    for name, of in images.items():
        np.savez(folder / f"{name}.npz", images=of)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("side_jax.report.writer.write", lambda *_: [])
        for k in (10, 5, 0):
            paths = {"samples": f"{k}", "members": "members", "heldout": "heldout"}
            options = [f"--{name}={folder / of}.npz" for name, of in paths.items()]
            assert cli.audit_samples(["evaluate", *options, f"--out={folder / f'copies_{k}'}", *SHORT]) == 0
    return [folder / f"copies_{k}" for k in (10, 5, 0)]


@pytest.fixture
def pair(tmp_path):
    """Two made-up audits; a test may change them."""
    for name, found in (("a", MEMBERS[:10]), ("b", MEMBERS[:5])):
        (tmp_path / name).mkdir()
        made_audits.audit(tmp_path / name, MEMBERS, HELDOUT, found)
    return tmp_path / "a", tmp_path / "b"


def test_a_real_case(audits, tmp_path, monkeypatch, capsys):
    """Ten members and five of these: p = 2 / 2^5, which shows no difference at 95%."""
    before = [everything(folder) for folder in audits[:2]]
    out = tmp_path / "new" / "out"
    assert start(monkeypatch, *audits[:2], f"--out={out}") == 0
    printed = capsys.readouterr().out
    found = json.loads((out / "compare.json").read_text())
    (one,) = found["pairs"]
    assert {key: one[key] for key in ("shared", "both", "only_first", "only_later", "neither")} == {
        "shared": 20,
        "both": 5,
        "only_first": 5,
        "only_later": 0,
        "neither": 10,
    }
    assert (one["p"], one["change"]) == (pytest.approx(1 / 16), pytest.approx(-1 / 4))
    assert one["change_ci"] == pytest.approx(intervals.paired_difference_interval(5, 0, 5, 10, 0.95))
    assert (found["status"], one["status"], found["confidence"]) == (*["No difference shown"] * 2, 0.95)
    (run,) = found["runs"]
    first, later = run["audits"]
    assert [(row["ams"], row["heldout_ams"], row["unique"]) for row in run["audits"]] == [(0.1, 0, 10), (0.05, 0, 5)]
    assert (first["excess"], later["excess"]) == (pytest.approx(0.1), pytest.approx(0.05))
    assert later["ams_change"] == pytest.approx(-0.05)
    assert later["ams_change_ci"] == pytest.approx(intervals.difference_interval((5, 10), (100, 100), 0.95))
    assert "ams_change" not in first
    assert found["members"] == {"in_all": 5, "in_some": 5, "in_none": 10}
    assert (found["metric"], found["below"]) == ("rmse", 0.15)
    lines = list(csv.DictReader((out / "compare.csv").read_text().splitlines()))
    listed = csv.DictReader((audits[0] / "members.csv").read_text().splitlines())
    members = {line["id"]: line for line in listed if line["side"] == "members"}
    assert len(lines) == 20
    for line in lines:
        assert all(line[key] == members[line["id"]][key] for key in ("name", "sha256"))
        extracted = [line["extracted_copies_10"], line["extracted_copies_5"]]
        assert extracted == [str(int(int(line["id"]) < k)) for k in (10, 5)]
    page = (out / "index.html").read_text(encoding="utf-8")
    for said in (*found["reasons"], *found["findings"]):
        assert said in printed
        assert said.replace("'", "&#39;").replace("<", "&lt;") in page
    assert printed.splitlines()[1].startswith("No difference shown. Of 20 training images that both audits have, 10")
    assert printed.splitlines()[-1] == f"Report: {out / 'index.html'}"
    assert [everything(folder) for folder in audits[:2]] == before
    assert {path.name for path in out.iterdir()} == {"index.html", "compare.json", "compare.csv"}
    assert out.stat().st_mode & 0o777 == 0o700


def test_json_in_place_of_text_and_an_earlier_comparison_replaced(audits, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert start(monkeypatch, *audits[:2], f"--out={out}") == 0
    capsys.readouterr()
    assert start(monkeypatch, "--json", audits[0], "--out", out, *audits[1:]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((out / "compare.json").read_text())
    assert [(one["audit"], one["status"]) for one in found["pairs"]] == [
        ("copies_5", "No difference shown"),
        ("copies_0", "Leaks less"),
    ]
    assert found["status"] == "Of 2 later audits, 1 leaks less"
    assert found["pairs"][1]["p"] == pytest.approx(2 / 2**10)
    assert start(monkeypatch, *audits[::-2], f"--out={out}") == 0
    assert capsys.readouterr().out.startswith("\nLeaks more. Of 20 training images that both audits have, 0 were")


def test_two_workdirs(finished, workdir, tmp_path, monkeypatch):
    """One and its copy, by relative paths: of every attack and scale, and of members that are the same."""
    shutil.copytree(finished, tmp_path / "again" / "run")
    monkeypatch.chdir(tmp_path)
    assert start(monkeypatch, "run", "again/run", "--out=out") == 0
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [one["name"] for one in found["audits"]] == [f"{tmp_path.name}/run", "again/run"]
    runs = ("unconditional", "conditional_1", "conditional_10", "side_1", "side_10")
    assert {one["run"] for one in found["runs"]} == set(runs)
    (pair,) = found["pairs"]
    assert (pair["only_first"], pair["only_later"], pair["p"], pair["status"]) == (0, 0, 1, "No difference shown")
    assert pair["shared"] == found["audits"][0]["members"]
    assert "SHA-256 of the weights" in (tmp_path / "out" / "index.html").read_text()


def test_a_page_of_hostile_names(pair, tmp_path, monkeypatch):
    """Folders are named by whoever made them."""
    hostile = pair[1].rename(tmp_path / "=<script>alert(1)<")
    assert start(monkeypatch, pair[0], hostile, f"--out={tmp_path / 'out'}") == 0
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "\\x3d\\x3cscript\\x3ealert(1)\\x3c" in page
    header = (tmp_path / "out" / "compare.csv").read_text().splitlines()[0]
    assert header == r"sha256,id,name,extracted_a,extracted_\x3d\x3cscript\x3ealert(1)\x3c"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("/x/a", "/x/b"), ["a", "b"]),
        (("/x/a/", "/x/b/."), ["a", "b"]),
        (("/x/a/run", "/x/b/run"), ["a/run", "b/run"]),
        (("/a", "/x/a", "/y/a"), ["a", "x/a", "y/a"]),
        (("gs://one/run", "gs://two/run"), ["one/run", "two/run"]),
    ],
)
def test_names_are_as_short_as_they_can_be(paths, names):
    assert distinct_names(paths) == names


def refused(monkeypatch, capsys, code, *arguments):
    """Checks for one sentence on stderr and nothing else; returns it."""
    assert start(monkeypatch, *arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("side_jax: ")
    assert err.count("\n") == 1
    assert not re.search(r"Traceback|Error", err), err
    return err


OTHER = {
    "metric": ({"rows": {"metric": "tiled_l2"}}, "don't count the same matches"),
    "threshold": ({"rows": {"band": (0.0, 0.1)}}, "of a: below 0.8; of b: below 0.1"),
    "shape": ({"data": {"image_shape": (9, 8, 1)}}, "b of 9 x 8 x 1; audit both at one size"),
    "number of images": ({"n": 64}, "a: samples (100); b: samples (64)"),
}


@pytest.mark.parametrize("case", OTHER)
def test_audits_that_measured_something_else(pair, tmp_path, monkeypatch, capsys, case):
    changes, words = OTHER[case]
    made_audits.audit(pair[1], MEMBERS, HELDOUT, MEMBERS[:5], **changes)
    before = everything(tmp_path)
    assert words in refused(monkeypatch, capsys, 1, *pair, f"--out={tmp_path / 'out'}")
    assert everything(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("a", "b"), 2, "--out=DIR is missing: the folder for the comparison."),
        (("a", "b", "--out="), 2, "--out=DIR is missing"),
        (("a", "b", "--out"), 2, "--out needs a value"),
        (("a", "--out=out"), 2, "compare needs two audits or more, got 1: compare A B --out=DIR"),
        (("--out=out",), 2, "got 0"),
        (("a", "b", "--out=out", "--workdir=c"), 2, "Unknown command line flag 'workdir'"),
        (("a", "none", "--out=out"), 1, "none holds no finished audit (results.json); give the workdir"),
        (("a", "empty", "--out=out"), 1, "empty holds no finished audit"),
        (("a", "a", "--out=out"), 1, "a and a are the same audit"),
        (("a", "b", "link", "--out=out"), 1, "b and link are the same audit; name different ones."),
        (("a", "b", "--out=a"), 1, "--out=a lies in a, an audit, which stays as it is; choose another folder."),
        (("a", "b", "--out=b/deep/out"), 1, "lies in b, an audit"),
        (("a", "b", "--out=link/out"), 1, "lies in b, an audit"),
        (("a", "b", "--out=other"), 1, "--out=other holds other files; name a new or an empty folder."),
        (("a", "b", "--out=mine"), 1, "mine holds other files"),
        (("a", "b", "--out=audit"), 1, "audit holds other files"),
        (("a", "b", "--out=."), 1, "--out=. holds other files"),
        (("a", "b", "--out=file"), 1, "--out=file can't be written (Not a directory)"),
    ],
)
def test_what_is_refused_before_anything_is_written(pair, tmp_path, monkeypatch, capsys, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    for name, content in (("other/notes.txt", "x"), ("mine/compare.json", "{}"), ("file", "x")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    shutil.copytree(pair[0], "audit")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(pair[1])
    before, there = everything(tmp_path), set(tmp_path.rglob("*"))
    assert words in refused(monkeypatch, capsys, code, *arguments)
    assert (everything(tmp_path), set(tmp_path.rglob("*"))) == (before, there)


def test_a_workdir_and_its_tables_are_one_audit(workdir, tmp_path, monkeypatch, capsys):
    said = refused(monkeypatch, capsys, 1, workdir, workdir / "evaluate", f"--out={tmp_path / 'out'}")
    assert "are the same audit" in said
    said = refused(monkeypatch, capsys, 1, workdir, workdir, f"--out={workdir / 'report' / 'out'}")
    assert "are the same audit" in said


def test_a_workdir_is_not_written_to(workdir, pair, tmp_path, monkeypatch, capsys):
    said = refused(monkeypatch, capsys, 1, workdir, pair[0], f"--out={workdir / 'compared'}")
    assert f"lies in {workdir}, an audit" in said


def test_a_failure_halfway_leaves_the_earlier_comparison(pair, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert start(monkeypatch, *pair, f"--out={out}") == 0
    before = everything(out)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(comparison_page, "member_rows", fail)
    assert start(monkeypatch, *pair[::-1], f"--out={out}") == 1
    assert everything(out) == before
    assert not (out / out_folder.UNFINISHED).exists()
    monkeypatch.setattr(render, "render", fail)
    assert start(monkeypatch, *pair, f"--out={tmp_path / 'new'}") == 1
    assert not (tmp_path / "new").exists()


def test_help_is_printed(monkeypatch, capsys):
    for arguments in ((), ("--help",), ("a", "-h")):
        assert start(monkeypatch, *arguments) == 0
        shown = capsys.readouterr().out
        for words in ("Usage: python -m side_jax.main compare A B [C ...] --out=DIR", "--json", "Exit codes"):
            assert words in shown
    monkeypatch.setattr(sys, "argv", ["side-jax", "--help"])
    with pytest.raises(SystemExit):
        main.main()
    assert "python -m side_jax.main compare runs/a runs/b --out=" in capsys.readouterr().out


def test_private_audits_stay_without_names(pair, tmp_path, monkeypatch):
    path = pair[0] / "members.csv"
    path.write_text(re.sub(r",[mh]\d+\.png,", ",,", path.read_text()))
    assert start(monkeypatch, *pair, f"--out={tmp_path / 'out'}") == 0
    assert {row["name"] for row in csv.DictReader((tmp_path / "out" / "compare.csv").read_text().splitlines())} == {""}
    page = (tmp_path / "out" / "index.html").read_text()
    assert ".png" not in page
    assert str(tmp_path) not in page
