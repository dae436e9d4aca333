"""Compares recipes of the black-box search with plain sampling of as many images, and with mode seeking from them.

python benchmarks/black_box.py --workdirs runs/black_box_10 runs/black_box_11 runs/black_box_12 \
    --queries 500 2000 --searches 1 10 --mutations 0.1 0.6 --api 2x1 2x3 2x5 4x1 4x3 4x5 6x1 6x3 6x5 8x1 8x3 8x5

Each workdir is a finished audit with the attack black_box, whose classifier is the fitness; nothing in it changes. A
query is an image of the model. Images come a generation after the other, so that the first 500 of 2,000 are those of a
search of 500. Of each recipe, the table has means over the workdirs: the share of matched images (AMS), the extracted
members (and of each workdir), AMS against held-out images, the same of the fittest image of each generation, the
members by RMSE and by d1 / d2, and the share of images that the classifier gives the target class. With --modes, the
images are also taken to modes, by the audit's recipe. With --api, plain samples are taken to modes by an API that takes
an image, adds noise and samples from there: as many as the calls of the network for so many queries pay for. The
last lines apply the rules of docs/results_black_box.md. Of conditional targets there is also plain sampling by their
labels, with the fittest of each 50, and --genomes says what is searched. Choose on seeds that no table of results uses.
"""

import argparse
import dataclasses
import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from mode_recipes import Bench

from side_jax import builders
from side_jax.attacks.table import ATTACKS, PLAIN, Run
from side_jax.devices import placement
from side_jax.diffusion import sampler
from side_jax.diffusion.pixel_range import to_float, to_uint8
from side_jax.errors import InputError
from side_jax.memorization.matching import match
from side_jax.sampling.mode_generation import draw
from side_jax.settings import random_streams
from side_jax.settings.extraction import GENOMES, LABEL, BlackBox
from side_jax.stages import stage_inputs

HELDOUT_AT_MOST = 0.5  # percent of the images that may match held-out images
NEAR = 0.9  # of the most members: recipes with as many are equal, and AMS decides
COLUMNS = ("AMS, %", "members", "held-out AMS, %", "members by RMSE", "by d1 / d2")
BEST = ("images", "AMS, %", "members", "held-out AMS, %")


class SearchBench(Bench):
    """A finished audit with the attack black_box: its target, its classifier and both sides."""

    def __init__(self, workdir: Path):
        super().__init__(workdir, 0)
        attack = next(attack for attack in ATTACKS.values() if attack.searches)
        classifier, guide = stage_inputs.load_classifier(self.settings, workdir, attack.classifier)
        self._classes, self._params = classifier.num_classes, self._params | guide
        self.genome = self.settings.search_genome
        self.program = functools.cache(functools.partial(self._of, classifier))
        self._key = random_streams.stream_key(self.settings, "search")

    def plain(self, count: int) -> np.ndarray:
        """So many plain samples."""
        return draw(builders.build_generator(self.settings), self._params, self._base, count)

    def _of(self, classifier, genome: str):
        """The compiled parts of a search over something."""
        own = dataclasses.replace(self.settings.black_box, genome=genome)
        return builders.build_search_program(dataclasses.replace(self.settings, black_box=own), classifier)

    def of_labels(self, count: int) -> tuple[np.ndarray, list[int], np.ndarray]:
        """So many samples of the target's own labels, drawn as classifier-free guidance draws them; as `search`."""
        program, index = self.program(LABEL), np.arange(count, dtype=np.uint32)
        images = program.draw((self._params, self._base), index, program.first(self._base, index))
        one = builders.build_search(program, recipe := BlackBox(), self._key, self._classes, _nothing)
        fitness = program.fitness(self._params, images, one.labels(index))
        starts = range(0, count, size := recipe.population)
        return images, [start + int(fitness[start : start + size].argmax()) for start in starts], fitness > 0

    def search(self, recipe: BlackBox, count: int) -> tuple[np.ndarray, list[int], np.ndarray]:
        """(the images; the indices of the fittest of each generation; whether each image is of its target class)."""
        program = self.program(recipe.genome)
        one = builders.build_search(program, recipe, self._key, self._classes, _nothing)
        # By generations, so that no batch has to be cut.
        starts = range(0, count, size := recipe.searches * recipe.population)
        parts = [np.arange(start, min(start + size, count)) for start in starts]
        images = np.concatenate([one(self._params, self._base, part, part, 0.0) for part in parts])
        labels = one.labels(np.arange(count))
        hit = program.fitness(self._params, images, labels) > 0
        return images, one.best(self._params, self._base, count), hit

    def modes(self, images: np.ndarray) -> np.ndarray:
        """Mode seeking from images, by the audit's recipe, with the model itself at hand."""
        modes = self.settings.modes
        levels = builders.mode_noise_levels(self.settings, modes.noise_levels[0], modes.rounds[0], self._spread)
        seeker = builders.build_mode_generator(self.settings, levels, lambda index: images[index])
        return draw(seeker, self._params, self._base, len(images))

    def renoised(self, images: np.ndarray, steps: int, rounds: int) -> np.ndarray:
        """Mode seeking by an API alone: in each round it adds noise to an image, and samples by its last steps."""
        call = _renoise(self.settings, steps)
        for number in range(rounds):
            key = jax.random.fold_in(self._key, number)
            index = np.arange(len(images), dtype=np.uint32)
            images = call((self._params, key), index, images)
        return images

    def score(self, images: np.ndarray) -> list[float]:
        """The values of COLUMNS."""
        members, heldout = (match(images, side, self._metrics) for side in self._sides)
        scores = [one.score(metric.bands["high"]) for one, metric in zip(members, self._metrics, strict=True)]
        false = heldout[0].score(self._metrics[0].bands["high"]).ams
        return [100 * scores[0].ams, scores[0].unique, 100 * false, scores[1].unique, scores[2].unique]


