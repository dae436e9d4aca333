"""FLD-style generalisation gap: a density built on the generated images fits members better than held-out images.

Jiralerspong et al. 2023, "Feature Likelihood Divergence". Features are standardised by the members' mean and standard
deviation. The density is a mixture of m Gaussians, one at each generated g_j, with equal weights and their own
variances:

    p(x)     = (1 / m) sum_j N(x; g_j, s_j I)                                                       (1)
    r_ij     = N(x_i; g_j, s_j I) / sum_k N(x_i; g_k, s_k I)                                        (2)
    s_j      = max( floor, sum_i r_ij |x_i - g_j|^2 / (d sum_i r_ij) )                              (3)
    s_j at 0 = max( floor, min_i |x_i - g_j|^2 / d )                                                (4)
    gap      = (100 / d) mean over members of -log p  -  (100 / d) mean over held-out of -log p     (5)

Expectation maximisation fits the variances to the members' likelihood, by (2) and (3) in turn from (4). With fixed
means and weights each step has this closed form and cannot lower the likelihood. A copied member makes the variance of
its copy small, which raises the likelihood of members but not of held-out images. The more negative the gap, the more
is copied; only the floor bounds it. Without any copying the gap is slightly negative, since the variances are fitted to
the members, and more so with few features (-10 for 4, -2 for 16, less than 1 for 64 or more, for Gaussians). The
control exchanges members and held-out images.

"FLD-style", because it differs from the authors' package, which standardises by the held-out set, takes 50 steps of
Adam from (4) instead of iterating to convergence, mixes in a wide Gaussian at the members' mean during the fit, and
clamps log s_j to [-40, 20]. Values of the two are not comparable.
"""

from collections.abc import Iterator

import numpy as np
from scipy.special import logsumexp
from sklearn.metrics import pairwise
from sklearn.preprocessing import StandardScaler

from side_jax.memorization.distribution.feature_rows import check_rows, subsample

FLOOR = 1e-4  # of a variance: a copy within 1% of a feature's standard deviation counts as exact
UNUSED = 1e-12  # a component with a smaller sum of r_ij keeps its variance, since (3) would be rounding errors
BLOCK = 512  # rows at a time


def _squared_distances(rows: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Returns float32 [n, m]. scikit-learn converts float32 rows to float64 in blocks, so near copies keep digits."""
    return pairwise.euclidean_distances(rows, means, squared=True)


def _log_joint(squared: np.ndarray, variances: np.ndarray, dimensions: int) -> np.ndarray:
    """Returns the log of each term of (1): squared distances [b, m] -> float64 [b, m]."""
    constant = 0.5 * dimensions * np.log(2 * np.pi * variances) + np.log(len(variances))
    return squared / (-2 * variances) - constant


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK))


def log_likelihood(rows: np.ndarray, means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Computes log p of equation (1).

    Args:
      rows: float32 [n, d].
      means: float32 [m, d].
      variances: float64 [m], positive.

    Returns:
      float64 [n], in nats.
    """
    parts = (_log_joint(_squared_distances(part, means), variances, rows.shape[1]) for part in _blocks(rows))
    return np.concatenate([logsumexp(part, axis=1) for part in parts])


def fit_variances(
    rows: np.ndarray, means: np.ndarray, max_iterations: int = 100, tolerance: float = 1e-5
) -> tuple[np.ndarray, list[float]]:
    """Fits the variances of (1) to the likelihood of the rows, by equations (2) to (4).

    Holds the distances of all pairs, 4 n m bytes (400 MB for 10,000 of each); other arrays have BLOCK rows only.

    Args:
      rows: float32 [n, d].
      means: float32 [m, d].
      max_iterations: 1 or more.
      tolerance: stop when an iteration gains less, in nats per feature.

    Returns:
      (variances float64 [m], the mean log-likelihood before each iteration, in nats per feature).
    """
    dimensions = rows.shape[1]
    squared = np.concatenate([_squared_distances(part, means) for part in _blocks(rows)])
    variances = np.maximum(squared.min(axis=0).astype(np.float64) / dimensions, FLOOR)
    history: list[float] = []
    for _ in range(max_iterations):
        weight, moment, total = np.zeros(len(means)), np.zeros(len(means)), 0.0
        for part in _blocks(squared):
            joint = _log_joint(part, variances, dimensions)
            marginal = logsumexp(joint, axis=1)
            responsibility = np.exp(joint - marginal[:, None])
            weight += responsibility.sum(axis=0)
            moment += np.einsum("nm,nm->m", responsibility, part)
            total += marginal.sum()
        history.append(float(total / (len(rows) * dimensions)))
        if len(history) > 1 and history[-1] - history[-2] < tolerance:
            break
        used = weight > UNUSED
        variances[used] = np.maximum(moment[used] / (dimensions * weight[used]), FLOOR)
    return variances, history


def fld_gap(
    members: np.ndarray, heldout: np.ndarray, generated: np.ndarray, limit: int = 10_000, seed: int = 0
) -> float:
    """Computes equation (5), in hundredths of nats per feature.

    Args:
      members: float32 [l, d]; all are used, since a copy of an unused one would be missed.
      heldout: float32 [n, d].
      generated: float32 [m, d].
      limit: largest number of generated images, 1 or more; of more, this many are drawn.
      seed: of the draw.

    Raises:
      ValueError: if limit is less than 1 or the rows do not match (see check_rows).
    """
    members, heldout, generated = check_rows(1, members=members, heldout=heldout, generated=generated)
    if limit < 1:
        raise ValueError(f"limit must be 1 or more, got {limit}")
    standard = StandardScaler().fit(members).transform  # features that are constant among the members are only centred
    members, heldout, means = standard(members), standard(heldout), standard(subsample(generated, limit, seed))
    variances, _ = fit_variances(members, means)
    likelihoods = (log_likelihood(rows, means, variances).mean() for rows in (heldout, members))
    return float(100 * (next(likelihoods) - next(likelihoods)) / members.shape[1])
