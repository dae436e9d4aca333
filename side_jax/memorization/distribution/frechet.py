"""The Frechet distance of two sets of features: how well generated images match real ones as a whole.

Of the Gaussians N(m_a, C_a) and N(m_b, C_b) fitted to the sets (Heusel et al. 2017, "GANs Trained by a Two Time-Scale
Update Rule", equation 6; the square of the distance, as is the custom):

    d^2 = |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a C_b)^(1/2)                                    (1)

With C_a = A^T A and C_b = B^T B for factors A [p, d] and B [q, d], the eigenvalues of C_a C_b are the squares of the
singular values of A B^T [p, q], so the last trace is their sum:

    tr (C_a C_b)^(1/2) = || A B^T ||_nuclear                                                        (2)

(2) needs no square root of a singular d x d matrix and stays exact where there are fewer images than features.

(1) is biased upwards for few images, the more the more features there are: compare only at an equal number of images
and with the same extractor, and with the value of real images against real ones next to it.
"""

import numpy as np

from side_jax.memorization.distribution.feature_rows import checked


def _moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean float64 [d], a factor of the covariance, float64 [min(n, d), d])."""
    rows = rows.astype(np.float64)
    mean = rows.mean(axis=0)
    factor = (rows - mean) / np.sqrt(len(rows) - 1)
    # An orthogonal Q leaves the singular values of (2) alone, so R may stand for the tall factor.
    if len(rows) > rows.shape[1]:
        factor = np.linalg.qr(factor, mode="r")
    return mean, factor


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Equation (1), 0 or more, in squared units of the features.

    Args:
      a: float32 [n, d], n >= 2.
      b: float32 [m, d], m >= 2.

    Raises:
      ValueError: if a set has fewer than 2 rows or the rows do not compare (see rows.checked).
    """
    (mean_a, factor_a), (mean_b, factor_b) = (_moments(rows) for rows in checked(2, a=a, b=b))
    spread = np.square(factor_a).sum() + np.square(factor_b).sum()
    overlap = np.linalg.norm(factor_a @ factor_b.T, ord="nuc")
    distance = np.square(mean_a - mean_b).sum() + spread - 2 * overlap
    return max(0.0, float(distance))  # rounding may put equal sets just below
