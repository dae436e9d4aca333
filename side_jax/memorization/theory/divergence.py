"""The memorisation divergence: how far a model's law lies from its training images, each blurred by a little noise.

Chen et al. 2024 (arXiv:2406.12752). Of a model's density p and n members x_i of d numbers, in nats,

    M(D; p, eps) = KL(q || p) = E_q[ log q(x) - log p(x) ],   q(x) = (1 / n) sum_i N(x; x_i, eps^2 I)   (1)
    log q(x) = logsumexp_i( -|x - x_i|^2 / (2 eps^2) ) - log n - (d / 2) log(2 pi eps^2)                (2)
    M = mean of t_s,  s.e. = deviation of t_s / sqrt(m),  t_s = log q(x_s) - log p(x_s),  x_s ~ q       (3)

The smaller M, the more the model has memorised; 0 is p = q. At small eps all M are large, about d log(1 / eps) for a
bounded p: compare M of several models on the same members at the same eps. For two models at the same draws

    M(D; a, eps) - M(D; b, eps) = E_q[ log p_b(x) - log p_a(x) ] = mean of log p_b(x_s) - log p_a(x_s)  (4)

log q cancels, and what log p_a and log p_b share at a draw cancels with it: the error in (4) is that of their
difference, not of each. Two estimates (3) of separate draws would differ by the scatter of d log(1 / eps) terms too.

Where p can only be sampled, Y are m draws of it, X are n of q; rho_k(i) is the distance from X_i to its k-th nearest
other X, nu_k(i) to its k-th nearest Y, and V_d the volume of the unit ball:

    KL(q || p) = (d / n) sum_i log( nu_k(i) / rho_k(i) ) + log( m / (n - 1) )                           (5)
    log p(x)   = psi(k) - psi(m + 1) - log V_d - d log nu_k(x)                                          (6)

(5): Wang, Kulkarni and Verdu 2009 (IEEE Trans. Inf. Theory 55:2392), equation 5. (6): Loftsgaarden and Quesenberry 1965
with their log k - log m replaced by the mean of the log of a Beta(k, m + 1 - k) probability, so that (6) has no bias
where p is constant within nu_k. (6) in (3), beside the exact log q of (2), is the hybrid estimator of M. The bias of
both in d dimensions by benchmarks/knn_bias.py, in nats, for n = m = 5000 and, in brackets, 200; k = 5; q is N(0, I), or
in the last pair 100 members of it with noise of eps = 0.1, whose M is 0.69, 4.70, 14.05 and 32.19:

             p = N(0, I)                     p = N(0, 1.5^2 I)               members, p = N(0, I)
     d       (5)           hybrid            (5)           hybrid            (5)            hybrid
     2   +0.00 (+0.01)  -0.01 (-0.06)    -0.00 (+0.03)  -0.01 (-0.01)    +0.04  (-0.41)  +0.00 (-0.03)
     4   -0.00 (-0.03)  -0.05 (-0.09)    +0.07 (+0.23)  +0.03 (+0.15)    -0.03  (-4.06)  -0.04 (-0.11)
     8   -0.00 (+0.01)  -0.04 (+0.17)    +0.31 (+0.58)  +0.27 (+0.70)    -0.54 (-12.86)  -0.07 (+0.22)
    16   -0.00 (+0.06)  +0.50 (+1.32)    +0.98 (+1.24)  +1.49 (+2.51)    -1.50 (-29.98)  +0.50 (+1.28)

For M the hybrid is as good or far better. (5) sees the noise only where each member was drawn far more than k times;
else it takes members for a law. Of two broad laws that are known by draws alone, (5) is better in 16 dimensions: its
two biases cancel as far as the laws are alike. In 16 dimensions both can be off by a nat, k = 1 by less than k = 10;
neither is for images themselves.
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

from side_jax.memorization.distribution.feature_rows import checked

BLOCK = 1024  # draws, and members, that are compared at a time; fewer where a row is long
_NUMBERS = 2**22  # of float64 in a block, 32 MiB
_SPACINGS = 64  # of float32: with a smaller eps the draws would be on a grid
_TREE = 8  # features; with more, a tree is slower than all distances


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean of independent terms.

    Attributes:
      estimate: in nats.
      standard_error: of the draws, in nats; it knows nothing of other members or of another model.
    """

    estimate: float
    standard_error: float


