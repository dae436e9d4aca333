"""Theorem 1 of Chen et al. 2024 where every law is known: mixtures of Gaussians, informative labels and random ones.

The law of an image x in R^d, and that of the label i given x's, w_i being the share of label i and K their number:

    p = sum_i w_i p_i,   p_i = N(mu_i, s_i^2 I)                                                     (1)

A data set D of N images is cut by its labels into D_i. With the divergence M of divergence.py,

    M(D_i; p_i, eps) - M(D_i; p, eps) = E[ log p(x) - log p_i(x) ],   x = x_j + eps z, x_j in D_i   (2)

As |D_i| grows, the law of large numbers takes (2) with probability 1 to its expected value, and then as eps falls

    E[ log p(u) - log p_i(u) ], u ~ N(mu_i, (s_i^2 + eps^2) I)   ->   -KL(p_i || p) <= 0            (3)

with equality where p_i = p only: the theorem. For these fixed laws (3) is the expected value of (2) at EVERY |D_i|;
only the scatter of (2) over data sets falls, with 1 / sqrt(|D_i|). At an eps as large as s_i it may even be above 0.
(3) is computed by Gauss and Hermite's quadrature of `NODES` nodes in each of one or two dimensions. Its mean over the
labels is bounded:

    sum_i w_i KL(p_i || p) = I(label; x) <= H(w) = -sum_i w_i log w_i <= log K                      (4)

Two readings of the theorem are wrong.

Labels drawn at random. Then every D_i is of law p, so p_i = p, and (2) is 0 exactly: such a label says nothing of the
law. Models that have to learn the law from so many images differ by what fitting costs, and by no more. Of r parameters
fitted to D_i and to D, in the mean over labels and to first order,

    0 >= E[ M(D_i; fit of D_i, eps) - M(D_i; fit of D, eps) ] >= -(1 - 1 / K) r / (2 |D_i|)         (5)

where the right side is half the mean of Wilks' (1938) chi-squared. The fit here is of w and of all mu_j, r = K - 1 +
K d, to images of which it is known which p_j each is of; for it (5) is an equality where the p_j do not overlap.

Models that have memorised. Let the model of a set be the set itself, blurred: q_h, the kernel density of bandwidth h.
At eps = h, with x ~ q_h of D_i,

    M(D_i; q_h of D_i, h) - M(D_i; q_h of D, h) = -KL(q_h of D_i || q_h of D) >= -log(N / |D_i|)    (6)

since q_h of D is |D_i| / N times q_h of D_i, and more. Far below the spacing of the images there is no more, and (6)
tends to -log(N / |D_i|), -log K for equal parts, WHATEVER the partition: a random one, which says nothing of the law,
gains as much as any. This is the label's own information: which part of D holds the image.

Nor does (3) say that drawing the labels helps: a label drawn by w and then an image drawn from p_i is a draw from p, by
(1). An attacker who does not know which label to ask for draws what the model without labels draws.
"""

import dataclasses
import functools
import math

import jax
import numpy as np
from scipy.special import logsumexp, roots_hermitenorm

from side_jax.memorization.theory.divergence import divergence_difference, draw, log_q

NODES = 320  # in each dimension
FINEST = 5  # times narrower than u a p_j may be: errors are below 1e-4 then, and below 1e-7 at a factor of 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
    """Equation (1).

    Attributes:
      weights: float64 [K], of sum 1; a label of weight 0 has no part in p.
      means: float64 [K, d].
      spreads: float64 [K], standard deviations.
    """

    weights: np.ndarray
    means: np.ndarray
    spreads: np.ndarray

    def log_each(self, x: np.ndarray) -> np.ndarray:
        """Log p_i at x, real [m, d]: float64 [m, K], in nats."""
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
    """A law whose means are normal, of deviation `separation` in each of d dimensions, drawn by the seed."""
    means = separation * np.random.default_rng([seed, 0]).normal(size=(len(weights), d))
    return Law(weights=np.asarray(weights, np.float64), means=means, spreads=np.asarray(spreads, np.float64))


