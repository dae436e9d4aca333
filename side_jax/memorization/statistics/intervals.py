"""Uncertainty of rates counted on images: intervals, bounds, a paired test, a threshold with a known false-match rate.

x of n trials are hits; C is the confidence, D = p_1 - p_2 the difference of two rates, l and u Wilson's limits of a
rate:

    D, independent trials    D - sqrt((p_1 - l_1)^2 + (u_2 - p_2)^2) to D + sqrt((u_1 - p_1)^2 + (p_2 - l_2)^2)   (1)
    D, the same trials       the same with - 2 phi (p_1 - l_1)(u_2 - p_2) and - 2 phi (u_1 - p_1)(p_2 - l_2)      (2)
    s p_1 - p_2              the same with s p_1, s l_1 and s u_1 in place of p_1, l_1 and u_1
    phi                      max(ad - bc - n / 2, 0) / sqrt((a + b)(c + d)(a + c)(b + d))                         (3)
    p, if x = 0              at most -ln(1 - C) / n                                                               (4)

(1): Newcombe 1998 (Statistics in Medicine 17:873), method 10. (2), (3): Newcombe 1998 (17:2635), method 10, where a
trials hit both, b only the first, c only the second and d neither. A negative ad - bc is kept unchanged, and phi is 0
if the root is. (4): the rule of three of Hanley and Lippman-Hand 1983.

The number S of DIFFERENT references that n images hit is not a sum of trials. Let u_i be the number of references that
only image i hits. The jackknife variance of S, the dispersion, and the interval of E[S] are

    v = max(1, (n - 1) / n * sum_i (u_i - mean u)^2)                                                              (5)
    w = v / S, or 1 if S = 0                                                                                      (6)
    w Q(alpha / 2; S / w)  to  w Q(1 - alpha / 2; S / w + 1),  alpha = 1 - C                                      (7)

where Q(.; k) is the quantile of the gamma law of shape k: Garwood's 1936 limits of a Poisson mean, scaled to the
variance. On average v is not too small, for any law of the images (Efron and Stein 1981).
"""

import math

import numpy as np
from scipy import stats


