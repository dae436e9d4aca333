"""Outputs of a finished run that are lost or damaged: run again, only their unit is gone through, to the same bytes."""

import itertools
import json
import shutil

import runs

from side_jax.config import from_config
from side_jax.pipeline.saved_config import saved_config
from side_jax.sampling import shards
from side_jax.stages import stage_table, train
from side_jax.training import trainer

CURVES = [f"surrogate/side/{name}.jsonl" for name in ("metrics", "validation")]
# What is lost together; all of it is made again by the unit that it belongs to, in one go.
LOST = {
    "train": [["train/split.json", "checkpoints/40"], ["checkpoints"]],
    "synthesize": [["synthesize/samples.png", "synthesize/shard_00003.npz"]],
    "label": [["label/labels.npz", "label/clusters.png"]],
    "surrogate/side": [["surrogate/side/checkpoints/30", "surrogate/side/levels.json"], CURVES],
    "extract/side_10": [["extract/side_10/shard_00001.npz"]],
    "evaluate": [[f"evaluate/{name}" for name in ("results.json", "matches.csv", "members.csv")]],
    "report": [
        [f"report/{name}" for name in ("index.html", "guidance.png", "matches_unconditional.png", "rarefaction.png")]
    ],
}
UNITS = [
    "train",
    "synthesize",
    "label",
    "surrogate/side",
    "surrogate/conditional",
    "extract/side_10",
    "evaluate",
    "report",
]


def contents(workdir):
    """{file: its bytes}; of checkpoints, which hold times, the digests of their arrays; nothing of TensorBoard's."""
    found = {}
    for path in workdir.rglob("*"):
        name = path.relative_to(workdir)
        if not path.is_file() or "tensorboard" in name.parts or name.name == ".lock":
            continue
        if not {"checkpoints", "best"}.isdisjoint(name.parts):
            if name.parent.name == "meta" and name.name == "metadata":
                found[name] = json.loads(path.read_text())["sha256"]
        else:
            found[name] = path.read_bytes()
    return found


def lose(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def busy(said):
    """The units that the last run found something to do in."""
    return {unit for unit in UNITS if f"{unit}: up to date, nothing to do." not in said.messages}


def test_each_output_that_is_lost_is_noticed(workdir):
    """One alone, without the others."""
    settings = from_config(saved_config(workdir))
    works = [work.unit for stage in stage_table.STAGES.values() for work in stage.plan(settings, workdir)]
    units = {unit.name: unit for unit in works if unit.name in LOST}
    parts = {
        "synthesize": stage_table.synthetic_shards(settings, workdir),
        "extract/side_10": stage_table.extracted_shards(settings, units["extract/side_10"]),
    }

    def whole(unit):
        return units[unit].done() and (unit not in parts or shards.complete(parts[unit]))

    for unit, losses in LOST.items():
        assert whole(unit)
        for name in itertools.chain(*losses):
            kept = (workdir / name).rename(workdir.with_name("kept"))
            assert not whole(unit), name
            kept.rename(workdir / name)
        assert whole(unit)


def test_what_is_lost_is_made_again(workdir, said):
    """One unit after the other, in one workdir: only it is gone through, to what was there before."""
    before = contents(workdir)
    assert sum(isinstance(value, dict) for value in before.values()) == 5  # the last steps of three networks
    for unit, losses in LOST.items():
        for names in losses:
            for name in names:
                lose(workdir / name)
            said.clear()
            assert runs.run(runs.arguments(workdir)) == 0
            assert busy(said) == {unit}
            assert not (workdir / "stale").exists()
            assert contents(workdir) == before, names
    said.clear()
    assert runs.run(runs.arguments(workdir)) == 0
    assert busy(said) == set()


def test_the_best_parameters_are_found_again(tmp_path, said):
    """With early stopping, on losing what only the whole of training can give, the classifier is trained anew."""
    options = {"train__num_steps": 1, "extract__attacks": "('conditional',)", "conditional__num_steps": 30}
    options |= {"conditional__validate_every": 5, "conditional__patience": 1}
    workdir = tmp_path / "run"
    argv = runs.arguments(workdir, "train,surrogate", **options)
    assert runs.run(argv) == 0
    before = contents(workdir)
    assert "best_step" in json.loads((workdir / "surrogate" / "conditional" / "manifest.json").read_text())
    for name in ("best", "validation.jsonl"):
        lose(workdir / "surrogate" / "conditional" / name)
        said.clear()
        assert runs.run(argv) == 0
        assert contents(workdir) == before
        assert "train: up to date, nothing to do." in said.messages


def test_a_damaged_file_is_named_and_deleting_it_helps(workdir, said, capsys):
    before = contents(workdir)
    for name, cause in (
        ("label/labels.npz", "surrogate/side/levels.json"),
        ("evaluate/results.json", "report/index.html"),
    ):
        path = workdir / name
        path.write_bytes(path.read_bytes()[:50])
        lose(workdir / cause)
        assert runs.run(runs.arguments(workdir)) == 1
        assert f"{path} is damaged" in capsys.readouterr().err
        lose(path)
        assert runs.run(runs.arguments(workdir)) == 0
        assert contents(workdir) == before


def test_stages_that_need_what_is_lost(workdir, capsys):
    lose(workdir / "label" / "labels.npz")
    assert runs.run(runs.arguments(workdir, "surrogate")) == 1
    assert "run --stages=label,surrogate instead" in capsys.readouterr().err


def test_a_lost_target_is_still_the_same_target(finished, workdir, capsys, monkeypatch):
    """Neither other settings nor other data make it again."""
    monkeypatch.setattr(trainer, "run", None)
    lose(workdir / "checkpoints")
    assert runs.run(runs.arguments(workdir, train__num_steps=50)) == 1
    assert "another config" in capsys.readouterr().err
    lose(workdir / "train" / "split.json")
    made = json.loads((finished / "train" / "split.json").read_text())
    made["members"][0], made["heldout"][0] = made["heldout"][0], made["members"][0]
    monkeypatch.setattr(train.split, "make_split", lambda *args: made)
    for _ in range(2):  # the refusal changes nothing
        assert runs.run(runs.arguments(workdir)) == 1
        assert "the data are no longer those that the model was trained on" in capsys.readouterr().err
        assert not (workdir / "train" / "split.json").exists()
