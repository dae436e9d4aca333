"""The attack `black_box`: its run, what it depends on, its images, and what of them is scored apart.

Over starting noise; and over the label embeddings of a conditional target.
"""

import csv
import dataclasses
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from side_jax import builders, evaluate
from side_jax.attacks.table import ATTACKS, Run
from side_jax.config import from_config
from side_jax.diffusion import genetic, pixel_range, sampler
from side_jax.errors import InputError
from side_jax.measure import records
from side_jax.models.classifier import log_probs
from side_jax.pipeline.saved_config import saved_config
from side_jax.sampling import generation, shards
from side_jax.settings import Condition, Settings, random_streams
from side_jax.settings.extraction import BlackBox, Extract
from side_jax.settings.target import OWN
from side_jax.stages import amounts, estimates, extract, stage_inputs, stage_table, suspects
from side_jax.stages.estimates import Timing

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import black_box as benchmark

RUN = Run(attack="black_box")
EXTRACT = Extract(attacks=("unconditional", "side", "black_box"), guidance_scales=(3.0, 10.0), num_steps=6)


@pytest.fixture(scope="module")
def finished():
    """A finished run of it, and its settings."""
    workdir = runs.finished("searched")
    return from_config(saved_config(workdir)), workdir


@pytest.fixture(scope="module")
def conditional():
    """A finished run of it on a target with three labels, and its settings."""
    workdir = runs.finished("searched_labels")
    return from_config(saved_config(workdir)), workdir


def images_of(own, workdir, run=RUN):
    return shards.read(stage_table.extracted_shards(own, dict(stage_table.extraction_units(own, workdir))[run]))


def test_it_is_one_run_of_plain_samplings_calls():
    """No scale, no step of its own, and of what the plan counts, one look of the classifier at each image."""
    own = dataclasses.replace(Settings(), extract=EXTRACT)
    names = [run.name for run in own.runs()]
    assert names == ["unconditional", "side_3", "side_10", "black_box"]
    assert estimates.network_calls(own, RUN) == estimates.network_calls(own, Run(attack="unconditional")) == 20
    assert not ATTACKS["black_box"].default
    assert "black_box" in own.extract.classifiers
    assert own.needs_synthetic


def test_what_it_depends_on(tmp_path):
    """Its own settings change it alone; the classifier's training changes it, and no other attack."""
    own = dataclasses.replace(Settings(), extract=EXTRACT)

    def fingerprints(of):
        return {run.name: unit.fingerprint for run, unit in stage_table.extraction_units(of, tmp_path)}

    before = fingerprints(own)
    fewer = dataclasses.replace(own.conditional, num_steps=5)
    for changed in (
        dataclasses.replace(own, black_box=BlackBox(mutation=0.2)),
        dataclasses.replace(own, black_box=BlackBox(searches=2)),
        dataclasses.replace(own, conditional=fewer),
    ):
        assert {name for name, value in fingerprints(changed).items() if value != before[name]} == {"black_box"}
    calibrated = dataclasses.replace(own, extract=dataclasses.replace(EXTRACT, temperature_scaling=True))
    assert fingerprints(calibrated)["black_box"] == before["black_box"]


def imported(network="", null_label=False, genome="", **changes):
    """Settings with a model of three labels from elsewhere."""
    return dataclasses.replace(
        Settings(),
        condition=Condition(labels=OWN, num_labels=3, null_label=null_label),
        target=dataclasses.replace(Settings().target, path="model.safetensors", sha256="0", network=network),
        data=dataclasses.replace(Settings().data, name="folder", path="seen", heldout_from="unseen"),
        extract=EXTRACT,
        black_box=BlackBox(genome=genome),
        **changes,
    )


