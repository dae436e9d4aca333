"""Finds the labels of a conditional model whose images are abnormally alike: they may be planted, or memorised.

A label whose only training image is memorised returns that image whatever the noise, as a trigger does that someone
planted in the training data. For N images x_1..x_N of one label, with D values each:

    spread  v = mean over values of  sum_i (x_i - mean x)^2 / (N - 1)                              (1)
    pairs   r = mean over i < j of  RMSE(x_i, x_j);   the mean of RMSE^2 is 2 v                    (2)

Of the spreads v_1..v_n of n labels, with m the median of log v and S the root mean square of log v - m over the upper
half of the labels (the n // 2 largest):

    z_l = (log v_l - m) / S;   label l is flagged if z_l < -k and v_l < exp(m) / 4                 (3)

Planted labels lie low, so the upper half is of ordinary labels as long as fewer than half of the labels are planted. Of
18 labels, 8 of them planted, the limit that results is half as far below the ordinary ones as with the median absolute
deviation, which has planted labels in it. What pushes the median down only makes S larger. A quarter of the median
variance is images half as far apart: less is no finding, even where all other labels agree closely. The limit k has a
stated false alarm rate under a stated law. If the logarithms of the spreads of n clean labels are independent draws of
one normal law, the law of the least z depends on n alone, so it can be simulated: with the least z of B simulated clean
models in order, t_(1) <= .. <= t_(B),

    -k = t_(j),   j = floor(rate (B + 1))                                                          (4)

and a clean model has any flagged label with probability at most j / (B + 1) <= rate: a clean model is exchangeable with
the simulated ones (Barnard 1963). Multiplying all pixels by a number moves every log v by as much, and no z.
"""

import dataclasses
import functools

import numpy as np

LEAST_LABELS = 8  # with fewer, nothing says what is normal
LEAST_FALL = 4.0  # of the median spread over that of a flagged label
MODELS = 19_999  # B
_AT_ONCE = 1_000


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """What the spreads of n labels say.

    Attributes:
      z: float64 [n], equation (3); -inf for a label whose images are all the same; NaN where nothing is decided.
      flagged: bool [n].
      below: the spread below which a label is flagged; None where nothing is decided.
      undecided: why nothing is decided, in words; "" where something is.
    """

    z: np.ndarray
    flagged: np.ndarray
    below: float | None
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
      rate: the largest probability that a clean model has any flagged label, in (0, 1).

    Raises:
      ValueError: if a spread is negative or not finite.
    """
    if not (np.isfinite(spreads) & (spreads >= 0)).all():
        raise ValueError("spreads must be finite and at least 0")
    count = len(spreads)
    if count < LEAST_LABELS:
        return _undecided(count, f"{count} labels are too few to know what is normal, {LEAST_LABELS} are needed")
    with np.errstate(divide="ignore"):
        logs = np.log(spreads.astype(np.float64))
    middle = float(np.median(logs))
    if not np.isfinite(middle):
        return _undecided(count, "the images of half of the labels or more are all the same")
    scale = float(_scale(logs[None], np.asarray([[middle]]))[0])
    if scale < 1e-9 * max(1.0, abs(middle)):  # equal but for rounding
        return _undecided(count, "the upper half of the labels have one and the same spread")
    below = middle - max(limit(count, rate) * scale, np.log(LEAST_FALL))
    return Judged(z=(logs - middle) / scale, flagged=logs < below, below=float(np.exp(below)))


@functools.lru_cache(maxsize=64)
def limit(count: int, rate: float) -> float:
    """The limit k of equation (4).

    Args:
      count: number of labels n, at least 3.
      rate: in [1 / (B + 1), 1).

    Raises:
      ValueError: if count or rate is out of its range.
    """
    place = int(rate * (MODELS + 1))
    if count < 3 or not 0 < place <= MODELS:
        raise ValueError(
            f"limit needs 3 labels or more and a rate in [{1 / (MODELS + 1):g}, 1), got {count} and {rate}"
        )
    rng = np.random.default_rng([count, 1963])  # the same limit wherever and whenever it is computed
    least: list[np.ndarray] = []
    for start in range(0, MODELS, _AT_ONCE):
        logs = rng.standard_normal((min(_AT_ONCE, MODELS - start), count))
        middle = np.median(logs, axis=1, keepdims=True)
        least.append((logs.min(axis=1) - middle[:, 0]) / _scale(logs, middle))
    return -float(np.sort(np.concatenate(least))[place - 1])


def _scale(logs: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """S of each row of log spreads [r, n] about its median [r, 1]: float64 [r]."""
    upper = np.sort(logs, axis=1)[:, -(logs.shape[1] // 2) :]
    return np.sqrt(np.square(upper - middle).mean(axis=1))


def _undecided(count: int, why: str) -> Judged:
    return Judged(z=np.full(count, np.nan), flagged=np.zeros(count, bool), below=None, undecided=why)
