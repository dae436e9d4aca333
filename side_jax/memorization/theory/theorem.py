"""Theorem 1 of Chen et al. 2024 for known laws: mixtures of Gaussians with informative and with random labels.

The law of an image x in R^d, for K labels with shares w_i, is

    p = sum_i w_i p_i,   p_i = N(mu_i, s_i^2 I)                                                     (1)

The labels split a data set D of N images into parts D_i. With the divergence M of divergence.py,

    M(D_i; p_i, eps) - M(D_i; p, eps) = E[ log p(x) - log p_i(x) ],   x = x_j + eps z, x_j in D_i   (2)

As |D_i| grows, (2) tends to its expected value with probability 1 by the law of large numbers, and then as eps falls

    E[ log p(u) - log p_i(u) ], u ~ N(mu_i, (s_i^2 + eps^2) I)   ->   -KL(p_i || p) <= 0            (3)

with equality only if p_i = p: this is the theorem. For these fixed laws (3) is the expected value of (2) at EVERY
|D_i|; only the scatter of (2) over data sets falls, with 1 / sqrt(|D_i|). If eps is as large as s_i, the left side of
(3) may even be above 0. (3) is computed by Gauss-Hermite quadrature with `NODES` nodes in each of one or two
dimensions. Its mean over the labels is bounded:

    sum_i w_i KL(p_i || p) = I(label; x) <= H(w) = -sum_i w_i log w_i <= log K                      (4)

Two readings of the theorem are wrong.

Random labels. Every D_i has the law p, so p_i = p and (2) is exactly 0: the label is independent of the image. Models
that learn the law from that many images differ only by the cost of fitting. If r parameters are fitted to D_i and to D,
then on average over labels and to first order

    0 >= E[ M(D_i; fit of D_i, eps) - M(D_i; fit of D, eps) ] >= -(1 - 1 / K) r / (2 |D_i|)         (5)

where the right side is half the mean of Wilks' (1938) chi-squared. The fit here has the parameters w and all mu_j, so
r = K - 1 + K d, and knows which p_j each image comes from. (5) is then an equality if the p_j do not overlap.

Models that have memorised. Let the model of a set be the set itself, blurred: the kernel density q_h of bandwidth h.
At eps = h, with x ~ q_h of D_i,

    M(D_i; q_h of D_i, h) - M(D_i; q_h of D, h) = -KL(q_h of D_i || q_h of D) >= -log(N / |D_i|)    (6)

since q_h of D is at least |D_i| / N times q_h of D_i. If h is far below the spacing of the images, (6) tends to
-log(N / |D_i|), or -log K for equal parts, WHATEVER the partition: a random one gains as much as any other. The gain is
the label's information about which part of D holds the image.

(3) also does not show that drawing labels helps: drawing a label by w, then an image given it from p_i, is drawing from
p, by (1). An attacker who does not know which label to ask for samples the same law as without labels.
"""

import dataclasses
import functools
import math

import jax
import numpy as np
from scipy.special import logsumexp, roots_hermitenorm

from side_jax.memorization.theory.divergence import divergence_difference, draw, log_q

