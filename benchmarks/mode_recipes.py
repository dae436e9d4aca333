"""Compares recipes of mode seeking: starts, noise, rounds, annealing, noise in the rounds and accelerations.

python benchmarks/mode_recipes.py --workdirs runs/digits_10 runs/digits_11 runs/digits_12 \
    --starts unconditional noise --noise-levels 0.2 0.28 0.4 0.56 --rounds 5 10 20 --last-noises 1 0.5

Each workdir is a finished audit, whose stored images are the starts; nothing in it changes. For every recipe, the
table has means over the workdirs: the share of matched images (AMS), the extracted members, the members at equal calls
of the network (by as many images as the calls of plain sampling pay for), AMS against held-out images, and the members
by RMSE and by d1 / d2. Workdirs of several configs have a table each; a last table applies the rule of
docs/results_modes.md to all of them. Choose on seeds that no table of results uses.
"""

import argparse
import dataclasses
import functools
import itertools
from pathlib import Path

import numpy as np

from side_jax import builders
from side_jax.attacks.table import NOISE, PLAIN, Run
from side_jax.config import from_config
from side_jax.devices import cpu
from side_jax.memorization.matching import match, references
from side_jax.memorization.statistics import rarefaction
from side_jax.pipeline.saved_config import saved_config
from side_jax.sampling import shards
from side_jax.sampling.mode_generation import draw
from side_jax.settings import Settings, random_streams
from side_jax.stages import estimates, stage_inputs, stage_table

