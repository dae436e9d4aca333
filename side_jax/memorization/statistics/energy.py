"""Do two sets of points have one law? The energy distance, and permutations of it.

With X, X' of one set and Y, Y' of the other, drawn with replacement,

    E = 2 mean |X - Y| - mean |X - X'| - mean |Y - Y'|                                             (1)

It is 0 or more, and of two laws it is 0 only where they are equal (Szekely and Rizzo 2004, "Testing for equal
distributions in high dimension"). Divided by its first term it is in [0, 1], and has no unit. If both sets are one
random split of a larger one, every other split is as likely, so that the distance ranks among those of random splits
as it would by chance.
"""

import dataclasses

import numpy as np
from scipy.spatial.distance import cdist

MOST = 1000  # points of each set; of more, the first are used


@dataclasses.dataclass(frozen=True, kw_only=True)
class Energy:
    """The distance of two sets, and what random splits of them have.

    Attributes:
      share: equation (1) over its first term, minus what is typical of random splits of both sets together.
      p: the p-value of "both are one random split", by permutation.
    """

    share: float
    p: float


def energy(
    first: np.ndarray,
    second: np.ndarray,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> Energy:
    """Compares two sets of points, float [n, d] and [m, d].

    Args:
      first: one set.
      second: the other.
      groups: int [n] and int [m], without a common one: points of one group change sides together. None: each is alone.
      permutations: at least 1.
      seed: of the splits.
    """
    points = np.concatenate([first[:MOST], second[:MOST]]).astype(np.float64)
    n, distances = len(first[:MOST]), cdist(points, points)
    labels = np.arange(len(points)) if groups is None else np.concatenate([of[:MOST] for of in groups])
    _, group = np.unique(labels, return_inverse=True)
    inside = len(np.unique(group[:n]))
    rng = np.random.default_rng(seed)
    chosen = rng.permuted(np.tile(np.arange(group.max() + 1), (permutations, 1)), axis=1)[:, :inside]
    sides = np.zeros((permutations + 1, group.max() + 1), bool)
    np.put_along_axis(sides[1:], chosen, True, axis=1)
    sides[0, group[:n]] = True
    is_first = sides[:, group]
    weights = is_first / is_first.sum(1, keepdims=True) - ~is_first / (~is_first).sum(1, keepdims=True)
    values = -np.einsum("ij,ij->i", weights @ distances, weights)  # equation (1)
    as_far = int((values[1:] >= values[0] - 1e-12 * distances.max()).sum())
    between = 2 * float(distances[:n, n:].mean())
    excess = float(values[0] - values[1:].mean())
    return Energy(share=excess / between if between else 0.0, p=(as_far + 1) / (permutations + 1))
