"""What an attacker finds who has only an API: plain samples, mode seeking through the API, and the black-box search.

python benchmarks/black_box.py --workdirs runs/black_box_10 runs/black_box_11 runs/black_box_12 \
    --queries 500 2000 --searches 1 10 --mutations 0.1 0.6 --api 2x1 2x3 2x5 4x1 4x3 4x5 6x1 6x3 6x5 8x1 8x3 8x5

Each workdir is a finished audit with the attack black_box, whose classifier is the fitness; nothing in it changes. A
query is an image that the search asks for. Images come a generation after the other, so that the first 500 of 2,000 are
those of a search of 500. Of each recipe, the table has means over the workdirs: the images, the requests to the API and
the calls of the network that they took; the share of matched images (AMS); the extracted members (and of each workdir);
AMS against held-out images; the members by RMSE and by d1 / d2; and the share of images that the classifier gives the
target class. The fittest image of each generation has a row of its own.

With --keep, images are kept in a folder, and whoever asks again, also for more queries, goes on from there. With --api,
plain samples are taken to modes through an API that takes an image, adds noise and samples from there: as
many as the calls of the network for so many queries pay for, and with --requests, as many as the requests do. With
--twin, also in the twin model, at the calls of so many queries. Of conditional targets there is also plain sampling by
their labels, with the fittest of each 50; --genomes says what is searched. The last lines apply the rules of
docs/results_black_box.md. Choose on seeds that no table of results uses.
"""

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mode_recipes import Bench

from side_jax import builders
from side_jax.attacks.table import ATTACKS
from side_jax.errors import InputError
from side_jax.memorization.matching import match
from side_jax.sampling.mode_generation import draw
from side_jax.settings import random_streams
from side_jax.settings.extraction import GENOMES, LABEL, BlackBox
from side_jax.stages import stage_inputs

HELDOUT_AT_MOST = 0.5  # percent of the images that may match held-out images
NEAR = 0.9  # of the most members: recipes with as many are equal, and AMS decides
COST = ("images", "requests", "calls")
COLUMNS = ("AMS, %", "members (each seed)", "held-out AMS, %", "members by RMSE", "by d1 / d2")


