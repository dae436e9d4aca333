"""How sure a rate counted on images is: intervals, bounds, a paired test, a threshold of a known false-match rate.

x of n trials hit; C is the confidence, D = p_1 - p_2 the difference of two rates, l and u Wilson's limits of a rate:

    D, independent trials    D - sqrt((p_1 - l_1)^2 + (u_2 - p_2)^2) to D + sqrt((u_1 - p_1)^2 + (p_2 - l_2)^2)   (1)
    D, the same trials       the same with - 2 phi (p_1 - l_1)(u_2 - p_2) and - 2 phi (u_1 - p_1)(p_2 - l_2)      (2)
    phi                      max(ad - bc - n / 2, 0) / sqrt((a + b)(c + d)(a + c)(b + d))                         (3)
    p, where x = 0           at most -ln(1 - C) / n                                                               (4)

(1): Newcombe 1998 (Statistics in Medicine 17:873), method 10. (2), (3): Newcombe 1998 (17:2635), method 10, where a
trials hit both, b the first only, c the second only and d neither; a negative ad - bc is kept as it is, and phi is 0
where the root is. (4): the rule of three of Hanley and Lippman-Hand 1983.

A number S of DIFFERENT references that n images hit is no sum of trials. With u_i the references that only image i hit,
the jackknife's variance of S, the dispersion and the interval of E[S] are

    v = max(1, (n - 1) / n * sum_i (u_i - mean u)^2)                                                              (5)
    w = v / S, or 1 where S = 0                                                                                   (6)
    w Q(alpha / 2; S / w)  to  w Q(1 - alpha / 2; S / w + 1),  alpha = 1 - C                                      (7)

where Q(.; k) is the quantile of the gamma law of shape k: Garwood's 1936 limits of a Poisson mean, scaled to the
variance. On average v is not too small, whatever the images' law (Efron and Stein 1981).
"""

import math

import numpy as np
from scipy import stats


