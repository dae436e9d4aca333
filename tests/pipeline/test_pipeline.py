"""The whole pipeline by its command line: what it writes, and that running it again redoes only what it must."""

import csv
import json
import re
import shutil

import jsonschema
import numpy as np
import pytest
import runs
from PIL import Image

from side_jax.config import from_config
from side_jax.measure.target_scores import TargetScores
from side_jax.pipeline.saved_config import saved_config
from side_jax.settings import Evaluate
from side_jax.stages import stage_inputs
from side_jax.training import trainer


@pytest.fixture(scope="module")
def whole():
    """The finished run, evaluated by everything that there is; read it, never write to it."""
    return runs.finished("whole")


def snapshot(workdir):
    """{file: time of its last change} of everything but the lock, the log, config.json and what is stale."""
    skipped = {".lock", "run.log", "config.json"}
    files = {path.relative_to(workdir): path for path in workdir.rglob("*") if path.is_file()}
    kept = {name: path for name, path in files.items() if name.name not in skipped and name.parts[0] != "stale"}
    return {name: path.stat().st_mtime_ns for name, path in kept.items()}


def test_results_follow_the_contract(finished):
    results = json.loads((finished / "evaluate" / "results.json").read_text())
    assert set(results) >= {"rows", "dataset", "versions"}
    assert results["dataset"]["members"] == results["dataset"]["heldout"] == 64
    runs_of = {"unconditional": (0.0,), "conditional": (1.0, 10.0), "side": (1.0, 10.0)}
    expected = {
        (attack, scale, m) for attack, scales in runs_of.items() for scale in scales for m in Evaluate().metrics
    }
    assert {(row["attack"], row["guidance_scale"], row["metric"]) for row in results["rows"]} == expected
    for row in results["rows"]:
        assert row["n_generated"] == 64
        assert 0 <= row["ams_ci"][0] <= row["ams"] <= row["ams_ci"][1] <= 1
        assert 0 <= row["heldout_ams"] <= 1
        assert row["unique"] <= 64 * row["ams"] + 1e-9
        assert (row["ams_at_most"] is None) == (row["ams"] > 0)
        assert row["unique"] <= row["ums"] * 64 + 1e-9
        assert len(row["band"]) == 2
        assert {"heldout_ums", "heldout_unique", "p95"} <= set(row)


