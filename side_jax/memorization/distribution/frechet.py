"""The Frechet distance of two sets of features, which measures how well generated images match real ones overall.

For Gaussians N(m_a, C_a) and N(m_b, C_b) fitted to the sets (Heusel et al. 2017, "GANs Trained by a Two Time-Scale
Update Rule", equation 6; by convention the square of the distance):

    d^2 = |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a C_b)^(1/2)                                    (1)

Let C_a = A^T A and C_b = B^T B with factors A [p, d] and B [q, d]. The eigenvalues of C_a C_b are the squares of the
singular values of A B^T [p, q], so the last trace is their sum:

    tr (C_a C_b)^(1/2) = || A B^T ||_nuclear                                                        (2)

(2) needs no square root of a singular d x d matrix and is exact even with fewer images than features.

(1) is biased upwards for few images, more so with many features. Compare only at an equal number of images, with the
same extractor, and next to the value of real images against real ones.
"""

import numpy as np

from side_jax.memorization.distribution.feature_rows import check_rows


def _moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (mean float64 [d], a factor of the covariance, float64 [min(n, d), d])."""
    rows = rows.astype(np.float64)
    mean = rows.mean(axis=0)
    factor = (rows - mean) / np.sqrt(len(rows) - 1)
    # An orthogonal Q does not change the singular values in (2), so R can replace the tall factor.
    if len(rows) > rows.shape[1]:
        factor = np.linalg.qr(factor, mode="r")
    return mean, factor


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Computes equation (1), 0 or more, in squared units of the features.

    Args:
      a: float32 [n, d], n >= 2.
      b: float32 [m, d], m >= 2.

    Raises:
      ValueError: if a set has fewer than 2 rows or the rows do not match (see check_rows).
    """
    (mean_a, factor_a), (mean_b, factor_b) = (_moments(rows) for rows in check_rows(2, a=a, b=b))
    spread = np.square(factor_a).sum() + np.square(factor_b).sum()
    overlap = np.linalg.norm(factor_a @ factor_b.T, ord="nuc")
    distance = np.square(mean_a - mean_b).sum() + spread - 2 * overlap
    return max(0.0, float(distance))  # rounding can make it slightly negative for equal sets
