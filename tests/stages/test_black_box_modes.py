"""The attack `black_box_modes` and its twin: their runs, what they depend on and cost, their images and their rows."""

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

from side_jax import builders
from side_jax.attacks.table import ATTACKS, Run
from side_jax.config import from_config
from side_jax.diffusion import pixel_range, sampler
from side_jax.measure import records
from side_jax.pipeline.saved_config import saved_config
from side_jax.sampling import shards
from side_jax.settings import Settings, random_streams
from side_jax.settings.extraction import BlackBoxModes, Extract, Modes
from side_jax.stages import amounts, estimates, extract, stage_inputs, stage_table
from side_jax.stages.estimates import Timing

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import black_box as benchmark

ATTACKS_HERE = ("unconditional", "side", "modes", "black_box_modes", "twin", "black_box_modes_twin")
OWN = dataclasses.replace(
    Settings(),
    extract=Extract(attacks=ATTACKS_HERE, guidance_scales=(3.0,)),
    modes=Modes(starts=("side",)),
    black_box_modes=BlackBoxModes(last_steps=(2, 4), rounds=(3,)),
)


def run_of(steps, rounds, twin=False):
    name, start = ("black_box_modes_twin", "twin") if twin else ("black_box_modes", "unconditional")
    return Run(attack=name, start=start, last_steps=steps, rounds=rounds)


@pytest.fixture(scope="module")
def finished():
    """A finished run of every attack, and its settings."""
    workdir = runs.finished("everything")
    return from_config(saved_config(workdir)), workdir


def images_of(own, workdir, run):
    return shards.read(stage_table.extracted_shards(own, dict(stage_table.extraction_units(own, workdir))[run]))


def test_it_runs_from_plain_samples_by_each_recipe():
    """Whatever modes.starts says; in the twin, from the twin's."""
    names = [run.name for run in OWN.runs() if run.last_steps]
    assert names[:2] == [f"black_box_modes_{steps}x3_from_unconditional" for steps in (2, 4)]
    assert names[2:] == [f"black_box_modes_twin_{steps}x3_from_twin" for steps in (2, 4)]
    assert not any(ATTACKS[name].default for name in ATTACKS if ATTACKS[name].renoises)


def test_its_calls_and_requests():
    """Of 20 steps: those of the start and of each round; an attack that needs more than an API makes no requests."""
    costs = {
        run.name: (estimates.network_calls(OWN, run), estimates.requests(run))
        for run in OWN.runs()
        if run.attack != "modes"
    }
    assert costs == {
        "unconditional": (20, 1),
        "side_3": (20, None),
        "twin": (20, None),
        "black_box_modes_2x3_from_unconditional": (26, 4),
        "black_box_modes_4x3_from_unconditional": (32, 4),
        "black_box_modes_twin_2x3_from_twin": (26, None),
        "black_box_modes_twin_4x3_from_twin": (32, None),
    }
    alone = {name for name, attack in ATTACKS.items() if attack.needs_api_only}
    assert alone == {"unconditional", "black_box", "black_box_modes"}


def test_the_plan_has_the_calls_of_its_rounds(tmp_path):
    units = dict(stage_table.extraction_units(OWN, tmp_path))
    run = run_of(4, 3)
    parts = stage_table.extracted_shards(OWN, units[run])

    class Clock:
        def sampling_step(self, attack):
            assert attack is None
            return Timing(step=2.0)

    assert estimates.sampling(OWN, units[run], parts, run, Clock()).seconds == 2.0 * 12 * len(parts)
    (work,) = (one for one in stage_table.STAGES["extract"].plan(OWN, tmp_path) if one.run == run)
    assert work.amounts() == {amounts.NETWORK: 12.0 * OWN.extract.num_images}


def test_what_it_depends_on(tmp_path):
    """The sampler and its start; not mode seeking with the weights, nor what another recipe does."""

    def fingerprints(of):
        return {run: unit.fingerprint for run, unit in stage_table.extraction_units(of, tmp_path)}

    before = fingerprints(OWN)
    seeking = dataclasses.replace(OWN, modes=Modes(starts=("side",), random=True, noise_levels=(0.3,)))
    recipes = dataclasses.replace(OWN, black_box_modes=BlackBoxModes(last_steps=(2,), rounds=(3, 7)))
    for changed in (fingerprints(seeking), fingerprints(recipes)):
        assert changed[run_of(2, 3)] == before[run_of(2, 3)]
    assert len(set(before.values())) == len(before)
    fewer = dataclasses.replace(OWN, sampler=dataclasses.replace(OWN.sampler, num_steps=10))
    assert fingerprints(fewer)[run_of(2, 3)] != before[run_of(2, 3)]


