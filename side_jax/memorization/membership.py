"""Measures how well a score separates members from held-out images, with thresholds fixed on other held-out images.

Smaller scores are more member-like. X are the scores of n members, Y those of the m held-out images in the evaluation
half:

    AUC = P(X < Y) + P(X = Y) / 2 = U / (n m),   U of Mann and Whitney 1947                        (1)
    V(A) = A (1 - A) [ 1 + N (1 - A) / (2 - A) + N A / (1 + A) ] / (n m),   N = (n + m) / 2 - 1    (2)
    interval = { A : (AUC - A)^2 <= z^2 V(A) }                                                     (3)

(2) is the variance of Hanley and McNeil 1982, with n and m replaced by their mean in N; (3) inverts it to a score
interval. Both are by Newcombe 2006 ("Confidence intervals for an effect size measure based on the Mann-Whitney
statistic. Part 2", method 5). Unlike AUC +- z sqrt(V), (3) has a positive width at an AUC of 1. V(1 / 2) is the
variance of the Mann-Whitney test, (n + m + 1) / (12 n m).
(3) covers too rarely if there are few members, some of them with far lower scores, and many held-out images: a 95%
interval covers 90% of the time for 30 members, a third of them far lower, and 300 held-out images.

For a false positive rate r and the scores Y'_(1) <= .. <= Y'_(c) of the c held-out images in the calibration half,

    called a member:   score < Y'_(k),   k = floor( r (c + 1) )                                    (4)

A held-out image that is exchangeable with these is called a member with probability k / (c + 1) <= r, or less with ties
(Vovk, Gammerman and Shafer 2005, conformal prediction). If k = 0, that is c < 1 / r - 1, there is no threshold. The
probability averages over calibration halves; for one threshold it scatters, so the rate measured on the evaluation half
is reported too.
"""

import math

import numpy as np
from scipy import optimize, stats

from side_jax.memorization.statistics.intervals import calibrated_threshold, wilson_interval


def attack_quality(
    members: np.ndarray,
    heldout: np.ndarray,
    is_calibration: np.ndarray,
    false_positive_rates: tuple[float, ...] = (0.01, 0.001),
    confidence: float = 0.95,
) -> dict[str, object]:
    """Computes the AUC, and the true positive rates at fixed false positive rates.

    Args:
      members: float [n], n at least 1; they fix no threshold.
      heldout: float [h].
      is_calibration: bool [h], the held-out images of the calibration half, which fix the thresholds. The others, at
        least one, are the evaluation half. Images of one group (a patient, a video) must be in one half.
      false_positive_rates: each in (0, 1).
      confidence: of the intervals, in (0, 1).

    Returns:
      JSON-ready: members, calibration, evaluation (counts); confidence; auc in [0, 1] of members and evaluation half,
      1/2 for guessing; auc_ci [low, high], equation (3); auc_ci_method; at, for each rate:

        false_positive_rate      the given rate
        threshold                equation (4); None if the calibration half is too small
        called_members           members below the threshold
        called_heldout           images of the evaluation half below it; both None without a threshold
        true_positive_rate       called_members / members, and true_positive_rate_ci, Wilson 1927; None as above
        realised_rate            called_heldout / evaluation, and realised_rate_ci, Wilson; None as above
        note                     None, or why there is no threshold

    Raises:
      ValueError: if there is no member or no held-out image to evaluate, a score is not finite, is_calibration does not
        match the held-out images, or a rate or the confidence is not in (0, 1).
    """
    _check(members, heldout, is_calibration)
    for name, value in (("confidence", confidence), *(("false positive rates", rate) for rate in false_positive_rates)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}")
    calibration, evaluation = heldout[is_calibration], heldout[~is_calibration]
    auc = _auc(members, evaluation)
    return {
        "members": len(members),
        "calibration": len(calibration),
        "evaluation": len(evaluation),
        "confidence": confidence,
        "auc": auc,
        "auc_ci": auc_interval(auc, len(members), len(evaluation), confidence),
        "auc_ci_method": "Newcombe 2006, method 5, on the variance of Hanley and McNeil 1982",
        "at": [_at(rate, members, calibration, evaluation, confidence) for rate in false_positive_rates],
    }


