"""Outputs of a finished run that are lost, damaged or changed: only their unit is run again, to the same bytes."""

import itertools
import json
import shutil

import pytest
import runs

from side_jax.config import from_config
from side_jax.pipeline.saved_config import saved_config
from side_jax.sampling import shards
from side_jax.stages import stage_table, train
from side_jax.training import trainer
from side_jax.workdir import files

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
        [f"report/{name}" for name in ("index.html", "guidance.svg", "matches_unconditional.png", "rarefaction.svg")]
    ],
}
# What is changed together, likewise; a shard stays one that can be read.
CHANGED = {
    "synthesize": ["synthesize/shard_00003.npz", "synthesize/samples.png"],
    "label": ["label/labels.npz"],
    "surrogate/side": ["surrogate/side/levels.json", *CURVES],
    "extract/side_10": ["extract/side_10/shard_00001.npz"],
    "evaluate": ["evaluate/results.json", "evaluate/matches.csv"],
    "report": ["report/index.html", "report/guidance.svg"],
}
# What no run makes again, and what to do.
LASTING = {
    "train/split.json": "restore it, or delete it",
    "checkpoints/40/meta/metadata": "delete the folder checkpoints/40",
    "surrogate/side/checkpoints/30/meta/metadata": "delete the folder surrogate/side/checkpoints/30",
    "train/metrics.jsonl": "the report has no figure of it",
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
    """{file: its bytes}; of checkpoints, which hold times, the digests of their arrays; nothing of the logs."""
    found = {}
    for path in workdir.rglob("*"):
        name = path.relative_to(workdir)
        if (
            not path.is_file()
            or not {"tensorboard", "stale"}.isdisjoint(name.parts)
            or name.name in (".lock", "run.log")
        ):
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


def change(path):
    """Changes a file, which can still be read."""
    if path.name.startswith("shard"):
        arrays = files.read_npz(path)
        files.write_npz(path, **(arrays | {"images": 255 - arrays["images"]}))
    else:
        path.write_bytes(path.read_bytes() + b"\n")


def swap_sides(path):
    """Half of the members become held-out images, and these members."""
    split = json.loads(path.read_text())
    split["members"][:32], split["heldout"][:32] = split["heldout"][:32], split["members"][:32]
    files.write_json(path, split)


def forget_digests(workdir):
    """Makes the manifests those of an earlier version."""
    for path in workdir.rglob("manifest.json"):
        files.write_json(path, {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"})


def test_what_is_changed_is_made_again(workdir, said):
    before = contents(workdir)
    for unit, names in CHANGED.items():
        for name in names:
            change(workdir / name)
        said.clear()
        assert runs.run(runs.arguments(workdir)) == 0
        assert busy(said) == {unit}
        for name in names:
            assert f"{workdir / name} was changed after it was written" in said.text
            assert (workdir / "stale" / "changed" / name).exists()
        assert contents(workdir) == before, names


def test_a_stage_that_reads_what_is_changed_names_it(finished, workdir, capsys):
    for name, stage in (("evaluate/results.json", "report"), ("label/labels.npz", "surrogate")):
        change(workdir / name)
        assert runs.run(runs.arguments(workdir, stage)) == 1
        assert f"({workdir / name} was changed after it was written" in capsys.readouterr().err
        (workdir / name).write_bytes((finished / name).read_bytes())
    change(workdir / "extract" / "side_10" / "shard_00001.npz")
    lose(workdir / "evaluate")
    assert runs.run(runs.arguments(workdir, "evaluate")) == 1
    assert "shard_00001.npz was changed after it was written" in capsys.readouterr().err


@pytest.mark.parametrize("name", LASTING)
def test_what_is_changed_and_can_not_be_made_again_ends_the_run(workdir, capsys, name):
    content = (workdir / name).read_bytes()
    swap_sides(workdir / name) if name == "train/split.json" else change(workdir / name)
    before = contents(workdir)
    for options in ([], ["--dry-run"], ["--stages=train"], ["--stages=report"]):
        assert runs.run([*runs.arguments(workdir), *options]) == 1
        (error,) = capsys.readouterr().err.splitlines()[-1:]
        assert f"{workdir / name} was changed after it was written" in error
        assert LASTING[name] in error
        assert contents(workdir) == before
    (workdir / name).write_bytes(content)
    assert runs.run(runs.arguments(workdir)) == 0


def test_a_split_changed_before_training_ends_is_noticed(tmp_path, capsys, monkeypatch):
    """The first training has not finished, so its manifest says nothing else."""
    with monkeypatch.context() as patch:
        patch.setattr(train, "_fit", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runs.run(runs.arguments(tmp_path / "run", "train"))
    swap_sides(tmp_path / "run" / "train" / "split.json")
    assert runs.run(runs.arguments(tmp_path / "run", "train")) == 1
    assert "split.json was changed after it was written" in capsys.readouterr().err


def test_runs_of_earlier_versions_are_unverified_but_for_their_split(workdir, said, capsys):
    forget_digests(workdir)
    change(workdir / "report" / "index.html")
    assert runs.run(runs.arguments(workdir)) == 0
    assert busy(said) == set()
    swap_sides(workdir / "train" / "split.json")
    lose(workdir / "evaluate")
    assert runs.run(runs.arguments(workdir)) == 1
    assert "split.json was changed after it was written" in capsys.readouterr().err


def test_a_damaged_file_is_named_and_deleting_it_helps(workdir, said, capsys):
    """Of an earlier version's run, which recorded no SHA-256."""
    before = contents(workdir)
    forget_digests(workdir)
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
        after = contents(workdir)
        assert {name: after[name] for name in after if name.name != "manifest.json"} == {
            name: before[name] for name in before if name.name != "manifest.json"
        }


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
