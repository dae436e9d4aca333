"""The attack `side_lora`: its adapters, what they are fitted to, its images, and mode seeking that starts from them."""

import csv
import dataclasses
import functools
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import runs

from side_jax import builders, evaluate, main
from side_jax.attacks.table import Run
from side_jax.config import from_config
from side_jax.errors import InputError
from side_jax.features import clustering, extractors
from side_jax.models import adapters
from side_jax.pipeline.saved_config import saved_config
from side_jax.sampling import generation, shards
from side_jax.settings import Adapters, Settings, random_streams
from side_jax.settings.extraction import Extract
from side_jax.stages import estimates, fit_adapters, stage_inputs, stage_table
from side_jax.training import trainer

ATTACK = "side_lora"
OPTIONS = runs.ADAPTED
RUNS = ["side_lora_1", "side_lora_3", "modes_0.4x2_from_side_lora_1", "modes_0.4x2_from_side_lora_3"]


def settings(**options):
    return dataclasses.replace(Settings(), extract=Extract(attacks=(ATTACK,)), adapters=Adapters(**options))


@pytest.fixture(scope="module")
def adapted():
    """The finished run with the attack; read it, never write to it."""
    workdir = runs.finished("adapted")
    return from_config(saved_config(workdir)), workdir


def test_the_unit_has_adapters_alone(adapted):
    """Counted from their shapes; ranks above a kernel's smaller side are capped, and the manifest says how many."""
    own, workdir = adapted
    unit = stage_table.adapters_unit(own, workdir)
    assert unit.done()
    content, network = unit.content(), builders.build_network(own)
    params = stage_inputs.load_target(own, workdir).trees["ema"]
    found = adapters.ranks(network, params, 512)
    assert (content["steps"], content["kernels"], content["capped"]) == (12, len(found), len(found))
    assert content["images"] == own.synthesize.num_images == 128
    labels = np.load(workdir / "label" / "labels.npz")["label"]
    assert content["classes"] == labels.max() + 1 == 4
    trained = adapters.initial(network, params, 4, jax.random.key(0), rank=512)
    assert content["parameters"] == builders.size(trained) > 5 * 32
    metrics = [json.loads(line) for line in (unit.directory / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["step"] == 12
    with ocp.StandardCheckpointer() as reader:  # not the target, which may be larger by far
        kept = reader.metadata(unit.directory / "checkpoints" / "12" / "state").item_metadata.tree
    assert set(kept["params"]) == {"kernels", "labels"}


def test_images_are_those_of_the_adapted_model(adapted):
    """At scale 1 of its prediction with a label; at 3, of epsilon_null + 3 (epsilon_c - epsilon_null)."""
    own, workdir = adapted
    params, classes = fit_adapters.load(own, workdir)
    network = builders.build_adapted_network(own, classes)
    base, count = random_streams.stream_key(own, "extract"), own.sampler.batch_size
    labels = generation.target_labels(base, own.extract.num_images, classes)[:count]
    index = np.arange(count)

    def predict(p, x, t, index, scale):
        one, none = jnp.asarray(labels)[index], jnp.full(index.shape, -1)
        given, plain = (network.apply({"params": p}, x, t, labels=each) for each in (one, none))
        return plain + scale * (given - plain)

    units, found = dict(stage_table.extraction_units(own, workdir)), {}
    for scale in (1.0, 3.0):
        with jax.numpy_dtype_promotion("standard"):
            expected = builders.Generator(
                denoise=functools.partial(predict, scale=scale),
                table=builders.build_step_table(own, own.guided_sampler),
                shape=builders.image_shape(own),
                batch_size=count,
            )
            found[scale] = shards.read(stage_table.extracted_shards(own, units[Run(attack=ATTACK, scale=scale)]))
            got = expected(params, base, index, labels, 0.0)
        np.testing.assert_array_equal(found[scale]["label"][:count], labels)
        assert np.abs(found[scale]["images"][:count].astype(int) - got).max() <= 1
    assert (found[1.0]["images"] != found[3.0]["images"]).any()


def test_mode_seeking_starts_from_its_images(adapted):
    """In the target itself, without adapters; and every row is on the page, with its calls of the network."""
    own, workdir = adapted
    steps = own.guided_sampler.num_steps
    calls = {run.name: estimates.network_calls(own, run) for run in own.runs()}
    assert calls == {
        "side_lora_1": steps,
        "side_lora_3": 2 * steps,
        "modes_0.4x2_from_side_lora_1": steps + 2,
        "modes_0.4x2_from_side_lora_3": 2 * steps + 2,
    }
    rows = json.loads((workdir / "evaluate" / "results.json").read_text())["rows"]
    assert {(row["attack"], row["guidance_scale"]) for row in rows} == {
        (attack, scale) for attack in (ATTACK, "modes") for scale in (1.0, 3.0)
    }
    assert "the target with low-rank adapters" in (workdir / "report" / "index.html").read_text()
    params = {"dpm": stage_inputs.load_target(own, workdir).trees["ema"]}
    units = dict(stage_table.extraction_units(own, workdir))
    begun, ended = (run for run in units if run.scale == 3.0)
    start = shards.read(stage_table.extracted_shards(own, units[begun]))["images"]
    levels = builders.mode_noise_levels(own, 0.4, 2, stage_inputs.training_spread(own, workdir))
    generator = builders.build_mode_generator(own, levels, lambda index: start[index])
    index, base = np.arange(own.sampler.batch_size), random_streams.stream_key(own, "extract")
    got = generator(params, base, index, np.zeros_like(index), 0.0)
    kept = shards.read(stage_table.extracted_shards(own, units[ended]))["images"]
    np.testing.assert_array_equal(kept[: len(index)], got)


def test_the_fit_takes_the_samples_that_settings_choose(adapted):
    """As drawn; at modes, by as many rounds as asked; and the share that a further round moves least."""
    own, workdir = adapted
    params = {"dpm": stage_inputs.load_target(own, workdir).trees["ema"]}

    def chosen(**options):
        return fit_adapters.examples(
            dataclasses.replace(own, adapters=dataclasses.replace(own.adapters, **options)), workdir, params
        )

    drawn = shards.read(stage_table.synthetic_shards(own, workdir))["images"]
    labels = np.load(workdir / "label" / "labels.npz")["label"]
    images, found = chosen()
    np.testing.assert_array_equal(images, drawn)
    np.testing.assert_array_equal(found, labels)
    once, _ = chosen(rounds=1)
    twice, found = chosen(rounds=2)
    np.testing.assert_array_equal(found, labels)
    assert (once != drawn).any()
    half, found = chosen(rounds=1, keep=0.5)
    moved = np.square(once.astype(float) - twice).mean(axis=(1, 2, 3))
    # `twice` is rounded to pixels after the second round alone, `examples` after each: ties may fall either way.
    least = set(np.argsort(moved)[:40])
    rows = {tuple(image.ravel()): i for i, image in enumerate(once)}
    kept = {rows[tuple(image.ravel())] for image in half}
    assert len(half) == len(found) == 64
    assert least <= kept
    np.testing.assert_array_equal([labels[rows[tuple(image.ravel())]] for image in half], found)


def test_labels_may_be_of_modes(adapted, tmp_path):
    """Clusters of the features that the images have after rounds of mode seeking; the images stay as drawn."""
    own, workdir = adapted
    shutil.copytree(workdir, tmp_path / "run")
    assert runs.run(runs.arguments(tmp_path / "run", **OPTIONS, label__rounds=2), ("label",)) == 0
    changed = from_config(saved_config(tmp_path / "run"))
    params = {"dpm": stage_inputs.load_target(own, workdir).trees["ema"]}
    drawn = shards.read(stage_table.synthetic_shards(own, workdir))["images"]
    modes = stage_inputs.taken_to_modes(own, workdir, params, drawn, 2, 0.4, "label.noise")
    assert (modes != drawn).any()
    features = extractors.extract(stage_inputs.build_extractor(own, workdir), modes, tmp_path / "features")
    expected = clustering.pseudo_labels(features, own.label, random_streams.stream_seed(own, "label"))
    found = np.load(tmp_path / "run" / "label" / "labels.npz")
    np.testing.assert_array_equal(found["features"], features)
    np.testing.assert_array_equal(found["label"], expected["label"])
    assert not np.array_equal(found["features"], np.load(workdir / "label" / "labels.npz")["features"])
    prints = [stage_table.fingerprint(one, "label") for one in (own, changed)]
    assert len(set(prints)) == 2
    quieter = dataclasses.replace(own.label, noise=0.3)
    assert stage_table.fingerprint(dataclasses.replace(own, label=quieter), "label") == prints[0]


def test_it_depends_on_the_labels_and_its_fit(tmp_path):
    def fingerprint(own, scale=1.0):
        units = dict(stage_table.extraction_units(own, tmp_path))
        return units[Run(attack=ATTACK, scale=scale)].fingerprint

    plain = settings()
    label = dataclasses.replace(plain.label, num_clusters=7)
    others = [settings(rank=2), settings(rounds=3), dataclasses.replace(plain, label=label)]
    assert len({fingerprint(one) for one in (plain, *others)}) == 4
    assert fingerprint(settings(scales=(1.0, 2.0))) == fingerprint(plain)
    assert fingerprint(settings(log_every=7)) == fingerprint(plain)
    surrogate = dataclasses.replace(plain.surrogate, learning_rate=1e-5)
    assert fingerprint(dataclasses.replace(plain, surrogate=surrogate)) == fingerprint(plain)
    # Without guidance, what guidance depends on changes nothing.
    both = settings(scales=(1.0, 2.0))
    extract = dataclasses.replace(both.extract, normalize_gradient=True)
    changed = dataclasses.replace(both, extract=extract)
    assert fingerprint(changed) == fingerprint(both)
    assert fingerprint(changed, 2.0) != fingerprint(both, 2.0)


def test_few_images_are_refused_in_a_sentence(adapted):
    own, _ = adapted
    with pytest.raises(InputError, match="side_lora has 3 images to learn from, fewer than its batch of 64"):
        fit_adapters._check(own, {("a",): 1}, 3)


def test_too_few_labelled_images_are_refused_before_they_are_taken_to_modes(adapted, tmp_path, monkeypatch):
    """Also none at all: a share of the few images that a strict threshold leaves with a label."""
    own, workdir = adapted
    run = shutil.copytree(workdir, tmp_path / "run")
    labels = dict(np.load(run / "label" / "labels.npz"))
    labels["label"][10:] = -1
    np.savez(run / "label" / "labels.npz", **labels)
    few = dataclasses.replace(own, adapters=dataclasses.replace(own.adapters, batch_size=8, keep=0.0625, rounds=1))
    monkeypatch.setattr(stage_inputs, "taken_to_modes", lambda *args: pytest.fail("took images to modes"))
    with pytest.raises(InputError, match="side_lora has 0 images to learn from, fewer than its batch of 8"):
        fit_adapters.fit(few, run, stage_table.adapters_unit(own, run))


def test_labels_without_an_image_in_the_fit_are_counted(adapted, monkeypatch, said):
    own, workdir = adapted
    monkeypatch.setattr(trainer, "run", lambda **options: ({}, 0))
    for labels, warns in (([0, 1, 2, 3], False), ([0, 3, 3, 3], True)):
        batch = np.zeros((4, 8, 8, 1), np.uint8), np.asarray(labels, np.int32)
        monkeypatch.setattr(fit_adapters, "examples", lambda *args, batch=batch: batch)
        said.clear()
        assert fit_adapters.fit(own, workdir, stage_table.adapters_unit(own, workdir))["classes"] == 4
        assert ("side_lora: 2 of 4 labels have no image among those of adapters.keep" in said.text) == warns


class Killed(BaseException):
    """Nothing in the package catches it, as nothing catches a kill."""


def test_a_fit_that_is_killed_goes_on(adapted, tmp_path, monkeypatch, said):
    """In step 8, after the checkpoint of step 5; to the same adapters and images, bit for bit."""
    own, workdir = adapted
    run = shutil.copytree(workdir, tmp_path / "run")
    for name in ("surrogate/side_lora", *(f"extract/{name}" for name in RUNS), "evaluate", "report"):
        shutil.rmtree(run / name)
    argv, real, steps = runs.arguments(run, **OPTIONS), trainer.Stepper.__call__, []

    def ending(self, *args):
        steps.append(1)
        if len(steps) == 8:
            raise Killed
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Stepper, "__call__", ending)
        with pytest.raises(Killed):
            runs.run(argv)
    assert not stage_table.adapters_unit(own, run).done()
    said.clear()
    merged, load = [], fit_adapters.load
    with monkeypatch.context() as patch:
        patch.setattr(fit_adapters, "load", lambda *args: merged.append(1) or load(*args))
        assert runs.run(argv, ("surrogate", "extract")) == 0
    assert len(merged) == 1  # of the two scales: a second copy would be as large as the target
    assert "train the adapters: continuing from the checkpoint of step 5 of 12." in said.messages
    jax.tree.map(np.testing.assert_array_equal, *(fit_adapters.load(own, folder)[0] for folder in (run, workdir)))
    for path in ("surrogate/side_lora/metrics.jsonl", *(f"extract/{name}/shard_00001.npz" for name in RUNS)):
        assert (run / path).read_bytes() == (workdir / path).read_bytes()


def test_a_finished_run_has_nothing_to_do(adapted, capsys, said):
    _, workdir = adapted
    assert runs.run([f"--workdir={workdir}", "--dry-run"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "_lora" in line]
    assert [row[0] for row in rows] == ["surrogate/side_lora", *(f"extract/{name}" for name in RUNS)]
    assert all(row[1:3] == ["done", "0.0"] for row in rows)


def test_guidance_acts_in_its_interval(adapted):
    """One call a step outside of it, where the label alone counts; two inside."""
    own, _ = adapted
    (last, *_), steps = builders.build_step_table(own, own.guided_sampler).steps.t[::-1], own.guided_sampler.num_steps
    narrow = dataclasses.replace(
        own, extract=dataclasses.replace(own.extract, guidance_interval=(int(last), int(last)))
    )
    calls = [estimates.network_calls(narrow, Run(attack=ATTACK, scale=scale)) for scale in (1.0, 3.0)]
    assert calls == [steps, steps + 1]


def test_every_run_is_scored_with_its_controls_and_shown(adapted):
    """Shares of matches, of members and of held-out images, counted in matches.csv, and the intervals around them."""
    _, workdir = adapted
    rows = json.loads((workdir / "evaluate" / "results.json").read_text())["rows"]
    with open(workdir / "evaluate" / "matches.csv", newline="") as file:
        matches = [*csv.DictReader(file)]
    for scale in (1.0, 3.0):
        (row,) = (
            row
            for row in rows
            if (row["attack"], row["guidance_scale"], row["metric"], row["level"]) == (ATTACK, scale, "rmse", "high")
        )
        own = [line for line in matches if line["run"] == f"side_lora_{scale:g}"]
        assert len(own) == row["n_generated"] == 64
        for side, name in (("member", "ams"), ("heldout", "heldout_ams")):
            share = sum(int(line[f"rmse_{side}_match"]) for line in own) / 64
            assert row[name] == share
            low, high = row[f"{name}_ci"]
            assert low <= share <= high
        low, high = row["excess_ci"]
        assert low <= row["excess"] == row["ams"] - row["heldout_ams"] <= high
    assert {line["label"] for line in matches if line["run"] == RUNS[0]} == {"0", "1", "2", "3"}
    page = (workdir / "report" / "index.html").read_text()
    assert "the target with low-rank adapters" in page
    assert "The attacker&#39;s adapters used 128 of the model&#39;s own samples and no labels" in page
    assert (
        "Adapters of rank 512 at most (kernels: all) and labels were fitted in 12 steps to these samples as drawn."
        in page
    )
    assert list((workdir / "report").glob("matches_side_lora_*.png"))


def test_it_is_compared(adapted, tmp_path, monkeypatch):
    _, workdir = adapted
    shutil.copytree(workdir, tmp_path / "again")
    monkeypatch.setattr(
        sys, "argv", ["side-jax", "compare", str(workdir), str(tmp_path / "again"), f"--out={tmp_path / 'out'}"]
    )
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 0
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert {one["run"] for one in found["runs"]} == set(RUNS)


def test_its_images_are_suspects(adapted, tmp_path, monkeypatch):
    """By what an attacker has, and without the data."""
    run = shutil.copytree(adapted[1], tmp_path / "run")
    (run / "train" / "split.json").unlink()
    assert runs.run([f"--workdir={run}"], evaluate.SUSPECTS) == 0
    with open(run / "suspects" / "suspects.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert {row["run"] for row in rows} == set(RUNS)
    assert {row["label"] for row in rows if row["attack"] == ATTACK} == {"0", "1", "2", "3"}
    with open(run / "suspects" / "modes.csv", newline="") as file:
        assert {row["run"] for row in csv.DictReader(file)} == set(RUNS[2:])


def test_a_private_page_has_it_without_images(adapted, tmp_path):
    """Here of labels and of a fit at modes, in one run."""
    run = shutil.copytree(adapted[1], tmp_path / "run")
    at_modes = OPTIONS | {"label__rounds": 2, "adapters__rounds": 1, "adapters__scales": "(1.0,)"}
    at_modes |= {"extract__attacks": f"('{ATTACK}',)", "evaluate__controls": False}
    assert runs.run(runs.arguments(run, **at_modes, report__private=True)) == 0
    page = (run / "report" / "index.html").read_text()
    assert "the target with low-rank adapters" in page
    assert "4 of 4 clusters of them after 2 rounds of mode seeking at noise 0.4 were cohesive enough" in page
    assert "to these samples after 1 round of mode seeking at noise 0.4." in page
    assert not list((run / "report").glob("matches_*.png"))
