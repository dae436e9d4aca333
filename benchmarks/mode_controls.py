"""Controls of mode seeking: from members and held-out images themselves, and a permutation test of every run.

python benchmarks/mode_controls.py --workdirs runs/digits_3 runs/generalises --rounds 0 5 20

For each audit, the first table starts mode seeking from the members, and from as many held-out images, by the config's
recipe. It shows how many still match themselves, and how many match another image of their own side and of the other. A
model that has learned nothing from its members in particular treats both sides alike. The second table compares every
run with members and held-out images at once, and tests by permutation whether members are matched more often; the
images of a person change sides together where the split is by identity.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from side_jax import builders
from side_jax.config import from_config
from side_jax.devices import cpu
from side_jax.memorization.matching import Matches, match_both, references
from side_jax.memorization.metrics import shared_search
from side_jax.memorization.statistics.permutation import permutation_test
from side_jax.pipeline.saved_config import saved_config
from side_jax.sampling import shards
from side_jax.sampling.mode_generation import draw
from side_jax.settings import Settings, random_streams
from side_jax.stages import stage_inputs, stage_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """Of n images, in percent: those that match themselves, another of their side, and an image of the other side."""

    itself: float
    own_side: float
    other_side: float


def kept(nearest: np.ndarray, matched: np.ndarray, start: np.ndarray, side: np.ndarray) -> Kept:
    """Counts the matches of images with members and held-out images together.

    Args:
      nearest: int64 [n], the reference nearest to each image.
      matched: bool [n], whether it matches.
      start: int64 [n], the reference that each image started from.
      side: [m], that of each reference.
    """
    itself = matched & (nearest == start)
    own = matched & (side[nearest] == side[start])
    parts = itself, own & ~itself, matched & ~own
    return Kept(**dict(zip(("itself", "own_side", "other_side"), (100 * part.mean() for part in parts), strict=True)))


class Bench:
    """A finished audit: its target, its runs, and both sides as one set of references."""

    def __init__(self, workdir: Path):
        """Loads everything."""
        self.settings: Settings = from_config(saved_config(workdir))
        cpu.prepare([self.settings.sampler.batch_size])
        self._params = {"dpm": stage_inputs.load_target(self.settings, workdir).trees["ema"]}
        self._spread = stage_inputs.training_spread(self.settings, workdir)
        members, heldout = stage_inputs.load_sides(self.settings, workdir)
        self.count = min(len(members), len(heldout))
        self._images = np.concatenate([members.images[: self.count], heldout.images[: self.count]])
        self.is_member = np.arange(2 * self.count) < self.count
        people = members.groups, heldout.groups
        self._groups = None if people[0] is None else np.concatenate([one[: self.count] for one in people])
        self._metrics = self.settings.evaluate.make_metrics()
        self._sides = [references(self._images[side], self._metrics) for side in (self.is_member, ~self.is_member)]
        self._references = references(self._images, self._metrics, thinned=2)
        self.runs = {
            run.name: stage_table.extracted_shards(self.settings, unit)
            for run, unit in stage_table.extraction_units(self.settings, workdir)
            if unit.done()
        }

    def sought(self, rounds: int) -> np.ndarray:
        """Every reference after so many rounds, uint8 [m, h, w, c]."""
        if not rounds:
            return self._images
        levels = builders.mode_noise_levels(self.settings, self.settings.modes.noise_levels[0], rounds, self._spread)
        generator = builders.build_mode_generator(self.settings, levels, lambda index: self._images[index])
        base = random_streams.stream_key(self.settings, "extract")
        return draw(generator, self._params, base, len(self._images))

    def _matched(self, images: np.ndarray) -> list[Matches]:
        """The matches of images with members and held-out images together, as the audit's own test takes them."""
        searches = [shared_search(images, side.pixels, self._metrics, 2) for side in self._sides]
        return match_both(images, self._references, self._metrics, searches, [self.count] * 2, thinned=2)

    def kept(self, rounds: int) -> tuple[Kept, Kept]:
        """What members, and held-out images, match after so many rounds, by the headline metric."""
        score = self._matched(self.sought(rounds))[0].score(self._metrics[0].bands["high"])
        every, start = (score.nearest, score.matched), np.arange(len(self._images))
        sides = self.is_member, ~self.is_member
        return tuple(kept(*(part[side] for part in every), start[side], self.is_member) for side in sides)

    def tests(self, name: str, permutations: int) -> dict[str, tuple[int, int, float]]:
        """For each metric, a run's matches with members, with held-out images, and the p-value."""
        found = self._matched(shards.read(self.runs[name])["images"])
        results = {}
        for metric, one in zip(self._metrics, found, strict=True):
            hits = one.score(metric.bands["high"]).extracted
            p, _ = permutation_test(hits, self.is_member, self._groups, permutations)
            results[metric.name] = int(hits[self.is_member].sum()), int(hits[~self.is_member].sum()), p
        return results


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdirs", nargs="+", required=True, type=Path, help="finished audits")
    parser.add_argument("--rounds", nargs="+", type=int, default=[0, 5, 20])
    parser.add_argument("--permutations", type=int, default=9999)
    options = parser.parse_args()
    for workdir in options.workdirs:
        bench = Bench(workdir)
        print(f"\n### {workdir.name}: {bench.count} members and as many held-out images\n")
        print("| rounds | start | match themselves, % | another of their side, % | an image of the other side, % |")
        print("|---" * 5 + "|")
        for rounds in options.rounds:
            for side, one in zip(("members", "held-out images"), bench.kept(rounds), strict=True):
                print(
                    f"| {rounds} | {side} | {one.itself:.1f} | {one.own_side:.1f} | {one.other_side:.1f} |", flush=True
                )
        print("\n| run | metric | matches with members | with held-out images | p |\n" + "|---" * 5 + "|")
        for name in bench.runs:
            for metric, (members, heldout, p) in bench.tests(name, options.permutations).items():
                print(f"| {name} | {metric} | {members} | {heldout} | {p:.4f} |", flush=True)


if __name__ == "__main__":
    main()
