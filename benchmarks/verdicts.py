"""How often is the verdict wrong? Audits of images whose truth is known, over many draws.

python benchmarks/verdicts.py --seeds 40

Members, held-out and generated images are fresh draws of one law, so that every "Leaks" is a false alarm; in other
cases a share of the generated images are copies of members, so that a "Leaks" is right. The digits are those of
scikit-learn, dealt out at random. The table has the number of draws that end in each verdict, with Wilson's 95%
interval of "Leaks", and beside it how often McNemar's test would alarm, which takes the images as random and the
members as given.
"""

import argparse
import collections
import csv
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
from sklearn.datasets import load_digits

from side_jax.commands import sample_audit
from side_jax.config import default_config
from side_jax.memorization.statistics.intervals import mcnemar, wilson_interval
from side_jax.report import writer
from side_jax.report.verdict import verdict
from side_jax.workdir import files

Draw = Callable[[np.random.Generator, int], np.ndarray]
STATUSES = ("Leaks", "Not decided", "No leak found")


def spots(rng: np.random.Generator, n: int) -> np.ndarray:
    """A bright spot somewhere: many near misses."""
    y, x = np.mgrid[:16, :16] / 16
    at, width = rng.uniform(0.2, 0.8, (2, n, 1, 1)), rng.uniform(0.1, 0.25, (n, 1, 1))
    bright = rng.uniform(150, 255, (n, 1, 1))
    return (bright * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / width**2)).astype(np.uint8)[..., None]


def waves(rng: np.random.Generator, n: int) -> np.ndarray:
    """Three plane waves in each colour: no near misses."""
    y, x = (np.mgrid[:16, :16] / 16)[..., None]
    k, phase = rng.normal(0, 9, (2, n, 3, 1, 1, 3)), rng.uniform(0, 7, (n, 3, 1, 1, 3))
    wave = np.sin(k[0] * x + k[1] * y + phase).sum(1)
    return np.clip(127 + 40 * wave, 0, 255).astype(np.uint8)


STAMPS = np.random.default_rng(1).integers(0, 256, (10, 8, 8, 1)).repeat(2, 1).repeat(2, 2)


def stamps(rng: np.random.Generator, n: int) -> np.ndarray:
    """Ten common pictures, some far more often than others, lighter or darker: like forms or logos."""
    weight = 1 / np.arange(1, 11)
    picture = STAMPS[rng.choice(10, n, p=weight / weight.sum())] * rng.uniform(0.7, 1, (n, 1, 1, 1))
    return np.clip(picture + rng.normal(0, 8, (n, 1, 1, 1)) + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)


def blanks(rng: np.random.Generator, n: int) -> np.ndarray:
    """Waves, of which one image in twenty is nearly black."""
    images = waves(rng, n)
    empty = rng.random(n) < 0.05
    images[empty] = rng.integers(8, 13, images[empty].shape)
    return images


def digits(rng: np.random.Generator, n: int) -> np.ndarray:
    """Handwritten digits, all different in one audit: `Case.drawn` deals them out."""
    images = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
    return images[rng.permutation(len(images))[:n]]


def noise(rng: np.random.Generator, n: int) -> np.ndarray:
    """Noise in three colours."""
    return rng.integers(0, 256, (n, 16, 16, 3), np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Images whose truth is known.

    Attributes:
      name: for the table.
      draw: makes members, held-out and generated images.
      members: their number.
      heldout: likewise.
      generated: likewise.
      copies: share of the generated images that are copies of members.
      heldout_draw: makes the held-out images; None: as the others.
      generated_draw: makes the generated images; None: as the others.
    """

    name: str
    draw: Draw
    members: int = 100
    heldout: int = 100
    generated: int = 1000
    copies: float = 0.0
    heldout_draw: Draw | None = None
    generated_draw: Draw | None = None

    def drawn(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(generated, members, held-out images)."""
        rng = np.random.default_rng([seed, 7])
        sizes = self.members, self.heldout, self.generated
        # At once, so that images dealt out of one set are different.
        members, heldout, made = np.split(self.draw(rng, sum(sizes)), np.cumsum(sizes)[:2])
        heldout = heldout if self.heldout_draw is None else self.heldout_draw(rng, self.heldout)
        made = made if self.generated_draw is None else self.generated_draw(rng, self.generated)
        count = round(self.copies * self.generated)
        made[:count] = members[rng.integers(0, self.members, count)]
        return made, members, heldout


CASES = (
    Case(name="waves", draw=waves),
    Case(name="spots", draw=spots, members=50, heldout=50, generated=3000),
    Case(name="stamps", draw=stamps),
    Case(name="waves, one in twenty blank", draw=blanks),
    Case(name="digits", draw=digits),
    Case(name="digits, few members", draw=digits, members=30, heldout=30, generated=1500),
    Case(name="waves, 1% copies", draw=waves, copies=0.01),
    Case(name="waves, 10% copies", draw=waves, copies=0.1),
    Case(name="spots, 10% copies", draw=spots, members=50, heldout=50, generated=3000, copies=0.1),
    Case(name="stamps, 20% copies", draw=stamps, copies=0.2),
    Case(name="waves, one in twenty blank, 10% copies", draw=blanks, copies=0.1),
    Case(name="digits, 3% copies", draw=digits, copies=0.03),
    Case(name="waves, all copies, few held out", draw=waves, members=1000, heldout=20, generated=200, copies=1.0),
    Case(name="spots, held-out images of another kind", draw=spots, heldout_draw=stamps),
    Case(name="waves, noise as generated images", draw=waves, generated_draw=noise),
)


def run(case: Case, seed: int) -> tuple[str, float]:
    """(the verdict, McNemar's p-value) of one draw, by the default settings; no page is written."""
    config = default_config()
    config.evaluate.controls = config.evaluate.distribution = False  # the verdict needs neither
    made, members, heldout = case.drawn(seed)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(writer, "write"):
        request = sample_audit.Request(
            samples=made, members=members, heldout=heldout, out=files.as_path(folder) / "out", config=config
        )
        status, _, _ = verdict(sample_audit.run(request), config.evaluate.confidence)
        with open(Path(folder) / "out" / "matches.csv", encoding="utf-8") as file:
            names = [f"normalized_l2_{side}_match" for side in ("member", "heldout")]
            first, second = np.asarray([[row[name] == "1" for name in names] for row in csv.DictReader(file)]).T
    return status, mcnemar(int((first & ~second).sum()), int((second & ~first).sum()))


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40, help="draws of each case")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES])
    options = parser.parse_args()
    print(f"| images | {' | '.join(STATUSES)} | rate of Leaks, % (95% interval) | by McNemar's test, % |")
    print("|---" * 6 + "|")
    for case in CASES:
        if options.cases and case.name not in options.cases:
            continue
        found = [run(case, seed) for seed in range(options.seeds)]
        said = collections.Counter(status for status, _ in found)
        low, high = wilson_interval(said["Leaks"], len(found), 0.95)
        counts = " | ".join(str(said[status]) for status in STATUSES)
        rate = f"{100 * said['Leaks'] / len(found):.0f} ({100 * low:.0f} to {100 * high:.0f})"
        print(f"| {case.name} | {counts} | {rate} | {100 * np.mean([p < 0.05 for _, p in found]):.0f} |", flush=True)


if __name__ == "__main__":
    main()