@pytest.mark.parametrize("twin", [False, True])
def test_images_are_the_rounds_from_plain_samples(finished, twin):
    """Each a request: noise from the image's own key and the round, then the sampler's last steps, to 8 bits."""
    own, workdir = finished
    (steps,), (rounds,) = own.black_box_modes.last_steps, own.black_box_modes.rounds
    start, found = (
        images_of(own, workdir, run)
        for run in (Run(attack="twin" if twin else "unconditional"), run_of(steps, rounds, twin))
    )
    np.testing.assert_array_equal(start["index"], found["index"])
    load = stage_inputs.load_twin if twin else stage_inputs.load_target
    params, unet = {"params": load(own, workdir).trees["ema"]}, builders.build_network(own)
    table = builders.build_step_table(own, own.sampler)
    assert (steps, table.num_steps) == (2, 3)

    @jax.jit
    def request(number, images):
        key = jax.random.fold_in(random_streams.stream_key(own, "requests"), number)
        keys = sampler.sample_keys(key, jnp.asarray(start["index"], jnp.uint32))
        z, first = sampler.initial_noise(keys, images.shape[1:]), table[1]
        state = sampler.State(first.signal * pixel_range.to_float(images) + first.sigma * z, jnp.zeros(images.shape))
        for i in (1, 2):
            state = sampler.sample_step(lambda x, t: unet.apply(params, x, t), table[i], state, keys)
        return pixel_range.to_uint8(state.x)

    images = start["images"]
    with jax.numpy_dtype_promotion("standard"):
        for number in range(rounds):
            images = request(number, images)
    # A difference of one level in a round becomes a few in the next.
    assert np.abs(np.asarray(images).astype(int) - found["images"].astype(int)).max() <= 3
    assert np.abs(found["images"].astype(int) - start["images"]).mean() > 2


def test_a_lost_shard_is_made_again_bit_for_bit(finished, tmp_path):
    own, workdir = finished
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    for twin in (False, True):
        unit = dict(stage_table.extraction_units(own, copy))[run_of(2, 5, twin)]
        part = stage_table.extracted_shards(own, unit)[-1]
        before, content = part.path.read_bytes(), unit.content()
        part.path.unlink()
        with jax.numpy_dtype_promotion("standard"):
            extract.run(own, copy)
        assert part.path.read_bytes() == before
        assert unit.content() == content


def test_rows_tables_and_the_page_name_the_run_and_what_it_costs(finished):
    own, workdir = finished
    results = records.read(workdir / "evaluate" / "results.json")
    first = {row.key: row for row in results.rows if row.metric == "rmse" and row.level == "high"}
    row, plain = first[run_of(2, 5)], first[Run(attack="unconditional")]
    assert (row.network_calls, row.requests, plain.requests) == (own.sampler.num_steps + 10, 6, 1)
    assert (row.last_steps, row.rounds, row.noise_level) == (2, 5, records.UNSET)
    assert first[run_of(2, 5, twin=True)].requests is records.UNSET
    with (workdir / "evaluate" / "matches.csv").open() as file:
        assert sum(line["run"] == row.key.name for line in csv.DictReader(file)) == row.n_generated
    page = (workdir / "report" / "index.html").read_text()
    for said in (
        "black_box_modes from unconditional, last 2 steps, 5 rounds",
        "By black-box mode seeking from plain sampling (5 rounds of the last 2 steps), at 13 calls of the network and "
        "6 requests to an API for each image, ",
        "samples it (needs only an API)",
        "no weights (needs only an API)",
    ):
        assert said in page
    assert "of another attack (needs only an API)" not in page


def test_the_benchmark_seeks_as_the_attack_does(finished):
    own, workdir = finished
    bench = benchmark.SearchBench(workdir)
    with jax.numpy_dtype_promotion("standard"):
        for twin in (False, True):
            plain = bench.plain(own.extract.num_images, twin)
            images = bench.sought(plain, 2, 5, twin)
            np.testing.assert_array_equal(images, images_of(own, workdir, run_of(2, 5, twin))["images"])