HELDOUT_AT_MOST = 0.5  # percent of the images that may match held-out images
COLUMNS = ("AMS, %", "members", "at equal calls", "held-out AMS, %", "members by RMSE", "by d1 / d2", "calls")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to seek modes; the fields are those of settings.Modes and of its runs."""

    start: Run | None
    noise: float
    rounds: int
    last_noise: float
    random: bool
    relaxation: float
    anderson: bool

    @property
    def name(self) -> str:
        """The recipe in words."""
        words = [f"from {self.start.name if self.start else NOISE}, {self.rounds} rounds at {self.noise:g}"]
        words += [f"down to {self.noise * self.last_noise:g}"] if self.last_noise < 1 else []
        words += ["with noise"] if self.random else []
        words += [f"times {self.relaxation:g}"] if self.relaxation != 1 else []
        return ", ".join(words + (["Anderson"] if self.anderson else []))


class Bench:
    """A finished audit: its target, its stored images, and both sides."""

    def __init__(self, workdir: Path, num_images: int):
        """Loads everything; uses the first `num_images` images of each run, or all if 0."""
        self.settings: Settings = from_config(saved_config(workdir))
        cpu.prepare([self.settings.sampler.batch_size])
        self._count = num_images or self.settings.extract.num_images
        self._params = {"dpm": stage_inputs.load_target(self.settings, workdir).trees["ema"]}
        self._base = random_streams.stream_key(self.settings, "extract")
        self._metrics = self.settings.evaluate.make_metrics()
        self._spread = stage_inputs.training_spread(self.settings, workdir)
        sides = stage_inputs.load_sides(self.settings, workdir)
        self._sides = [references(side.images[: len(sides[0])], self._metrics) for side in sides]
        units = dict(stage_table.extraction_units(self.settings, workdir))
        self._shards = {run: stage_table.extracted_shards(self.settings, unit) for run, unit in units.items()}
        self._plain_calls = estimates.network_calls(self.settings, Run(attack=PLAIN.name))

    def runs(self, starts: list[str]) -> list[Run | None]:
        """The runs whose images are the starts, at every scale of each; None for noise."""
        found = [run for run in self._shards if run.attack in starts and not run.rounds]
        return found + ([None] if NOISE in starts else [])

    def start(self, run: Run) -> list[float]:
        """The row of the starting images themselves."""
        images = shards.read(self._shards[run])["images"][: self._count]
        return self._score(images, estimates.network_calls(self.settings, run))

    def row(self, recipe: Recipe) -> list[float]:
        """The values of COLUMNS."""
        modes = dataclasses.replace(
            self.settings.modes,
            last_noise=recipe.last_noise,
            random=recipe.random,
            relaxation=recipe.relaxation,
            anderson=recipe.anderson,
        )
        settings = dataclasses.replace(self.settings, modes=modes)
        origin = {"start": recipe.start.attack, "scale": recipe.start.scale} if recipe.start else {"start": NOISE}
        run = Run(attack="modes", noise=recipe.noise, rounds=recipe.rounds, **origin)
        starts = functools.partial(shards.pick, self._shards[recipe.start]) if recipe.start else None
        levels = builders.mode_noise_levels(settings, recipe.noise, recipe.rounds, self._spread)
        images = draw(builders.build_mode_generator(settings, levels, starts), self._params, self._base, self._count)
        return self._score(images, estimates.network_calls(settings, run))

    def _score(self, images: np.ndarray, calls: int) -> list[float]:
        members, heldout = (match(images, side, self._metrics) for side in self._sides)
        scores = [one.score(metric.bands["high"]) for one, metric in zip(members, self._metrics, strict=True)]
        false = heldout[0].score(self._metrics[0].bands["high"]).ams
        affordable = min(len(images), len(images) * self._plain_calls // calls)
        (equal,) = rarefaction.curve(scores[0].extracted, len(images), [affordable])
        return [100 * scores[0].ams, scores[0].unique, equal, 100 * false, scores[1].unique, scores[2].unique, calls]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--workdirs", nargs="+", required=True, type=Path, help="finished audits, of one or more configs"
    )
    parser.add_argument("--starts", nargs="+", default=[PLAIN.name], help=f"attacks of the audit, or {NOISE}")
    parser.add_argument("--noise-levels", nargs="+", type=float, default=[0.2, 0.28, 0.4, 0.56])
    parser.add_argument("--rounds", nargs="+", type=int, default=[5, 10, 20])
    parser.add_argument("--last-noises", nargs="+", type=float, default=[1.0], help="over the first")
    parser.add_argument("--random", nargs="+", type=int, choices=(0, 1), default=[0], help="1: noise in the rounds")
    parser.add_argument("--relaxations", nargs="+", type=float, default=[1.0])
    parser.add_argument("--anderson", nargs="+", type=int, choices=(0, 1), default=[0])
    parser.add_argument("--num-images", type=int, default=0, help="0: as many as the audit has")
    parser.add_argument("--best", type=int, default=10, help="recipes in the last table, or 0 for none")
    options = parser.parse_args()
    groups: dict[str, list[Bench]] = {}
    for workdir in options.workdirs:
        bench = Bench(workdir, options.num_images)
        groups.setdefault(bench.settings.name, []).append(bench)
    found = {name: table(name, benches, options) for name, benches in groups.items()}
    if options.best:
        print(ranking(found, options.best))


def table(name: str, benches: list[Bench], options: argparse.Namespace) -> dict[str, list[float]]:
    """Prints a config's table as it is measured; returns the means over its workdirs, by recipe."""
    print(f"\n### {name}\n\n| recipe | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    grid = (options.noise_levels, options.rounds, options.last_noises, options.random, options.relaxations)
    names = ("noise", "rounds", "last_noise", "random", "relaxation", "anderson")
    found = {}
    for start in benches[0].runs(options.starts):
        if start:
            _print(start.name, [bench.start(start) for bench in benches])
        for values in itertools.product(*grid, options.anderson):
            if values[-1] and values[-2] != 1:
                continue  # Anderson's method chooses its own factor
            recipe = Recipe(start=start, **dict(zip(names, values, strict=True)))
            found[recipe.name] = _print(recipe.name, [bench.row(recipe) for bench in benches])
    return found


def ranking(found: dict[str, dict[str, list[float]]], count: int) -> str:
    """The rule over several configs: the recipes with the most members at equal calls, as shares of the best.

    Recipes that match held-out images in more than HELDOUT_AT_MOST of the images of some config are left out.

    Args:
      found: for each config, the values of COLUMNS of each recipe.
      count: number of recipes.
    """
    equal, heldout, ams = (COLUMNS.index(name) for name in ("at equal calls", "held-out AMS, %", "AMS, %"))
    shared = set.intersection(*(set(rows) for rows in found.values()))
    honest = [name for name in shared if all(rows[name][heldout] <= HELDOUT_AT_MOST for rows in found.values())]
    best = {config: max((rows[name][equal] for name in honest), default=0.0) for config, rows in found.items()}
    share = {name: np.mean([rows[name][equal] / best[config] for config, rows in found.items()]) for name in honest}
    lines = ["", f"| recipe | {' | '.join(f'{name}, of the best' for name in found)} | mean | AMS, %, of each |"]
    lines.append("|---" * (3 + len(found)) + "|")
    for name in sorted(honest, key=lambda name: -share[name])[:count]:
        values = [f"{rows[name][equal] / best[config]:.3f}" for config, rows in found.items()]
        values += [f"{share[name]:.3f}", ", ".join(f"{rows[name][ams]:.1f}" for rows in found.values())]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines)


def _print(name: str, rows: list[list[float]]) -> list[float]:
    means = np.mean(rows, axis=0)
    print(f"| {name} | {' | '.join(f'{value:.1f}' for value in means)} |", flush=True)
    return means.tolist()


if __name__ == "__main__":
    main()
