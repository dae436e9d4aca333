"""The memorisation divergence: how far a model's law is from its training images, each blurred by a little noise.

Chen et al. 2024 (arXiv:2406.12752). For a model's density p and n members x_i of d numbers, in nats,

    M(D; p, eps) = KL(q || p) = E_q[ log q(x) - log p(x) ],   q(x) = (1 / n) sum_i N(x; x_i, eps^2 I)   (1)
    log q(x) = logsumexp_i( -|x - x_i|^2 / (2 eps^2) ) - log n - (d / 2) log(2 pi eps^2)                (2)
    M = mean of t_s,  s.e. = deviation of t_s / sqrt(m),  t_s = log q(x_s) - log p(x_s),  x_s ~ q       (3)

The smaller M, the more the model has memorised; M = 0 means p = q. At small eps every M is large, about d log(1 / eps)
for a bounded p: compare the M of several models on the same members at the same eps. For two models at the same draws

    M(D; a, eps) - M(D; b, eps) = E_q[ log p_b(x) - log p_a(x) ] = mean of log p_b(x_s) - log p_a(x_s)  (4)

log q cancels, and so does what log p_a and log p_b have in common at a draw: the error of (4) is that of their
difference. Two estimates (3) from separate draws would also differ by the scatter of d log(1 / eps) terms.

If p can only be sampled, let Y be m draws of p and X be n draws of q. rho_k(i) is the distance from X_i to its k-th
nearest other X, nu_k(i) to its k-th nearest Y, and V_d the volume of the unit ball:

    KL(q || p) = (d / n) sum_i log( nu_k(i) / rho_k(i) ) + log( m / (n - 1) )                           (5)
    log p(x)   = psi(k) - psi(m + 1) - log V_d - d log nu_k(x)                                          (6)

(5): Wang, Kulkarni and Verdu 2009 (IEEE Trans. Inf. Theory 55:2392), equation 5. (6): Loftsgaarden and Quesenberry
1965, with the mean of the log of a Beta(k, m + 1 - k) probability in place of their log k - log m, so that (6) is
unbiased if p is constant within nu_k. (6) in (3), with the exact log q of (2), is the hybrid estimator of M. The table
shows the bias of both in d dimensions (benchmarks/knn_bias.py), in nats, for n = m = 5000 and, in brackets, 200; k = 5.
q is N(0, I) or, in the last pair of columns, 100 members drawn from it with noise of eps = 0.1, where M is 0.69, 4.70,
14.05 and 32.19:

             p = N(0, I)                     p = N(0, 1.5^2 I)               members, p = N(0, I)
     d       (5)           hybrid            (5)           hybrid            (5)            hybrid
     2   +0.00 (+0.01)  -0.01 (-0.06)    -0.00 (+0.03)  -0.01 (-0.01)    +0.04  (-0.41)  +0.00 (-0.03)
     4   -0.00 (-0.03)  -0.05 (-0.09)    +0.07 (+0.23)  +0.03 (+0.15)    -0.03  (-4.06)  -0.04 (-0.11)
     8   -0.00 (+0.01)  -0.04 (+0.17)    +0.31 (+0.58)  +0.27 (+0.70)    -0.54 (-12.86)  -0.07 (+0.22)
    16   -0.00 (+0.06)  +0.50 (+1.32)    +0.98 (+1.24)  +1.49 (+2.51)    -1.50 (-29.98)  +0.50 (+1.28)

For M the hybrid is as good or far better. (5) detects the noise only if each member was drawn far more than k times;
otherwise it takes the members themselves for a law. For two broad laws known by draws alone, (5) is better in 16
dimensions: its two biases cancel as far as the laws are similar. In 16 dimensions both can be off by a nat, k = 1 by
less than k = 10. Neither is suitable for whole images.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import digamma, gammaln
from sklearn.neighbors import NearestNeighbors

from side_jax.memorization.distribution.feature_rows import check_rows

BLOCK = 1024  # draws and members compared at a time; fewer if rows are long
_NUMBERS = 2**22  # of float64 in a block, 32 MiB
_SPACINGS = 64  # smallest eps in spacings of float32; with less, the draws would lie on a grid
_TREE = 8  # features; with more, a tree is slower than computing all distances


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean of independent terms.

    Attributes:
      estimate: in nats.
      standard_error: of the draws, in nats; it does not cover other members or another model.
    """

    estimate: float
    standard_error: float