def test_labels_are_searched_where_their_embeddings_can_be_mixed():
    """Two or more labels that are rows of a table; then any sampler will do, and no label for none is needed."""
    assert dataclasses.replace(Settings(), extract=EXTRACT).search_genome == "noise"
    for kind in ('{"class": "UNet"}', '{"class": "Latent", "net": {"class": "Prompted", "net": {"class": "Other"}}}'):
        assert imported(kind).search_genome == "label"
        assert imported(kind, null_label=True, genome="noise").search_genome == "noise"
    assert imported('{"class": "Edm", "net": {"class": "SongUNet"}}', null_label=True).search_genome == "noise"
    stochastic = dataclasses.replace(Settings().sampler, eta=1.0)
    assert imported(sampler=stochastic).search_genome == "label"
    with pytest.raises(InputError, match=r"sampler.eta is 1.0, but it must be 0 with black_box, which searches"):
        imported(genome="noise", null_label=True, sampler=stochastic)
    with pytest.raises(InputError, match=r"the labels of this model, a SongUNet, are no rows of a table"):
        imported('{"class": "Edm", "net": {"class": "SongUNet"}}', null_label=True, genome="label")
    single = Condition(labels="single", num_labels=1)
    one = dataclasses.replace(Settings(), condition=single, extract=EXTRACT)
    assert one.search_genome == "noise"
    with pytest.raises(InputError, match=r"of at least two labels, and the model has 1\."):
        dataclasses.replace(one, black_box=BlackBox(genome="label"))


def test_models_that_always_need_a_label_are_refused_over_noise():
    """A child would have another label than its parents."""
    with pytest.raises(InputError, match=r"without black_box over noise: the model in target.path always needs a"):
        imported(genome="noise")


def test_what_is_searched_changes_the_fingerprint(tmp_path):
    """What is chosen by default is what is asked for by name; and over noise, workdirs of earlier versions go on."""

    def fingerprint(own):
        return dict(stage_table.extraction_units(own, tmp_path))[RUN].fingerprint

    of = {genome: fingerprint(imported(null_label=True, genome=genome)) for genome in ("", "noise", "label")}
    assert of[""] == of["label"] != of["noise"]
    own = imported(null_label=True, genome="noise")
    values = dataclasses.asdict(own.black_box)
    del values["genome"]
    assert stage_table._sampling_settings(own, RUN, tmp_path)["search"] == values


