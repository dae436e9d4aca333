"""AuthPct: the share of generated images further from their nearest member than that member from its own neighbour.

x* is the member nearest to the generated g (Alaa et al. 2022, "How Faithful is your Synthetic Data?", authenticity):

    AuthPct = 100 mean_g [ min over members x other than x* of d(x*, x)  <  d(g, x*) ]              (1)

Low values mean copying. The value without copying is not fixed, and not 50: it depends on the law of the features
(fresh draws of Gaussians in 16 to 512 dimensions give 60 to 90). The control is therefore the same value against
equally many held-out images.

Two equal members each have their nearest other member at distance 0, which is below d(g, x*) unless g is an exact copy.
So a NEAR copy of a duplicated member counts as authentic, and (1) is blind exactly where memorisation is strongest:
remove duplicates first.
"""

import numpy as np

from side_jax.memorization.distribution.feature_rows import check_rows
from side_jax.memorization.neighbors import exact_search


def auth_pct(generated: np.ndarray, members: np.ndarray) -> float:
    """Computes equation (1), raw and on all rows; one public program with this name subtracts 50 and draws 10,000 rows.

    Args:
      generated: float32 [n, d].
      members: float32 [m, d], m >= 2; for the control, held-out images.

    Returns:
      A percentage in [0, 100].

    Raises:
      ValueError: if there are fewer than 2 members, no generated row, or the rows do not match (see check_rows).
    """
    (members,) = check_rows(2, members=members)
    generated, members = check_rows(1, generated=generated, members=members)
    distance, index = exact_search.nearest(generated, members, 1)
    used, position = np.unique(index[:, 0], return_inverse=True)
    # A member's nearest neighbour is itself (or a duplicate at the same distance); the second nearest is the other.
    other = exact_search.nearest(members[used], members, 2)[0][:, 1]
    return float(100 * (other[position.ravel()] < distance[:, 0]).mean())
