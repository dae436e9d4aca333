"""Checks the predicted number of distinct modes: from some starts, how many do ten times as many reach?

python benchmarks/modes_left.py --workdirs runs/digits_3 runs/digits_4 --factor 10

Each workdir is an audit with mode seeking. Its first run of that kind is repeated from --factor times as many plain
samples, of which the first are the audit's own. The table shows the distinct modes of the audit's starts (groups of
images with an RMSE below evaluate.rmse_below), what is predicted for all starts, and what they reach; and the same for
the members among them, by the headline metric.
"""

import argparse
from pathlib import Path

import numpy as np

from side_jax import builders
from side_jax.config import from_config
from side_jax.devices import cpu
from side_jax.memorization.basins import Basins, expected_modes
from side_jax.memorization.matching import match, references
from side_jax.memorization.statistics import rarefaction
from side_jax.pipeline.saved_config import saved_config
from side_jax.sampling.mode_generation import draw
from side_jax.settings import random_streams
from side_jax.stages import stage_inputs, suspects

COLUMNS = ("starts", "distinct modes", "reached more than once", "predicted for all starts", "of all starts")
MEMBERS = ("members", "predicted for all starts", "of all starts")


def row(first: Basins, every: Basins, hits: tuple[np.ndarray, np.ndarray], starts: int, factor: int) -> list[float]:
    """The values of COLUMNS and MEMBERS.

    Args:
      first: the modes of the first starts.
      every: those of all.
      hits: how many of the first images, and of all, match each member: int [m] each.
      starts: number of the first.
      factor: all over the first.
    """
    modes = [starts, len(first.size), int((first.size > 1).sum()), expected_modes(first.size, factor), len(every.size)]
    found = [int((one > 0).sum()) for one in hits]
    return [*modes, found[0], rarefaction.extrapolate(hits[0], starts, factor), found[1]]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdirs", nargs="+", required=True, type=Path, help="finished audits")
    parser.add_argument("--factor", type=int, default=10)
    options = parser.parse_args()
    print(f"| audit | {' | '.join([*COLUMNS, *MEMBERS])} |\n" + "|---" * (1 + len(COLUMNS) + len(MEMBERS)) + "|")
    for workdir in options.workdirs:
        settings = from_config(saved_config(workdir))
        cpu.prepare([settings.sampler.batch_size])
        run = next((run for run in settings.runs() if run.rounds), None)
        if run is None:
            raise SystemExit(f"{workdir} holds no mode seeking; add 'modes' to its config.extract.attacks.")
        params = {"dpm": stage_inputs.load_target(settings, workdir).trees["ema"]}
        levels = builders.mode_noise_levels(
            settings, run.noise, run.rounds, stage_inputs.training_spread(settings, workdir)
        )
        base, count = random_streams.stream_key(settings, "extract"), settings.extract.num_images
        samples = draw(builders.build_generator(settings), params, base, options.factor * count)
        seek = builders.build_mode_generator(settings, levels, lambda index, samples=samples: samples[index])
        images = draw(seek, params, base, len(samples))
        metrics = settings.evaluate.make_metrics()[:1]
        members, _ = stage_inputs.load_sides(settings, workdir)
        among, band = references(members.images, metrics), metrics[0].bands["high"]
        parts = images[:count], images
        first, every = (suspects.distinct_modes(part, settings.evaluate.rmse_below) for part in parts)
        hits = tuple(match(part, among, metrics)[0].score(band).extracted for part in parts)
        values = row(first, every, hits, count, options.factor)
        print(f"| {workdir.name} | {' | '.join(f'{value:,.0f}' for value in values)} |", flush=True)


if __name__ == "__main__":
    main()