def auc_interval(auc: float, members: int, heldout: int, confidence: float) -> list[float]:
    """Computes equation (3): [low, high] within [0, 1].

    Args:
      auc: in [0, 1].
      members: n, at least 1.
      heldout: m, at least 1.
      confidence: in (0, 1).
    """
    z = stats.norm.isf((1 - confidence) / 2)
    extra = (members + heldout) / 2 - 1

    def outside(a: float) -> float:
        variance = a * (1 - a) * (1 + extra * (1 - a) / (2 - a) + extra * a / (1 + a)) / (members * heldout)
        return (auc - a) ** 2 - z**2 * variance

    # Negative at the AUC and positive at 0 and 1. An AUC of 0 or 1 is a root itself; right beside it is negative.
    inside = min(max(auc, 1e-12), 1 - 1e-12)
    low = 0.0 if auc == 0 else optimize.brentq(outside, 0.0, inside)
    high = 1.0 if auc == 1 else optimize.brentq(outside, inside, 1.0)
    return [float(low), float(high)]


def _auc(members: np.ndarray, heldout: np.ndarray) -> float:
    """Computes equation (1), ties counting half."""
    # Only the statistic is used. The method concerns the p-value; "auto" could choose a slow exact one.
    test = stats.mannwhitneyu(heldout.astype(np.float64), members.astype(np.float64), method="asymptotic")
    return float(test.statistic / (len(members) * len(heldout)))


def _at(
    rate: float, members: np.ndarray, calibration: np.ndarray, evaluation: np.ndarray, confidence: float
) -> dict[str, object]:
    """Returns one entry of attack_quality's `at`."""
    threshold, note = calibrated_threshold(calibration, rate), None
    called_members = called_heldout = None
    if threshold is None:
        needed = math.ceil(1 / rate - 1e-9) - 1
        note = f"a rate of {rate:g} needs {needed} calibration images, and there are {len(calibration)}"
    else:
        called_members, called_heldout = (int((scores < threshold).sum()) for scores in (members, evaluation))
    true_positive_rate, true_positive_rate_ci = _rate(called_members, len(members), confidence)
    realised_rate, realised_rate_ci = _rate(called_heldout, len(evaluation), confidence)
    return {
        "false_positive_rate": rate,
        "threshold": threshold,
        "called_members": called_members,
        "called_heldout": called_heldout,
        "true_positive_rate": true_positive_rate,
        "true_positive_rate_ci": true_positive_rate_ci,
        "realised_rate": realised_rate,
        "realised_rate_ci": realised_rate_ci,
        "note": note,
    }


def _rate(hits: int | None, trials: int, confidence: float) -> tuple[float | None, list[float] | None]:
    """Returns (rate, its interval)."""
    if hits is None:
        return None, None
    return hits / trials, list(wilson_interval(hits, trials, confidence))


def _check(members: np.ndarray, heldout: np.ndarray, is_calibration: np.ndarray) -> None:
    for name, scores in (("members", members), ("heldout", heldout)):
        if scores.ndim != 1 or not np.isfinite(scores).all():
            raise ValueError(f"{name} must be a vector of finite scores, got shape {scores.shape}")
    if is_calibration.shape != heldout.shape or is_calibration.dtype != bool:
        raise ValueError(
            f"is_calibration must be one bool for each of the {len(heldout)} held-out images, "
            f"got {is_calibration.dtype} {is_calibration.shape}"
        )
    if not (len(members) and (~is_calibration).any()):
        raise ValueError(f"there must be a member and a held-out image to evaluate, got {len(members)} members")
