"""The classifiers' training: who learns from what, early stopping, distillation, and guidance by calibrated ones."""

import contextlib
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
import runs
from onnx import TensorProto, helper, numpy_helper

from side_jax import builders
from side_jax.attacks.table import ATTACKS, known_classifiers
from side_jax.config import from_config
from side_jax.data import config_files
from side_jax.errors import InputError
from side_jax.features import clustering, extractors
from side_jax.pipeline.saved_config import saved_config
from side_jax.sampling import generation, shards
from side_jax.settings import random_streams
from side_jax.stages import stage_inputs, stage_table, surrogate
from side_jax.training import validation
from side_jax.training.validation import EarlyStop, Predictions, noise_levels
from side_jax.workdir.curves import Curves


def changed(settings, section, **values):
    return dataclasses.replace(settings, **{section: dataclasses.replace(getattr(settings, section), **values)})


@pytest.fixture
def settings(finished):
    return from_config(saved_config(finished))


def examples(settings, workdir, *names):
    return [surrogate._examples(settings, workdir, known_classifiers()[name]) for name in names]


def test_random_labels_keep_images_and_sizes(settings, finished):
    side, random, shuffled = examples(settings, finished, "side", "side_random", "side_shuffled")
    np.testing.assert_array_equal(random.images, side.images)
    np.testing.assert_array_equal(np.bincount(random.labels), np.bincount(side.labels))
    assert (random.labels != side.labels).mean() > 0.4
    np.testing.assert_array_equal(shuffled.labels, side.labels)  # they are shuffled in the loss, anew for every batch


def test_random_labels_say_nothing_about_the_cluster(settings, finished):
    side, random = examples(settings, finished, "side", "side_random")
    table = np.zeros((side.classes, side.classes))
    np.add.at(table, (side.labels, random.labels), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    chi2 = ((table - expected) ** 2 / expected).sum()
    assert chi2 < 27.9  # the 99.9th percentile of chi-squared with 9 degrees of freedom


def test_the_oracle_and_the_baseline_learn_members_and_the_control_held_out_images(settings, workdir):
    members, heldout, _, _ = stage_inputs.load_split(settings, workdir)
    oracle, conditional, control = examples(settings, workdir, "oracle", "conditional", "side_heldout")
    for one in (oracle, conditional):
        np.testing.assert_array_equal(one.images, members.images)
        np.testing.assert_array_equal(one.labels, members.labels)
        assert one.classes == 10
    np.testing.assert_array_equal(control.images, heldout.images)
    assert control.classes == settings.label.num_clusters


def test_the_control_of_held_out_images_is_clustered_as_side_is(settings, workdir):
    """With label.rounds at modes of the target, too; it learns the images themselves."""
    settings = changed(settings, "label", rounds=2)
    (control,) = examples(settings, workdir, "side_heldout")
    images = stage_inputs.load_split(settings, workdir)[1].images
    np.testing.assert_array_equal(control.images, images)
    params = {"dpm": stage_inputs.load_target(settings, workdir).trees["ema"]}
    modes = stage_inputs.taken_to_modes(settings, workdir, params, images, 2, settings.label.noise, "label.noise")
    assert (modes != images).any()
    extractor = stage_inputs.build_extractor(settings, workdir)
    seed = random_streams.stream_seed(settings, "label")
    by_modes, as_drawn = (
        clustering.pseudo_labels(extractors.extract(extractor, of, workdir / "features"), settings.label, seed)["label"]
        for of in (modes, images)
    )
    np.testing.assert_array_equal(control.labels, by_modes)
    assert (by_modes != as_drawn).any()


def test_dropped_images_teach_nothing(settings, finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    with np.load(workdir / "label" / "labels.npz") as archive:
        arrays = dict(archive)
    arrays["label"][::2] = -1
    np.savez(workdir / "label" / "labels.npz", **arrays)
    side, random = examples(settings, workdir, "side", "side_random")
    assert len(side.images) == len(random.images) == (arrays["label"] >= 0).sum()
    assert side.labels.min() == random.labels.min() == 0


def test_images_that_validate_are_not_trained_on(settings):
    settings, count = changed(settings, "surrogate", batch_size=64), 200
    images = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    whole = surrogate._Examples(images=images, labels=np.arange(count, dtype=np.int32), classes=count)
    kept_back, train = surrogate._held_back(settings, known_classifiers()["side"], whole)
    assert len(kept_back.labels) == 20
    assert sorted([*kept_back.labels, *train.labels]) == list(range(count))
    for part in (kept_back, train):
        np.testing.assert_array_equal(part.images.ravel(), part.labels)


def test_too_few_images_for_a_batch_is_one_sentence(settings, finished, tmp_path):
    few = surrogate._Examples(images=np.zeros((30, 8, 8, 1), np.uint8), labels=np.arange(30) % 3, classes=3)
    work = dataclasses.replace(stage_table.train_unit(settings, tmp_path), name="surrogate/side")
    with pytest.raises(InputError, match=r"side has 27 images to learn from .* fewer than its batch of 32; lower"):
        surrogate._fit(settings, work, known_classifiers()["side"], few)


@pytest.fixture
def teacher(tmp_path):
    """(path, weight) of a linear ONNX classifier of 8x8 grey images with three classes."""
    weight = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weight, "weight")],
    )
    path = tmp_path / "teacher.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path, weight