def memorization_divergence(
    log_prob_fn: Callable[[np.ndarray], Any], members: np.ndarray, epsilon: float, key: jax.Array, num_samples: int
) -> Estimate:
    """Estimates M of equation (1) by (3). It is part of the paper's public mathematics; the pipeline uses its parts.

    Args:
      log_prob_fn: log p, float32 [num_samples, ...] -> float [num_samples], in nats; called once.
      members: float [n, ...].
      epsilon: standard deviation of the noise, in the members' units, above 0.
      key: a typed JAX key.
      num_samples: m, 2 or more.

    Raises:
      ValueError: as in `draw`, or if log_prob_fn returns another shape or a number that is not finite: an infinite
        divergence has no mean, and leaving such draws out would make it look finite.
    """
    x, _ = draw(members, epsilon, key, num_samples)
    (log_p,) = _finite(log_prob_fn=log_prob_fn(x))
    if len(log_p) != num_samples:
        raise ValueError(f"log_prob_fn must give {num_samples} numbers for {num_samples} draws, got {len(log_p)}")
    return mean(log_q(x, members, epsilon) - log_p)


def divergence_difference(log_p_a: np.ndarray, log_p_b: np.ndarray) -> Estimate:
    """Estimates M(D; a) - M(D; b) by equation (4); below 0 if model a has memorised more than b.

    Args:
      log_p_a: float [m], log p of model a at draws of q, m at least 2.
      log_p_b: float [m], log p of model b at the SAME draws.

    Raises:
      ValueError: if they do not have one shape [m] with m at least 2, or hold a number that is not finite.
    """
    log_p_a, log_p_b = _finite(log_p_a=log_p_a, log_p_b=log_p_b)
    if len(log_p_a) != len(log_p_b):
        raise ValueError(f"log_p_a and log_p_b must be of the same draws, got {len(log_p_a)} and {len(log_p_b)}")
    return mean(log_p_b - log_p_a)