def memorization_divergence(
    log_prob_fn: Callable[[np.ndarray], Any], members: np.ndarray, epsilon: float, key: jax.Array, num_samples: int
) -> Estimate:
    """M of equation (1) by (3).

    Args:
      log_prob_fn: log p, float32 [num_samples, ...] -> float [num_samples], in nats; it is called once.
      members: float [n, ...].
      epsilon: deviation of the noise, in the members' units, above 0.
      key: a typed JAX key.
      num_samples: m, 2 or more.

    Raises:
      ValueError: as `draw`, or if log_prob_fn returns another shape or a number that is not finite: an infinite
        divergence has no mean, and leaving such draws out would make it seem finite.
    """
    x, _ = draw(members, epsilon, key, num_samples)
    (log_p,) = _finite(log_prob_fn=log_prob_fn(x))
    if len(log_p) != num_samples:
        raise ValueError(f"log_prob_fn must give {num_samples} numbers for {num_samples} draws, got {len(log_p)}")
    return mean(log_q(x, members, epsilon) - log_p)


def divergence_difference(log_p_a: np.ndarray, log_p_b: np.ndarray) -> Estimate:
    """M(D; a) - M(D; b) by equation (4): below 0, model a has memorised more than b.

    Args:
      log_p_a: float [m], log p of model a at draws of q, m at least 2.
      log_p_b: float [m], of model b at the SAME draws.

    Raises:
      ValueError: if they are not [m] of one m of 2 or more, or hold a number that is not finite.
    """
    log_p_a, log_p_b = _finite(log_p_a=log_p_a, log_p_b=log_p_b)
    if len(log_p_a) != len(log_p_b):
        raise ValueError(f"log_p_a and log_p_b must be of the same draws, got {len(log_p_a)} and {len(log_p_b)}")
    return mean(log_p_b - log_p_a)