def test_the_plan_counts_a_batch_for_each_generation_of_a_shard(finished, tmp_path):
    """Shards of 64 images and generations of 12: five whole generations and a part of the sixth in one."""
    own, _ = finished
    unit = dict(stage_table.extraction_units(own, tmp_path))[RUN]
    parts = stage_table.extracted_shards(own, unit)

    class Clock:
        def sampling_step(self, attack):
            assert attack is None
            return Timing(step=2.0)

    cost = estimates.sampling(own, unit, parts, RUN, Clock())
    sizes = [len({i // 12 for i in part.index}) for part in parts]
    assert sum(sizes) > len(parts)
    assert cost.seconds == 2.0 * own.sampler.num_steps * sum(sizes)
    (work,) = (one for one in stage_table.STAGES["extract"].plan(own, tmp_path) if one.run == RUN)
    assert work.amounts() == {amounts.NETWORK: 64.0 * own.sampler.num_steps, amounts.CLASSIFIER: 64.0}


def test_its_classifier_learns_clean_synthetic_images(finished):
    own, workdir = finished
    unit = stage_table.classifier_units(own, workdir)["black_box"]
    with np.load(workdir / "label" / "labels.npz") as labels:
        assert unit.content()["classes"] == labels["label"].max() + 1 > 1
    assert unit.content()["images"] + unit.content()["held_back"] == own.synthesize.num_images
    module, _ = stage_inputs.load_classifier(own, workdir, ATTACKS["black_box"].classifier)
    assert not module.time_dependent
    assert stage_table.attacker_classifier(own) is None  # suspects are ranked by one that knows noise


def test_the_first_generation_are_the_plain_samples_and_labels_are_the_targets(finished):
    own, workdir = finished
    plain, found = (images_of(own, workdir, run) for run in (Run(attack="unconditional"), RUN))
    assert np.abs(found["images"][:12].astype(int) - plain["images"][:12].astype(int)).max() <= 1
    assert np.abs(found["images"][12:].astype(int) - plain["images"][12:].astype(int)).mean() > 2
    first, second = found["label"][0], found["label"][6]
    assert first != second
    np.testing.assert_array_equal(found["label"], np.resize(np.repeat([first, second], 6), 64))


def fitness(own, workdir, images, labels):
    """Log-odds by the classifier itself."""
    module, params = stage_inputs.load_classifier(own, workdir, ATTACKS["black_box"].classifier)
    with jax.numpy_dtype_promotion("standard"):
        x, t = pixel_range.to_float(images), jnp.zeros(len(images), jnp.int32)
        values = jax.jit(lambda x: log_probs(module, params["classifier"], x, t))(x)
    return np.asarray(genetic.log_odds(values, labels))


def second_generation(own, workdir):
    """(parameters, program, the indices and genomes of the second generation), from the images of the run.

    Checks the fittest of each generation, which are recorded.
    """
    found = images_of(own, workdir)
    values = fitness(own, workdir, found["images"], found["label"])
    blocks = [values[i : i + 6] for i in range(0, 64, 6)]
    recorded = dict(stage_table.extraction_units(own, workdir))[RUN].content()["best_of_generation"]
    assert recorded == [6 * i + int(block.argmax()) for i, block in enumerate(blocks)]

    base, key = (random_streams.stream_key(own, name) for name in ("extract", "search"))
    module, params = stage_inputs.load_classifier(own, workdir, ATTACKS["black_box"].classifier)
    program = builders.build_search_program(own, module)
    given = key, genetic.Rates(parents=3, crossover=own.black_box.crossover, mutation=own.black_box.mutation)
    first = program.first(base, np.arange(12, dtype=np.uint32))
    index = np.arange(12, 24, dtype=np.uint32)
    best = [6 * search + genetic.fittest(values[6 * search : 6 * search + 6], 3) for search in (0, 1)]
    pairs = np.asarray([best[(i - 12) // 6][pair] for i, pair in zip(index, program.choose(given, index), strict=True)])
    children = program.child(given, index, first[pairs[:, 0]], first[pairs[:, 1]])
    return params | {"dpm": stage_inputs.load_target(own, workdir).trees["ema"]}, program, index, children


def test_children_are_those_of_the_fittest(finished):
    """The second generation, from the images and the classifier of the run."""
    own, workdir = finished
    params, program, index, children = second_generation(own, workdir)
    with jax.numpy_dtype_promotion("standard"):
        expected = program.draw((params, random_streams.stream_key(own, "extract")), index, children)
    assert np.abs(images_of(own, workdir)["images"][12:24].astype(int) - expected.astype(int)).max() <= 1


def test_of_a_conditional_target_label_embeddings_are_searched(conditional):
    """Two generations by hand: an image's own noise, and in place of label 0 a row that NumPy mixes."""
    own, workdir = conditional
    content = dict(stage_table.extraction_units(own, workdir))[RUN].content()
    assert own.search_genome == content["genome"] == "label"
    params, _, _, children = second_generation(own, workdir)
    base, target = random_streams.stream_key(own, "extract"), builders.build_target(own)
    table = np.asarray(params["dpm"]["class_embedding"]["embedding"])
    rows, mean = table[:3], table[:3].mean(axis=0)

    @jax.jit
    def draw(row, number):
        replaced = params["dpm"] | {"class_embedding": {"embedding": jnp.asarray(table).at[0].set(row)}}
        keys, label = sampler.sample_keys(base, number[None]), jnp.zeros(1, jnp.int32)
        steps = builders.build_step_table(own, own.sampler)
        return sampler.sample(lambda x, t: target.denoise(replaced, x, t, label), steps, keys, (8, 8, 1))

    embeddings = [*rows[generation.target_labels(base, 12, 3)], *(mean + children @ (rows - mean) / np.sqrt(3))]
    given = zip(np.asarray(embeddings, np.float32), np.arange(24, dtype=np.uint32), strict=True)
    with jax.numpy_dtype_promotion("standard"):
        expected = [pixel_range.to_uint8(draw(*one))[0] for one in given]
    found = images_of(own, workdir)["images"].astype(int)
    assert np.abs(found[:24] - np.asarray(expected, int)).max() <= 1
    plain = images_of(own, workdir, Run(attack="unconditional"))["images"].astype(int)
    assert np.abs(found[:24] - plain[:24]).mean() > 0.5


def test_the_benchmark_searches_labels_and_samples_them(conditional):
    """The run's own images; and those of the labels are guidance's at scale 1, up to rounding."""
    own, workdir = conditional
    bench = benchmark.SearchBench(workdir)
    guided = builders.build_generator(own, own_labels=True, sampler=own.guided_sampler)
    params, base = (
        {"dpm": stage_inputs.load_target(own, workdir).trees["ema"]},
        random_streams.stream_key(own, "extract"),
    )
    labels = generation.target_labels(base, 64, 3)
    with jax.numpy_dtype_promotion("standard"):
        images, best, _ = bench.search(dataclasses.replace(own.black_box, genome="label"), 64)
        sampled, fittest, hit = bench.of_labels(64)
        halves = [np.arange(start, start + 32) for start in (0, 32)]
        expected = np.concatenate([guided(params, base, half, labels[half], 1.0) for half in halves])
    np.testing.assert_array_equal(images, images_of(own, workdir)["images"])
    assert best == dict(stage_table.extraction_units(own, workdir))[RUN].content()["best_of_generation"]
    assert np.abs(sampled.astype(int) - expected.astype(int)).max() <= 1
    assert len(set(labels)) == 3
    assert [i // 50 for i in fittest] == [0, 1]
    assert len(hit) == 64


@pytest.mark.parametrize("kind", ["finished", "conditional"])
def test_a_lost_shard_is_made_again_from_the_others(kind, request, tmp_path):
    own, workdir = request.getfixturevalue(kind)
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    unit = dict(stage_table.extraction_units(own, copy))[RUN]
    parts = stage_table.extracted_shards(own, unit)
    before, content = parts[-1].path.read_bytes(), unit.content()
    parts[-1].path.unlink()
    with jax.numpy_dtype_promotion("standard"):
        extract.run(own, copy)
    assert parts[-1].path.read_bytes() == before
    assert unit.content() == content


def test_the_fittest_are_scored_apart(finished):
    """By the columns of matches.csv; and the page has both, the row of every query and the table of the fittest."""
    own, workdir = finished
    results = records.read(workdir / "evaluate" / "results.json")
    (best,) = results.best_of_generation
    chosen = dict(stage_table.extraction_units(own, workdir))[RUN].content()["best_of_generation"]
    assert best.images == len(chosen) == 11
    with (workdir / "evaluate" / "matches.csv").open() as file:
        rows = [line for line in csv.DictReader(file) if line["run"] == "black_box"]
    assert len(rows) == 64
    name = results.rows[0].metric
    for side, ams, unique in (("member", best.ams, best.unique), ("heldout", best.heldout_ams, best.heldout_unique)):
        hit = [rows[i] for i in chosen if rows[i][f"{name}_{side}_match"] == "1"]
        assert ams == len(hit) / 11
        assert unique == len({row[f"{name}_{side}_id"] for row in hit})
    page = (workdir / "report" / "index.html").read_text()
    assert "The fittest image of each generation" in page
    assert "descend from each other, so that the intervals of both rows are too narrow" in page
    assert "By black-box search, with 64 queries" in page


def test_near_duplicates_are_evidence_only_with_noise_of_their_own(finished, conditional, tmp_path):
    """A search over noise breeds them, and modes that start from its images; over labels, each image has its own."""
    for (own, workdir), empty in ((finished, True), (conditional, False)):
        run = shutil.copytree(workdir, tmp_path / own.search_genome)
        assert runs.run([f"--workdir={run}"], evaluate.SUSPECTS) == 0
        with (run / "suspects" / "suspects.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["attack"] for row in rows} >= {"unconditional", "black_box"}
        assert all((row["clique"] == "") == (empty and row["attack"] == "black_box") for row in rows)
        starts = Run(attack="modes", start="black_box", noise=0.4, rounds=5)
        assert suspects._inherits(own, starts) == empty
        assert not suspects._inherits(own, Run(attack="modes", start="noise", noise=0.4, rounds=5))


def test_recipes_are_scored_as_runs_are(finished):
    """The benchmark's figures of a run's own recipe are those of results.json."""
    own, workdir = finished
    bench = benchmark.SearchBench(workdir)
    with jax.numpy_dtype_promotion("standard"):
        images, best, hit = bench.search(own.black_box, 64)
        plain = bench.plain(64)
    found = images_of(own, workdir)
    np.testing.assert_array_equal(images, found["images"])
    assert best == dict(stage_table.extraction_units(own, workdir))[RUN].content()["best_of_generation"]
    np.testing.assert_array_equal(hit, fitness(own, workdir, images, found["label"]) > 0)
    results = records.read(workdir / "evaluate" / "results.json")
    high = [row for row in results.rows if row.level == "high"]
    for attack, given in (("black_box", images), ("unconditional", plain)):
        rows = {row.metric: row for row in high if row.attack == attack}
        first, values = rows[own.evaluate.metrics[0]], bench.score(given)
        assert values == pytest.approx(
            [100 * first.ams, first.unique, 100 * first.heldout_ams, rows["rmse"].unique, rows["distance_ratio"].unique]
        )


def test_the_benchmark_goes_on_from_kept_images(finished, tmp_path):
    """A search, plain samples and rounds that were cut short are those that were not, and drawn no second time."""
    own, workdir = finished

    def made(keep, count):
        bench = benchmark.SearchBench(workdir, keep)
        images, best, hit = bench.search(own.black_box, count)
        plain = bench.plain(count)
        return images, best, hit, plain, bench.sought(plain, 2, 3)

    with jax.numpy_dtype_promotion("standard"):
        made(tmp_path, 30)
        for some, whole in zip(made(tmp_path, 60), made(None, 60), strict=True):
            np.testing.assert_array_equal(some, whole)
    kept = {path.name: np.load(path) for path in tmp_path.iterdir()}
    assert {len(images) for images in kept.values()} == {60}
    assert len(kept) == 3
    for name, images in kept.items():
        np.save(tmp_path / name, 255 - images)
    with jax.numpy_dtype_promotion("standard"):
        again = made(tmp_path, 60)
    for images, name in ((again[0], "search"), (again[3], "plain"), (again[4], "api")):
        (before,) = (one for key, one in kept.items() if f"_{name}" in key)
        np.testing.assert_array_equal(images, 255 - before)


def test_the_rule_is_the_one_of_the_docs():
    """Most members; near ones by AMS; none that matches too many held-out images on any seed."""
    found = {
        "a": [[10.0, 30, 0.0], [12.0, 34, 0.5]],
        "b": [[14.0, 28, 0.0], [16.0, 31, 0.0]],
        "c": [[40.0, 20, 0.0], [40.0, 22, 0.0]],
        "d": [[90.0, 60, 0.0], [90.0, 60, 0.6]],
    }
    assert benchmark.chosen(found) == "b"
    assert benchmark.chosen({"d": found["d"]}) == "none"
