"""Measures bias and standard deviation of nearest-neighbour estimates of KL(q || p) on known distributions.

python benchmarks/knn_bias.py [--dimensions 2 4 8 16] [--sizes 200 1000 5000] [--neighbours 1 5 10] [--repeats 10]

Prints the table in the docstring of memorization/theory/divergence.py. The two estimators use n draws of q and m
of p: `neighbours` (Wang, Kulkarni and Verdu 2009) uses draws only; `hybrid` knows log q exactly. There are three pairs
of distributions in d dimensions:

    equal     q = p = N(0, I); KL = 0
    wider     q = N(0, I), p = N(0, 1.5^2 I); KL = d (log 1.5 + 1 / 4.5 - 1 / 2)
    members   q = 100 draws of N(0, I), each blurred by 0.1, p = N(0, I), as in the memorisation divergence; KL is the
              mean of the exact log q - log p over 100,000 draws

Each bias has its standard error over the repeats. `spread` is the standard deviation of one estimate, and `s.e.` the
mean of the estimator's own standard errors divided by it: 1 is right, less is overconfident.
"""

import argparse
import itertools
import math

import jax
import numpy as np
from scipy import stats

from side_jax.memorization.theory import divergence

LAWS = ("equal", "wider", "members")
MEMBERS, EPSILON, WIDER = 100, 0.1, 1.5


class Pair:
    """Distributions q and p in d dimensions."""

    def __init__(self, law: str, d: int):
        self.law, self.d = law, d
        self.scale = WIDER if law == "wider" else 1.0
        self.members = np.random.default_rng(d).normal(size=(MEMBERS, d)).astype(np.float32)

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draws of q, float32 [n, d]."""
        if self.law != "members":
            return rng.normal(size=(n, self.d)).astype(np.float32)
        return divergence.draw(self.members, EPSILON, jax.random.key(rng.integers(2**31)), n)[0]

    def log_q(self, x: np.ndarray) -> np.ndarray:
        """Log-density of q, float64 [n]."""
        return divergence.log_q(x, *((self.members, EPSILON) if self.law == "members" else (0 * x[:1], 1.0)))

    def truth(self) -> float:
        """KL(q || p), in nats."""
        if self.law != "members":
            return self.d * (math.log(self.scale) + 0.5 / self.scale**2 - 0.5)
        x = self.draw(np.random.default_rng(1), 100_000)
        return float((self.log_q(x) - stats.norm.logpdf(x).sum(axis=1)).mean())


def measure(pair: Pair, n: int, m: int, neighbours: list[int], repeats: int) -> np.ndarray:
    """Estimates and their standard errors, float64 [repeats, k, (neighbours, hybrid), 2]."""
    found = np.empty((repeats, len(neighbours), 2, 2))
    for repeat in range(repeats):
        rng = np.random.default_rng([LAWS.index(pair.law), pair.d, n, m, repeat])
        x, y = pair.draw(rng, n), (pair.scale * rng.normal(size=(m, pair.d))).astype(np.float32)
        log_q = pair.log_q(x)
        for i, k in enumerate(neighbours):
            plain = divergence.knn_divergence(x, y, k)
            terms = log_q - divergence.knn_log_prob(x, y, k)
            found[repeat, i, 0] = plain.estimate, plain.standard_error
            found[repeat, i, 1] = terms.mean(), terms.std(ddof=1) / math.sqrt(n)
    return found


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 1000, 5000])
    parser.add_argument("--neighbours", type=int, nargs="+", default=[1, 5, 10])
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    print("| laws | d | KL | n | m | k | neighbours: bias | spread | s.e. | hybrid: bias | spread | s.e. |")
    print("|" + "---|" * 12)
    for law, d in itertools.product(LAWS, options.dimensions):
        pair = Pair(law, d)
        truth = pair.truth()
        for n, m in itertools.product(options.sizes, options.sizes):
            found = measure(pair, n, m, options.neighbours, options.repeats)
            for i, k in enumerate(options.neighbours):
                cells = []
                for estimate, error in np.moveaxis(found[:, i], 0, -1):
                    spread = estimate.std(ddof=1)
                    bias = f"{estimate.mean() - truth:+.3f} ({spread / math.sqrt(len(estimate)):.3f})"
                    cells += [bias, f"{spread:.3f}", f"{error.mean() / spread:.2f}"]
                print(f"| {law} | {d} | {truth:.3f} | {n} | {m} | {k} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
