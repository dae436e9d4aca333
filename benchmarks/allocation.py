"""Compares two allocations of a sampling budget to clusters: uniform, and adaptive by attacker-side evidence.

python benchmarks/allocation.py --config=configs/digits_128.py --workdir=runs/digits_cost --seeds 3 4 5 --scale 10

The evidence needs no training image: two images from different noise that are near duplicates (pixel RMSE below --near,
in [-1, 1]) indicate memorisation (Carlini et al. 2023, cliques of generated images). Images are drawn in rounds. In
each round, cluster c is targeted with probability proportional to (d + 1/2) / (n + 1), where n counts the images drawn
for it so far and d the new groups of near duplicates among them. Both allocations draw from one pool with equally many
images per cluster, shuffled for each repeat. The score is the number of distinct members among the matches.
"""

import argparse
from pathlib import Path

import numpy as np
from extraction_cost import Bench, Recipe

from side_jax.diffusion import pixel_range
from side_jax.workdir import files

ROUND = 64


def near_duplicates(images: np.ndarray, below: float) -> list[np.ndarray]:
    """For each image, the indices of its near duplicates in the pool."""
    flat = pixel_range.to_float(images).reshape(len(images), -1)
    squares = np.square(flat).mean(axis=1)
    found = []
    for i in range(0, len(flat), 512):
        square = squares[i : i + 512, None] + squares[None] - 2 * flat[i : i + 512] @ flat.T / flat.shape[1]
        close = square < below**2
        close[np.arange(len(close)), np.arange(i, i + len(close))] = False
        found.extend(np.flatnonzero(row) for row in close)
    return found


def draw(labels: np.ndarray, near: list[np.ndarray], budget: int, adaptive: bool, seed: int) -> np.ndarray:
    """The indices of the drawn images of the pool, in order, int64 [budget].

    Args:
      labels: the target clusters of the pool, int [n].
      near: the result of near_duplicates.
      budget: number of images to draw; an exhausted cluster is replaced by the one with the most images left.
      adaptive: whether to allocate by evidence; otherwise uniformly.
      seed: of the order and the targets.
    """
    random = np.random.default_rng(seed)
    classes = labels.max() + 1
    left = [list(random.permutation(np.flatnonzero(labels == c))) for c in range(classes)]
    aimed, brought = np.zeros(classes), np.zeros(classes)
    group: dict[int, int] = {}  # of each image that has a drawn near duplicate, one that stands for its group
    drawn: list[int] = []
    inside = np.zeros(len(labels), bool)
    while len(drawn) < budget:
        weights = (brought + 0.5) / (aimed + 1) if adaptive else np.ones(classes)
        for c in random.choice(classes, size=min(ROUND, budget - len(drawn)), p=weights / weights.sum()):
            if not left[c]:
                c = max(range(classes), key=lambda other: len(left[other]))
            i = int(left[c].pop())
            twins = near[i][inside[near[i]]]
            known = [group[j] for j in twins if j in group]
            if len(twins):
                brought[c] += not known  # the first pair of a group
                for j in (i, *twins):
                    group.setdefault(int(j), known[0] if known else i)
            aimed[c] += 1
            inside[i] = True
            drawn.append(i)
    return np.asarray(drawn)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a config file")
    parser.add_argument("--workdir", required=True, type=Path, help="as of extraction_cost.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--recipe", default="ddim-10-trailing-100-899", help="see extraction_cost.py")
    parser.add_argument("--scale", type=float, required=True)
    parser.add_argument("--pool", type=int, default=8192, help="images, with as many for each cluster")
    parser.add_argument("--budgets", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--near", type=float, default=0.15, help="pixel RMSE of near duplicates, in [-1, 1]")
    parser.add_argument("--repeats", type=int, default=20)
    options, overrides = parser.parse_known_args()
    found: dict[tuple[int, bool], list[list[int]]] = {}  # [seed][repeat]
    share, right, control = [], [], []
    for seed in options.seeds:
        bench = Bench(options.config, options.workdir / f"seed_{seed}", seed, overrides)
        path = bench.drawn / f"pool_{options.pool}_{options.recipe}_{options.scale:g}.npz"
        if not path.exists():
            bench.run(
                Recipe(name=options.recipe),
                [options.scale],
                options.pool,
                lambda _, arrays, path=path: files.write_npz(path, **arrays),
                even=True,
            )
        pool = files.read_npz(path)
        near = near_duplicates(pool["images"], options.near)
        evident = np.asarray([len(others) > 0 for others in near])
        share.append(evident.mean())
        for name, found_of in (("matched", right), ("heldout_matched", control)):
            found_of.append(pool[name][evident].mean() if evident.any() else np.nan)
        for budget in options.budgets:
            for adaptive in (False, True):
                counts = []
                for repeat in range(options.repeats):
                    drawn = draw(pool["labels"], near, budget, adaptive, repeat)
                    counts.append(len(np.unique(pool["nearest"][drawn][pool["matched"][drawn]])))
                found.setdefault((budget, adaptive), []).append(counts)
    print(
        f"Near duplicates in the pool: {', '.join(f'{100 * s:.1f}%' for s in share)} of its images; of these, "
        f"{', '.join(f'{100 * r:.1f}%' for r in right)} match a member, and "
        f"{', '.join(f'{100 * c:.1f}%' for c in control)} a held-out image.\n"
    )
    print("| images drawn | members, uniform targets | members, by evidence | difference (standard error over seeds) |")
    print("|---|---|---|---|")
    for budget in options.budgets:
        uniform, evidence = (np.asarray(found[budget, way]).mean(axis=1) for way in (False, True))
        difference = evidence - uniform
        error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.nan
        cells = (", ".join(f"{value:.1f}" for value in way) for way in (uniform, evidence))
        print(f"| {budget:,} | {' | '.join(cells)} | {difference.mean():+.1f} ({error:.1f}) |")


if __name__ == "__main__":
    main()
