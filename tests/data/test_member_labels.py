"""Conditional targets: where labels come from, and a run from training to report."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import runs

from side_jax.config import default_config, from_config
from side_jax.data import member_labels
from side_jax.data.datasets import Dataset
from side_jax.errors import InputError
from side_jax.pipeline import resolve
from side_jax.pipeline.saved_config import saved_config
from side_jax.stages import stage_inputs, stage_table
from side_jax.training import trainer


def settings(labels, num_labels, **changes):
    config = default_config()
    config.condition.update({"labels": labels, "num_labels": num_labels, **changes})
    return from_config(config)


def members(labels=(5, 2, 5, 9, 2, 5, 9, 9, 9, 9)):
    """Ten of a dataset of fifty; (the members, their ids)."""
    labels = np.asarray(labels, np.int32)
    names = tuple(map(str, range(len(labels))))
    images = np.zeros((len(labels), 4, 4, 1), np.uint8)
    return Dataset(images=images, labels=labels, num_classes=10, names=names), np.arange(len(labels)) * 5


def test_labels_of_each_kind():
    own, ids = members()
    assert member_labels.member_labels(settings("", 0), own, ids) is None
    assert member_labels.member_labels(settings("true", 3), own, ids).tolist() == [1, 0, 1, 2, 0, 1, 2, 2, 2, 2]
    assert member_labels.member_labels(settings("single", 1), own, ids).tolist() == [0] * 10
    groups = member_labels.member_labels(settings("random", 4), own, ids)
    assert sorted(np.bincount(groups)) == [2, 2, 3, 3]
    assert groups.dtype == np.int32
    np.testing.assert_array_equal(member_labels.member_labels(settings("random", 4), own, ids), groups)
    other = dataclasses.replace(settings("random", 4), seed=1)
    assert member_labels.member_labels(other, own, ids).tolist() != groups.tolist()
    assert groups.tolist() != sorted(groups)


def test_a_model_from_elsewhere_needs_no_labels_of_members():
    """Its labels may be prompts, or classes of which the members are one; a model that is trained here needs them."""
    (own, ids), config = members(), default_config()
    config.target.update({"path": "model", "sha256": "0" * 64})
    config.data.update({"name": "npz", "path": "seen.npz", "heldout_from": "unseen.npz"})
    config.condition.update({"labels": "target", "num_labels": 1000})
    split = {"members": [{"id": int(place)} for place in range(len(ids))]}
    member_labels.check(from_config(config), own, split)
    with pytest.raises(InputError, match="num_labels is 4, but the 10 members have 3"):
        member_labels.check(settings("true", 4), own, split)


def labelled(tmp_path, ids, labels, dtype=np.int32):
    path = tmp_path / "labels.npz"
    np.savez(path, id=np.asarray(ids, np.int64), label=np.asarray(labels, dtype))
    return str(path)


def test_labels_of_a_file_are_found_by_id(tmp_path):
    """In any order, and those of other images are passed over."""
    own, ids = members()
    order = np.random.default_rng(0).permutation(50)
    path = labelled(tmp_path, order, order % 7 % 2)
    got = member_labels.member_labels(settings("file", 2, path=path), own, ids)
    assert got.tolist() == (ids % 7 % 2).tolist()
    assert got.dtype == np.int32


def test_a_changed_file_is_noticed_and_a_moved_one_is_not(tmp_path):
    path = labelled(tmp_path, range(50), [0, 1] * 25)
    given = settings("file", 2, path=path)
    resolved = resolve.resolve_condition(given)
    assert len(resolved.condition.sha256) == 64
    assert resolve.resolve_condition(resolved) == resolved

    def fingerprint(settings):
        return stage_table.train_unit(settings, tmp_path).fingerprint

    copied = shutil.copy(path, tmp_path / "moved.npz").as_posix()
    moved = dataclasses.replace(resolved, condition=dataclasses.replace(resolved.condition, path=copied))
    assert fingerprint(resolve.resolve_condition(moved)) == fingerprint(resolved)
    labelled(tmp_path, range(50), [1, 0] * 25)
    assert fingerprint(resolve.resolve_condition(given)) != fingerprint(resolved)
    with pytest.raises(ValueError, match="it is not the file used before"):
        resolve.resolve_condition(resolved)
    (tmp_path / "labels.npz").unlink()
    assert resolve.resolve_condition(resolved) == resolved  # what is trained needs it no more
    with pytest.raises(ValueError, match="is gone; put it back"):
        member_labels.member_labels(resolved, *members())


def test_only_a_conditional_model_depends_on_its_dropout(tmp_path):
    def fingerprint(**changes):
        return stage_table.train_unit(settings(**changes), tmp_path).fingerprint

    plain, random = {"labels": "", "num_labels": 0}, {"labels": "random", "num_labels": 4}
    assert fingerprint(**plain, dropout=0.5) == fingerprint(**plain)
    assert (
        len({fingerprint(**one) for one in (plain, random, random | {"num_labels": 5}, random | {"dropout": 0.5})}) == 4
    )


@pytest.fixture(scope="module")
def conditional():
    """A tiny run on random labels; read it, never write to it."""
    return runs.finished("conditional")


def test_a_conditional_run_reports_its_attack(conditional):
    results = json.loads((conditional / "evaluate" / "results.json").read_text())
    rows = [(row["attack"], row["guidance_scale"]) for row in results["rows"] if row["metric"] == "rmse"]
    assert list(dict.fromkeys(rows)) == [("unconditional", 0), ("conditional_model", 0), ("conditional_model", 2)]
    assert results["classifiers"] == {}
    page = " ".join((conditional / "report" / "index.html").read_text().split())
    for text in (
        "Guided by its own labels",
        "with 3 labels (random), left out for 10% of the images",
        "conditional_model",
    ):
        assert text in page


def drawn(workdir, name):
    with np.load(workdir / "extract" / name / "shard_00000.npz") as archive:
        return dict(archive)


def test_its_labels_guide(conditional):
    """At scale 0 the images of no label, within the rounding of a grey level; at 2 others, for labels of all groups."""
    plain, zero, two = (
        drawn(conditional, name) for name in ("unconditional", "conditional_model_0", "conditional_model_2")
    )
    assert np.abs(zero["images"].astype(int) - plain["images"]).max() <= 1
    assert np.abs(two["images"].astype(int) - plain["images"]).max() > 1
    assert set(two["label"]) == {0, 1, 2}
    assert set(plain["label"]) == {-1}


def test_what_it_was_trained_with_can_be_told_later(conditional):
    saved = from_config(saved_config(conditional))
    members, _, ids, _ = stage_inputs.load_split(saved, conditional, stream=True)
    labels = member_labels.member_labels(saved, members, ids)
    assert sorted(np.bincount(labels)) == [21, 21, 22]


def test_running_it_again_does_nothing(conditional, tmp_path, said, monkeypatch):
    monkeypatch.setattr(trainer, "run", None)
    workdir = shutil.copytree(conditional, tmp_path / "run")
    files = {path: path.stat().st_mtime_ns for path in workdir.rglob("*.npz")}
    assert runs.run([f"--workdir={workdir}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*.npz")} == files
    for unit in ("train", "extract/conditional_model_2", "evaluate", "report"):
        assert f"{unit}: up to date, nothing to do." in said.messages


def test_a_plan_times_it(conditional, capsys):
    changed = runs.arguments(conditional, **runs.CONDITIONAL | {"extract__guidance_scales": "(3.0,)"})
    assert runs.run([*changed, "--dry-run"]) == 0
    assert "extract/conditional_model_3" in capsys.readouterr().out


def test_an_attacker_ranks_its_images(conditional, tmp_path):
    from side_jax import evaluate

    workdir = shutil.copytree(conditional, tmp_path / "run")
    assert runs.run([f"--workdir={workdir}"], evaluate.SUSPECTS) == 0
    assert "conditional_model,2" in (workdir / "suspects" / "suspects.csv").read_text()