def test_a_given_teacher_names_the_classes(settings, finished, teacher):
    path, weight = teacher
    digest = config_files.digest(str(path), "", "surrogate.teacher_path")
    settings = changed(settings, "surrogate", objective="tdkd", teacher_path=str(path), teacher_sha256=digest)
    settings = changed(settings, "label", encoder_size=8, encoder_mean=(0.5,) * 3, encoder_std=(0.5,) * 3)
    side, random = examples(settings, finished, "side", "side_random")
    images = shards.read(shards.layout(finished / "synthesize", 128, 32))["images"]
    logits = (images.reshape(128, 64) / 127.5 - 1) @ weight
    np.testing.assert_allclose(side.teacher, jax.nn.log_softmax(logits), atol=1e-4)
    np.testing.assert_array_equal(side.labels, logits.argmax(1))
    assert side.classes == 3
    np.testing.assert_array_equal(random.images, side.images)
    assert (random.teacher != side.teacher).any()
    np.testing.assert_allclose(np.sort(random.teacher, axis=0), np.sort(side.teacher, axis=0))
    # What nothing is distilled to keeps its pseudo-labels, as its fingerprint says.
    (searched,) = examples(settings, finished, "black_box")
    assert searched.teacher is None
    labels = np.load(finished / "label" / "labels.npz")["label"]
    np.testing.assert_array_equal(searched.labels, labels[labels >= 0])


class Scripted:
    """Stands in for Predictions: the loss of each call, from a list."""

    def __init__(self, losses):
        self.losses = iter(losses)

    def __call__(self, params, levels):
        p = np.float32(np.exp(-next(self.losses)))
        return np.log(np.asarray([[[p, 1 - p]] * 2] * len(levels), np.float32))


@pytest.fixture
def watch():
    """Makes an EarlyStop on scripted losses, in a folder."""
    with contextlib.ExitStack() as stack:

        def make(folder, losses, patience, first_step=0):
            curves = stack.enter_context(Curves(folder / "validation.jsonl", first_step=first_step))
            labels, levels = np.zeros(2, np.int32), np.arange(3)
            return EarlyStop(Scripted(losses), labels, levels, patience, curves, folder / "best", {"fingerprint": "f"})

        yield make


def best_step(tmp_path):
    return max(int(path.name) for path in (tmp_path / "best").iterdir() if path.name.isdigit())


def test_early_stop_ends_after_so_many_measurements_without_a_lower_loss(tmp_path, watch):
    stop = watch(tmp_path, [1.0, 0.5, 0.7, 0.4, 0.6, 0.5, 0.45], patience=3)
    said = [stop(step, {"w": np.float32(step)}) for step in range(10, 80, 10)]
    assert said == [False] * 6 + [True]
    assert best_step(tmp_path) == 40


