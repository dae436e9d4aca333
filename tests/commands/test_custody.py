"""Verifying, cleaning and sharing a finished run; and what a private one, or a bundle for others, gives away."""

import base64
import csv
import dataclasses
import io
import json
import os
import re
import shutil
import sys
import zipfile

import numpy as np
import pypdf
import pytest
import runs
from PIL import Image
from sklearn.datasets import load_digits

from side_jax import main
from side_jax.commands import custody
from side_jax.config import from_config
from side_jax.errors import InputError
from side_jax.pipeline.saved_config import saved_config
from side_jax.stages import stage_inputs
from side_jax.workdir import files, work_units


def start(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["side_jax", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return ended.value.code


def found_in(workdir):
    return {str(path.relative_to(workdir)) for path in workdir.rglob("*") if not path.is_dir() or path.is_symlink()}


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def put(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def replace_averages(folder):
    shutil.rmtree(folder / "40" / "ema")
    shutil.copytree(folder / "30" / "ema", folder / "40" / "ema")


WRONG = {
    "a table is cut": (lambda w: cut(w / "evaluate/matches.csv"), "evaluate/matches.csv was changed"),
    "the split is another": (lambda w: put(w / "train/split.json", more=1), "train/split.json was changed"),
    "a shard is gone": (lambda w: (w / "extract/side_10/shard_00001.npz").unlink(), "shard_00001.npz is missing"),
    "a unit is gone": (lambda w: shutil.rmtree(w / "extract/side_10"), "extract/side_10/manifest.json is missing"),
    "averages are of another step": (lambda w: replace_averages(w / "checkpoints"), "checkpoints/40/ema was changed"),
    "an earlier checkpoint is damaged": (
        lambda w: (w / "surrogate/side/checkpoints/20/state/_METADATA").unlink(),
        "surrogate/side/checkpoints/20 is damaged",
    ),
    "a checkpoint is gone": (lambda w: shutil.rmtree(w / "checkpoints/40"), "checkpoints/40/meta/metadata is missing"),
    "a manifest is cut": (
        lambda w: (w / "report/manifest.json").write_text('{"unit": "re'),
        "report/manifest.json can't be read",
    ),
    "a manifest names what lies elsewhere": (
        lambda w: put(w / "report/manifest.json", sha256={"../other": "0"}),
        "report/manifest.json can't be read",
    ),
    "a manifest is a list": (lambda w: (w / "report/manifest.json").write_text("[]"), "report/manifest.json can't be"),
}


def test_a_run_as_it_was_written(finished, monkeypatch, capsys, compiled):
    assert start(monkeypatch, "verify", f"--workdir={finished}") == 0
    lines = capsys.readouterr().out.splitlines()
    recorded = [json.loads(path.read_text()).get("sha256", {}) for path in finished.rglob("manifest.json")]
    count, units = sum(map(len, recorded)), sum(map(bool, recorded))
    assert (count > 40, units) == (True, 12)
    assert lines[0].startswith(f"{count} files of {units} units match their manifests, and 5 checkpoints ")
    assert re.fullmatch("Digest of all manifests: [0-9a-f]{64}", lines[1])
    assert lines[2:] == [custody.LIMITS]
    assert compiled == []


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_as_it_was_written_is_named(workdir, monkeypatch, capsys, case):
    change, line = WRONG[case]
    change(workdir)
    assert start(monkeypatch, "verify", f"--workdir={workdir}") == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0].count(line) == 1
    assert "match their manifests" not in out
    assert err.startswith("side_jax: ")


def test_who_rewrites_a_manifest_changes_the_digest(workdir, monkeypatch, capsys):
    digests = []
    for _ in range(2):
        assert start(monkeypatch, "verify", f"--workdir={workdir}") == 0
        digests += re.findall("manifests: (.*)", capsys.readouterr().out)
        cut(workdir / "evaluate" / "members.csv")
        known = json.loads((workdir / "evaluate" / "manifest.json").read_text())["sha256"]
        known["evaluate/members.csv"] = files.file_digest(workdir / "evaluate" / "members.csv")
        put(workdir / "evaluate" / "manifest.json", sha256=known)
    assert digests[0] != digests[1]


def test_what_can_not_be_verified_is_said(workdir, monkeypatch, capsys, tmp_path):
    manifest = json.loads((workdir / "label" / "manifest.json").read_text())
    del manifest["sha256"]
    (workdir / "label" / "manifest.json").write_text(json.dumps(manifest))
    put(workdir / "report" / "manifest.json", done=False)
    assert start(monkeypatch, "verify", f"--workdir={workdir}") == 0
    out = capsys.readouterr().out
    assert "label was written by an earlier version, which recorded no SHA-256: unverified\n" in out
    assert "report is not finished; its files can't be checked yet\n" in out
    assert start(monkeypatch, "verify", f"--workdir={tmp_path / 'none'}") == 1
    assert "holds no manifest" in capsys.readouterr().err


def test_clean_removes_what_the_run_does_not_own_and_nothing_else(workdir, tmp_path, monkeypatch, capsys):
    config = json.loads((workdir / "config.json").read_text())
    put(workdir / "config.json", extract=config["extract"] | {"guidance_scales": [10.0]})
    for name in ("stale/report-0/matches.png", "stale/one.png", "evaluate/results.json.0.tmp"):
        files.write_json(workdir / name, {})
    (tmp_path / "elsewhere").mkdir()
    (workdir / "stale" / "link").symlink_to(tmp_path / "elsewhere")
    gone = {
        name for name in found_in(workdir) if name.startswith(("stale/", "extract/side_1/", "extract/conditional_1/"))
    }
    gone |= {"evaluate/results.json.0.tmp"}
    for name in (
        "notes.txt",
        "mine/manifest.json",
        "extract/mine/manifest.json",
        "extract/notes.txt",
        "report/own.png",
        "own.tmp",
    ):
        files.write_json(workdir / name, {"unit": "mine", "fingerprint": "0", "done": True})
    before = found_in(workdir)
    assert start(monkeypatch, "clean", f"--workdir={workdir}", "--dry-run") == 0
    listed = capsys.readouterr().out.splitlines()
    assert (found_in(workdir), listed[-1]) == (before, "Would remove 6 files and folders.")
    assert start(monkeypatch, "clean", f"--workdir={workdir}") == 0
    assert capsys.readouterr().out.splitlines()[:-1] == listed[:-1]
    assert before - found_in(workdir) == gone
    assert (tmp_path / "elsewhere").exists()
    assert start(monkeypatch, "clean", f"--workdir={workdir}") == 0
    assert capsys.readouterr().out == "Nothing to remove.\n"
    assert start(monkeypatch, "clean", f"--workdir={tmp_path}") == 1


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """(folder of images, a finished run on it); read both, never write to them."""
    folder, workdir = tmp_path_factory.mktemp("ward_seven"), tmp_path_factory.mktemp("runs") / "run"
    for i, image in enumerate(np.round(load_digits().images[:140] * (255 / 16)).astype(np.uint8)):
        Image.fromarray(image).save(folder / f"ada_lovelace_{i:03}.png")
    options = {"data__name": "folder", "data__path": str(folder), "extract__attacks": "('unconditional',)"}
    assert runs.run(runs.arguments(workdir, **options)) == 0
    return folder, workdir


def told(content, folder):
    """Which of the images' names, and of their folder's, are in the bytes."""
    return {
        name
        for name in (folder.name, "lovelace", *(path.stem for path in folder.iterdir()))
        if name.encode() in content
    }


def shown(content, folder):
    """How many of the images the pictures in a page show: by their most varied row, as it is or enlarged."""
    drawn = [base64.b64decode(data) for data in re.findall(rb"data:image/[a-z]+;base64,([A-Za-z0-9+/=]+)", content)]
    assert len(drawn) > 10
    rows = set()
    for data in drawn:
        picture = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        rows.update(picture[::step, at::step].tobytes() for step in (1, 6) for at in range(step))
    images = [np.asarray(Image.open(path)) for path in folder.iterdir()]
    sought = [max(image, key=lambda row: len(set(row.tolist()))).tobytes() for image in images]
    return sum(any(one in row for row in rows) for one in sought)


def test_a_bundle_neither_names_nor_shows_an_image(named, tmp_path, monkeypatch):
    folder, workdir = named
    out = tmp_path / "bundle.zip"
    assert start(monkeypatch, "share", f"--workdir={workdir}", f"--out={out}") == 0
    with zipfile.ZipFile(out) as archive:
        bundle = {name: archive.read(name) for name in archive.namelist()}
    assert set(bundle) == {"index.html", "summary.pdf", "results.json", "config.json"}
    assert bundle["results.json"] == (workdir / "evaluate" / "results.json").read_bytes()
    assert json.loads(bundle["config.json"])["data"]["path"] == "(left out)"
    for content in (out.read_bytes(), *bundle.values()):
        assert told(content, folder) == set()
    assert shown(bundle["index.html"], folder) == 0
    (sheet,) = pypdf.PdfReader(io.BytesIO(bundle["summary.pdf"])).pages
    assert told(sheet.extract_text().encode(), folder) == set()
    assert "images are neither shown nor named" in sheet.extract_text()
    assert len(sheet.images) == 0
    plain = (workdir / "report" / "index.html").read_bytes()
    assert "lovelace" in told(plain, folder)  # so names and pictures are found where they are
    assert shown(plain, folder) > 10


def test_a_bundle_needs_a_finished_evaluation(named, tmp_path, monkeypatch, capsys):
    workdir = shutil.copytree(named[1], tmp_path / "run")
    cut(workdir / "evaluate" / "results.json")
    assert start(monkeypatch, "share", f"--workdir={workdir}", f"--out={tmp_path / 'a.zip'}") == 1
    assert "holds no finished evaluation" in capsys.readouterr().err
    assert start(monkeypatch, "share", f"--workdir={workdir}") == 1
    assert "--out=FILE.zip is missing" in capsys.readouterr().err
    assert not (tmp_path / "a.zip").exists()


def test_a_run_that_becomes_private_names_no_file(named, tmp_path, monkeypatch):
    """Its tables are written anew, with the same figures; what named files lies in stale/ until it is cleaned."""
    folder, plain = named
    workdir = shutil.copytree(plain, tmp_path / "run")
    assert runs.run([f"--workdir={workdir}", "--config.report.private=True"]) == 0
    assert start(monkeypatch, "clean", f"--workdir={workdir}") == 0
    tables = [path for path in workdir.rglob("*") if path.suffix in (".csv", ".html") or path.name == "results.json"]
    assert {path.name for path in tables} == {"results.json", "matches.csv", "members.csv", "index.html"}
    for path in tables:
        assert told(path.read_bytes(), folder) == set(), path
    assert not [path for path in workdir.rglob("*") if path.is_file() and b"lovelace" in path.read_bytes()]
    assert shown((workdir / "report" / "index.html").read_bytes(), folder) == 0
    assert not list((workdir / "report").glob("matches*.png"))
    found = [json.loads((w / "evaluate" / "results.json").read_text()) for w in (plain, workdir)]
    for results, of in zip(found, (plain, workdir), strict=True):
        assert results["dataset"].pop("split_sha256") == files.file_digest(of / "train" / "split.json")
    assert found[0] == found[1]
    assert (workdir / "evaluate/matches.csv").read_bytes() == (plain / "evaluate/matches.csv").read_bytes()
    tables = ((w / "evaluate" / "members.csv").read_text() for w in (plain, workdir))
    before, after = (list(csv.DictReader(io.StringIO(table))) for table in tables)
    assert [row | {"name": ""} for row in before] == after
    splits = [json.loads((w / "train" / "split.json").read_text()) for w in (plain, workdir)]
    for side in ("members", "heldout"):
        assert [row | {"name": ""} for row in splits[0][side]] == splits[1][side]
    assert start(monkeypatch, "verify", f"--workdir={workdir}") == 0


def private(workdir):
    settings = from_config(saved_config(workdir))
    return dataclasses.replace(settings, report=dataclasses.replace(settings.report, private=True))


@pytest.mark.parametrize("name", ["forget", "record"])
def test_a_kill_while_names_are_left_out_is_no_change(named, tmp_path, monkeypatch, name):
    """Its record of the split is taken back, the split is written, it is recorded: between any two of these."""
    workdir = shutil.copytree(named[1], tmp_path / "run")
    original = getattr(work_units.Unit, name)

    def kill(unit, path):
        if name == "forget":
            original(unit, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(work_units.Unit, name, kill)
    with pytest.raises(KeyboardInterrupt):
        stage_inputs.withhold_names(private(workdir), workdir)
    monkeypatch.setattr(work_units.Unit, name, original)
    stage_inputs.withhold_names(private(workdir), workdir)
    assert start(monkeypatch, "verify", f"--workdir={workdir}") == 0
    assert b"lovelace" not in (workdir / "train" / "split.json").read_bytes()
    assert "train/split.json" in json.loads((workdir / "train" / "manifest.json").read_text())["sha256"]
    stage_inputs.load_split(private(workdir), workdir)


def test_a_changed_split_is_found_before_names_are_left_out(named, tmp_path):
    workdir = shutil.copytree(named[1], tmp_path / "run")
    put(workdir / "train" / "split.json", more=1)
    with pytest.raises(InputError, match=r"split.json was changed after it was written"):
        stage_inputs.withhold_names(private(workdir), workdir)


def test_only_its_owner_can_open_a_new_workdir(named, tmp_path):
    assert named[1].stat().st_mode & 0o777 == 0o700
    (tmp_path / "old").mkdir(mode=0o755)
    before = os.umask(0)
    try:
        for name in ("old", "new"):
            files.make_private(tmp_path / name)
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("old", "new")] == [0o755, 0o700]
