"""The audit of images alone, in this process: every figure of a case whose answer is known, and every refusal."""

import csv
import errno
import hashlib
import json
import re
import shutil
from pathlib import Path

import browser
import hubs
import jsonschema
import numpy as np
import pytest
from PIL import Image

from side_jax import evaluate
from side_jax.commands import cli, out_folder, sample_audit
from side_jax.data import hub_images, image_sets
from side_jax.errors import InputError
from side_jax.report import writer

SCHEMA = json.loads((Path(__file__).parents[2] / "side_jax" / "measure" / "results.schema.json").read_text())
ALL = "--config.evaluate.metrics=('normalized_l2','rmse','tiled_l2','distance_ratio','cosine')"
SHORT = ("--config.evaluate.distribution=False", "--config.evaluate.controls=False")
COPIES = (0, 0, 5)  # of members, what the first samples are; the next is held-out image 7, the rest are fresh


def noise(n, seed, shape=(8, 8, 1)):
    """Images in which nothing is near anything."""
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def pictures(folder, images, name="{:02d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(folder / name.format(i))


def arguments(folder, out, *more, **paths):
    paths = {name: folder / name for name in sample_audit.LEAST} | paths
    return ["evaluate", *(f"--{name}={path}" for name, path in paths.items()), f"--out={out}", *more]


def audit(folder, out, *more, **paths):
    assert cli.audit_samples(arguments(folder, out, *more, **paths)) == 0
    return json.loads((out / "results.json").read_text())


def refused(capsys, argv, code, *words):
    """Checks for one sentence on stderr, which holds the words, and nothing else."""
    assert cli.audit_samples(["evaluate", *argv]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("side_jax: ")
    assert err.count("\n") == 1
    assert not re.search(r"Traceback|Error", err), err
    for word in words:
        assert word in err
    return err


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def saved(folder, **arrays):
    """NPZ files; the arguments that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, images in arrays.items():
        np.savez(folder / f"{name}.npz", images=images)
    return {name: folder / f"{name}.npz" for name in arrays}


@pytest.fixture(scope="module")
def images():
    """8 samples, of which 3 copy members 0, 0 and 5 and one held-out image 7; 12 members; 12 held-out images."""
    members, heldout, fresh = noise(12, 0), noise(12, 1), noise(4, 2)
    return np.concatenate([members[list(COPIES)], heldout[[7]], fresh]), members, heldout


@pytest.fixture(scope="module")
def sets(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("sets")
    for (name, prefix), of in zip({"samples": "gen", "members": "ada", "heldout": "bob"}.items(), images, strict=True):
        pictures(folder / name, of, prefix + "_{:02d}.png")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, sets):
    """The folder of a finished audit with every measure; read it, never write to it."""
    out = tmp_path_factory.mktemp("finished") / "out"
    audit(sets, out, ALL, "--config.evaluate.false_match_rate=0.2", "--title=Wards & <co>")
    return out


@pytest.fixture(scope="module")
def results(finished):
    return json.loads((finished / "results.json").read_text())


def test_results_follow_the_schema(results):
    jsonschema.validate(results, SCHEMA)
    assert {row["level"] for row in results["rows"]} == {
        "high",
        "mid",
        "low",
        "high to mid",
        "high to low",
        "calibrated",
    }
    assert {row["attack"] for row in results["rows"]} == {"samples"}


@pytest.mark.parametrize("metric", ["normalized_l2", "rmse", "tiled_l2", "distance_ratio", "cosine"])
def test_a_known_case_by_every_measure(results, metric):
    """3 of 8 match 2 members, 1 of 8 a held-out image: p is that of 12 of 24 images with both or one of the 2."""
    (row,) = (row for row in results["rows"] if (row["metric"], row["level"]) == (metric, "high"))
    assert (row["ams"], row["unique"], row["ums_nearest"]) == (3 / 8, 2, 2 / 8)
    assert (row["heldout_ams"], row["heldout_unique"]) == (1 / 8, 1)
    assert (row["excess"], row["n_generated"]) == (2 / 8, 8)
    assert row["unique_excess"] == 1
    assert row["p_excess"] == pytest.approx((1 - 12 * 11 / (23 * 22)) / 2, abs=0.015)
    assert (row["ums"], row["heldout_ums"]) == (2 / 8, 1 / 8)
    (seen,) = results["rarefaction"]
    assert seen["expected"][-1] == pytest.approx(2)


def test_results_say_what_was_compared(results, images):
    assert results["dataset"] == {
        "name": "Wards & <co>",
        "members": 12,
        "heldout": 12,
        "heldout_used": 12,
        "members_untested": 0,
        "member_near_pairs": 0,
        "image_shape": [8, 8, 1],
        "heldout_equal_dropped": 0,
        "heldout_near_dropped": 0,
    }
    for (name, found), of in zip(results["sets"].items(), (images[2], images[1], images[0]), strict=True):
        hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in of]
        digest = hashlib.sha256(f"{of.shape}{''.join(hashes)}".encode()).hexdigest()
        repeats = 1 if name == "samples" else 0
        assert found.pop("reading")["passed_over"] == {}
        assert found.pop("commit") == ""
        assert found == {"images": len(of), "sha256": digest, "damaged": 0, "repeats": repeats, "colour": False}


def test_matches_are_those_of_brute_force(finished, images):
    made, *sides = (of.reshape(len(of), -1) / 127.5 - 1 for of in images)
    rows = table(finished / "matches.csv")
    assert [int(row["index"]) for row in rows] == list(range(8))
    assert {(row["attack"], row["guidance_scale"], row["label"]) for row in rows} == {("samples", "0.0", "-1")}
    for name, among in zip(("member", "heldout"), sides, strict=True):
        distance = np.sqrt(((made[:, None] - among[None]) ** 2).mean(-1))
        near = np.sort(distance, axis=1)
        expected = {
            "rmse": near[:, 0],
            "normalized_l2": near[:, 0] / (0.5 * near[:, :10].mean(1)),
            "distance_ratio": near[:, 0] / near[:, 1],
        }
        for metric, value in expected.items():
            np.testing.assert_allclose([float(row[f"{metric}_{name}"]) for row in rows], value, rtol=1e-4, atol=1e-6)
            assert [int(row[f"{metric}_{name}_id"]) for row in rows] == distance.argmin(1).tolist()
            copied = {"member": [0, 1, 2], "heldout": [3]}[name]
            assert [i for i, row in enumerate(rows) if row[f"{metric}_{name}_match"] == "1"] == copied


def test_tables_name_every_image_by_its_place_in_its_set(finished, images):
    rows = table(finished / "members.csv")
    assert [(row["side"], int(row["id"])) for row in rows] == [
        (s, i) for s in ("members", "heldout") for i in range(12)
    ]
    names = [f"{prefix}_{i:02d}.png" for prefix in ("ada", "bob") for i in range(12)]
    hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in np.concatenate(images[1:])]
    assert [(row["name"], row["sha256"]) for row in rows] == list(zip(names, hashes, strict=True))
    counts = ["2", "0", "0", "0", "0", "1", *["0"] * 6, *[""] * 12]
    assert [row["extracted_samples_0"] for row in rows] == counts
    rows = table(finished / "samples.csv")
    assert [(row["index"], row["name"]) for row in rows] == [(str(i), f"gen_{i:02d}.png") for i in range(8)]
    assert [row["sha256"] for row in rows[:3]] == [hashes[i] for i in COPIES]


def test_the_folder_holds_what_help_and_readers_expect(finished):
    assert {path.name for path in finished.iterdir()} == set(sample_audit.FILES)


@pytest.mark.browser
def test_the_page_shows_the_case(finished, chromium):
    browser.visit(chromium, finished / "index.html")
    assert browser.complaints(chromium) == []
    assert browser.requested(chromium) == {(finished / "index.html").as_uri()}
    text = chromium.execute_script("return document.body.textContent")
    titles = "return [...document.querySelectorAll('#list strong')].map(e => e.textContent)"
    shown = chromium.execute_script(titles)
    assert set(shown[:2]) == {"Image 0", "Image 2"}  # the cards of members 0, with image 1 inside, and 5
    chromium.find_element("css selector", "#matched").click()
    assert set(chromium.execute_script(titles)) == {"Image 0", "Image 2"}
    assert chromium.find_element("css selector", "#count").text == "3 of 8 pairs, members: 2"
    assert (
        chromium.execute_script("return document.title")
        == "Not decided: Wards & <co>: how much training data comes out"
    )
    for said in (
        "of the 8 samples given, 3 match a training image, and 1 matches one of as many images that it never saw",
        "37.50% of the 8 samples given match a training image: 2 of the 12 members were matched.",
        "rmse 37.50% and 12.50%",
        "Compared: 8 samples, 12 members, 12 held-out images. Samples that repeat an earlier one: 1.",
        "python -m side_jax.evaluate --samples=",
    ):
        assert said in text


@pytest.mark.usefixtures("no_figures")
def test_held_out_images_that_are_members_and_equal_images_are_left_out_and_said(tmp_path):
    members, heldout = noise(12, 0), noise(14, 1)
    heldout[2], heldout[6] = members[3], np.where(members[4] > 100, members[4] - 1, members[4] + 1)
    heldout[9] = heldout[8]
    members[7] = np.where(members[0] > 100, members[0] - 2, members[0] + 2)
    paths = saved(tmp_path, samples=noise(4, 2), members=members[[*range(12), 5, 5]], heldout=heldout)
    found = audit(tmp_path, tmp_path / "out", *SHORT, **paths)
    data, sets = found["dataset"], found["sets"]
    assert (data["members"], data["heldout"], data["heldout_used"]) == (12, 11, 11)
    assert (data["heldout_equal_dropped"], data["heldout_near_dropped"], data["members_untested"]) == (1, 1, 2)
    assert data["member_near_pairs"] == 1
    assert {name: about["repeats"] for name, about in sets.items()} == {"samples": 0, "members": 2, "heldout": 1}
    assert {name: about["images"] for name, about in sets.items()} == {"samples": 4, "members": 12, "heldout": 11}
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    for said in (
        "Compared: 4 samples, 12 members, 11 held-out images.",
        "Left out, members that equal another: 2.",
        "Left out, held-out images that equal another: 1.",
        "Left out, held-out images that equal a member: 1.",
        "Left out, held-out images nearer than 0.05 (RMSE) to a member: 1.",
        "2 members nearly equal an image that was left out of the held-out ones",
        "1 pair of members nearly equal each other",
    ):
        assert said in page
    assert "repeat an earlier one" not in page
    kept = [row["name"] for row in table(tmp_path / "out" / "members.csv") if row["side"] == "heldout"]
    assert kept == [str(i) for i in range(14) if i not in (2, 6, 9)]


@pytest.mark.usefixtures("no_figures")
def test_damaged_files_up_to_the_limit_are_left_out_and_said(tmp_path, sets, capsys):
    pictures(tmp_path / "samples", noise(4, 2, (11, 9, 1)))
    (tmp_path / "samples" / "00.png").write_text("no picture")
    options = {"samples": tmp_path / "samples"}
    text = refused(capsys, arguments(sets, tmp_path / "out", **options)[1:], 1, "1 of the 4 images of --samples=")
    assert "00.png" in text
    found = audit(sets, tmp_path / "out", "--max_corrupt=1", "--size=8", *SHORT, **options)
    samples = found["sets"]["samples"]
    assert (samples["images"], samples["damaged"], samples["repeats"]) == (3, 1, 0)
    assert samples["reading"]["reshaped"] == 3
    assert "Reading the samples: 3 pictures cropped to squares" in capsys.readouterr().out
    assert found["dataset"]["image_shape"] == [8, 8, 1]
    assert "Left out, damaged files: 1." in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_figures")
def test_the_control_is_of_images_drawn_at_random(tmp_path):
    """Folders hold one class after the other; here the last 12 of 24 members are copied, and 12 images held out."""
    members = noise(24, 0)
    paths = saved(tmp_path, samples=members[12:], members=members, heldout=noise(12, 1))
    (row,) = (
        r for r in audit(tmp_path, tmp_path / "a", *SHORT, **paths)["rows"] if r["level"] + r["metric"] == "highrmse"
    )
    assert (row["ams"], row["heldout_ams"]) == (1, 0)
    assert 0.25 < row["excess"] < 0.75  # 6 of the 12 that are drawn, on average
    page = (tmp_path / "a" / "index.html").read_text(encoding="utf-8")
    assert "Of 24 members one is nearer by chance alone" in page
    # And of 24 held-out images some 6 of the 12 copied ones are the control of 12 members; all 24 calibrate.
    heldout = paths | {"members": paths["heldout"], "heldout": paths["members"]}
    found = audit(tmp_path, tmp_path / "b", *SHORT, "--config.evaluate.false_match_rate=0.1", **heldout)
    (row,) = (r for r in found["rows"] if r["level"] + r["metric"] == "highrmse")
    assert row["ams"] == 0
    assert 0.25 < row["heldout_ams"] < 0.75
    assert (found["dataset"]["heldout"], found["dataset"]["heldout_used"]) == (24, 12)
    assert found["thresholds"]["rmse"]["calibrated_on"] == 12
    page = (tmp_path / "b" / "index.html").read_text(encoding="utf-8")
    assert "Something is wrong with the sets: of the 12 samples given" in page
    assert "The control is 12 of 24 held-out images, drawn at random" in page


@pytest.mark.usefixtures("no_figures")
def test_streams_and_parts_give_the_same_figures(tmp_path, sets, finished, monkeypatch):
    """Of sets too large for the memory, and compared three samples at a time."""
    monkeypatch.setattr(image_sets, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(sample_audit, "CHUNK", 3 * 64)
    options = (ALL, "--config.evaluate.false_match_rate=0.2", "--title=Wards & <co>")
    found = audit(sets, tmp_path / "out", *options)
    for name in ("results.json", "matches.csv", "members.csv", "samples.csv", "matches_samples.png"):
        assert (tmp_path / "out" / name).read_bytes() == (finished / name).read_bytes(), name
    assert found["sets"]["samples"]["images"] == 8


@pytest.mark.usefixtures("no_figures")
def test_colour_images_that_are_not_square_with_a_grid_of_their_own(tmp_path):
    shape = (10, 5, 3)
    members = noise(4, 0, shape)
    paths = saved(tmp_path, samples=members[:2], members=members, heldout=noise(4, 1, shape))
    options = ("--config.evaluate.metrics=('tiled_l2','rmse')", "--config.evaluate.tiled_l2_grid=5")
    found = audit(tmp_path, tmp_path / "out", *options, *SHORT, **paths)
    assert found["dataset"]["image_shape"] == [10, 5, 3]
    assert found["rows"][0]["metric"] == "tiled_l2"
    assert found["rows"][0]["ams"] == 1
    with Image.open(tmp_path / "out" / "matches_samples.png") as sheet:
        assert sheet.mode == "RGB"


def test_a_second_run_replaces_the_first_whole_and_nothing_else(tmp_path, sets, finished):
    """What the first left of sharp pictures must not lie beside a private page."""
    out = shutil.copytree(finished, tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    (out / "own.png").write_text("mine")
    audit(sets, out, "--config.report.private=True", "--config.evaluate.metrics=('rmse',)", *SHORT)
    gone = {"matches_samples.png", "sensitivity.svg"}
    assert {path.name for path in out.iterdir()} == set(sample_audit.FILES) - gone | {"notes.txt", "own.png"}
    assert len(table(out / "matches.csv")[0]) == 11
    assert "Private version" in (out / "index.html").read_text(encoding="utf-8")


def raising(error):
    def write(*_):
        raise error

    return write


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InputError("the features are not finite."), "the features are not finite."),
        (
            OSError(errno.ENOSPC, "No space left on device", "page"),
            "writing page failed: No space left on device. What was written before is kept; fix this and run the same",
        ),
    ],
)
def test_a_failure_halfway_leaves_the_earlier_result(tmp_path, sets, finished, capsys, monkeypatch, error, words):
    out = shutil.copytree(finished, tmp_path / "out")
    before = everything(tmp_path)
    monkeypatch.setattr(writer, "write", raising(error))
    assert cli.audit_samples(arguments(sets, out, *SHORT)) == 1
    assert words in capsys.readouterr().err
    assert everything(tmp_path) == before
    assert not (out / out_folder.UNFINISHED).exists()


def test_a_failure_leaves_no_folder_that_it_made(tmp_path, sets, monkeypatch):
    monkeypatch.setattr(writer, "write", raising(InputError("no")))
    assert cli.audit_samples(arguments(sets, tmp_path / "new" / "out", *SHORT)) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("no_figures")
def test_what_a_kill_left_is_no_hindrance(tmp_path, sets):
    """Killed while files were moved to their place the first time: there is no results.json yet."""
    (tmp_path / "out" / out_folder.UNFINISHED).mkdir(parents=True)
    for name in ("index.html", f"{out_folder.UNFINISHED}/results.json"):
        (tmp_path / "out" / name).write_text("half")
    audit(sets, tmp_path / "out", "--config.evaluate.metrics=('rmse',)", *SHORT)
    assert not (tmp_path / "out" / out_folder.UNFINISHED).exists()


def test_a_private_page_holds_no_name_and_no_path(tmp_path, images):
    folder = tmp_path / "ward_seven"
    for (name, prefix), of in zip(
        {"samples": "drawn", "members": "ada", "heldout": "bob"}.items(), images, strict=True
    ):
        pictures(folder / name, of, prefix + "_lovelace_{:02d}.png")
    options = ("--config.report.private=True", "--config.label.weights=/lovelace/weights.onnx")
    found = audit(folder, tmp_path / "out", *options, *SHORT)
    jsonschema.validate(found, SCHEMA)
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    text = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", page)
    for secret in ("lovelace", "ada_", "bob_", "drawn_", "ward_seven", str(tmp_path), "members/", ".png", "--samples"):
        assert secret not in text, secret
    assert text.count("Image 0") > 0
    assert "find an id or name" not in text.lower()
    assert not list((tmp_path / "out").glob("matches*.png"))
    for name in ("results.json", "matches.csv", "members.csv", "samples.csv"):
        assert "lovelace" not in (tmp_path / "out" / name).read_text()
    for name in ("members.csv", "samples.csv"):
        assert {row["name"] for row in table(tmp_path / "out" / name)} == {""}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700


def test_help_is_printed(capsys):
    for flag in ("--help", "-h"):
        assert cli.audit_samples(["evaluate", "--samples", flag]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        for words in ("--samples=PATH", "--max-corrupt=N", "--config.SECTION.SETTING=VALUE", "Exit codes"):
            assert words in out


def test_the_command_knows_which_audit_is_asked_for(monkeypatch):
    called = []
    monkeypatch.setattr(cli, "audit_samples", lambda argv: called.append("samples") or 7)
    monkeypatch.setattr(cli, "main", lambda argv, doc, stages, suspects_stages: called.append(stages) or 8)
    for argv, code in (
        (["--samples=a"], 7),
        (["--out=b", "-members", "a"], 7),
        (["--heldout=a"], 7),
        (["--workdir=w"], 8),
        (["--workdir=w", "--suspects"], 8),
    ):
        monkeypatch.setattr("sys.argv", ["evaluate", *argv])
        with pytest.raises(SystemExit) as ended:
            evaluate.main()
        assert ended.value.code == code
    assert called == ["samples"] * 3 + [("evaluate", "report")] * 2


GIVEN = ("--samples=s", "--members=m", "--heldout=h", "--out=o")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--members=m", "--heldout=h", "--out=o"), "--samples=PATH is missing"),
        (("--samples=s", "--heldout=h", "--out=o"), "--members=PATH is missing"),
        (("--samples=s", "--members=m", "--out=o"), "--heldout=PATH is missing"),
        (("--samples=s", "--members=m", "--heldout=h"), "--out=PATH is missing"),
        (("--samples=s", "--members=", "--heldout=h", "--out=o"), "--members=PATH is missing"),
        ((*GIVEN, "stray"), "'stray' is not an option"),
        ((*GIVEN, "--bogus=1"), "Unknown command line flag 'bogus'"),
        ((*GIVEN, "--size=wide"), "--size=wide"),
        ((*GIVEN, "--max_corrupt=-1"), "--max_corrupt=-1"),
        ((*GIVEN, "--config.evaluate.rmse_below=near"), "--config.evaluate.rmse_below=near"),
        ((*GIVEN, "--config.evaluate.rmse=1"), "--config.evaluate.rmse is not a setting; config.evaluate has"),
        (
            (*GIVEN, "--config.train.num_steps=1"),
            "--config.train.num_steps has no effect on a samples-only audit",
        ),
        ((*GIVEN, "--config=configs/digits.py"), "--config has no effect on a samples-only audit"),
        (("--samples",), "Missing value for flag --samples"),
    ],
)
def test_command_lines_that_can_not_be_read(tmp_path, capsys, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    refused(capsys, argv, 2, words)
    assert not list(tmp_path.iterdir())


UNUSABLE = {
    "a set that is missing": (lambda t: {"members": t / "none"}, "none does not exist"),
    "one set twice": (lambda t: {"members": t / "heldout"}, "are the same; each set needs its own images"),
    "an unusable array": (
        lambda t: saved(t / "x", samples=np.zeros((4, 8, 8), np.float32)),
        "is of type float32, but it must be uint8",
    ),
    "sizes that differ": (lambda t: saved(t / "x", samples=noise(4, 0, (9, 8, 1))), "9 pixels", "give --size=N"),
    "one sample": (lambda t: saved(t / "x", samples=noise(1, 0)), "samples.npz has 1 image, but at least 2 are needed"),
    "two members": (
        lambda t: saved(t / "x", members=noise(2, 0)[[0, 1, 1]]),
        "members.npz has 2 images that differ, but at least 3 are needed",
    ),
    "too few members for normalized_l2": (
        lambda t: saved(t / "x", members=noise(9, 0)),
        "has 9 images that differ, but config.evaluate.normalized_l2_neighbors = 10 needs 10; give more, or "
        "--config.evaluate.normalized_l2_neighbors=9.",
    ),
    "too few held-out images around a member": (
        lambda t: saved(t / "x", heldout=noise(10, 3)) | {"more": ["--config.evaluate.normalized_l2_around=member"]},
        "that differ and are not members, but config.evaluate.normalized_l2_neighbors = 10 needs 11; give more, or "
        "--config.evaluate.normalized_l2_neighbors=9.",
    ),
    "more neighbours than a model's audit has images by default": (
        lambda t: {"more": ["--config.evaluate.normalized_l2_neighbors=300"]},
        "needs 300; give more, or --config.evaluate.normalized_l2_neighbors=12.",
    ),
    "held-out images that are members": (
        lambda t: saved(t / "x", heldout=noise(12, 0)),
        "every image of --heldout=",
        "hold out images that the model has not seen",
    ),
    "a grid that does not divide": (
        lambda t: {"more": ["--config.evaluate.metrics=('tiled_l2',)", "--config.evaluate.tiled_l2_grid=3"]},
        "config.evaluate.tiled_l2_grid is 3, which does not divide images of 8 x 8 pixels; choose a divisor",
    ),
    "features of a model": (
        lambda t: {"more": ["--config.label.features=denoiser"]},
        "config.label.features is 'denoiser', which needs the model; for a samples-only audit choose one of pixels",
    ),
    "weights that are missing": (
        lambda t: {"more": ["--config.label.features=onnx", "--config.label.weights=none.onnx"]},
        "config.label.weights is 'none.onnx', which is not a file",
    ),
    "a value out of its range": (
        lambda t: {"more": ["--config.evaluate.rmse_below=-1"]},
        "config.evaluate.rmse_below is -1.0, but it must be above 0",
    ),
    "a measure that isn't there": (lambda t: {"more": ["--config.evaluate.metrics=('l3',)"]}, "'l3'", "must be one of"),
    "a size that is none": (lambda t: {"more": ["--size=0"]}, "--size is 0, but it must be between"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_input_that_can_not_be_used_leaves_everything_as_it_was(tmp_path, sets, finished, capsys, case):
    """An earlier result in --out, and where there is none not even the folder."""
    make, *words = UNUSABLE[case]
    (tmp_path / "heldout").symlink_to(sets / "heldout")
    options = make(tmp_path)
    more = options.pop("more", [])
    old, before, mine = tmp_path / "old", everything(finished), everything(sets)
    shutil.copytree(finished, old)
    refused(capsys, arguments(sets, tmp_path / "a" / "new", *more, **options)[1:], 1, *words)
    assert not (tmp_path / "a").exists()
    refused(capsys, arguments(sets, old, *more, **options)[1:], 1, *words)
    assert (everything(old), everything(sets)) == (before, mine)


def test_folders_that_can_not_be_written_to(tmp_path, images, capsys):
    for name, of in zip(sample_audit.LEAST, images, strict=True):
        pictures(tmp_path / name, of)
    (tmp_path / "link").symlink_to(tmp_path / "members")
    others = tmp_path / "others"
    for name, content in (
        ("file", "x"),
        ("others/mine.txt", "x"),
        ("run/results.json", '{"rows": []}'),
        ("broken/results.json", "{"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    before = everything(tmp_path)
    for out, words in (
        (tmp_path / "members", "lies in --members="),
        (tmp_path / "members" / "deep" / "out", "lies in --members="),
        (tmp_path / "link" / "out", "lies in --members="),
        (tmp_path / "samples" / ".." / "samples" / "out", "lies in --samples="),
        (others, "others holds other files; name a new or an empty folder"),
        (tmp_path / "run", "run holds other files"),
        (tmp_path / "broken", "broken holds other files"),
        (tmp_path / "file", "can't be written (Not a directory)"),
        (tmp_path / "file" / "out", "can't be written (Not a directory)"),
    ):
        refused(capsys, arguments(tmp_path, out)[1:], 1, words)
        assert everything(tmp_path) == before, out
    assert not (tmp_path / "members" / "deep").exists()


def test_a_gate_on_images_alone(tmp_path, capsys):
    members, heldout = noise(40, 0), noise(40, 1)
    named = saved(tmp_path, samples=np.concatenate([members[:30], noise(70, 2)]), members=members, heldout=heldout)
    assert cli.audit_samples(arguments(tmp_path, tmp_path / "out", *SHORT, "--json", "--fail-above=20%", **named)) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["failed"]) == ("Leaks", True)
    assert found["attacks"][0]["ams"] == pytest.approx(0.3)
    (failure,) = found["failures"]
    assert "30.00% match a training image" in failure
    assert cli.audit_samples(arguments(tmp_path, tmp_path / "out", *SHORT, "--fail-above=40%", **named)) == 0
    assert "Fails: " not in capsys.readouterr().out
    refused(capsys, arguments(tmp_path, tmp_path / "out", "--fail-above=2", **named)[1:], 2, "--fail-above=2 must be")


def test_no_file_name_is_a_formula_in_a_table(images, tmp_path):
    """A spreadsheet computes a cell that begins with one of these."""
    for name, prefix, of in zip(sample_audit.LEAST, ("=1+", "@SUM(A", "-2+"), images, strict=True):
        pictures(tmp_path / name, of, prefix + "{:02d}.png")
    audit(tmp_path, tmp_path / "out", *SHORT)
    names = [row["name"] for file in ("samples", "members") for row in table(tmp_path / "out" / f"{file}.csv")]
    assert {name[:4] for name in names} == {"\\x3d", "\\x40", "\\x2d"}
    for path in (tmp_path / "out").glob("*.csv"):
        cells = [
            cell
            for row in csv.reader(path.read_text(encoding="utf-8").splitlines())
            for cell in row
            if cell[:1] in set("=+-@")
        ]
        assert all(np.isfinite(float(cell)) for cell in cells)


@hubs.needed
def test_the_commit_of_a_hub_s_images_is_recorded(sets, tmp_path, monkeypatch):
    """Of each set that is from there, in results.json and on the page; others have none."""
    hub_images.fetch.cache_clear()
    with hubs.serving() as hub:
        hubs.connect(monkeypatch, hub.address, tmp_path / "cache")
        members = {f"seen/{path.name}": path.read_bytes() for path in (sets / "members").iterdir()}
        hub.add("me/set", members, kind="dataset")
        results = audit(sets, tmp_path / "out", *SHORT, members="hf://datasets/me/set/seen")
    assert {name: one["commit"] for name, one in results["sets"].items()} == {
        "samples": "",
        "members": hubs.MAIN,
        "heldout": "",
    }
    assert hubs.MAIN in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    jsonschema.validate(results, SCHEMA)
