"""The attack `modes`: its runs, what they depend on, their images and their rows."""

import csv
import dataclasses
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
from PIL import Image

from side_jax import builders
from side_jax.attacks.table import Run
from side_jax.config import from_config
from side_jax.diffusion import mode_seeking, pixel_range
from side_jax.errors import InputError
from side_jax.measure import records
from side_jax.pipeline.saved_config import saved_config
from side_jax.report import plots
from side_jax.sampling import shards
from side_jax.settings import Settings, random_streams
from side_jax.settings.extraction import Extract, Modes
from side_jax.stages import estimates, report, stage_inputs, stage_table, suspects, train
from side_jax.training import trainer
from side_jax.workdir import files
from side_jax.workdir.checkpoint import Checkpoints

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import mode_recipes
import suspects as suspects_benchmark

EXTRACT = Extract(
    attacks=("unconditional", "conditional_x0", "side", "modes"), guidance_scales=(3.0, 10.0), num_steps=6
)


def settings(extract=EXTRACT, **modes):
    options = {"starts": ("unconditional", "side", "noise"), "noise_levels": (0.1, 0.2), "rounds": (4, 9)}
    return dataclasses.replace(Settings(), extract=extract, modes=Modes(**options | modes))


def test_it_runs_from_every_start_at_every_noise_and_number_of_rounds():
    names = [run.name for run in settings().runs() if run.rounds]
    origins = ("unconditional", "side_3", "side_10", "noise")
    assert names == [f"modes_{noise}x{n}_from_{start}" for start in origins for noise in (0.1, 0.2) for n in (4, 9)]
    assert len({run.name for run in settings().runs()}) == len(settings().runs()) == 5 + 16


def test_calls_of_the_network_are_those_of_the_start_and_the_rounds():
    """20 plain steps; 6 guided ones, of x_t or through the network, whose gradient is two more calls."""
    calls = {run.name: estimates.network_calls(settings(), run) for run in settings().runs()}
    assert (calls["unconditional"], calls["side_3"], calls["conditional_x0_3"]) == (20, 6, 6 * 3)
    assert calls["modes_0.1x9_from_unconditional"] == 29
    assert calls["modes_0.1x4_from_side_10"] == 10
    assert calls["modes_0.2x9_from_noise"] == 9
    some = settings(dataclasses.replace(EXTRACT, guidance_interval=(500, 999)))
    assert estimates.network_calls(some, Run(attack="conditional_x0", scale=3.0)) == 6 + 3 * 2


def test_in_the_twin_it_runs_from_the_twins_images_alone():
    attacks = ("unconditional", "modes", "twin", "modes_twin")
    own = settings(dataclasses.replace(EXTRACT, attacks=attacks), starts=("noise",), noise_levels=(0.1,), rounds=(4,))
    names = [run.name for run in own.runs()]
    assert names == ["unconditional", "twin", "modes_0.1x4_from_noise", "modes_twin_0.1x4_from_twin"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"modes": Modes(starts=("unconditional", "side", "noise"), noise_levels=(0.1,), rounds=(4,), random=True)},
            "all",
        ),
        ({"extract": dataclasses.replace(EXTRACT, normalize_gradient=True)}, "side"),
        ({"surrogate": dataclasses.replace(Settings().surrogate, learning_rate=1e-5)}, "side"),
        ({"sampler": dataclasses.replace(Settings().sampler, num_steps=7)}, "unconditional"),
    ],
)
def test_a_run_depends_on_its_rounds_and_on_its_start(changes, expected, tmp_path):
    before = settings(noise_levels=(0.1,), rounds=(4,))
    fingerprints = [
        {run.name: work.fingerprint for run, work in stage_table.extraction_units(one, tmp_path) if run.rounds}
        for one in (before, dataclasses.replace(before, **changes))
    ]
    changed = {name for name, value in fingerprints[0].items() if fingerprints[1][name] != value}
    # The section `sampler`, its batch size among the rest, is one that every run depends on.
    everything = expected in ("all", "unconditional")
    assert changed == {name for name in fingerprints[0] if everything or "from_side" in name}


def test_runs_that_differ_in_their_start_or_noise_share_one_compiled_program():
    own = settings(starts=("unconditional", "side"), rounds=(4,))
    seeking = [run for run in own.runs() if run.rounds]
    levels = [builders.mode_noise_levels(own, run.noise, run.rounds, 0.5) for run in seeking]
    first, *others = (builders.build_mode_generator(own, each, lambda index: index).program for each in levels)
    assert len(others) == 5
    assert all(program is first for program in others)
    assert builders.build_mode_generator(own, levels[0], None).program is not first


