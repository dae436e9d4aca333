"""Settings of Theorem 1 in closed form: the distribution, and the data sets drawn from it."""

import dataclasses
import itertools
import math

from side_jax.memorization.theory.theorem import FINEST
from side_jax.settings.checks import check


@dataclasses.dataclass(frozen=True, kw_only=True)
class Theory:
    """The distribution p = sum_i w_i N(mu_i, s_i^2 I), and the data sets drawn from it.

    memorization/theory/theorem.py has the equations.
    """

    name: str = "theory"  # shown in the figure
    seed: int = 0  # of the means, the data sets and the draws
    dimensions: int = 2  # of an image, 1 or 2: the limit is an integral by quadrature
    labels: int = 4  # K, the number of labels
    separation: float = 2.0  # standard deviation of the means mu_i in each dimension; 0: all are at the origin
    spreads: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)  # s_i of each label
    weights: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)  # w_i, each label's share of D
    sizes: tuple[int, ...] = (30, 100, 300, 1000, 3000)  # |D_i|, the mean over the labels; D has K times as many images
    epsilons: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03)  # noise of the divergence, in descending order
    # Of the kernel density models that hold their images; for the limit -log K it must be far below the distance
    # between images.
    bandwidth: float = 0.001
    num_samples: int = 10_000  # draws from q_eps for each part and epsilon
    repeats: int = 20  # number of data sets; standard errors are those of the mean over them

    def __post_init__(self) -> None:
        check(self.seed >= 0, "seed", self.seed, "at least 0")
        need = "1 or 2, since the limit is computed by quadrature on a grid"
        check(self.dimensions in (1, 2), "dimensions", self.dimensions, need)
        check(2 <= self.labels <= 20, "labels", self.labels, "between 2 and 20")
        check(0 <= self.separation <= 100, "separation", self.separation, "between 0 and 100")
        for name in ("spreads", "weights"):
            values, need = getattr(self, name), f"{self.labels} numbers above 0, one per label"
            check(len(values) == self.labels and min(values) > 0, name, values, need)
        check(math.isclose(sum(self.weights), 1, abs_tol=1e-6), "weights", self.weights, "numbers that sum to 1")
        least = 2 / (self.labels * min(self.weights))
        ok = len(self.sizes) >= 1 and all(a < b for a, b in itertools.pairwise(self.sizes))
        check(ok and self.sizes[0] >= least, "sizes", self.sizes, f"ascending and at least {math.ceil(least)} images")
        need = f"at most 1,000,000 images in total for {self.labels} labels, since all pairs are compared"
        check(self.sizes[-1] * self.labels <= 1_000_000, "sizes", self.sizes, need)
        ok = len(self.epsilons) >= 1 and all(a > b for a, b in itertools.pairwise(self.epsilons))
        check(ok, "epsilons", self.epsilons, "one or more numbers, descending")
        widest, narrowest = math.hypot(max(self.spreads), self.epsilons[0]), min(self.spreads)
        need = (
            f"such that the widest with noise of epsilons[0] ({self.epsilons[0]:g}) is at most {FINEST} times as wide "
        )
        ok = widest <= FINEST * narrowest
        check(ok, "spreads", self.spreads, need + "as the narrowest without noise, the resolution of the quadrature")
        least = 1e-4 * (self.separation + max(self.spreads))
        need = f"at least {least:.3g}, a ten-thousandth of separation and spreads, the resolution of float32"
        check(self.epsilons[-1] >= least, "epsilons", self.epsilons, need)
        check(self.bandwidth >= least, "bandwidth", self.bandwidth, need)
        for name in ("num_samples", "repeats"):
            check(getattr(self, name) >= 2, name, getattr(self, name), "at least 2")
