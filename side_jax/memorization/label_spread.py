"""Finds the labels of a conditional model whose images are abnormally alike: planted ones, or a single memorised image.

A label whose only training image is memorised returns that image whatever the noise, as a trigger does that someone
planted in the training data. For N images x_1..x_N of one label, with D values each:

    spread  v = mean over values of  sum_i (x_i - mean x)^2 / (N - 1)                              (1)
    pairs   r = mean over i < j of  RMSE(x_i, x_j);   the mean of RMSE^2 is 2 v                    (2)

A memorised image's spread goes to 0, that of several different images to their variance. What is ordinary must be told
from the n labels themselves. Sorted, u_1 >= .. >= u_n are their log v. Planted labels lie low, so the upper half, the h
largest, is ordinary as long as fewer than half of the labels are planted. Outward from there, each label is compared
with all above it, of mean m_k and standard deviation s_k (n - 1 in the denominator):

    d_k = (m_k - u_(k+1)) / s_k,   k = h..n-1;    T = max over k of  d_k / c_k                      (3)

If T is above the limit t, the labels above the first k with d_k / c_k > t are the ordinary ones, and each label
below is flagged whose spread is also below exp(m_k) / 4: images half as far apart. If none is, nothing is decided.
Outward, planted labels are not among those that others are compared with (Rosner 1983 tests outliers on both sides so).

The constants c_k are quantiles of d_k, and t is one of T, of n labels whose log v are independent draws of one normal
law; they depend on n alone and are simulated, each on its own. With B simulated T in falling order,

    t = T_(j),   j = floor(rate (B + 1))                                                          (4)

and under that law a clean model has any flagged label with probability at most j / (B + 1) <= rate: it is exchangeable
with the simulated ones (Barnard 1963). T / t is a score of the model whose scale does not depend on the number of
labels. Real labels do not follow one normal law: some classes are narrow. What the rule does there has to be measured,
see docs/results_triggers.md. Multiplying all pixels by a number moves every log v by as much, and changes nothing else.
"""

import dataclasses
import functools

import numpy as np

LEAST_LABELS = 8  # with fewer, nothing says what is normal
LEAST_FALL = 4.0  # of the ordinary labels' spread, a geometric mean, over that of a flagged label
MODELS = 19_999  # B
_AT_ONCE = 1_000
_LEAST = 1e-12  # of the largest spread: what a spread of 0 counts as


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """What the spreads of n labels say.

    Attributes:
      flagged: bool [n].
      ordinary: the geometric mean of the spreads of the labels that the others are compared with.
      below: the spread below which a label is flagged; 0 where none is too low for the law, whatever its spread.
      score: T / t of equations (3) and (4): above 1, some label is too low for the law.
      undecided: why nothing is decided, in words; "" where something is.
    """

    flagged: np.ndarray
    ordinary: float | None = None
    below: float | None = None
    score: float | None = None
    undecided: str = ""


def spread(images: np.ndarray) -> tuple[float, float]:
    """Equations (1) and (2) for the images of one label.

    Args:
      images: float [N, ...], N at least 2.

    Raises:
      ValueError: if there are fewer than two images.
    """
    if len(images) < 2:
        raise ValueError(f"the spread of a label needs at least two images, got {len(images)}")
    flat = images.reshape(len(images), -1).astype(np.float64)
    centred = flat - flat.mean(axis=0)
    products = centred @ centred.T / centred.shape[1]
    squared = np.diag(products)
    first, second = np.triu_indices(len(flat), 1)
    apart = np.maximum(squared[first] + squared[second] - 2 * products[first, second], 0.0)
    return float(squared.sum() / (len(flat) - 1)), float(np.sqrt(apart).mean())


def judge(spreads: np.ndarray, rate: float) -> Judged:
    """Equation (3): which labels have an abnormally low spread.

    Args:
      spreads: float [n], of equation (1), at least 0.
      rate: the largest probability that a clean model has any flagged label, in (0, 1), under the law.

    Raises:
      ValueError: if a spread is negative or not finite.
    """
    if not (np.isfinite(spreads) & (spreads >= 0)).all():
        raise ValueError("spreads must be finite and at least 0")
    count = len(spreads)
    if count < LEAST_LABELS:
        return _undecided(count, f"{count} labels are too few to know what is normal, {LEAST_LABELS} are needed")
    half = count - count // 2
    order = np.argsort(-spreads, kind="stable")
    if spreads[order[half - 1]] <= 0:
        return _undecided(count, "the images of half of the labels or more are all the same")
    logs = np.log(np.maximum(spreads[order].astype(np.float64), _LEAST * spreads.max()))
    if logs[0] - logs[half - 1] < 1e-9:  # equal but for rounding
        return _undecided(count, "the upper half of the labels have one and the same spread")
    scales, limit = limits(count, rate)
    found = _drops(logs[None])[0] / scales
    too_low = np.flatnonzero(found > limit)
    first = half + int(too_low[0]) if len(too_low) else half
    ordinary = float(np.exp(logs[:first].mean()))
    below = ordinary / LEAST_FALL if len(too_low) else 0.0
    flagged = np.zeros(count, bool)
    flagged[order[first:]] = spreads[order[first:]] < below
    near = len(too_low) and not flagged.any()
    return Judged(
        flagged=flagged,
        ordinary=ordinary,
        below=below,
        score=float(found.max() / limit),
        undecided=f"some spread is too low for the others', but none is {LEAST_FALL:g} times lower" if near else "",
    )


@functools.lru_cache(maxsize=64)
def limits(count: int, rate: float) -> tuple[np.ndarray, float]:
    """c_k of equation (3), float64 [n // 2], and t of equation (4).

    Args:
      count: number of labels n, at least 4.
      rate: in [1 / (B + 1), 1).

    Raises:
      ValueError: if count or rate is out of its range.
    """
    place = int(rate * (MODELS + 1))
    if count < 4 or not 0 < place <= MODELS:
        raise ValueError(
            f"limits needs 4 labels or more and a rate in [{1 / (MODELS + 1):g}, 1), got {count} and {rate}"
        )
    rng = np.random.default_rng([count, 1963])  # the same limits wherever and whenever they are computed
    scales = np.quantile(_simulated(rng, count), 1 - rate / (count // 2), axis=0)
    largest = np.sort((_simulated(rng, count) / scales).max(axis=1))
    return scales, float(largest[-place])


def _simulated(rng: np.random.Generator, count: int) -> np.ndarray:
    """d_k of clean models, float64 [B, n // 2]."""
    sizes = [min(_AT_ONCE, MODELS - start) for start in range(0, MODELS, _AT_ONCE)]
    return np.concatenate([_drops(-np.sort(-rng.standard_normal((size, count)), axis=1)) for size in sizes])


def _drops(logs: np.ndarray) -> np.ndarray:
    """d_k of each row of logarithms in falling order, [r, n]: float64 [r, n // 2]."""
    count, half = logs.shape[1], logs.shape[1] - logs.shape[1] // 2
    centred, above = logs - logs[:, :half].mean(axis=1, keepdims=True), np.arange(half, count)
    sums, squares = (np.cumsum(values, axis=1)[:, half - 1 : -1] for values in (centred, centred**2))
    variance = (squares - sums**2 / above) / (above - 1)
    return (sums / above - centred[:, half:]) / np.sqrt(variance)


def _undecided(count: int, why: str) -> Judged:
    return Judged(flagged=np.zeros(count, bool), undecided=why)
