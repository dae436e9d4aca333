"""AuthPct: how many generated images lie further from their nearest member than that member from its own neighbour.

With x* the member nearest to the generated g (Alaa et al. 2022, "How Faithful is your Synthetic Data?", authenticity):

    AuthPct = 100 mean_g [ min over members x other than x* of d(x*, x)  <  d(g, x*) ]              (1)

Low means copying. A model that does not copy has no fixed value, 50 least of all: it depends on the law of the features
(fresh draws of Gaussians in 16 to 512 dimensions give 60 to 90), so the same against as many held-out images stands
next to it as the control.

Of two equal members each has its nearest other at distance 0, which is below d(g, x*) for whatever is not an exact
copy: a NEAR copy of a member that occurs twice counts as authentic. (1) is blind exactly where memorisation is
strongest; remove duplicates first.
"""

import numpy as np

from side_jax.memorization.distribution.feature_rows import checked
from side_jax.memorization.neighbors import exact_search


def auth_pct(generated: np.ndarray, members: np.ndarray) -> float:
    """Equation (1), raw and of all rows; one public program subtracts 50 and draws 10,000 rows under the same name.

    Args:
      generated: float32 [n, d].
      members: float32 [m, d], m >= 2; or held-out, for the control.

    Returns:
      A percentage in [0, 100].

    Raises:
      ValueError: if there are fewer than 2 members, no generated row, or the rows do not compare (see rows.checked).
    """
    (members,) = checked(2, members=members)
    generated, members = checked(1, generated=generated, members=members)
    distance, index = exact_search.nearest(generated, members, 1)
    used, position = np.unique(index[:, 0], return_inverse=True)
    # The nearest of a member is itself (or its duplicate, as near), the second nearest is the other.
    other = exact_search.nearest(members[used], members, 2)[0][:, 1]
    return float(100 * (other[position.ravel()] < distance[:, 0]).mean())