def test_noise_is_in_units_of_the_spread_of_the_training_images():
    own = settings(last_noise=0.5)
    np.testing.assert_allclose(builders.mode_noise_levels(own, 0.4, 3, 0.5), [0.2, 0.2 / np.sqrt(2), 0.1], rtol=1e-6)
    with pytest.raises(
        InputError, match=r"noise_levels is 0.039, but it must be between 0.02 and .* in the last round"
    ):
        builders.mode_noise_levels(own, 0.039, 3, 0.5)
    with pytest.raises(InputError, match="all alike"):
        builders.mode_noise_levels(own, 0.4, 3, 0.0)


def test_a_monitor_seeks_modes_by_the_default_recipe_whatever_the_attacks_is():
    """Like here, where the default recipe starts from runs that aren't among the attacks."""
    noise_alone = settings(Extract(attacks=("modes",)), starts=("noise",))
    levels = builders.mode_noise_levels(noise_alone, Modes().noise_levels[0], Modes().rounds[0], 0.5)
    np.testing.assert_array_equal(train._seeker(noise_alone, 0.5)(np.zeros((8, 16, 16, 1))).rounds, levels)


def test_noise_beyond_the_models_is_an_error_before_anything_is_trained(tmp_path):
    """Only the members' spread tells: the settings alone can't."""
    attacks = "('unconditional','modes')"
    asked = runs.arguments(tmp_path / "run", extract__attacks=attacks, modes__noise_levels="(0.012,)")
    assert runs.run(asked) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.fixture(scope="module")
def finished():
    """A finished run with mode seeking from plain sampling, and its settings."""
    workdir = runs.finished("everything")
    return from_config(saved_config(workdir)), workdir


def test_images_are_the_rounds_from_those_of_the_start(finished):
    own, workdir = finished
    units = dict(stage_table.extraction_units(own, workdir))
    (run,) = (run for run in units if run.attack == "modes")
    start, found = (
        shards.read(stage_table.extracted_shards(own, units[one])) for one in (Run(attack="unconditional"), run)
    )
    assert run.start == "unconditional"
    np.testing.assert_array_equal(start["index"], found["index"])
    assert (found["label"] == -1).all()
    params, unet = {"params": stage_inputs.load_target(own, workdir).trees["ema"]}, builders.build_network(own)
    denoiser = mode_seeking.from_network(lambda x, t: unet.apply(params, x, t), builders.build_schedule(own))
    members = pixel_range.to_float(stage_inputs.load_split(own, workdir)[0].images)
    levels = mode_seeking.noise_levels(run.noise * mode_seeking.spread(members), run.rounds)
    with jax.numpy_dtype_promotion("standard"):
        x = pixel_range.to_float(start["images"])
        state = jax.jit(lambda x: mode_seeking.seek(denoiser, levels, x, relaxation=own.modes.relaxation))(x)
    difference = np.abs(np.asarray(pixel_range.to_uint8(state.x)).astype(int) - found["images"].astype(int))
    assert difference.max() <= 1
    assert np.abs(found["images"].astype(int) - start["images"]).mean() > 2


def test_the_spread_is_recorded_and_for_older_checkpoints_computed(finished, monkeypatch):
    own, workdir = finished
    members = stage_inputs.load_split(own, workdir)[0].images.astype(np.float64) / 127.5 - 1
    expected = np.sqrt(np.square(members - members.mean(axis=0)).mean())
    with monkeypatch.context() as patch:
        patch.setattr(stage_inputs, "load_split", None)
        assert stage_inputs.training_spread(own, workdir) == pytest.approx(expected, rel=1e-6)
    restore = Checkpoints.restore
    monkeypatch.setattr(
        Checkpoints,
        "restore",
        lambda self, **options: dataclasses.replace(restore(self, **options), meta={}),
    )
    assert stage_inputs.training_spread(own, workdir) == pytest.approx(expected, rel=1e-6)