class SearchBench(Bench):
    """A finished audit with the attack black_box: its target, its classifier and both sides."""

    def __init__(self, workdir: Path, keep: Path | None = None):
        super().__init__(workdir, 0)
        self._keep = keep
        attack = next(attack for attack in ATTACKS.values() if attack.searches)
        classifier, guide = stage_inputs.load_classifier(self.settings, workdir, attack.classifier)
        self._workdir, self._classes = workdir, classifier.num_classes
        self._params = self._params | guide
        self.genome = self.settings.search_genome
        self._program = functools.cache(functools.partial(self._of, classifier))

    def params(self, twin: bool) -> dict:
        """Of the target or its twin."""
        return {"dpm": stage_inputs.load_twin(self.settings, self._workdir).trees["ema"]} if twin else self._params

    def _kept(self, name: str, count: int, make: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The first images of a kind: those that are kept, and the rest, which `make` draws given these."""
        path = self._keep / f"{self._workdir.name}_{name}.npy" if self._keep else None
        nothing = np.zeros((0, *builders.image_shape(self.settings)), np.uint8)
        known = np.load(path) if path and path.exists() else nothing
        if len(known) < count:
            known = np.concatenate([known, make(known)])
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, known)
        return known[:count]

    def plain(self, count: int, twin: bool = False) -> np.ndarray:
        """So many plain samples."""
        generator, params = builders.build_generator(self.settings), self.params(twin)
        name = "twin" if twin else "plain"
        return self._kept(name, count, lambda known: draw(generator, params, self._base, count, len(known)))

    def _of(self, classifier, genome: str):
        """The compiled parts of a search over something."""
        own = dataclasses.replace(self.settings.black_box, genome=genome)
        return builders.build_search_program(dataclasses.replace(self.settings, black_box=own), classifier)

    def of_labels(self, count: int) -> tuple[np.ndarray, list[int], np.ndarray]:
        """So many samples of the target's own labels, drawn as classifier-free guidance draws them; as `search`."""
        program, index = self._program(LABEL), np.arange(count, dtype=np.uint32)
        images = program.draw((self._params, self._base), index, program.first(self._base, index))
        one = self._search(recipe := BlackBox(genome=LABEL), images)
        fitness = program.fitness(self._params, images, one.labels(index))
        starts = range(0, count, size := recipe.population)
        return images, [start + int(fitness[start : start + size].argmax()) for start in starts], fitness > 0

    def search(self, recipe: BlackBox, count: int) -> tuple[np.ndarray, list[int], np.ndarray]:
        """(the images; the indices of the fittest of each generation; whether each image is of its target class)."""

        def make(known: np.ndarray) -> np.ndarray:
            one = self._search(recipe, known)
            # By generations, so that no batch has to be cut.
            starts = range(len(known), count, recipe.searches * recipe.population)
            parts = [np.arange(start, min(start + starts.step, count)) for start in starts]
            return np.concatenate([one(self._params, self._base, part, part, 0.0) for part in parts])

        values = "_".join(map(str, dataclasses.astuple(recipe)))
        images = self._kept(f"search_{values}", count, make)
        one = self._search(recipe, images)
        labels = one.labels(np.arange(count))
        hit = self._program(recipe.genome).fitness(self._params, images, labels) > 0
        return images, one.best(self._params, self._base, count), hit

    def _search(self, recipe: BlackBox, known: np.ndarray):
        """The search before its first generation, of which the first images are known."""
        key = random_streams.stream_key(self.settings, "search")
        return builders.build_search(
            self._program(recipe.genome), recipe, key, self._classes, functools.partial(_pick, known)
        )

    def sought(self, images: np.ndarray, steps: int, rounds: int, twin: bool = False) -> np.ndarray:
        """Mode seeking from images through an API, as the audit's attack has it."""
        key = random_streams.stream_key(self.settings, "requests")
        seeker = builders.build_request_generator(self.settings, steps, rounds, key, functools.partial(_pick, images))
        name, params, count = f"{'twin' if twin else 'api'}_{steps}x{rounds}", self.params(twin), len(images)
        return self._kept(name, count, lambda known: draw(seeker, params, self._base, count, len(known)))

    def score(self, images: np.ndarray) -> list[float]:
        """The values of COLUMNS."""
        members, heldout = (match(images, side, self._metrics) for side in self._sides)
        scores = [one.score(metric.bands["high"]) for one, metric in zip(members, self._metrics, strict=True)]
        false = heldout[0].score(self._metrics[0].bands["high"]).ams
        return [100 * scores[0].ams, scores[0].unique, 100 * false, scores[1].unique, scores[2].unique]


def _pick(images: np.ndarray, index: np.ndarray) -> np.ndarray:
    if len(index) and index.max() >= len(images):
        raise InputError(f"only {len(images)} images are stored.")
    return images[index]


def row(name: str, cost: tuple[int, int, int], values: list[list[float]], hits: list[float]) -> str:
    """A line of the table: what the images cost, means over the workdirs, and the members of each."""
    cells = [f"{value:.1f}" for value in np.mean(values, axis=0)]
    cells[1] += f" ({', '.join(f'{one[1]:.0f}' for one in values)})"
    cells = [*(f"{count:,}" for count in cost), *cells, f"{100 * np.mean(hits):.0f}" if hits else ""]
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
    ams, members, heldout = (COLUMNS.index(name) for name in ("AMS, %", "members (each seed)", "held-out AMS, %"))
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
    parser.add_argument(
        "--api", nargs="+", default=[], metavar="STEPSxROUNDS", help="also take plain samples to modes so"
    )
    parser.add_argument("--requests", action="store_true", help="of --api, also as many as the requests pay for")
    parser.add_argument("--twin", type=int, default=0, metavar="QUERIES", help="of --api, also in the twin")
    parser.add_argument("--keep", type=Path, help="a folder for the images of these workdirs")
    options = parser.parse_args()
    benches = [SearchBench(workdir, options.keep) for workdir in options.workdirs]
    most = max(options.queries)
    print(f"| attack | {' | '.join((*COST, *COLUMNS))} | of the class, % |")
    print("|---" * (2 + len(COST) + len(COLUMNS)) + "|")
    steps = benches[0].settings.sampler.num_steps
    plain = [bench.plain(most) for bench in benches]
    for count in options.queries:
        show("plain sampling", benches, plain, (count, count, count * steps))
    found = {asked: through_api(asked, benches, plain, options) for asked in options.api}
    if found:
        print(f"\nBy the rule, at the calls of {most:,} queries: {chosen(found)}\n", flush=True)
    if benches[0].genome == LABEL:
        lines("the target's labels", [bench.of_labels(most) for bench in benches], benches, options.queries, steps)
    genomes = options.genomes or [benches[0].genome]
    grid = itertools.product(genomes, options.searches, options.parents, options.crossovers, options.mutations)
    found = {}
    for values in grid:
        recipe = BlackBox(**dict(zip(("genome", "searches", "parents", "crossover", "mutation"), values, strict=True)))
        done = [bench.search(recipe, most) for bench in benches]
        found[name_of(recipe)] = lines(name_of(recipe), done, benches, options.queries, steps)
    print(f"\nBy the rule, at {most:,} queries: {chosen(found)}")


def through_api(asked: str, benches, plain, options) -> list[list[float]]:
    """Prints the lines of mode seeking through an API; returns the values at the calls of the most queries."""
    (steps, rounds), start = map(int, asked.split("x")), benches[0].settings.sampler.num_steps
    each = start + steps * rounds
    most = max(options.queries) * start // each
    name = f"mode seeking by an API, the last {steps} steps, {rounds} rounds"
    images = [bench.sought(one[:most], steps, rounds) for bench, one in zip(benches, plain, strict=True)]

    def line(count: int, suffix: str = "", of: list[np.ndarray] = images) -> list[list[float]]:
        return show(name + suffix, benches, of, (count, count * (1 + rounds), count * each))

    for queries in options.queries:
        if options.requests:
            line(queries // (1 + rounds), ", at equal requests")
        values = line(queries * start // each, ", at equal calls" * options.requests)
    if options.twin:
        most = options.twin * start // each
        twins = [bench.sought(bench.plain(most, twin=True), steps, rounds, twin=True) for bench in benches]
        line(most, ", in the twin", twins)
    return values


def lines(name: str, done, benches, numbers: list[int], steps: int) -> list[list[float]]:
    """Prints the lines of what `search` returned; returns the values of all images at the most queries."""
    for count in numbers:
        cost = count, count, count * steps
        hits = [one[2][:count].mean() for one in done]
        values = show(f"{name}: all images", benches, [one[0] for one in done], cost, hits)
        fittest = [[i for i in best if i < count] for _, best, _ in done]
        chosen_images = [images[of] for (images, _, _), of in zip(done, fittest, strict=True)]
        hits = [hit[of].mean() for (_, _, hit), of in zip(done, fittest, strict=True)]
        show("the fittest of each generation", benches, chosen_images, (len(fittest[0]), *cost[1:]), hits)
    return values


def show(name, benches, images, cost, hits=()) -> list[list[float]]:
    """Prints a line of the first images of each workdir; returns its values."""
    values = [bench.score(one[: cost[0]]) for bench, one in zip(benches, images, strict=True)]
    print(row(name, cost, values, list(hits)), flush=True)
    return values


if __name__ == "__main__":
    main()