def test_early_stop_goes_on_after_a_kill_as_if_there_had_been_none(tmp_path, watch):
    """The run was killed after step 40, whose parameters are kept as the best, and goes on from the one of step 20."""
    whole = watch(tmp_path / "whole", [1.0, 0.5, 0.7, 0.4, 0.6, 0.5], patience=2)
    expected = [whole(step, {"w": np.float32(step)}) for step in range(10, 70, 10)]
    killed = watch(tmp_path / "killed", [1.0, 0.5, 0.7, 0.4], patience=2)
    for step in range(10, 50, 10):
        killed(step, {"w": np.float32(step)})
    again = watch(tmp_path / "killed", [0.7, 0.4, 0.6, 0.5], patience=2, first_step=20)
    said = [again(step, {"w": np.float32(step)}) for step in range(20, 70, 10)]
    assert said == expected[1:]
    assert best_step(tmp_path / "killed") == best_step(tmp_path / "whole") == 40
    rows = [(tmp_path / name / "validation.jsonl").read_text() for name in ("whole", "killed")]
    assert rows[0] == rows[1]


def test_without_patience_nothing_is_kept_and_training_goes_to_its_end(tmp_path, watch):
    stop = watch(tmp_path, [0.1] + [1.0] * 5, patience=0)
    assert not any(stop(step, {}) for step in range(6))
    assert not (tmp_path / "best").exists()


def test_noise_levels_span_the_schedule():
    np.testing.assert_array_equal(noise_levels(1000)[[0, 1, -1]], [0, 100, 999])
    np.testing.assert_array_equal(noise_levels(3), [0, 1, 2])


def test_predictions_are_of_images_noised_to_the_level(monkeypatch, schedule):
    """At t = 0 images are nearly clean, at t = T-1 nothing is left of them; an image's noise is its own."""

    def spy(module, params, x, t):
        return jnp.concatenate([x.reshape(len(x), -1), t[:, None].astype(jnp.float32)], axis=1)

    monkeypatch.setattr(validation, "log_probs", spy)
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 1), np.uint8)
    shown = Predictions(None, schedule, images, jax.random.key(0), 16)({}, np.asarray([0, 999]))
    clean = images.reshape(20, -1) / 127.5 - 1
    assert np.abs(shown[0, :, :-1] - clean).max() < 0.06
    assert abs(np.corrcoef(shown[1, :, :-1].ravel(), clean.ravel())[0, 1]) < 0.2
    np.testing.assert_allclose(shown[1, :, :-1].std(), 1, atol=0.15)
    np.testing.assert_array_equal(shown[:, :, -1], [[0] * 20, [999] * 20])
    np.testing.assert_allclose(
        Predictions(None, None, images, jax.random.key(0), 16)({}, np.zeros(1, int))[0, :, :-1], clean, atol=1e-6
    )
    part = Predictions(None, schedule, images[:7], jax.random.key(0), 8)({}, np.asarray([999]))
    np.testing.assert_allclose(part[0], shown[1, :7], rtol=1e-6)


@pytest.fixture(scope="module")
def everything():
    """A tiny run of every attack; read it, never write to it."""
    return runs.finished("everything")


def test_every_attack_has_its_row(everything):
    results = json.loads((everything / "evaluate" / "results.json").read_text())
    rows = [row for row in results["rows"] if (row["metric"], row["level"]) == ("rmse", "high")]
    assert sorted(row["attack"] for row in rows) == sorted(runs.ATTACKED)
    assert set(results["classifiers"]) == {a.classifier.name for a in ATTACKS.values() if a.classifier}
    for found in results["classifiers"].values():
        assert [level["timestep"] for level in found["levels"]] == noise_levels(100).tolist()
        assert all(0 <= level["ece"] <= 1 for level in found["levels"])
    assert results["surrogate"]["features"]["name"] == "denoiser"


