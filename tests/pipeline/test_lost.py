"""Outputs of a finished run that are lost or damaged: run again, only their unit is gone through, to the same bytes."""

import json
import shutil

import runs

from side_jax.stages import train
from side_jax.training import trainer

CURVES = [f"surrogate/side/{name}.jsonl" for name in ("metrics", "validation")]
LOST = [
    "train/split.json",
    "checkpoints/40",
    "checkpoints",
    "synthesize/samples.png",
    "label/labels.npz",
    "label/clusters.png",
    "surrogate/side/checkpoints/30",
    "surrogate/side/levels.json",
    *CURVES,
    "extract/side_10/shard_00001.npz",
    "evaluate/results.json",
    "evaluate/matches.csv",
    "report/index.html",
    "report/guidance.png",
    "evaluate/members.csv",
    "report/matches_unconditional.png",
    "report/rarefaction.png",
]
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


def run_again(workdir, said, name):
    """Runs again, and checks that only the unit of the file `name` is gone through, to what was there before."""
    said.clear()
    assert runs.run(runs.arguments(workdir)) == 0
    unit = "train" if name.startswith("checkpoints") else next(unit for unit in UNITS if name.startswith(unit + "/"))
    busy = {other for other in UNITS if f"{other}: up to date, nothing to do." not in said.messages}
    assert busy == {unit}
    assert not (workdir / "stale").exists()


def test_what_is_lost_is_made_again(workdir, said):
    """One output after the other, in one workdir."""
    before = contents(workdir)
    assert sum(isinstance(value, dict) for value in before.values()) == 5  # the last steps of three networks
    for name in LOST:
        lose(workdir / name)
        run_again(workdir, said, name)
        assert contents(workdir) == before, name
    said.clear()
    assert runs.run(runs.arguments(workdir)) == 0
    assert all(f"{unit}: up to date, nothing to do." in said.messages for unit in UNITS)


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