def wilson_interval(hits: int, trials: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a rate (Wilson 1927); for zero hits the upper end stays above 0."""
    interval = stats.binomtest(hits, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def difference_interval(hits: tuple[int, int], trials: tuple[int, int], confidence: float) -> tuple[float, float]:
    """Interval of the difference of two rates, first minus second (Newcombe 1998, method 10), equation (1).

    Args:
      hits: of each.
      trials: of each.
      confidence: in (0, 1).
    """
    return _square_and_add(hits, trials, 0.0, confidence)


def paired_difference_interval(
    both: int, first_only: int, second_only: int, neither: int, confidence: float
) -> tuple[float, float]:
    """Interval of the difference of two rates of the SAME trials, first minus second, equations (2) and (3).

    Such are the rates of match with members and with held-out images, of the same generated images.

    Args:
      both: trials that hit both.
      first_only: trials that hit the first only.
      second_only: trials that hit the second only.
      neither: the other trials.
      confidence: in (0, 1).

    Returns:
      (low, high) in [-1, 1].

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
    return _square_and_add(hits, (trials, trials), excess / root if root else 0.0, confidence)


def _square_and_add(
    hits: tuple[int, int], trials: tuple[int, int], phi: float, confidence: float
) -> tuple[float, float]:
    """Equation (2); equation (1) for phi = 0."""
    first, second = (hit / n for hit, n in zip(hits, trials, strict=True))
    (low_1, high_1), (low_2, high_2) = (wilson_interval(*pair, confidence) for pair in zip(hits, trials, strict=True))

    def length(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    difference = first - second
    return difference - length(first - low_1, high_2 - second), difference + length(high_1 - first, second - low_2)


def mcnemar(first_only: int, second_only: int) -> float:
    """The exact p-value that the first of two paired rates is no greater than the second (McNemar 1947, one-sided).

    Given the trials that hit one only, those that hit the first are binomial with 1/2 where the rates are equal.

    Args:
      first_only: trials that hit the first only, 0 or more.
      second_only: trials that hit the second only, 0 or more.

    Returns:
      A probability; small says that the first rate is the greater. 1 where no trial tells the two apart.
    """
    if first_only == second_only == 0:
        return 1.0
    return float(stats.binomtest(first_only, first_only + second_only, 0.5, alternative="greater").pvalue)


def zero_hits_bound(trials: int, confidence: float) -> float:
    """The greatest rate that finding nothing leaves plausible, equation (4): about 3 / trials at 95%.

    It is one-sided, and from above the exact bound 1 - (1 - confidence)^(1 / trials) = 1 - exp(-x), x being equation
    (4): greater than it by less than x^2 / 2, so that it covers a little more than it says.

    Args:
      trials: none of which hit, 1 or more.
      confidence: in (0, 1).

    Returns:
      A rate in (0, 1].

    Raises:
      ValueError: for no trials, or a confidence out of (0, 1).
    """
    _check_confidence(confidence)
    if trials < 1:
        raise ValueError(f"trials must be 1 or more, got {trials}")
    return min(-math.log1p(-confidence) / trials, 1.0)


def distinct_interval(
    pairs: np.ndarray, num_images: int, num_references: int, confidence: float
) -> tuple[float, float]:
    """Interval of the expected number of different references that as many images hit, equations (5) to (7).

    Divide by the number of images for UMS. It assumes that the images are independent, not that the references are: an
    image may hit several. Coverage at 95% of 1000 simulations each with known probabilities, 2000 images; lambda is the
    expected number of images that hit a reference, and falls with the reference's rank to a power:

        lambda                             5      1.5    1/200   60 / rank   300 / rank^1.5   4 / rank^1.5
        expected number of references     298     155     100       291            111              6
        bootstrap, percentiles           0.00    0.00    0.00      0.00           0.00            0.51
        bootstrap, shifted to S          1.00    0.90    0.63      0.72           0.71            0.62
        bootstrap, completed             1.00    0.96    0.94      0.95           0.93            0.78
        equation (7)                     1.00    1.00    0.95      0.97           0.97            0.98

    A resample holds 63% of the images, so its number of different references is too small; and too steady, since what
    was never hit cannot be. Completion by the estimated number of references never hit (Chao et al. 2014, Ecological
    Monographs 84:45) mends most of that, but the estimate is a lower bound. Equation (7) alone covers everywhere; it is
    wider than need be (by a tenth for power laws, by half for lambda 1.5), allows for references that are hit together,
    and needs no random numbers. The floor of 1 in (5) is what one reference hit by one image would give: without it,
    references each hit often would have no width, though others may be unseen.

    For no hits it is 0 to -ln(alpha / 2), 3.7 references at 95%: zero_hits_bound at confidence (1 + C) / 2, since both
    ends share alpha, times the images. There an image that hits is taken to hit one reference; where about three images
    in all hit, and hit five references each, coverage is 0.93.

    Args:
      pairs: int [p, 2], (image, reference) of each hit, in any order; nearest references only, or all in a band.
      num_images: n, 1 or more.
      num_references: m, 1 or more.
      confidence: in (0, 1).

    Returns:
      (low, high), numbers of references; 0 <= low < high <= m.

    Raises:
      ValueError: for no images or references, pairs of another shape or range, or a confidence out of (0, 1).
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
    """The threshold below which an image that is no copy falls with at most a given probability.

    It is the k-th smallest of the n values, k = floor(rate (n + 1)). Of n + 1 exchangeable values at most k can lie
    below the k-th smallest of the others, and each is equally likely to be the fresh one, so that the fresh one does
    with probability k / (n + 1) at most, ties or none (Vovk et al. 2005, split conformal prediction). That is the
    average over calibration halves; given one, and without ties, the rate follows Beta(k, n + 1 - k).

    Args:
      null: float [n], the dissimilarities of held-out images to their nearest member; smaller is closer.
      false_match_rate: in (0, 1).

    Returns:
      tau: a match is value < tau, strictly. None where k = 0: at least ceil(1 / rate) - 1 images are needed.

    Raises:
      ValueError: if null is not [n] or holds a NaN, or the rate is not in (0, 1).
    """
    null = np.asarray(null)
    if null.ndim != 1 or np.isnan(null).any():
        raise ValueError(f"null must be an array [n] without NaN, got shape {null.shape}")
    if not 0 < false_match_rate < 1:
        raise ValueError(f"false_match_rate must be in (0, 1), got {false_match_rate}")
    # The product of a rate such as 1/49 may round to just below a whole number.
    k = math.floor(false_match_rate * (len(null) + 1) * (1 + 1e-12))
    return float(np.partition(null, k - 1)[k - 1]) if k else None


def halves(n: int, seed: int, groups: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Splits range(n) at random in two, fixed by the seed.

    Images of one person are alike: with some of them in either half, a threshold would seem to hold for people whom it
    was never tested on. So whole groups go into a half, where there are two or more.

    Args:
      n: 2 or more.
      seed: of the split, 0 or more.
      groups: int [n], the group of each; None: each is its own.

    Returns:
      (calibration int64, evaluation int64), each ascending. Without groups the first has n // 2; with groups, as many
      of them, in random order, as come closest to it, and neither is empty.

    Raises:
      ValueError: for fewer than 2, or groups of another number.
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
    calibrates = np.isin(group, first)
    return np.flatnonzero(calibrates), np.flatnonzero(~calibrates)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