def _nothing(index: np.ndarray) -> np.ndarray:
    raise InputError("nothing is stored")


@functools.lru_cache(maxsize=16)
def _renoise(settings, steps):
    """A round of an API: (parameters and key, indices, images uint8) -> images uint8, by the sampler's last steps."""
    table, denoise = builders.build_step_table(settings, settings.sampler), builders.build_denoise(settings)
    last = jax.tree.map(jnp.asarray, table[table.num_steps - steps :])

    def round_of(given, index, images):
        params, key = given
        keys = sampler.sample_keys(key, index)
        x = to_float(images)
        first = jax.tree.map(lambda value: value[0], last)
        x = first.signal * x + first.sigma * sampler.initial_noise(keys, x.shape[1:])

        def step(state, at):
            return sampler.sample_step(lambda x, t: denoise(params, x, t, index), at, state, keys), None

        state, _ = jax.lax.scan(step, sampler.State(x, jnp.zeros_like(x)), last)
        return to_uint8(state.x)

    return placement.in_batches(round_of, settings.sampler.batch_size)


def row(name: str, values: list[list[float]], best: list[list[float]], hits: list[float]) -> str:
    """A line of the table: means over the workdirs, and the members of each."""
    mean = np.mean(values, axis=0)
    cells = [f"{value:.1f}" for value in mean]
    cells[1] += f" ({', '.join(f'{one[1]:.0f}' for one in values)})"
    cells += [f"{value:.1f}" for value in np.mean(best, axis=0)] if best else [""] * len(BEST)
    cells += [f"{100 * np.mean(hits):.0f}"] if hits else [""]
    return f"| {name} | {' | '.join(cells)} |"


def name_of(recipe: BlackBox) -> str:
    """A recipe in words."""
    many = "1 search" if recipe.searches == 1 else f"{recipe.searches} searches"
    rates = f"{recipe.parents} parents, crossover {recipe.crossover:g}, mutation {recipe.mutation:g}"
    return f"{many}{' over labels' if recipe.genome == LABEL else ''}, {rates}"