def test_results_follow_the_schema(finished, whole):
    schema = json.loads((runs.ROOT / "side_jax" / "measure" / "results.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for workdir in (finished, whole):
        jsonschema.validate(json.loads((workdir / "evaluate" / "results.json").read_text()), schema)


def test_members_carry_their_membership_scores(whole):
    """A row for each image of both sides; SecMI, PIA and the loss of each, and how many images of a run extract it."""
    with open(whole / "evaluate" / "members.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    split = json.loads((whole / "train" / "split.json").read_text())
    for side in ("members", "heldout"):
        own = [row for row in rows if row["side"] == side]
        expected = sorted((row["id"], row["sha256"]) for row in split[side])
        assert [(int(row["id"]), row["sha256"]) for row in own] == expected
        for kind in ("loss", "secmi", "pia"):
            assert all(float(row[kind]) > 0 for row in own)
    results = json.loads((whole / "evaluate" / "results.json").read_text())
    for row in results["rows"]:
        if row["metric"] == "normalized_l2" and row["level"] == "high":
            column = f"extracted_{row['attack']}_{row['guidance_scale']:g}"
            counts = [int(one[column]) for one in rows if one["side"] == "members"]
            assert sum(count > 0 for count in counts) == row["unique"]
            assert sum(counts) == row["ams"] * row["n_generated"]
    assert set(results["membership"]) == {"timestep", "secmi_stride", "loss", "secmi", "pia"}
    assert (
        results["membership"]["loss"]["at"][0]["note"] == "a rate of 0.01 needs 99 calibration images, and there are 32"
    )


def test_matches_hold_one_row_for_each_generated_image(finished):
    with open(finished / "evaluate" / "matches.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 64
    split = json.loads((finished / "train" / "split.json").read_text())
    members = {row["id"] for row in split["members"]}
    heldout = {row["id"] for row in split["heldout"]}
    assert {int(row["rmse_member_id"]) for row in rows} <= members
    assert {int(row["rmse_heldout_id"]) for row in rows} <= heldout
    results = json.loads((finished / "evaluate" / "results.json").read_text())["rows"]
    side = [row for row in rows if (row["attack"], float(row["guidance_scale"])) == ("side", 10)]
    ams = np.mean([int(row["normalized_l2_member_match"]) for row in side])
    assert ams == next(r["ams"] for r in results if (r["attack"], r["guidance_scale"]) == ("side", 10))


def test_samples_follow_the_contract(finished):
    for run, labelled in (("unconditional", False), ("conditional_1", True), ("side_10", True)):
        shards = sorted((finished / "extract" / run).glob("shard_*.npz"))
        parts = [dict(np.load(shard, allow_pickle=False)) for shard in shards]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in ("images", "index", "label")}
        assert joined["images"].shape == (64, 8, 8, 1)
        assert [joined[name].dtype for name in ("images", "index", "label")] == [np.uint8, np.int64, np.int32]
        assert joined["index"].tolist() == list(range(64))
        assert (joined["label"].min() >= 0) == labelled


def test_labels_follow_the_contract(finished):
    with np.load(finished / "label" / "labels.npz", allow_pickle=False) as archive:
        assert set(archive.files) == {"index", "label", "features", "centroids", "cohesion", "kept"}
        assert archive["features"].shape == (128, 64)
        assert archive["centroids"].shape == (4, 64)
        assert set(archive["label"]) == set(range(int(archive["kept"].sum())))


def test_checkpoints_and_metrics_follow_the_contract(finished):
    for folder in ("checkpoints/40", "surrogate/side/checkpoints/30", "surrogate/conditional/checkpoints/10"):
        assert {"state", "ema", "meta"} <= {path.name for path in (finished / folder).iterdir()}
    for unit, steps in (("train", 40), ("surrogate/side", 30)):
        rows = [json.loads(line) for line in (finished / unit / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(10, steps + 1, 10))
        assert all(np.isfinite(row["loss"]) for row in rows)
        assert list((finished / unit / "tensorboard").glob("events.*"))
    for unit in ("train", "synthesize", "label", "surrogate", "extract", "evaluate", "report"):
        assert json.loads((finished / unit / "manifest.json").read_text())["done"] is True


def test_report_is_one_file_that_opens_from_disk(finished):
    page = (finished / "report" / "index.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#)([^"]+)', page) == ["summary.pdf"]
    assert (finished / "report" / "summary.pdf").read_bytes().startswith(b"%PDF")
    for text in ("Not decided", "Without guidance", "Guided by SIDE", "Control: of the same", "distance_ratio"):
        assert text in page
    pictures = (
        "report/matches_unconditional.png",
        "synthesize/samples.png",
        "label/clusters.png",
    )
    for picture in pictures:
        with Image.open(finished / picture) as image:
            image.verify()
    assert (finished / "report" / "guidance.svg").read_text() in page


def test_the_end_names_the_report_and_the_figures(workdir, capsys):
    assert runs.run(runs.arguments(workdir)) == 0
    printed = capsys.readouterr().out
    assert f"Report: {workdir}/report/index.html\nOne page to print: {workdir}/report/summary.pdf\n" in printed
    assert [line.strip()[:2] for line in printed.splitlines() if line.startswith("  ")] == [
        "1.",
        "2.",
        "3.",
        "4.",
        "5.",
    ]


def test_running_again_does_nothing_but_say_so(workdir, said):
    before = snapshot(workdir)
    assert runs.run(runs.arguments(workdir)) == 0
    assert snapshot(workdir) == before
    for unit in ("train", "synthesize", "label", "surrogate/side", "extract/side_10", "evaluate", "report"):
        assert f"{unit}: up to date, nothing to do." in said.messages


def test_new_scales_redo_only_what_depends_on_them(workdir, monkeypatch, no_figures):
    monkeypatch.setattr(trainer, "run", None)
    before = snapshot(workdir)
    assert runs.run(runs.arguments(workdir, extract__guidance_scales="(10.0,4.0)")) == 0
    after = snapshot(workdir)
    changed = {str(path.parent) for path in after if after[path] != before.get(path)}
    assert changed == {"extract", "extract/side_4", "extract/conditional_4", "evaluate", "report"}
    rows = json.loads((workdir / "evaluate" / "results.json").read_text())["rows"]
    assert {row["guidance_scale"] for row in rows} == {0, 4, 10}
    # The old scale's images are still there, so going back is cheap and gives the old results.
    (old,) = (workdir / "stale").glob("evaluate-*/results.json")
    assert runs.run(runs.arguments(workdir)) == 0
    assert (workdir / "evaluate" / "results.json").read_text() == old.read_text()


def test_the_model_as_it_is_keeps_its_sampler_when_the_attacks_get_their_own(workdir, monkeypatch, no_figures):
    monkeypatch.setattr(trainer, "run", None)
    before = snapshot(workdir)
    options = {"extract__num_steps": 4, "extract__solver": "dpmpp_2m", "extract__guidance_interval": "(10,90)"}
    assert runs.run(runs.arguments(workdir, **options)) == 0
    after = snapshot(workdir)
    changed = {str(path.parent) for path in after if after[path] != before.get(path)}
    guided = {f"extract/{name}_{scale}" for name in ("side", "conditional") for scale in (1, 10)}
    assert changed == guided | {"extract", "evaluate", "report"}
    page = " ".join((workdir / "report" / "index.html").read_text().split())
    assert "Unguided: ddim, 3 steps; guided: dpmpp_2m, 4 steps, with guidance at timesteps 10" in page


def test_new_clusters_leave_the_target_and_the_baselines_alone(workdir, no_figures):
    before = snapshot(workdir)
    assert runs.run(runs.arguments(workdir, label__num_clusters=3)) == 0
    after = snapshot(workdir)
    untouched = ("train", "checkpoints", "synthesize", "surrogate/conditional", "extract/unconditional")
    for path in before:
        if str(path).startswith(untouched):
            assert after[path] == before[path], path
    assert json.loads((workdir / "label" / "manifest.json").read_text())["clusters"] == 3
    assert len(list((workdir / "stale").glob("label-*"))) == 1


def test_another_threshold_leaves_the_divergence_alone(whole, tmp_path, monkeypatch, capsys):
    """Other draws do not; and a file that was changed is not believed."""

    def fail(*_):
        raise ArithmeticError("computed anew")

    workdir = shutil.copytree(whole, tmp_path / "run")
    monkeypatch.setattr(TargetScores, "divergence", fail)
    fewer = runs.WHOLE | {"evaluate__controls": False, "evaluate__distribution": False, "evaluate__membership": False}
    assert runs.run(runs.arguments(workdir, "evaluate", **fewer, evaluate__rmse_below=0.3)) == 0
    kept, made = (json.loads((w / "evaluate" / "results.json").read_text()) for w in (workdir, whole))
    assert kept["divergence"] == made["divergence"]
    with pytest.raises(ArithmeticError):
        runs.run(runs.arguments(workdir, "evaluate", **fewer, evaluate__divergence_draws=3))
    path = workdir / "train" / "divergence.json"
    path.write_text(path.read_text().replace(made["target"]["ema_sha256"], "0"))
    assert runs.run(runs.arguments(workdir, "evaluate", **fewer, evaluate__rmse_below=0.4)) == 1
    assert "train/divergence.json was changed" in capsys.readouterr().err
    path.unlink()
    with pytest.raises(ArithmeticError):
        runs.run(runs.arguments(workdir, "evaluate", **fewer, evaluate__rmse_below=0.4))


def test_binaries_share_the_workdir(finished, tmp_path, no_figures):
    """Train, extract and evaluate, one after the other, give what main gives; the last two need the workdir alone."""
    from side_jax import evaluate, extract, train

    workdir = tmp_path / "run"
    assert runs.run(runs.arguments(workdir), train.STAGES) == 0
    assert not (workdir / "synthesize").exists()
    assert runs.run([f"--workdir={workdir}"], extract.STAGES) == 0
    assert runs.run([f"--workdir={workdir}"], evaluate.STAGES) == 0
    ours, theirs = (json.loads((w / "evaluate" / "results.json").read_text()) for w in (workdir, finished))
    assert ours == theirs


def test_a_stream_trains_like_memory(finished, tmp_path):
    """Read for each batch by Grain's threads, or held in memory: the same batches, so the same parameters."""
    workdir = tmp_path / "run"
    assert runs.run(runs.arguments(workdir, "train", data__storage="stream")) == 0
    digests = []
    for one in (workdir, finished):
        settings = from_config(saved_config(one))
        digests.append(stage_inputs.load_target(settings, one).meta["sha256"]["ema"])
    assert digests[0] == digests[1]


def test_help_reads_well(capsys):
    assert runs.run(["--help"]) == 0
    printed = capsys.readouterr().out
    for word in ("--config", "--workdir", "--stages", "train, synthesize, label"):
        assert word in printed