def test_distillation_has_the_budget_of_cross_entropy(everything):
    """Teacher and student together take surrogate.num_steps, unless the student stops early."""
    for name in ("side", "side_random", "side_heldout"):
        manifest = json.loads((everything / "surrogate" / name / "manifest.json").read_text())
        assert manifest["teacher_steps"] == 10
        assert manifest["steps"] <= 20
        assert manifest["best_step"] <= manifest["steps"]
    oracle = json.loads((everything / "surrogate" / "oracle" / "manifest.json").read_text())
    assert "teacher_steps" not in oracle
    assert oracle["steps"] <= 30


def test_the_best_parameters_and_their_temperatures_guide(everything):
    settings = from_config(saved_config(everything))
    classifier, guide = stage_inputs.load_classifier(settings, everything, ATTACKS["side"].classifier)
    assert guide["temperature"].shape == (100,)
    levels = json.loads((everything / "surrogate" / "side" / "levels.json").read_text())
    for row in levels:
        np.testing.assert_allclose(guide["temperature"][row["timestep"]], row["temperature"], rtol=1e-5)
    best = json.loads((everything / "surrogate" / "side" / "manifest.json").read_text())["best_step"]
    rows = [
        json.loads(row) for row in (everything / "surrogate" / "side" / "validation.jsonl").read_text().splitlines()
    ]
    assert best == min(rows, key=lambda row: row["loss"])["step"]
    assert {"batch_stats"} < set(guide["classifier"])
    assert classifier.num_classes == 4


def test_all_that_the_page_says_is_on_it(everything):
    page = (everything / "report" / "index.html").read_text()
    for text in (
        *runs.ATTACKED,
        "random pseudo-labels of the same sizes",
        "calibration error (Guo et al. 2017",
        "s pseudo-labels<",
    ):
        assert text in page


@pytest.mark.parametrize("attack", ["side", "conditional_x0"])
def test_guidance_is_by_the_scaled_log_probabilities(finished, attack, settings):
    x = jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
    t = jnp.full(8, 50)
    classifier, guide = stage_inputs.load_classifier(settings, finished, ATTACKS[attack].classifier)
    log_prob = builders.build_log_prob(settings, classifier, at_x0=ATTACKS[attack].at_x0)
    dpm = stage_inputs.load_target(settings, finished)

    def log_probs(temperature):
        params = {"dpm": dpm.trees["ema"]} | guide | {"temperature": np.full(100, temperature, np.float32)}
        return log_prob(params, x, t)

    once, hot = log_probs(1.0), log_probs(4.0)
    np.testing.assert_allclose(jnp.exp(once).sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(hot, jax.nn.log_softmax(once / 4), rtol=1e-4, atol=1e-5)


def test_a_control_compiles_no_program_of_its_own(workdir, monkeypatch, compiled):
    """Its classifier is SIDE's, trained on other labels: to train, validate and sample it needs SIDE's alone."""

    def named(function, name):
        return lambda *args, **kwargs: compiled.append(name(*args, **kwargs)) or function(*args, **kwargs)

    monkeypatch.setattr(surrogate, "_fit", named(surrogate._fit, lambda settings, work, *rest: work.name))
    monkeypatch.setattr(shards, "write", named(shards.write, lambda *args, description, **kwargs: description))
    monkeypatch.setattr(generation, "target_labels", named(generation.target_labels, lambda *args: "labels"))
    for name in ("surrogate/side", "extract/side_10"):
        shutil.rmtree(workdir / name)
    options = {"extract__attacks": "('unconditional','side','side_random')", "extract__guidance_scales": "(10.0,)"}
    jax.clear_caches()
    assert runs.run(runs.arguments(workdir, "surrogate,extract", **options)) == 0
    counts, unit = {}, ""
    for event in compiled:
        unit = unit if event == "compiled" else event
        counts[unit] = counts.get(unit, 0) + (event == "compiled")
    assert counts.pop("surrogate/side") > 2
    assert counts.pop("extract side_10") > 0
    del counts["labels"]
    assert counts == {"surrogate/side_random": 0, "extract side_random_10": 0}