def draw(members: np.ndarray, epsilon: float, key: jax.Array, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Independent draws of q, equation (1). Draw s depends on the key and s alone, not on how many there are.

    Args:
      members: float [n, ...].
      epsilon: above 0, and 64 spacings of float32 at the members' largest number or more.
      key: a typed JAX key.
      num_samples: m, 2 or more.

    Returns:
      (x float32 [m, ...]; the member that each came from, int64 [m], uniform in 0..n-1).

    Raises:
      ValueError: if members are none, not floats or not finite, epsilon is not above 0 or is lost in float32 beside
        them, or num_samples is less than 2.
    """
    members = _members(members, epsilon)
    if num_samples < 2:
        raise ValueError(f"num_samples must be 2 or more, for a standard error, got {num_samples}")
    least = _SPACINGS * float(np.spacing(np.float32(np.abs(members).max(initial=0.0))))
    if epsilon < least:
        raise ValueError(f"epsilon must be {least:.3g} or more, so that float32 holds it beside members, got {epsilon}")
    which, noise = (np.asarray(v) for v in _random(key, len(members), num_samples=num_samples, shape=members.shape[1:]))
    return (members[which] + epsilon * noise.astype(np.float64)).astype(np.float32), which.astype(np.int64)


@functools.partial(jax.jit, static_argnames=("num_samples", "shape"))
def _random(key: jax.Array, n: Any, *, num_samples: int, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    def one(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        which, noise = jax.random.split(jax.random.fold_in(key, index))
        return jax.random.randint(which, (), 0, n), jax.random.normal(noise, shape, jnp.float32)

    return jax.vmap(one)(jnp.arange(num_samples, dtype=jnp.uint32))


def log_q(x: np.ndarray, members: np.ndarray, epsilon: float) -> np.ndarray:
    """Equation (2), over all members, from exact differences in float64; blocks of 100 MB whatever n and m.

    Args:
      x: float [m, ...].
      members: float [n, ...], of the same shape.
      epsilon: above 0.

    Returns:
      float64 [m], in nats.

    Raises:
      ValueError: if x or members are none, not floats or not finite, their shapes differ, or epsilon is not above 0.
    """
    members, x = _members(members, epsilon), _members(x, epsilon, "x")
    if x.shape[1:] != members.shape[1:]:
        raise ValueError(f"x and members must be of one shape, got {x.shape[1:]} and {members.shape[1:]}")
    x, members = x.reshape(len(x), -1), members.reshape(len(members), -1)
    total = np.full(len(x), -np.inf)
    for own in _blocks(len(members), members.shape[1]):
        block = members[own].astype(np.float64)
        for part in _blocks(len(x), x.shape[1]):
            exponent = cdist(x[part].astype(np.float64), block, "sqeuclidean")
            exponent /= -2 * epsilon**2
            top = exponent.max(axis=1)
            exponent -= top[:, None]
            np.exp(exponent, out=exponent)
            total[part] = np.logaddexp(total[part], top + np.log(exponent.sum(axis=1)))
    return total - math.log(len(members)) - 0.5 * members.shape[1] * math.log(2 * math.pi * epsilon**2)


def knn_divergence(q_samples: np.ndarray, p_samples: np.ndarray, k: int = 5) -> Estimate:
    """KL(q || p) by equation (5), from draws of both laws.

    Args:
      q_samples: real [n, d], independent draws of q.
      p_samples: real [m, d], of p.
      k: from 1 to n - 1 and to m. A larger k has less scatter and more bias.

    Returns:
      The estimate, which can be below 0, and the terms' deviation / sqrt(n). That takes the terms to be independent,
      and all of the scatter to be theirs: neighbours share draws, and every nu is of the same Y. In that benchmark it
      is 0.6 of the true scatter in the median at k = 5, but 0.1 to 0.5 of it for n = 5000 and m = 200, and it knows
      nothing of the bias. A jackknife over the draws of q would leave Y as it is, too: repeat with other draws.

    Raises:
      ValueError: if the rows do not compare (see rows.checked), k is out of its range, or a distance is 0: copies have
        no density, and both sets must then be smoothed with the same noise.
    """
    q, p = checked(1, np.float64, q_samples=q_samples, p_samples=p_samples)
    own, other = _log_distances("q_samples", q, None, k), _log_distances("p_samples", q, p, k)
    found = mean(q.shape[1] * (other - own))
    shift = math.log(len(p) / (len(q) - 1))
    return dataclasses.replace(found, estimate=found.estimate + shift)


def knn_log_prob(points: np.ndarray, samples: np.ndarray, k: int = 5) -> np.ndarray:
    """Log p at points by equation (6), from draws of p.

    Args:
      points: real [n, d].
      samples: real [m, d], independent draws of p, and of nothing that the points were made of.
      k: from 1 to m.

    Returns:
      float64 [n], in nats. Their errors are not independent: all are of the same draws.

    Raises:
      ValueError: as knn_divergence.
    """
    points, samples = checked(1, np.float64, points=points, samples=samples)
    d = samples.shape[1]
    log_ball = 0.5 * d * math.log(math.pi) - float(gammaln(0.5 * d + 1))
    log_mass = float(digamma(k) - digamma(len(samples) + 1)) if k > 0 else 0.0  # a bad k is refused below
    return log_mass - log_ball - d * _log_distances("samples", points, samples, k)


def _log_distances(name: str, rows: np.ndarray, samples: np.ndarray | None, k: int) -> np.ndarray:
    """Log of the distance to the k-th nearest sample; without samples, to the k-th nearest other row: float64 [n]."""
    among = rows if samples is None else samples
    most = len(among) - (samples is None)
    if not 1 <= k <= most:
        raise ValueError(f"k must be between 1 and the {most} neighbours that {name} can have, got {k}")
    centre = among.mean(axis=0)  # brute force finds distances by products, which are the closer the shorter the rows
    search = NearestNeighbors(n_neighbors=k, algorithm="kd_tree" if rows.shape[1] <= _TREE else "brute")
    search.fit(among - centre)
    index = search.kneighbors(None if samples is None else rows - centre, return_distance=False)
    distances = np.empty(len(rows))
    for part in _blocks(len(rows), k * rows.shape[1]):
        distances[part] = np.linalg.norm(among[index[part]] - rows[part, None], axis=2).max(axis=1)
    if not distances.all():
        raise ValueError(
            f"{(distances == 0).sum()} of {len(rows)} rows have {k} exact copies among {name}, where no density is "
            "finite; add the same noise to both sets"
        )
    return np.log(distances)


def mean(terms: np.ndarray) -> Estimate:
    """Of independent terms, float64 [m], m at least 2, with its standard error."""
    if len(terms) < 2:
        raise ValueError(f"a standard error needs 2 terms or more, got {len(terms)}")
    return Estimate(estimate=float(terms.mean()), standard_error=float(terms.std(ddof=1) / math.sqrt(len(terms))))


def _members(members: np.ndarray, epsilon: float, name: str = "members") -> np.ndarray:
    members = np.asarray(members)
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be above 0 and finite, got {epsilon}")
    if members.ndim < 2 or not members.size or not np.issubdtype(members.dtype, np.floating):
        raise ValueError(f"{name} must be floats [n, ...], n at least 1, got {members.dtype} {members.shape}")
    if not np.isfinite(members).all():
        raise ValueError(f"{name} must be finite, but hold {(~np.isfinite(members)).sum()} numbers that are not")
    return members


def _finite(**sets: Any) -> list[np.ndarray]:
    """The sets as float64 [m]."""
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
