"""Finds the labels of a conditional model whose images are abnormally alike: planted ones, or a single memorised image.

A label whose only training image is memorised returns that image whatever the noise, as a trigger does that someone
planted in the training data. For N images x_1..x_N of one label, in [-1, 1]:

    variance  v = mean over values of  sum_i (x_i - mean x)^2 / (N - 1)                            (1)
    spread    s = median over i < j of  mean over values of (x_i - x_j)^2,  over 2                 (2)

The mean over pairs in place of the median is v. A few stray images move v, and hardly s. Of a memorised image s goes to
0 with training, of several different images to their variance. Which labels are ordinary is told from all of them:

    o = geometric mean of the upper half of s_1..s_n;    fall  f_l = o / s_l                       (3)

The upper half is ordinary as long as fewer than half of the labels are planted. A label is flagged if f_l >= 8; if none
is, but some f_l >= 4, nothing is decided. Both numbers, the median and that no law is used were chosen on clean and on
planted models by a rule that was written down before, see docs/results_triggers.md. So there is no stated rate of false
alarms: how often a clean model has a narrow class depends on its classes, and has to be measured. The limits do not
depend on the number of labels, so that the greatest fall is also a score of a model.
"""

import dataclasses

import numpy as np

LEAST_LABELS = 8  # with fewer, nothing says what is ordinary
LEAST_IMAGES = 16  # of each label: with as many the limits below were chosen and measured
LEAST_FALL = 8.0  # of a flagged label
NEAR_FALL = 4.0  # from here on, a label that is not flagged leaves it open
ROUNDING = (2 / 255) ** 2 / 12  # variance of rounding to 256 levels in [-1, 1]: no less is seen


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """What the spreads of n labels say.

    Attributes:
      flagged: bool [n].
      falls: float64 [n], equation (3); NaN where the ordinary labels are not known.
      ordinary: o of equation (3), or None.
      undecided: why nothing is decided, in words; "" where something is.
    """

    flagged: np.ndarray
    falls: np.ndarray
    ordinary: float | None = None
    undecided: str = ""


def spread(images: np.ndarray) -> tuple[float, float]:
    """Equations (1) and (2), the variance and the spread, for the images of one label.

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
    return float(squared.sum() / (len(flat) - 1)), float(np.median(apart) / 2)


def judge(spreads: np.ndarray) -> Judged:
    """Equation (3): which labels have an abnormally low spread.

    Args:
      spreads: float [n], of equation (2), at least 0. Less than ROUNDING counts as that.

    Raises:
      ValueError: if a spread is negative or not finite.
    """
    if not (np.isfinite(spreads) & (spreads >= 0)).all():
        raise ValueError("spreads must be finite and at least 0")
    count = len(spreads)
    unknown = Judged(flagged=np.zeros(count, bool), falls=np.full(count, np.nan))
    if count < LEAST_LABELS:
        why = f"{count} labels are too few to know what is ordinary, {LEAST_LABELS} are needed"
        return dataclasses.replace(unknown, undecided=why)
    seen = np.maximum(spreads.astype(np.float64), ROUNDING)
    upper = np.sort(seen)[count // 2 :]
    if upper[0] <= ROUNDING:
        return dataclasses.replace(unknown, undecided="the images of half of the labels or more are all the same")
    ordinary = float(np.exp(np.log(upper).mean()))
    falls = ordinary / seen
    near = NEAR_FALL <= falls.max() < LEAST_FALL
    why = (
        f"the squared distance of two images of the most alike label is typically {falls.max():.1f} times smaller than "
        f"for ordinary labels, more than {NEAR_FALL:g} and less than {LEAST_FALL:g}"
    )
    return Judged(flagged=falls >= LEAST_FALL, falls=falls, ordinary=ordinary, undecided=why if near else "")
