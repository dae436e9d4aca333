"""Tests whether members are matched more often than images that could as well have been members.

Members and held-out images are one random split of a data set, and every generated image is compared with both at once.
Had the model learned nothing from its members in particular, any other split would have been as likely, whatever the
generated images are and however unevenly they fall on the references. Let h_j be the number of generated images whose
match is reference j, and h their mean over the references. The statistic is the sum of h_j - h over the members; under
the null its law is that of the sum over a random subset of as many references (Fisher 1935; Pitman 1937). With B random
subsets, of which b have at least the members' sum, or at most that sum (Phipson and Smyth 2010, equation 2),

    p = (b + 1) / (B + 1)                                                                          (1)

Where a split keeps the images of one person together, the random subsets do too: whole groups change sides.
"""

import numpy as np


def permutation_test(
    hits: np.ndarray,
    is_member: np.ndarray,
    groups: np.ndarray | None = None,
    permutations: int = 9999,
    seed: int = 0,
) -> tuple[float, float]:
    """Equation (1), for "members are not matched more often" and for "members are not matched less often".

    Each is in (0, 1], and at most its level as often as the level under the null.

    Args:
      hits: int [m], of how many generated images each reference is the match.
      is_member: bool [m], the references that are members.
      groups: int [m], the group of each, all on one side; None: each is its own group.
      permutations: B, at least 1.
      seed: of the subsets.

    Raises:
      ValueError: if the arrays differ in length, one side is empty, or a group is on both sides.
    """
    hits, is_member = np.asarray(hits, np.int64), np.asarray(is_member, bool)
    if hits.shape != is_member.shape or is_member.all() or not is_member.any():
        raise ValueError(f"both sides must have references, got {is_member.sum()} members of {len(hits)}")
    # In integers, so that ties are exact: len(hits) times each reference's excess over the mean, summed over its group.
    excess = hits * len(hits) - hits.sum()
    sums, sizes = units(excess, groups)
    inside, _ = units(is_member.astype(np.int64), groups)
    if ((inside > 0) & (inside < sizes)).any():
        raise ValueError("every group must be on one side, but some have members and held-out images")
    # Groups of one value are interchangeable: how many of them are members is hypergeometric.
    values, counts = np.unique(sums, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multivariate_hypergeometric(counts, int((inside > 0).sum()), size=permutations, method="marginals")
    drawn, observed = drawn @ values, sums[inside > 0].sum()
    more, fewer = (int(extreme.sum()) for extreme in (drawn >= observed, drawn <= observed))
    return (more + 1) / (permutations + 1), (fewer + 1) / (permutations + 1)


def units(values: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The sum of int [m] values over each group, and the group's size: int64 [g] each; groups None: each is alone."""
    if groups is None:
        return values, np.ones(len(values), np.int64)
    _, group = np.unique(groups, return_inverse=True)
    sums = np.zeros(group.max(initial=-1) + 1, np.int64)
    np.add.at(sums, group, values)
    return sums, np.bincount(group)