NODES = 320  # in each dimension
FINEST = 5  # a p_j may be up to this many times narrower than u: errors are below 1e-4 (below 1e-7 at 2 times)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
    """Equation (1).

    Attributes:
      weights: float64 [K] with sum 1; a label of weight 0 is not part of p.
      means: float64 [K, d].
      spreads: float64 [K], standard deviations.
    """

    weights: np.ndarray
    means: np.ndarray
    spreads: np.ndarray

    def log_each(self, x: np.ndarray) -> np.ndarray:
        """Returns log p_i at x, real [m, d]: float64 [m, K], in nats."""
        squares = np.square(np.asarray(x, np.float64)[:, None] - self.means).sum(axis=2) / self.spreads**2
        return -0.5 * (squares + self.means.shape[1] * np.log(2 * math.pi * self.spreads**2))

    def log_p(self, x: np.ndarray) -> np.ndarray:
        """Log p at x, real [m, d]: float64 [m], in nats."""
        return logsumexp(self.log_each(x), axis=1, b=self.weights)

    def sample(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An image of each label, int [m]: float32 [m, d]."""
        noise = rng.normal(size=(len(labels), self.means.shape[1]))
        return (self.means[labels] + self.spreads[labels, None] * noise).astype(np.float32)

    @property
    def entropy(self) -> float:
        """H(w) of equation (4), in nats."""
        used = self.weights[self.weights > 0]
        return float(-(used * np.log(used)).sum())


def make_law(weights: tuple[float, ...], spreads: tuple[float, ...], separation: float, d: int, seed: int) -> Law:
    """Returns a law with means drawn by the seed from a normal law of deviation `separation` in d dimensions."""
    means = separation * np.random.default_rng([seed, 0]).normal(size=(len(weights), d))
    return Law(weights=np.asarray(weights, np.float64), means=means, spreads=np.asarray(spreads, np.float64))


def limit(law: Law, label: int, epsilon: float = 0.0) -> float:
    """Computes (3) for a label and an epsilon, in nats; for epsilon 0 it is -KL(p_i || p) <= 0.

    Raises:
      ValueError: for more than two dimensions, where the grid would be too large.
    """
    d = law.means.shape[1]
    if d > 2:
        raise ValueError(f"the limit is computed in 1 or 2 dimensions, got {d}")
    nodes, weights = _quadrature()
    grid = np.stack(np.meshgrid(*[nodes] * d, indexing="ij"), axis=-1).reshape(-1, d)
    weight = functools.reduce(np.multiply.outer, [weights] * d).ravel()
    u = law.means[label] + math.hypot(law.spreads[label], epsilon) * grid
    return float(weight @ (law.log_p(u) - law.log_each(u)[:, label]))


@functools.cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Returns nodes and weights of the mean over a standard normal variable: float64 [NODES] each."""
    nodes, weights = roots_hermitenorm(NODES)
    return nodes, weights / weights.sum()


def label_counts(weights: np.ndarray, total: int) -> np.ndarray:
    """Splits `total` images over the labels by weight, with the largest-remainder method: int64 [K] with this sum."""
    share = weights * total
    whole = np.floor(share + 1e-9).astype(np.int64)
    order = np.argsort(whole - share, kind="stable")
    whole[order[: total - whole.sum()]] += 1
    return whole


def informative_differences(
    law: Law, parts: list[np.ndarray], epsilon: float, key: jax.Array, num_samples: int
) -> np.ndarray:
    """Estimates (2) for each label from draws: float64 [K].

    Args:
      law: of K labels.
      parts: D_i, float32 [n_i, d] each.
      epsilon: above 0.
      key: a typed JAX key; one key gives several epsilons the same members and noise.
      num_samples: draws for each label.
    """
    differences = []
    for i, part in enumerate(parts):
        x, _ = draw(part, epsilon, jax.random.fold_in(key, i), num_samples)
        differences.append(divergence_difference(law.log_each(x)[:, i], law.log_p(x)).estimate)
    return np.asarray(differences)


def fitted_differences(
    law: Law, parts: list[np.ndarray], components: list[np.ndarray], epsilon: float, key: jax.Array, num_samples: int
) -> np.ndarray:
    """Estimates the difference in (5) for each part: float64 [K].

    Args:
      law: gives the fits its spreads, and nothing else.
      parts: D_i, float32 [n_i, d] each.
      components: int [n_i] each, the j of the p_j that each image comes from.
      epsilon: above 0.
      key: a typed JAX key.
      num_samples: draws for each part.
    """
    whole = _fit(law, np.concatenate(parts), np.concatenate(components))
    differences = []
    for i, (part, component) in enumerate(zip(parts, components, strict=True)):
        x, _ = draw(part, epsilon, jax.random.fold_in(key, i), num_samples)
        differences.append(divergence_difference(_fit(law, part, component).log_p(x), whole.log_p(x)).estimate)
    return np.asarray(differences)


def _fit(law: Law, images: np.ndarray, component: np.ndarray) -> Law:
    """Fits the share and the mean of each component. One without images gets no share."""
    number = np.bincount(component, minlength=len(law.weights))
    sums = np.zeros_like(law.means)
    np.add.at(sums, component, images.astype(np.float64))
    means = sums / np.maximum(number, 1)[:, None]
    return dataclasses.replace(law, weights=number / len(images), means=means)


def fitting_cost(law: Law, size: int) -> float:
    """Returns the right side of (5) for |D_i| = size, in nats."""
    labels, d = law.means.shape
    return -(1 - 1 / labels) * (labels - 1 + labels * d) / (2 * size)


def memorised_differences(parts: list[np.ndarray], bandwidth: float, key: jax.Array, num_samples: int) -> np.ndarray:
    """Estimates (6) for each part from draws: float64 [K], each in [-log(N / |D_i|), 0].

    Args:
      parts: D_i, float32 [n_i, d] each.
      bandwidth: h, above 0.
      key: a typed JAX key.
      num_samples: draws for each part.
    """
    total = sum(len(part) for part in parts)
    differences = []
    for i, part in enumerate(parts):
        x, _ = draw(part, bandwidth, jax.random.fold_in(key, i), num_samples)
        others = np.concatenate([other for j, other in enumerate(parts) if j != i])
        log_part, share = log_q(x, part, bandwidth), len(part) / total
        log_whole = np.logaddexp(math.log(share) + log_part, math.log1p(-share) + log_q(x, others, bandwidth))
        differences.append(divergence_difference(log_part, log_whole).estimate)
    return np.asarray(differences)