def test_rows_and_tables_name_the_run(finished):
    own, workdir = finished
    results = records.read(workdir / "evaluate" / "results.json")
    (row,) = (row for row in results.rows if (row.attack, row.metric, row.level) == ("modes", "rmse", "high"))
    (run,) = (run for run in own.runs() if run.attack == "modes")
    assert row.key == run
    assert (row.start, row.noise_level, row.rounds) == ("unconditional", run.noise, run.rounds)
    assert row.network_calls == own.sampler.num_steps + run.rounds
    with (workdir / "evaluate" / "matches.csv").open() as file:
        assert sum(line["run"] == run.name for line in csv.DictReader(file)) == row.n_generated
    header = (workdir / "evaluate" / "members.csv").read_text().splitlines()[0]
    assert f"extracted_{run.name}" in header.split(",")
    page = (workdir / "report" / "index.html").read_text()
    assert f"modes from unconditional, noise {run.noise:g}, {run.rounds} rounds" in page
    assert f"By mode seeking from plain sampling ({run.rounds} rounds" in page


def test_the_twin_is_trained_like_the_target_on_held_out_images(finished, monkeypatch, tmp_path):
    """As many steps, as many images, another start; and what is drawn from it are its own images."""
    own, workdir = finished
    target, twin = (unit(own, workdir) for unit in (stage_table.train_unit, stage_table.twin_unit))
    assert twin.done()
    assert twin.content()["steps"] == target.content()["steps"]
    asked = {}

    def run(**options):
        asked.update(options)
        return {"a": np.zeros(3)}, 7

    monkeypatch.setattr(trainer, "run", run)
    copy = tmp_path / "copy"
    shutil.copytree(workdir / "train", copy / "train", ignore=lambda *_: ["twin"])
    train.run(own, copy)
    members, heldout, *_ = stage_inputs.load_split(own, workdir)
    assert asked["num_examples"] == len(members)
    images = asked["fetch"](np.arange(len(members)))[0]
    np.testing.assert_array_equal(images, heldout.images[: len(members)])
    assert asked["fit"] == own.train
    assert asked["seed"] != random_streams.stream_seed(own, "train")
    assert [asked["watch"](step, None) for step in (1, own.train.num_steps)] == [False, True]
    units = dict(stage_table.extraction_units(own, workdir))
    plain, other = (
        shards.read(stage_table.extracted_shards(own, units[Run(attack=name)]))["images"].astype(int)
        for name in ("unconditional", "twin")
    )
    assert np.abs(plain - other).mean() > 5


