"""What is said at the end of each stage: the figures of its files, and nothing computed; and what a run has left."""

import dataclasses
import json

import numpy as np
import runs

from side_jax.config import from_config
from side_jax.pipeline.saved_config import saved_config
from side_jax.stages import estimates, stage_table, summaries


def tables(workdir):
    settings = from_config(saved_config(workdir))
    return {name: summaries.summary(name, settings, workdir) for name in stage_table.STAGES}


def last(path):
    return json.loads(path.read_text().splitlines()[-1])


def test_each_stage_has_its_figures(finished):
    found = tables(finished)
    assert found["report"] is found["suspects"] is None
    assert found["train"].rows == [["the target", "40", f"{last(finished / 'train' / 'metrics.jsonl')['loss']:.4g}"]]
    assert found["synthesize"].rows == [["synthetic", "128", "ddim", "3"]]
    label = np.load(finished / "label" / "labels.npz")
    assert found["label"].rows[0][:2] == ["pixels", f"{label['kept'].sum()} of {len(label['kept'])}"]
    assert found["label"].rows[0][-1] == str((label["label"] < 0).sum())
    assert [row[0] for row in found["surrogate"].rows] == ["conditional", "side"]
    levels = json.loads((finished / "surrogate" / "side" / "levels.json").read_text())
    assert found["surrogate"].rows[1][2:] == [
        "30",
        f"{levels[0]['loss']:.4g}",
        f"{100 * levels[0]['accuracy']:.2f}%",
    ]
    assert found["extract"].rows == [["unconditional", "1", "64"], ["conditional", "2", "128"], ["side", "2", "128"]]
    rows = json.loads((finished / "evaluate" / "results.json").read_text())["rows"]
    plain = next(row for row in rows if row["attack"] == "unconditional" and row["level"] == "high")
    assert found["evaluate"].title == f"evaluate, by {plain['metric']}"
    assert found["evaluate"].rows[0][:2] == ["unconditional", f"{round(64 * plain['ams'])} of 64"]
    for table in filter(None, found.values()):
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert len(table.lines()) == len(table.rows) + 2


def test_with_everything_and_without_pseudo_labels():
    everything, conditional = (tables(runs.finished(name)) for name in ("everything", "conditional"))
    assert [row[0] for row in everything["train"].rows] == ["the target", "its twin"]
    assert everything["surrogate"].rows[-1][0] == "weaker model"
    assert conditional["label"] is conditional["synthesize"] is None
    assert conditional["surrogate"] is None


def test_the_monitor_has_its_share_in_the_table(workdir):
    curve = workdir / "train" / "monitor.jsonl"
    rates = {"matched": 0.25, "matched_heldout": 0.0, "copied": 0.5, "copied_heldout": 0.125}
    curve.write_text(json.dumps({"step": 40} | rates) + "\n")
    assert tables(workdir)["train"].rows[0][3:] == ["25.00%", "0.00%"]
    curve.write_text(json.dumps({"step": 40, "copied": 0.5, "copied_heldout": 0.125}) + "\n")
    assert tables(workdir)["train"].rows[0][3:] == ["50.00%", "12.50%"]


def left(settings, workdir):
    return stage_table.left(settings, workdir, stage_table.audit_stages()).units


def test_what_is_left_in_evaluations_of_networks(finished):
    """Of another seed, everything: 40 steps of 32 images, three evaluations each; 3 steps of the sampler."""
    settings = dataclasses.replace(from_config(saved_config(finished)), seed=1)
    found = left(settings, finished)
    assert found.keys() == set(stage_table.audit_stages())
    asked = (64 + 64) * 8  # of members and held-out images, eight draws of the noise
    assert found["evaluate"]["evaluate"] == {"network": asked, "seconds": estimates.tabulating(settings)}
    assert found["label"]["label"].keys() == found["report"]["report"].keys() == {"seconds"}
    assert found["train"] == {"train": {"network": 3 * 32 * 40}}
    assert found["synthesize"] == {"synthesize": {"network": 128 * 3}}
    steps = {"side": 30, "conditional": 10}
    assert found["surrogate"] == {f"surrogate/{name}": {"classifier": 3 * 32 * steps[name]} for name in steps}
    assert len(found["extract"]) == 5
    assert found["extract"]["extract/unconditional"] == {"network": 64 * 3}
    assert found["extract"]["extract/side_10"] == {"network": 64 * 3, "classifier": 2 * 64 * 3}


def test_adapters_and_labels_of_modes_are_left(finished):
    """128 images of three rounds before they are labelled, and of two and one before a fit of 12 steps of 64 images."""
    settings = from_config(saved_config(finished))
    adapters = dataclasses.replace(settings.adapters, num_steps=12, rounds=2, keep=0.5, scales=(1.0, 3.0))
    extract = dataclasses.replace(settings.extract, attacks=("side_lora",))
    label = dataclasses.replace(settings.label, rounds=3)
    found = left(dataclasses.replace(settings, adapters=adapters, extract=extract, label=label), finished)
    assert found["synthesize"] == {}
    assert found["label"]["label"] == {"network": 128 * 3, "seconds": estimates.CLUSTERING}
    assert found["surrogate"] == {"surrogate/side_lora": {"network": 128 * 3 + 3 * 64 * 12}}
    assert found["extract"] == {f"extract/side_lora_{k}": {"network": 64 * 3 * (1 + (k == 3))} for k in (1, 3)}


def test_what_is_done_is_not_left(workdir):
    settings = from_config(saved_config(workdir))
    chosen = stage_table.audit_stages()
    assert left(settings, workdir) == {name: {} for name in chosen}
    (workdir / "label" / "labels.npz").unlink()
    assert left(settings, workdir)["label"]["label"]["seconds"] > 0
    manifest = workdir / "extract" / "side_10" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"done": False}))
    (manifest.parent / "shard_00001.npz").unlink()  # 32 of its images
    (found,) = left(settings, workdir)["extract"].values()
    assert found == {"network": 32 * 3, "classifier": 2 * 32 * 3}
    modes = dataclasses.replace(settings.extract, attacks=("unconditional", "modes"))
    found = left(dataclasses.replace(settings, extract=modes), workdir)["extract"].popitem()[1]
    assert found == {"network": 64 * settings.modes.rounds[0]}