def draw(members: np.ndarray, epsilon: float, key: jax.Array, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws independently from q, equation (1). Draw s depends only on the key and s.

    Args:
      members: float [n, ...].
      epsilon: above 0, and at least 64 spacings of float32 at the members' largest number.
      key: a typed JAX key.
      num_samples: m, 2 or more.

    Returns:
      (x float32 [m, ...]; each draw's member, int64 [m], uniform in 0..n-1).

    Raises:
      ValueError: if members are empty, not floats or not finite, if epsilon is not above 0 or too small for float32
        next to the members, or if num_samples is less than 2.
    """
    members = _check_floats(members, epsilon)
    if num_samples < 2:
        raise ValueError(f"num_samples must be 2 or more, for a standard error, got {num_samples}")
    smallest = _SPACINGS * float(np.spacing(np.float32(np.abs(members).max(initial=0.0))))
    if epsilon < smallest:
        raise ValueError(
            f"epsilon must be {smallest:.3g} or more, so that float32 holds it beside members, got {epsilon}"
        )
    index, noise = (np.asarray(v) for v in _random(key, len(members), num_samples=num_samples, shape=members.shape[1:]))
    return (members[index] + epsilon * noise.astype(np.float64)).astype(np.float32), index.astype(np.int64)


@functools.partial(jax.jit, static_argnames=("num_samples", "shape"))
def _random(key: jax.Array, n: Any, *, num_samples: int, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    def draw_one(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_member, key_noise = jax.random.split(jax.random.fold_in(key, index))
        return jax.random.randint(key_member, (), 0, n), jax.random.normal(key_noise, shape, jnp.float32)

    return jax.vmap(draw_one)(jnp.arange(num_samples, dtype=jnp.uint32))


def log_q(x: np.ndarray, members: np.ndarray, epsilon: float) -> np.ndarray:
    """Computes equation (2) over all members, from exact differences in float64, in blocks of at most 100 MB.

    Args:
      x: float [m, ...].
      members: float [n, ...], of the same shape.
      epsilon: above 0.

    Returns:
      float64 [m], in nats.

    Raises:
      ValueError: if x or members are empty, not floats or not finite, their shapes differ, or epsilon is not above 0.
    """
    members, x = _check_floats(members, epsilon), _check_floats(x, epsilon, "x")
    if x.shape[1:] != members.shape[1:]:
        raise ValueError(f"x and members must be of one shape, got {x.shape[1:]} and {members.shape[1:]}")
    x, members = x.reshape(len(x), -1), members.reshape(len(members), -1)
    total = np.full(len(x), -np.inf)
    for rows in _blocks(len(members), members.shape[1]):
        block = members[rows].astype(np.float64)
        for part in _blocks(len(x), x.shape[1]):
            exponent = cdist(x[part].astype(np.float64), block, "sqeuclidean")
            exponent /= -2 * epsilon**2
            top = exponent.max(axis=1)
            exponent -= top[:, None]
            np.exp(exponent, out=exponent)
            total[part] = np.logaddexp(total[part], top + np.log(exponent.sum(axis=1)))
    return total - math.log(len(members)) - 0.5 * members.shape[1] * math.log(2 * math.pi * epsilon**2)


def knn_divergence(q_samples: np.ndarray, p_samples: np.ndarray, k: int = 5) -> Estimate:
    """Estimates KL(q || p) by equation (5), from draws of both laws.

    Args:
      q_samples: real [n, d], independent draws of q.
      p_samples: real [m, d], independent draws of p.
      k: from 1 to n - 1 and to m. A larger k has less scatter and more bias.

    Returns:
      The estimate, which can be below 0, and the terms' deviation / sqrt(n). The latter treats the terms as independent
      and as the only source of scatter, but neighbours share draws, and all nu share Y. In the benchmark above it is
      0.6 of the true scatter in the median at k = 5, but only 0.1 to 0.5 of it for n = 5000 and m = 200, and it does
      not include the bias. A jackknife over the draws of q would not vary Y either: repeat with other draws.

    Raises:
      ValueError: if the rows do not match (see check_rows), k is out of its range, or a distance is 0: copies have no
        density, so both sets must be smoothed with the same noise.
    """
    q, p = check_rows(1, np.float64, q_samples=q_samples, p_samples=p_samples)
    to_q, to_p = _log_distances("q_samples", q, None, k), _log_distances("p_samples", q, p, k)
    estimate = mean(q.shape[1] * (to_p - to_q))
    shift = math.log(len(p) / (len(q) - 1))
    return dataclasses.replace(estimate, estimate=estimate.estimate + shift)


def knn_log_prob(points: np.ndarray, samples: np.ndarray, k: int = 5) -> np.ndarray:
    """Estimates log p at points by equation (6), from draws of p.

    Args:
      points: real [n, d].
      samples: real [m, d], independent draws of p, also independent of the points.
      k: from 1 to m.

    Returns:
      float64 [n], in nats. The errors are not independent, since all share the draws.

    Raises:
      ValueError: as in knn_divergence.
    """
    points, samples = check_rows(1, np.float64, points=points, samples=samples)
    d = samples.shape[1]
    log_ball = 0.5 * d * math.log(math.pi) - float(gammaln(0.5 * d + 1))
    log_mass = float(digamma(k) - digamma(len(samples) + 1)) if k > 0 else 0.0  # _log_distances refuses other k
    return log_mass - log_ball - d * _log_distances("samples", points, samples, k)


def _log_distances(name: str, rows: np.ndarray, samples: np.ndarray | None, k: int) -> np.ndarray:
    """Returns the log distance to the k-th nearest sample, or without samples to the k-th nearest other row: [n]."""
    candidates = rows if samples is None else samples
    largest_k = len(candidates) - (samples is None)
    if not 1 <= k <= largest_k:
        raise ValueError(f"k must be between 1 and the {largest_k} neighbours that {name} can have, got {k}")
    centre = candidates.mean(axis=0)  # brute force computes distances from products, more exact for short rows
    search = NearestNeighbors(n_neighbors=k, algorithm="kd_tree" if rows.shape[1] <= _TREE else "brute")
    search.fit(candidates - centre)
    index = search.kneighbors(None if samples is None else rows - centre, return_distance=False)
    distances = np.empty(len(rows))
    for part in _blocks(len(rows), k * rows.shape[1]):
        distances[part] = np.linalg.norm(candidates[index[part]] - rows[part, None], axis=2).max(axis=1)
    if not distances.all():
        raise ValueError(
            f"{(distances == 0).sum()} of {len(rows)} rows have {k} exact copies among {name}, where no density is "
            "finite; add the same noise to both sets"
        )
    return np.log(distances)


def mean(terms: np.ndarray) -> Estimate:
    """Returns the mean of independent terms, float64 [m] with m at least 2, and its standard error."""
    if len(terms) < 2:
        raise ValueError(f"a standard error needs 2 terms or more, got {len(terms)}")
    return Estimate(estimate=float(terms.mean()), standard_error=float(terms.std(ddof=1) / math.sqrt(len(terms))))


def _check_floats(members: np.ndarray, epsilon: float, name: str = "members") -> np.ndarray:
    members = np.asarray(members)
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be above 0 and finite, got {epsilon}")
    if members.ndim < 2 or not members.size or not np.issubdtype(members.dtype, np.floating):
        raise ValueError(f"{name} must be floats [n, ...], n at least 1, got {members.dtype} {members.shape}")
    if not np.isfinite(members).all():
        raise ValueError(f"{name} must be finite, but hold {(~np.isfinite(members)).sum()} numbers that are not")
    return members


def _finite(**sets: Any) -> list[np.ndarray]:
    """Converts the sets to float64 [m]; raises ValueError unless they are finite vectors."""
    arrays = {name: np.asarray(values, np.float64) for name, values in sets.items()}
    for name, values in arrays.items():
        bad = int((~np.isfinite(values)).sum())
        if values.ndim != 1:
            raise ValueError(f"{name} must give one number for each draw, got shape {values.shape}")
        if bad:
            raise ValueError(f"{name} has {bad} of {len(values)} numbers that are not finite; their mean says nothing")
    return list(arrays.values())


def _blocks(count: int, width: int) -> Iterator[slice]:
    size = max(1, min(BLOCK, _NUMBERS // width))
    return (slice(start, start + size) for start in range(0, count, size))
