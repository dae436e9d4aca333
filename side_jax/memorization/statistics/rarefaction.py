"""Predicts how many members any number of generated images would match, from how often each was matched.

Of N images, c_j matched member j of m; S members have c_j > 0, and f_k have c_j = k. Images are independent, and each
matches member j with probability p_j. The expected number of members that n images match is

    n <= N, any p         sum_j 1 - C(N - c_j, n) / C(N, n)                                        (1)
    p_j = p               sum_j 1 - (1 - p_j)^n                                                    (2)
    p ~ Beta(a, b)        m (1 - B(a, b + n) / B(a, b))                                            (3)
    never matched         f_0 = (N - 1) / N * f_1 (f_1 - 1) / (2 (f_2 + 1))                        (4)
    n = N + n'            S + f_0 (1 - (1 - f_1 / (N f_0 + f_1))^n')                               (5)
    n = (1 + t) N         S - sum_k (-t)^k f_k                        0 <= t <= 1                  (6)
                          S - sum_k (-t)^k P(L >= k) f_k              1 < t <= ln M                (7)

    L ~ Binomial(floor(log_3(M t^2 / (t - 1)) / 2), 2 / (t + 2)),  M = sum_j c_j                   (8)

(1): for a random subset, Hurlbert 1971; Colwell et al. 2012, equation 17. (2): Chen et al. 2024, E[N_um]. (4): Chao
1987, bias-corrected, known as Chao2: a lower bound on average, exact if all p_j above 0 are equal. (5): Colwell et al.
2012, equation 18. (6): Good and Toulmin 1956. (7), (8): Orlitsky, Suresh and Wu 2016, theorem 1.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, special, stats

SPREAD = (1e-6, 1e7)  # range of a + b in the fit: from all-or-nothing members to identical members


@dataclasses.dataclass(frozen=True, kw_only=True)
class BetaFit:
    """The law Beta(a, b) of the probability that a generated image matches a member.

    Attributes:
      a: 0 or more; 0 is the limit in which nothing is ever matched.
      b: 0 or more; 0 is the limit in which every image matches every member.
      m: the number of members.
    """

    a: float
    b: float
    m: int

    def expected(self, sizes: Sequence[int]) -> list[float]:
        """Evaluates (3) for each number of images in sizes, 0 or more; takes float64 [largest size] of memory."""
        whole = _whole("sizes", sizes)
        # B(a, b + n) / B(a, b) as a product: a difference of two log-gammas would lose digits.
        with np.errstate(divide="ignore"):
            steps = np.log1p(-self.a / (self.a + self.b + np.arange(whole.max(initial=0))))
        log_missed = np.concatenate([[0.0], np.cumsum(steps)])
        return (0.0 - self.m * np.expm1(log_missed[whole])).tolist()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Richness:
    """A lower bound of how many members unlimited sampling would match.

    Attributes:
      estimate: in [S, m].
      low: end of the interval, in [S, m].
      high: end of the interval, in [S, m].
    """

    estimate: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """The prediction of Good and Toulmin's series for a factor.

    Attributes:
      expected: the number of members matched, in [S, m].
      smoothed: whether equation (7) was used rather than (6).
      valid: whether the factor is in the range of its equation.
    """

    expected: float
    smoothed: bool
    valid: bool


def curve(counts: np.ndarray, num_images: int, sizes: Sequence[int]) -> list[float]:
    """Computes (1) exactly: the expected number of members matched by a random subset of the images.

    Args:
      counts: int [m], how many of the images matched each member, each in 0..num_images.
      num_images: N.
      sizes: of the subsets, each in 0..N.

    Raises:
      ValueError: if a count or a size is out of its range.
    """
    values, repeats = _tally(counts, num_images)
    left = num_images - np.arange(values.max(initial=0))
    expected = []
    for size in _whole("sizes", sizes, num_images):
        # C(N - c, n) / C(N, n) = prod_{i < c} 1 - n / (N - i). Log-gammas of N = 1e7 would be off by 1e-8 of 1.
        with np.errstate(divide="ignore"):
            log_missed = np.concatenate([[0.0], np.cumsum(np.log1p(-np.minimum(size / left, 1.0)))])
        expected.append(0.0 - float(repeats @ np.expm1(log_missed[values])))
    return expected


def fit(counts: np.ndarray, num_images: int) -> BetaFit:
    """Fits a and b of (3) by maximum likelihood; each c_j is beta-binomial, including zeros.

    a + b is restricted to SPREAD; its upper end stands for identical members. A single image does not determine it. No
    match at all gives a = 0, b = 1; all matches give a = 1, b = 0.

    Args:
      counts: int [m], m >= 1, how many of the images matched each member, each in 0..num_images.
      num_images: N, 1 or more.

    Raises:
      ValueError: if there are no members, or a count is out of its range.
    """
    values, repeats = _tally(counts, num_images)
    m = int(repeats.sum())
    if m == 0:
        raise ValueError("counts must have a member, got none")
    rate = float(values @ repeats) / (m * num_images)
    if rate in (0.0, 1.0):
        return BetaFit(a=rate, b=1 - rate, m=m)

    def law(x: np.ndarray) -> tuple[float, float]:
        return float(np.exp(x[1]) * special.expit(x[0])), float(np.exp(x[1]) * special.expit(-x[0]))

    def loss(x: np.ndarray) -> float:
        return -float(repeats @ stats.betabinom.logpmf(values, num_images, *law(x)))

    # Start from the moments: the variance of c over that of a binomial is 1 + (N - 1) / (a + b + 1).
    variance = float(repeats @ (values - rate * num_images) ** 2) / m
    excess = max(variance / (num_images * rate * (1 - rate)) - 1, 1e-3)
    start = np.array([special.logit(rate), math.log(min(max((num_images - 1) / excess, 1e-2), 1e5))])
    simplex = start + np.array([[0, 0], [0.5, 0], [0, 1]])  # SciPy's default is 5% of the start, which may be 0
    result = optimize.minimize(
        loss,
        start,
        method="Nelder-Mead",
        bounds=[(start[0] - 20, start[0] + 20), tuple(np.log(SPREAD))],
        options={"initial_simplex": simplex, "xatol": 1e-6, "fatol": 1e-9, "maxiter": 2000},
    )
    a, b = law(result.x)
    return BetaFit(a=a, b=b, m=m)


def chao1(counts: np.ndarray, num_images: int, confidence: float) -> Richness:
    """Estimates how many members unlimited sampling would match, S plus equation (4): by nature a LOWER bound.

    The interval is log-normal in f_0 (Chao 1987; variance of the bias-corrected form: Colwell 2013, EstimateS, appendix
    B). It covers the average of the lower bound, which is far below the truth if there are many rare members. If
    f_0 = 0, it is that of S / (1 - P), where P is the mean of exp(-c) over the matched members (as in SpadeR, Chao et
    al. 2016, without its term in 1 / N). Without any match the estimate is 0 in [0, m].

    Args:
      counts: int [m], how many of the images matched each member, each in 0..num_images.
      num_images: N, 1 or more.
      confidence: in (0, 1).

    Raises:
      ValueError: if a count is out of its range, or the confidence is out of (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    values, repeats = _tally(counts, num_images)
    m, matched = int(repeats.sum()), int(repeats[values > 0].sum())
    if matched == 0:
        return Richness(estimate=0.0, low=0.0, high=float(m))
    z = stats.norm.isf((1 - confidence) / 2)
    unseen = _unseen(values, repeats, num_images)
    if unseen > 0:
        ratio = math.exp(z * math.sqrt(math.log1p(_variance(values, repeats, num_images) / unseen**2)))
        low, high = matched + unseen / ratio, matched + unseen * ratio
    else:
        missed = np.exp(-values[values > 0].astype(float))
        seen, times = float(repeats[values > 0] @ (1 - missed)) / matched, repeats[values > 0]
        spread = z * math.sqrt(float(times @ (missed * (1 - missed))))
        low, high = max(matched, (matched - spread) / seen), (matched + spread) / seen
    estimate, low, high = (float(min(value, m)) for value in (matched + unseen, low, high))
    return Richness(estimate=estimate, low=low, high=high)


def extrapolate(counts: np.ndarray, num_images: int, factor: float) -> float:
    """Predicts the number of members matched by factor * N images, by (5) with f_0 at most m - S.

    It depends on (4): good up to about two or three times the images, a lower bound beyond (Colwell et al. 2012).

    Args:
      counts: int [m], how many of the images matched each member, each in 0..num_images.
      num_images: N, 1 or more.
      factor: 1 or more.

    Raises:
      ValueError: if a count or the factor is out of its range.
    """
    _check_factor(factor)
    values, repeats = _tally(counts, num_images)
    matched = int(repeats[values > 0].sum())
    unseen = min(_unseen(values, repeats, num_images), float(repeats.sum()) - matched)
    if unseen <= 0:
        return float(matched)
    once = _times(values, repeats, 1)
    more = (factor - 1) * num_images
    return matched - unseen * math.expm1(more * math.log1p(-once / (num_images * unseen + once)))


def good_toulmin(counts: np.ndarray, factor: float) -> Extrapolation:
    """Predicts the number of members matched by factor times the images, by (6) to (8), with t = factor - 1.

    Unlike extrapolate it assumes nothing about p, but it varies more. M counts matches, not images: an image without a
    match carries no information about the members, so the range of t is narrower.

    Args:
      counts: int [m], how many of the images matched each member, 0 or more.
      factor: 1 or more; 2 means as many images again.

    Raises:
      ValueError: if a count is negative or the factor is below 1.
    """
    _check_factor(factor)
    values, repeats = _tally(counts, None)
    t, matches, m = factor - 1, int(values @ repeats), int(repeats.sum())
    values, repeats = values[values > 0], repeats[values > 0]
    matched = int(repeats.sum())
    smoothed = t > 1
    if smoothed:
        trials = max(math.floor(math.log(max(matches, 1) * t**2 / (t - 1), 3) / 2), 0)
        values, repeats = values[values <= trials], repeats[values <= trials]
        repeats = repeats * stats.binom.sf(values - 1, trials, 2 / (t + 2))
    new = -float(repeats @ (-t) ** values.astype(float))
    valid = matches > 0 and t <= max(1.0, math.log(matches))
    return Extrapolation(expected=float(min(max(matched + new, matched), m)), smoothed=smoothed, valid=valid)


def _times(values: np.ndarray, repeats: np.ndarray, k: int) -> int:
    """Returns f_k."""
    return int(repeats[values == k].sum())


def _unseen(values: np.ndarray, repeats: np.ndarray, num_images: int) -> float:
    """Evaluates (4)."""
    once, twice = (_times(values, repeats, k) for k in (1, 2))
    return (num_images - 1) / num_images * once * (once - 1) / (2 * (twice + 1))


def _variance(values: np.ndarray, repeats: np.ndarray, num_images: int) -> float:
    """Estimates the variance of (4) by the delta method."""
    once, twice = (_times(values, repeats, k) for k in (1, 2))
    share, more = (num_images - 1) / num_images, twice + 1
    terms = (
        share * once * (once - 1) / (2 * more),
        share**2 * once * (2 * once - 1) ** 2 / (4 * more**2),
        share**2 * once**2 * twice * (once - 1) ** 2 / (4 * more**4),
    )
    return sum(terms)


def _tally(counts: np.ndarray, num_images: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the different counts, ascending, and how many members have each; int64."""
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images must be 1 or more, got {num_images}")
    return np.unique(_whole("counts", counts, num_images), return_counts=True)


def _whole(name: str, values: Sequence[int] | np.ndarray, largest: int | None = None) -> np.ndarray:
    array = np.asarray(values)
    if array.size == 0:
        array = array.astype(np.int64)
    high = math.inf if largest is None else largest
    if array.ndim != 1 or array.dtype.kind not in "iu" or not ((array >= 0) & (array <= high)).all():
        raise ValueError(f"{name} must be whole numbers [n] from 0 to {high}, got {array.dtype} {array.shape}")
    return array.astype(np.int64)


def _check_factor(factor: float) -> None:
    if not 1 <= factor < math.inf:
        raise ValueError(f"factor must be 1 or more, got {factor}")
