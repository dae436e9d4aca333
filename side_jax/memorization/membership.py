"""How well a score tells members from held-out images, with every threshold fixed on images that are not scored by it.

Smaller scores are member-like. X are n members' scores, Y those of the m held-out images in the evaluation half:

    AUC = P(X < Y) + P(X = Y) / 2 = U / (n m),   U of Mann and Whitney 1947                        (1)
    V(A) = A (1 - A) [ 1 + N (1 - A) / (2 - A) + N A / (1 + A) ] / (n m),   N = (n + m) / 2 - 1    (2)
    interval = { A : (AUC - A)^2 <= z^2 V(A) }                                                     (3)

(2) is the variance of Hanley and McNeil 1982, with n and m replaced by their mean in N, and (3) its inversion as a
score interval, both by Newcombe 2006 ("Confidence intervals for an effect size measure based on the Mann-Whitney
statistic. Part 2", method 5). Unlike AUC +- z sqrt(V), (3) keeps a width where the AUC is 1. V(1 / 2) is the
Mann-Whitney test's own (n + m + 1) / (12 n m).
It covers too rarely where few members, of which some score far lower than the others, meet many held-out images: 90% of
the time for 95%, for 30 members, a third of them apart, and 300 held-out images.

For a false positive rate r, and the c held-out images of the calibration half, Y'_(1) <= .. <= Y'_(c),

    called a member:   score < Y'_(k),   k = floor( r (c + 1) )                                    (4)

A held-out image that is exchangeable with them is called a member with probability k / (c + 1) <= r, or less with ties
(Vovk, Gammerman and Shafer 2005, conformal prediction). k = 0, for fewer than 1 / r - 1 images, is no threshold at all.
That probability is over the calibration half too: that of one given threshold scatters about it, so the rate that the
evaluation half shows is reported beside it.
"""

import math

import numpy as np
from scipy import optimize, stats

from side_jax.memorization.statistics.intervals import calibrated_threshold, wilson_interval


def attack_quality(
    members: np.ndarray,
    heldout: np.ndarray,
    calibrates: np.ndarray,
    false_positive_rates: tuple[float, ...] = (0.01, 0.001),
    confidence: float = 0.95,
) -> dict[str, object]:
    """AUC, and the true positive rates at fixed false positive rates.

    Args:
      members: float [n], n at least 1; no members' score fixes a threshold.
      heldout: float [h].
      calibrates: bool [h], the held-out images of the calibration half, which fix the thresholds; the others, at least
        one, are the evaluation half. Images of one group (a patient, a video) belong into one half.
      false_positive_rates: each in (0, 1).
      confidence: of the intervals, in (0, 1).

    Returns:
      JSON-ready: members, calibration, evaluation (counts); confidence; auc in [0, 1], 1/2 for a guess, by members and
      evaluation half; auc_ci [low, high], equation (3); auc_ci_method; at, for each rate:

        false_positive_rate      as asked for
        threshold                equation (4); None where the calibration half is too small
        called_members           members with a lower score, as are
        called_heldout           images of the evaluation half; both None without a threshold
        true_positive_rate       called_members / members, and true_positive_rate_ci, Wilson 1927; None as above
        realised_rate            called_heldout / evaluation, and realised_rate_ci, Wilson; None as above
        note                     None, or why there is no threshold

    Raises:
      ValueError: if there is no member or no held-out image to evaluate, a score is not finite, the halves do not fit,
        or a rate or the confidence is not in (0, 1).
    """
    _check(members, heldout, calibrates)
    for name, value in (("confidence", confidence), *(("false positive rates", rate) for rate in false_positive_rates)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}")
    calibration, evaluation = heldout[calibrates], heldout[~calibrates]
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
    """Equation (3): [low, high] within [0, 1].

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

    # Below zero at the AUC and not at 0 and 1; for an AUC of 0 or 1, which is a root, below zero right beside it.
    inside = min(max(auc, 1e-12), 1 - 1e-12)
    low = 0.0 if auc == 0 else optimize.brentq(outside, 0.0, inside)
    high = 1.0 if auc == 1 else optimize.brentq(outside, inside, 1.0)
    return [float(low), float(high)]


def _auc(members: np.ndarray, heldout: np.ndarray) -> float:
    """Equation (1), ties counting half."""
    # Method and alternative concern the p-value alone, which is not used; "auto" could choose a slow exact one.
    test = stats.mannwhitneyu(heldout.astype(np.float64), members.astype(np.float64), method="asymptotic")
    return float(test.statistic / (len(members) * len(heldout)))


def _at(
    rate: float, members: np.ndarray, calibration: np.ndarray, evaluation: np.ndarray, confidence: float
) -> dict[str, object]:
    """One entry of attack_quality's `at`."""
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
    """(rate, its interval)."""
    if hits is None:
        return None, None
    return hits / trials, list(wilson_interval(hits, trials, confidence))


def _check(members: np.ndarray, heldout: np.ndarray, calibrates: np.ndarray) -> None:
    for name, scores in (("members", members), ("heldout", heldout)):
        if scores.ndim != 1 or not np.isfinite(scores).all():
            raise ValueError(f"{name} must be a vector of finite scores, got shape {scores.shape}")
    if calibrates.shape != heldout.shape or calibrates.dtype != bool:
        raise ValueError(
            f"calibrates must be one bool for each of the {len(heldout)} held-out images, "
            f"got {calibrates.dtype} {calibrates.shape}"
        )
    if not (len(members) and (~calibrates).any()):
        raise ValueError(f"there must be a member and a held-out image to evaluate, got {len(members)} members")
