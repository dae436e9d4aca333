"""Tests whether members are matched more often than images that could as well have been members.

Members and held-out images are one random split of a data set, and every generated image is compared with both at once.
Had the model learned nothing from its members in particular, any other split would have been as likely, whatever the
generated images are and however unevenly they fall on the references. Let h_j be the number of generated images whose
match is reference j. The statistic is the sum of h_j over the members; under the null its law is that of the sum over a
random subset of as many references (Fisher 1935; Pitman 1937). With B random subsets, of which b have at least the
members' sum (Phipson and Smyth 2010, equation 2),

    p = (b + 1) / (B + 1)                                                                          (1)
"""

import numpy as np


def permutation_test(hits: np.ndarray, is_member: np.ndarray, permutations: int = 9999, seed: int = 0) -> float:
    """Equation (1), one-sided: in (0, 1], and at most its level as often as the level under the null.

    Args:
      hits: int [m], of how many generated images each reference is the match.
      is_member: bool [m], the references that are members.
      permutations: B, at least 1.
      seed: of the subsets.

    Raises:
      ValueError: if the arrays differ in length, or one side is empty.
    """
    hits, is_member = np.asarray(hits, np.int64), np.asarray(is_member, bool)
    if hits.shape != is_member.shape or is_member.all() or not is_member.any():
        raise ValueError(f"both sides must have references, got {is_member.sum()} members of {len(hits)}")
    rng, count = np.random.default_rng(seed), int(is_member.sum())
    observed, matched = hits[is_member].sum(), hits[hits > 0]
    as_extreme = 0
    for _ in range(permutations):
        # Only references with a match contribute; how many of them are members is hypergeometric.
        inside = int(rng.hypergeometric(len(matched), len(hits) - len(matched), count)) if len(matched) else 0
        as_extreme += bool(rng.choice(matched, inside, replace=False).sum() >= observed) if inside else observed <= 0
    return (as_extreme + 1) / (permutations + 1)