def limit(law: Law, label: int, epsilon: float = 0.0) -> float:
    """Equation (3) for a label and an epsilon; at 0 it is -KL(p_i || p), 0 or less. In nats.

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
    """Nodes and weights of the mean over a standard normal number: float64 [NODES] each."""
    nodes, weights = roots_hermitenorm(NODES)
    return nodes, weights / weights.sum()


def counts(weights: np.ndarray, total: int) -> np.ndarray:
    """How many of `total` images each label has, by its weight and the largest remainders: int64 [K], of that sum."""
    share = weights * total
    whole = np.floor(share + 1e-9).astype(np.int64)
    order = np.argsort(whole - share, kind="stable")
    whole[order[: total - whole.sum()]] += 1
    return whole


def informative(law: Law, parts: list[np.ndarray], epsilon: float, key: jax.Array, num_samples: int) -> np.ndarray:
    """Equation (2) for each label, from draws: float64 [K].

    Args:
      law: of K labels.
      parts: D_i, float32 [n_i, d] each.
      epsilon: above 0.
      key: a typed JAX key; the same one at several epsilons gives them the same members and noise.
      num_samples: draws for each label.
    """
    found = []
    for i, part in enumerate(parts):
        x, _ = draw(part, epsilon, jax.random.fold_in(key, i), num_samples)
        found.append(divergence_difference(law.log_each(x)[:, i], law.log_p(x)).estimate)
    return np.asarray(found)


def fitted(
    law: Law, parts: list[np.ndarray], kinds: list[np.ndarray], epsilon: float, key: jax.Array, num_samples: int
) -> np.ndarray:
    """The difference in (5) for each part: float64 [K].

    Args:
      law: whose spreads the fits have; of it they take nothing else.
      parts: D_i, float32 [n_i, d] each.
      kinds: int [n_i] each, of which p_j each image is.
      epsilon: above 0.
      key: a typed JAX key.
      num_samples: draws for each part.
    """
    whole = _fit(law, np.concatenate(parts), np.concatenate(kinds))
    found = []
    for i, (part, kind) in enumerate(zip(parts, kinds, strict=True)):
        x, _ = draw(part, epsilon, jax.random.fold_in(key, i), num_samples)
        found.append(divergence_difference(_fit(law, part, kind).log_p(x), whole.log_p(x)).estimate)
    return np.asarray(found)


def _fit(law: Law, images: np.ndarray, kinds: np.ndarray) -> Law:
    """Shares and means of the images of each kind. A kind of which there is none gets no share."""
    number = np.bincount(kinds, minlength=len(law.weights))
    sums = np.zeros_like(law.means)
    np.add.at(sums, kinds, images.astype(np.float64))
    means = sums / np.maximum(number, 1)[:, None]
    return dataclasses.replace(law, weights=number / len(images), means=means)


def fitting_cost(law: Law, size: int) -> float:
    """The right side of equation (5), for |D_i| = size, in nats."""
    labels, d = law.means.shape
    return -(1 - 1 / labels) * (labels - 1 + labels * d) / (2 * size)


def memorised(parts: list[np.ndarray], bandwidth: float, key: jax.Array, num_samples: int) -> np.ndarray:
    """Equation (6) for each part, from draws: float64 [K], each in [-log(N / |D_i|), 0].

    Args:
      parts: D_i, float32 [n_i, d] each.
      bandwidth: h, above 0.
      key: a typed JAX key.
      num_samples: draws for each part.
    """
    total = sum(len(part) for part in parts)
    found = []
    for i, part in enumerate(parts):
        x, _ = draw(part, bandwidth, jax.random.fold_in(key, i), num_samples)
        others = np.concatenate([other for j, other in enumerate(parts) if j != i])
        own, share = log_q(x, part, bandwidth), len(part) / total
        whole = np.logaddexp(math.log(share) + own, math.log1p(-share) + log_q(x, others, bandwidth))
        found.append(divergence_difference(own, whole).estimate)
    return np.asarray(found)