def chosen(found: dict[str, list[list[float]]]) -> str:
    """The rule: of the recipes that match few held-out images in every workdir, the most members; near ones, AMS.

    Args:
      found: of each recipe, the values of COLUMNS of each workdir.
    """
    ams, members, heldout = (COLUMNS.index(name) for name in ("AMS, %", "members", "held-out AMS, %"))
    honest = {
        name: np.mean(rows, axis=0) for name, rows in found.items() if max(r[heldout] for r in rows) <= HELDOUT_AT_MOST
    }
    most = max((values[members] for values in honest.values()), default=0.0)
    near = [name for name, values in honest.items() if values[members] >= NEAR * most]
    return max(near, key=lambda name: honest[name][ams], default="none")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdirs", nargs="+", required=True, type=Path, help="finished audits with black_box")
    parser.add_argument("--queries", nargs="+", type=int, default=[500, 1000, 2000])
    default = BlackBox()
    parser.add_argument("--searches", nargs="+", type=int, default=[default.searches])
    parser.add_argument("--parents", nargs="+", type=int, default=[default.parents])
    parser.add_argument("--crossovers", nargs="+", type=float, default=[default.crossover])
    parser.add_argument("--mutations", nargs="+", type=float, default=[default.mutation])
    parser.add_argument("--genomes", nargs="+", choices=GENOMES, help="what is searched; by default as the audits do")
    parser.add_argument("--modes", action="store_true", help="also take all images to modes, by the audit's recipe")
    parser.add_argument(
        "--api", nargs="+", default=[], metavar="STEPSxROUNDS", help="also take plain samples to modes so"
    )
    options = parser.parse_args()
    benches, most = [SearchBench(workdir) for workdir in options.workdirs], max(options.queries)
    print(f"| images | {' | '.join(COLUMNS)} | {' | '.join(f'fittest: {name}' for name in BEST)} | of the class, % |")
    print("|---" * (2 + len(COLUMNS) + len(BEST)) + "|")
    plain = [bench.plain(most) for bench in benches]
    show(f"{Run(attack=PLAIN.name).name}", benches, plain, options)
    sought, calls = {}, benches[0].settings.sampler.num_steps
    for asked in options.api:
        steps, rounds = map(int, asked.split("x"))
        paid = {count: count * calls // (calls + steps * rounds) for count in options.queries}
        images = [
            bench.renoised(one[: max(paid.values())], steps, rounds) for bench, one in zip(benches, plain, strict=True)
        ]
        name = f"the last {steps} steps, {rounds} times"
        sought[name] = show(name, benches, images, options, paid=paid)
    if sought:
        print(f"\nBy the rule, at the calls of {most:,} queries: {chosen(sought)}\n")
    if benches[0].genome == LABEL:
        done = [bench.of_labels(most) for bench in benches]
        show("the target's labels", benches, [one[0] for one in done], options, done)
    genomes = options.genomes or [benches[0].genome]
    grid = itertools.product(genomes, options.searches, options.parents, options.crossovers, options.mutations)
    found = {}
    for values in grid:
        recipe = BlackBox(**dict(zip(("genome", "searches", "parents", "crossover", "mutation"), values, strict=True)))
        done = [bench.search(recipe, most) for bench in benches]
        found[name_of(recipe)] = show(name_of(recipe), benches, [one[0] for one in done], options, done)
    print(f"\nBy the rule, at {most:,} queries: {chosen(found)}")


def show(name, benches, images, options, done=(), paid=None):
    """Prints the lines of a kind of images, at each number of queries; returns the values at the largest."""
    for queries in options.queries:
        count = paid[queries] if paid else queries
        values = [bench.score(one[:count]) for bench, one in zip(benches, images, strict=True)]
        best, hits = [], [one[2][:count].mean() for one in done]
        for bench, (all_images, indices, _) in zip(benches, done, strict=False):
            fittest = all_images[[i for i in indices if i < count]]
            best.append([len(fittest), *bench.score(fittest)[:3]])
        print(row(f"{name}, {count:,} images", values, best, hits), flush=True)
        if options.modes:
            sought = [bench.modes(one[:count]) for bench, one in zip(benches, images, strict=True)]
            scored = [bench.score(one) for bench, one in zip(benches, sought, strict=True)]
            print(row(f"modes from these {count:,}", scored, [], []), flush=True)
    return values


if __name__ == "__main__":
    main()
