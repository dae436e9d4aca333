"""How many more images and members match than held-out images do, and how certain that is.

Let h_j be the number of N generated images whose match is reference j, where members and held-out images are each
searched alone, m the number of members and k that of held-out images. With means over the members and over the held-out
images, the excess of images and that of members are

    e = (k / N) (mean_m h - mean_k h)                                                              (1)
    u = m (mean_m [h > 0] - mean_k [h > 0])                                                        (2)

(1) is the share of images that match one of as many members as held-out images, minus the share that match one of
these; (2) is the number of members that are matched, minus as many as would be if the model had never seen them.

Two things are random: the images, and which references are members. The intervals allow for both: each reaches from the
lower to the higher end of two others. For (1), one takes the references as given: Newcombe's for two rates of the same
trials, the first scaled by k / m (intervals.py, equation 2). For (2), one takes references as trials: Newcombe's for
independent rates. The other draws members and held-out images anew with replacement, and holds the percentiles of (1)
or (2), a little farther out for few references (Hesterberg 2015, "What teachers should know about the bootstrap", the
expanded percentile interval). Whether chance explains the excess is the question of permutation.py.
"""

import dataclasses

import numpy as np
from scipy import stats

from side_jax.memorization.statistics.intervals import difference_interval, paired_difference_interval
from side_jax.memorization.statistics.permutation import units

RESAMPLES = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Excess:
    """What members are matched more often than held-out images.

    Attributes:
      images: equation (1), in [-1, 1] for as many members as held-out images.
      images_interval: its two ends.
      members: equation (2).
      members_interval: its two ends.
    """

    images: float
    images_interval: tuple[float, float]
    members: float
    members_interval: tuple[float, float]


Side = tuple[np.ndarray, np.ndarray]  # h_j, int [m], and whether each image matches one of them, bool [N]


def excess(
    members: Side, heldout: Side, confidence: float, groups: tuple[np.ndarray, np.ndarray] | None = None
) -> Excess:
    """Computes the excess.

    Args:
      members: the matches with members.
      heldout: those with held-out images.
      confidence: of the intervals, in (0, 1).
      groups: int [m] and int [k], of references that are on one side together; None: each is alone.
    """
    hits, (first, second) = (members[0], heldout[0]), (members[1], heldout[1])
    m, k, trials = len(hits[0]), len(hits[1]), len(first)
    found = (hits[0] > 0).astype(np.int64), (hits[1] > 0).astype(np.int64)
    extracted, false = (int(of.sum()) for of in found)
    both, either = int((first & second).sum()), int((first | second).sum())
    alone = int(first.sum()) - both, int(second.sum()) - both
    given = paired_difference_interval(both, *alone, trials - either, confidence, k / m)
    low, high = difference_interval((extracted, false), (m, k), confidence)
    of_hits, of_found = (_resampled(values, groups, confidence) for values in (hits, found))
    return Excess(
        images=float(k / trials * (hits[0].sum() / m - hits[1].sum() / k)),
        images_interval=_wider(given, of_hits, k / trials, 1.0),
        members=m * (extracted / m - false / k),
        members_interval=_wider((m * low, m * high), of_found, m, float(m)),
    )


def _wider(one: tuple[float, float], other: tuple[float, float], factor: float, limit: float) -> tuple[float, float]:
    """From the lower to the higher end of both, within +-limit; the other is multiplied."""
    return max(min(one[0], factor * other[0]), -limit), min(max(one[1], factor * other[1]), limit)


def _resampled(
    values: tuple[np.ndarray, np.ndarray], groups: tuple[np.ndarray, np.ndarray] | None, confidence: float
) -> tuple[float, float]:
    """Percentiles of the difference of the sides' means, where each side is drawn anew with replacement."""
    rng, means, few = np.random.default_rng(0), [], 2**62
    for side, of in zip(values, groups or (None, None), strict=True):
        sums, sizes = units(side, of)
        few = min(few, len(sums))
        kinds, counts = np.unique(np.stack([sums, sizes]), axis=1, return_counts=True)
        drawn = rng.multinomial(len(sums), counts / len(sums), size=RESAMPLES)
        means.append((drawn @ kinds[0]) / (drawn @ kinds[1]))
    few = max(few, 2)
    farther = np.sqrt(few / (few - 1)) * stats.t.ppf((1 - confidence) / 2, few - 1)
    tail = 100 * stats.norm.cdf(farther)
    low, high = np.percentile(means[0] - means[1], (tail, 100 - tail))
    return float(low), float(high)