def test_suspects_list_the_distinct_modes(finished, tmp_path):
    """Of planted images: 20 near copies of one, 9 of another, and three alone; the twin is the owner's."""
    own, workdir = finished
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    units = dict(stage_table.extraction_units(own, copy))
    (run,) = (run for run in units if run.attack == "modes")
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    which = rng.permutation(np.repeat(np.arange(5), (20, 9, 1, 1, 1)))
    shift = rng.integers(-2, 3, (32, 8, 8, 1))
    planted = np.clip(kinds[which].astype(int) + shift, 0, 255).astype(np.uint8)
    for part in stage_table.extracted_shards(own, units[run]):
        index = np.asarray(part.index)
        files.write_npz(part.path, images=planted[index], index=index, label=np.full(len(index), -1, np.int32))
    runs.sign(units[run])
    with jax.numpy_dtype_promotion("standard"):
        suspects.run(own, copy)
    with (copy / "suspects" / "modes.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_api = Run(attack="black_box_modes", start="unconditional", last_steps=2, rounds=5)
    assert list(dict.fromkeys(row["run"] for row in rows)) == [run.name, by_api.name]
    rows = [row for row in rows if row["run"] == run.name]
    assert [int(row["images"]) for row in rows] == [20, 9, 1, 1, 1]
    assert [int(row["rank"]) for row in rows] == [1, 2, 3, 4, 5]
    assert [which[int(row["index"])] for row in rows[:2]] == [0, 1]
    assert [float(row["share"]) for row in rows[:2]] == [20 / 32, pytest.approx(9 / 32)]
    assert all(np.isfinite(float(row[name])) for row in rows for name in ("movement", "posterior_variance"))
    # Each by its own noise, and label if the model always needs one, which go by the image's index.
    sigma = own.modes.noise_levels[0] * stage_inputs.training_spread(own, copy)
    with jax.numpy_dtype_promotion("standard"):
        target = stage_inputs.load_target_scores(own, copy)
        scores = target.scores(("movement", "posterior_variance"), planted, "suspects", sigma)
    places = [int(row["index"]) for row in rows]
    for name, values in scores.items():
        assert [float(row[name]) for row in rows] == pytest.approx(values[places], rel=1e-4)
    assert (copy / "suspects" / "modes.png").exists()
    found = suspects_benchmark.modes(copy)[run.name]
    assert found["images"].tolist() == [1.0, 0.8, 0.4, 0.4, 0.4]
    least = min(range(5), key=lambda i: float(rows[i]["movement"]))
    assert found["movement"].argmax() == least
    with (copy / "evaluate" / "matches.csv").open() as file:
        matched = {int(row["index"]): row for row in csv.DictReader(file) if row["run"] == run.name}
    headline = next(name for name in matched[0] if name.endswith("_member_match"))
    assert found["right"].tolist() == [matched[int(row["index"])][headline] == "1" for row in rows]
    assert "Distinct modes" in suspects.summary_text(copy)
    assert stage_table.suspects_unit(own, copy).done()
    (copy / "suspects" / "modes.csv").unlink()
    assert not stage_table.suspects_unit(own, copy).done()


def test_recipes_are_scored_as_runs_are(finished):
    """The benchmark's row of a run's own recipe has the figures of results.json; the start is the unguided run."""
    own, workdir = finished
    (run,) = (run for run in own.runs() if run.attack == "modes")
    bench = mode_recipes.Bench(workdir, 0)
    (start,) = bench.runs(["unconditional"])
    options = {name: getattr(own.modes, name) for name in ("last_noise", "random", "relaxation", "anderson")}
    recipe = mode_recipes.Recipe(start=start, noise=run.noise, rounds=run.rounds, **options)
    results = records.read(workdir / "evaluate" / "results.json")
    high = [row for row in results.rows if row.level == "high"]
    for attack, values in (("modes", bench.row(recipe)), ("unconditional", bench.start(start))):
        rows = {row.metric: row for row in high if row.attack == attack}
        first = rows[own.evaluate.metrics[0]]
        assert values[0] == pytest.approx(100 * first.ams)
        assert values[1] == first.unique
        assert values[3] == pytest.approx(100 * first.heldout_ams)
        assert values[4:] == [rows["rmse"].unique, rows["distance_ratio"].unique, first.network_calls]
    assert "from unconditional" in recipe.name


def test_recipes_are_ranked_by_members_at_equal_calls_over_all_configs():
    """Those that match too many held-out images in one config are left out; so are those that one config lacks."""

    def row(equal, heldout=0.0):
        return [10.0, 0, equal, heldout, 0, 0, 25]

    found = {
        "digits": {"a": row(40), "b": row(30), "c": row(80, 0.6), "d": row(90)},
        "faces": {"a": row(10), "b": row(20), "c": row(30)},
    }
    first, second = mode_recipes.ranking(found, 10).splitlines()[3:]
    assert first == "| b | 0.750 | 1.000 | 0.875 | 10.0, 10.0 |"
    assert second == "| a | 1.000 | 0.500 | 0.750 | 10.0, 10.0 |"


def test_the_report_shows_the_distinct_modes_most_frequent_first(finished, tmp_path, monkeypatch):
    """Of planted images: each of five kinds as often as planted, framed where its row says that it matches."""
    own, workdir = finished
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    (run,) = (run for run in own.runs() if run.attack == "modes")
    unit = dict(stage_table.extraction_units(own, copy))[run]
    kinds = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    which = np.random.default_rng(1).permutation(np.repeat(np.arange(5), (3, 20, 1, 7, 1)))
    for part in stage_table.extracted_shards(own, unit):
        index = np.asarray(part.index)
        files.write_npz(part.path, images=kinds[which[index]], index=index, label=np.full(len(index), -1, np.int32))
    runs.sign(unit)
    shown, draw = {}, plots.modes

    def drawn(images, counts, matched):
        shown.update(images=images, counts=counts, matched=matched)
        return draw(images, counts, matched)

    monkeypatch.setattr(plots, "modes", drawn)
    (copy / "report" / "manifest.json").unlink()
    with jax.numpy_dtype_promotion("standard"):
        report.run(own, copy)
    assert shown["counts"] == [20, 7, 3, 1, 1]
    np.testing.assert_array_equal(shown["images"][:3], kinds[[1, 3, 0]])
    with Image.open(copy / "report" / "distinct_modes.png") as picture:
        assert picture.width > 300
    page = (copy / "report" / "index.html").read_text()
    assert (
        "There are 5, of which 3 were reached more than once; 10 times as many starts are expected to reach 6" in page
    )