def wilson_interval(hits: int, trials: int, confidence: float) -> tuple[float, float]:
    """Computes Wilson's score interval of a rate (Wilson 1927); with zero hits the upper end is still above 0."""
    interval = stats.binomtest(hits, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def wilson_confidence(hits: int, trials: int, interval: tuple[float, float]) -> float:
    """Computes the confidence of an interval that wilson_interval returned.

    With z the normal quantile, each end p solves n (hits / n - p)^2 = z^2 p (1 - p); one is neither 0 nor 1.
    """
    rate, end = hits / trials, interval[0 if hits == trials else 1]
    return float(stats.chi2.cdf(trials * (rate - end) ** 2 / (end * (1 - end)), 1))


def difference_interval(hits: tuple[int, int], trials: tuple[int, int], confidence: float) -> tuple[float, float]:
    """Computes the interval of the difference of two independent rates, first minus second, by equation (1).

    Args:
      hits: hits of each rate.
      trials: trials of each rate.
      confidence: in (0, 1).
    """
    return _square_and_add(hits, trials, 0.0, confidence)


def paired_difference_interval(
    both: int, first_only: int, second_only: int, neither: int, confidence: float, scale: float = 1.0
) -> tuple[float, float]:
    """Computes the interval of the difference of two rates of the SAME trials, first minus second, by (2) and (3).

    An example is the rates at which the same generated images match members and held-out images.

    Args:
      both: trials that hit both.
      first_only: trials that hit only the first.
      second_only: trials that hit only the second.
      neither: the other trials.
      confidence: in (0, 1).
      scale: s, by which the first rate is multiplied (Zou and Donner 2008).

    Returns:
      (low, high), in [-1, 1] for a scale of 1.

    Raises:
      ValueError: if a number is negative or all are 0.
    """
    trials = both + first_only + second_only + neither
    if min(both, first_only, second_only, neither) < 0 or trials == 0:
        counts = (both, first_only, second_only, neither)
        raise ValueError(f"the numbers of trials must be 0 or more and not all 0, got {counts}")
    hits = both + first_only, both + second_only
    excess: float = both * neither - first_only * second_only
    if excess > 0:
        excess = max(excess - trials / 2, 0)
    root = math.sqrt(math.prod(hits) * math.prod(trials - hit for hit in hits))
    return _square_and_add(hits, (trials, trials), excess / root if root else 0.0, confidence, scale)


def _square_and_add(
    hits: tuple[int, int], trials: tuple[int, int], phi: float, confidence: float, scale: float = 1.0
) -> tuple[float, float]:
    """Computes equation (2), which is (1) for phi = 0; the first rate is scaled."""
    first, second = (hit / n for hit, n in zip(hits, trials, strict=True))
    (low_1, high_1), (low_2, high_2) = (wilson_interval(*pair, confidence) for pair in zip(hits, trials, strict=True))
    first, low_1, high_1 = (scale * value for value in (first, low_1, high_1))

    def length(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    difference = first - second
    return difference - length(first - low_1, high_2 - second), difference + length(high_1 - first, second - low_2)


def combined_interval(
    first: float, first_interval: tuple[float, float], second: float, second_interval: tuple[float, float]
) -> tuple[float, float]:
    """Computes the interval of the difference of two independent estimates, first minus second, from their intervals.

    It is equation (1) for any estimates (Zou and Donner 2008), such as two differences of rates.
    """
    difference = first - second
    low = difference - math.hypot(first - first_interval[0], second_interval[1] - second)
    return low, difference + math.hypot(first_interval[1] - first, second - second_interval[0])


def mcnemar(first_only: int, second_only: int) -> float:
    """Computes the one-sided exact p-value of "the first of two paired rates is not larger" (McNemar 1947).

    If the rates are equal, then of the trials that hit only one, those that hit the first are binomial with 1/2.

    Args:
      first_only: trials that hit only the first, 0 or more.
      second_only: trials that hit only the second, 0 or more.

    Returns:
      A probability; small values mean that the first rate is larger. 1 if no trial separates the two.
    """
    if first_only == second_only == 0:
        return 1.0
    return float(stats.binomtest(first_only, first_only + second_only, 0.5, alternative="greater").pvalue)


def zero_hits_bound(trials: int, confidence: float) -> float:
    """Computes the largest rate compatible with no hits, equation (4): about 3 / trials at 95%.

    It is one-sided. With equation (4) as x, the exact bound is 1 - (1 - confidence)^(1 / trials) = 1 - exp(-x), which
    is smaller by less than x^2 / 2, so (4) covers slightly more than stated.

    Args:
      trials: number of trials, all without a hit, 1 or more.
      confidence: in (0, 1).

    Returns:
      A rate in (0, 1].

    Raises:
      ValueError: if there are no trials, or the confidence is out of (0, 1).
    """
    _check_confidence(confidence)
    if trials < 1:
        raise ValueError(f"trials must be 1 or more, got {trials}")
    return min(-math.log1p(-confidence) / trials, 1.0)


def distinct_interval(
    pairs: np.ndarray, num_images: int, num_references: int, confidence: float
) -> tuple[float, float]:
    """Computes the interval of the expected number of different references hit by as many images, by (5) to (7).

    Divide by the number of images for UMS. It assumes independent images, but not independent references: an image may
    hit several. Coverage at 95%, from 1000 simulations each with known probabilities and 2000 images; lambda is the
    expected number of images that hit a reference, and falls with a power of the reference's rank:

        lambda                             5      1.5    1/200   60 / rank   300 / rank^1.5   4 / rank^1.5
        expected number of references     298     155     100       291            111              6
        bootstrap, percentiles           0.00    0.00    0.00      0.00           0.00            0.51
        bootstrap, shifted to S          1.00    0.90    0.63      0.72           0.71            0.62
        bootstrap, completed             1.00    0.96    0.94      0.95           0.93            0.78
        equation (7)                     1.00    1.00    0.95      0.97           0.97            0.98

    A resample holds 63% of the images, so its number of different references is too small. It also varies too little,
    since references never hit cannot appear. Completion by the estimated number of references never hit (Chao et al.
    2014, Ecological Monographs 84:45) corrects most of that, but this estimate is a lower bound. Only equation (7)
    covers everywhere. It is wider than necessary (by a tenth for power laws, by half for lambda 1.5), allows for
    references that are hit together, and needs no random numbers. The minimum of 1 in (5) is the variance of one
    reference hit by one image; without it, references hit often would give a width of 0, though others may be unseen.

    For no hits the interval is 0 to -ln(alpha / 2), 3.7 references at 95%: the number of images times zero_hits_bound
    at confidence (1 + C) / 2, since both ends share alpha. This assumes that an image hits one reference; if about
    three images hit, five references each, coverage is 0.93.

    Args:
      pairs: int [p, 2], (image, reference) of each hit, in any order; only nearest references, or all in a band.
      num_images: n, 1 or more.
      num_references: m, 1 or more.
      confidence: in (0, 1).

    Returns:
      (low, high), numbers of references; 0 <= low < high <= m.

    Raises:
      ValueError: if there are no images or references, pairs have another shape or are out of range, or the confidence
        is out of (0, 1).
    """
    _check_confidence(confidence)
    shape = np.array([num_images, num_references])
    if shape.min() < 1:
        raise ValueError(f"there must be an image and a reference, got {num_images} and {num_references}")
    pairs = np.asarray(pairs, np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs must be [p, 2], got shape {pairs.shape}")
    outside = pairs[((pairs < 0) | (pairs >= shape)).any(axis=1)]
    if len(outside):
        raise ValueError(f"pairs must be of {num_images} images and {num_references} references, got {outside[0]}")
    pairs = np.unique(pairs, axis=0)
    hits = np.bincount(pairs[:, 1], minlength=num_references)
    alone = np.bincount(pairs[:, 0], weights=hits[pairs[:, 1]] == 1, minlength=num_images)
    distinct = int((hits > 0).sum())
    variance = max(1.0, (num_images - 1) * float(alone.var()))
    dispersion = variance / distinct if distinct else 1.0
    tail = (1 - confidence) / 2
    low = dispersion * stats.gamma.ppf(tail, distinct / dispersion) if distinct else 0.0
    high = dispersion * stats.gamma.isf(tail, distinct / dispersion + 1)
    return float(low), float(min(high, num_references))


def calibrated_threshold(null: np.ndarray, false_match_rate: float) -> float | None:
    """Returns the threshold below which an image that is not a copy falls with at most a given probability.

    It is the k-th smallest of n values, k = floor(rate (n + 1)). Of n + 1 exchangeable values at most k lie below the
    k-th smallest of the others, and each is equally likely to be the new one. So the new one does with probability at
    most k / (n + 1), with or without ties (Vovk et al. 2005, split conformal prediction). This averages over
    calibration halves; for a given one without ties, the rate follows Beta(k, n + 1 - k).

    Args:
      null: float [n], dissimilarities of held-out images to their nearest member; smaller is closer.
      false_match_rate: in (0, 1).

    Returns:
      tau: an image matches if value < tau, strictly. None if k = 0: at least ceil(1 / rate) - 1 values are needed.

    Raises:
      ValueError: if null is not [n] or holds a NaN, or the rate is not in (0, 1).
    """
    null = np.asarray(null)
    if null.ndim != 1 or np.isnan(null).any():
        raise ValueError(f"null must be an array [n] without NaN, got shape {null.shape}")
    if not 0 < false_match_rate < 1:
        raise ValueError(f"false_match_rate must be in (0, 1), got {false_match_rate}")
    # For a rate such as 1/49, the product may round to just below an integer.
    k = math.floor(false_match_rate * (len(null) + 1) * (1 + 1e-12))
    return float(np.partition(null, k - 1)[k - 1]) if k else None


def halves(n: int, seed: int, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Splits range(n) at random into two halves, determined by the seed.

    Images of one person are similar. If both halves held some, a threshold would seem to hold for people on whom it was
    not tested. So a group stays in one half, if there are at least two groups.

    Args:
      n: 2 or more.
      seed: of the split, 0 or more.
      groups: int [n], the group of each; None: each is its own group.

    Returns:
      (calibration int64, evaluation int64), each ascending. Without groups the first has n // 2. With groups it has as
      many whole groups, in random order, as come closest to n // 2; neither is empty.

    Raises:
      ValueError: if n is below 2, or groups have another length.
    """
    if n < 2:
        raise ValueError(f"n must be 2 or more, got {n}")
    if groups is not None and len(groups) != n:
        raise ValueError(f"groups must be {n} numbers, got {len(groups)}")
    rng = np.random.default_rng(seed)
    _, group = np.unique(np.arange(n) if groups is None else groups, return_inverse=True)
    sizes = np.bincount(group)
    if len(sizes) == 1:
        return halves(n, seed)
    order = rng.permutation(len(sizes))
    first = order[: 1 + np.argmin(np.abs(np.cumsum(sizes[order])[:-1] - n // 2))]
    in_calibration = np.isin(group, first)
    return np.flatnonzero(in_calibration), np.flatnonzero(~in_calibration)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
