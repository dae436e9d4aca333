"""AUC and rates against brute force, scikit-learn and scipy, intervals and thresholds against their promises."""

import json

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from side_jax.memorization.membership import attack_quality, auc_interval


def half(n):
    """Every other held-out image is_calibration."""
    return np.arange(n) % 2 == 0


@pytest.mark.parametrize("decimals", [8, 1, 0])
def test_auc_is_brute_force_and_scikit_learns(decimals):
    """With ties too, which count half; the calibration half has no say."""
    rng = np.random.default_rng(decimals)
    members, heldout = (np.round(rng.normal(mean, 1, n), decimals) for mean, n in ((0, 30), (0.7, 50)))
    got = attack_quality(members, heldout, half(50))["auc"]
    evaluation = heldout[1::2]
    above = (members[:, None] < evaluation[None]) + 0.5 * (members[:, None] == evaluation[None])
    np.testing.assert_allclose(got, above.mean(), rtol=1e-12)
    labels = np.repeat([0, 1], [30, 25])
    np.testing.assert_allclose(got, roc_auc_score(labels, np.concatenate([members, evaluation])), rtol=1e-12)
    other = np.where(half(50), -100.0, heldout)
    assert attack_quality(members, other, half(50))["auc"] == got


def test_smaller_is_member_like():
    low, high = np.arange(20.0), np.arange(100.0, 140.0)
    assert attack_quality(low, high, half(40))["auc"] == 1
    assert attack_quality(high, low, half(20))["auc"] == 0
    same = attack_quality(np.ones(20), np.ones(40), half(40))
    assert same["auc"] == 0.5
    assert same["at"][0]["threshold"] is None


def test_interval_ends_where_the_mann_whitney_test_does():
    """At 1 / 2 the variance is the test's own: the interval of confidence 1 - p has 1 / 2 as an end."""
    rng = np.random.default_rng(0)
    for n, m, mean in ((12, 30, 0.4), (40, 15, 0.3), (25, 25, -0.5)):
        members, heldout = rng.normal(0, 1, n), rng.normal(mean, 1, m)
        p = stats.mannwhitneyu(members, heldout, method="asymptotic", use_continuity=False).pvalue
        result = attack_quality(members, heldout, np.zeros(m, bool), (), 1 - p)
        end = result["auc_ci"][0 if result["auc"] > 0.5 else 1]
        np.testing.assert_allclose(end, 0.5, atol=1e-6)


def test_interval_inverts_the_variance_of_hanley_and_mcneil():
    """For equal numbers it is theirs: P(two members below one held-out) and its mirror image, by Q1 and Q2."""
    n, z = 40, stats.norm.ppf(0.975)
    grid = np.linspace(0, 1, 2_000_001)
    q1, q2 = grid / (2 - grid), 2 * grid**2 / (1 + grid)
    variance = (grid * (1 - grid) + (n - 1) * (q1 - grid**2) + (n - 1) * (q2 - grid**2)) / n**2
    for auc in (0.0, 0.02, 0.5, 0.8, 1.0):
        inside = grid[(auc - grid) ** 2 <= z**2 * variance]
        np.testing.assert_allclose(auc_interval(auc, n, n, 0.95), [inside.min(), inside.max()], atol=2e-6)


def test_interval_of_a_perfect_attack_has_a_width():
    low, high = auc_interval(1.0, 20, 20, 0.95)
    assert 0.8 < low < 0.95
    assert high == 1
    np.testing.assert_allclose(auc_interval(0.0, 20, 20, 0.95), [0, 1 - low], atol=1e-9)
    assert auc_interval(1.0, 20_000, 20_000, 0.95)[0] > 0.9997
    assert auc_interval(0.7, 50, 60, 0.99)[0] < auc_interval(0.7, 50, 60, 0.9)[0]


@pytest.mark.parametrize(("share", "shift"), [(1.0, 0.0), (1.0, 0.8), (1.0, 2.9), (0.3, 6.0)])
@pytest.mark.parametrize(("n", "m"), [(40, 40), (80, 25)])
def test_interval_covers(share, shift, n, m):
    """A share of the members is shifted down: AUC = share Phi(shift / sqrt(2)) + (1 - share) / 2."""
    rng, runs = np.random.default_rng(1), 400
    truth, covered = share * stats.norm.cdf(shift / 2**0.5) + (1 - share) / 2, 0
    for _ in range(runs):
        members = rng.normal(0, 1, n) - shift * (rng.random(n) < share)
        low, high = attack_quality(members, rng.normal(0, 1, m), np.zeros(m, bool), ())["auc_ci"]
        covered += low <= truth <= high
    assert stats.binom.cdf(covered, runs, 0.95) > 0.001
    assert covered > 0.92 * runs


def test_threshold_by_hand():
    """199 calibration images 1..199: k = 2 for one per cent. Strictly lower scores are called members."""
    heldout = np.concatenate([np.arange(199, 0, -1.0), [0.5, 2.0, 1.5, 7.0]])
    is_calibration = np.arange(203) < 199
    result = attack_quality(np.asarray([-1.0, 0.0, 1.9, 2.0, 50.0]), heldout, is_calibration, (0.01, 0.005, 0.001))
    assert (result["members"], result["calibration"], result["evaluation"]) == (5, 199, 4)
    first, second, third = result["at"]
    assert (first["false_positive_rate"], first["threshold"]) == (0.01, 2)
    assert (first["called_members"], first["called_heldout"]) == (3, 2)
    assert (first["true_positive_rate"], first["realised_rate"]) == (0.6, 0.5)
    assert first["note"] is None
    assert (second["threshold"], second["called_members"], second["called_heldout"]) == (1, 2, 1)
    assert third["note"] == "a rate of 0.001 needs 999 calibration images, and there are 199"
    assert [key for key, value in third.items() if value is not None] == ["false_positive_rate", "note"]


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.001, 999), (0.3, 3), (0.29, 3)])
def test_the_fewest_calibration_images(rate, needed):
    for count, has in ((needed, True), (needed - 1, False)):
        heldout, is_calibration = np.arange(count + 1.0), np.arange(count + 1) < count
        (at,) = attack_quality(np.zeros(1), heldout, is_calibration, (rate,))["at"]
        assert (at["threshold"] == 0.0) if has else (f"needs {needed} calib" in at["note"])


def test_exact_products_are_not_rounded_down():
    """0.29 * 100 is 28.999999999999996."""
    (at,) = attack_quality(np.zeros(1), np.arange(100.0), np.arange(100) < 99, (0.29,))["at"]
    assert at["threshold"] == 28


@pytest.mark.parametrize("ties", [False, True])
def test_calls_no_more_held_out_images_than_asked_for(ties):
    """Over draws of both halves the rate is k / (c + 1), 0.05 here, or less with ties."""
    rng, called = np.random.default_rng(2), 0
    for _ in range(400):
        heldout = rng.normal(0, 1, 139)
        heldout = np.round(heldout) if ties else heldout
        (at,) = attack_quality(np.zeros(1), heldout, np.arange(139) < 39, (0.06,))["at"]
        called += at["called_heldout"]
    # Of 400 thresholds, each a beta(2, 38).
    spread = (stats.beta(2, 38).var() / 400) ** 0.5
    assert called / 40_000 < 0.05 + 4 * spread
    assert ties or called / 40_000 > 0.05 - 4 * spread


def test_rates_have_wilson_intervals_and_known_values():
    """Unit Gaussians one and a half apart: the true positive rate at r is Phi(1.5 + z_r)."""
    rng = np.random.default_rng(3)
    members, heldout = rng.normal(-1.5, 1, 20_000), rng.normal(0, 1, 80_000)
    result = attack_quality(members, heldout, half(80_000), (0.01, 0.001), 0.99)
    np.testing.assert_allclose(result["auc"], stats.norm.cdf(1.5 / 2**0.5), atol=0.01)
    for at, rate in zip(result["at"], (0.01, 0.001), strict=True):
        np.testing.assert_allclose(at["threshold"], stats.norm.ppf(rate), atol=0.15)
        np.testing.assert_allclose(at["true_positive_rate"], stats.norm.cdf(1.5 + stats.norm.ppf(rate)), atol=0.03)
        for name, hits, trials in (
            ("true_positive_rate", at["called_members"], 20_000),
            ("realised_rate", at["called_heldout"], 40_000),
        ):
            p, z = hits / trials, stats.norm.ppf(0.995)
            assert at[name] == p
            centre, scale = (p + z**2 / (2 * trials)), 1 + z**2 / trials
            margin = z * (p * (1 - p) / trials + z**2 / (4 * trials**2)) ** 0.5
            expected = [(centre - margin) / scale, (centre + margin) / scale]
            np.testing.assert_allclose(at[f"{name}_ci"], expected, rtol=1e-6)
        assert at["realised_rate_ci"][0] < rate * 1.3


def test_members_and_evaluation_half_do_not_move_the_threshold():
    rng = np.random.default_rng(4)
    heldout = rng.normal(size=400)
    expected = [at["threshold"] for at in attack_quality(rng.normal(size=50), heldout, half(400), (0.01, 0.1))["at"]]
    moved = np.where(half(400), heldout, heldout - 5)
    got = attack_quality(rng.normal(-9, 1, 70), moved, half(400), (0.01, 0.1))["at"]
    assert [at["threshold"] for at in got] == expected
    assert got[0]["realised_rate"] > 0.9


def test_result_is_json():
    rng = np.random.default_rng(5)
    result = attack_quality(rng.normal(size=30).astype(np.float32), rng.normal(size=250).astype(np.float32), half(250))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["at"][0]["threshold"] is not None
    assert result["at"][1]["threshold"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": np.zeros((2, 2))}, "members must be a vector of finite scores"),
        ({"members": np.asarray([np.nan])}, "members must be a vector of finite scores"),
        ({"heldout": np.asarray([0, 1, 2, np.inf])}, "heldout must be a vector of finite scores"),
        ({"members": np.zeros(0)}, "there must be a member and a held-out image to evaluate"),
        ({"is_calibration": np.ones(4, bool)}, "there must be a member and a held-out image to evaluate"),
        ({"is_calibration": np.ones(3, bool)}, "one bool for each of the 4 held-out images"),
        ({"is_calibration": np.arange(4)}, "one bool for each of the 4 held-out images"),
        ({"false_positive_rates": (0.1, 1.0)}, r"false positive rates must be between 0 and 1, got 1\.0"),
        ({"false_positive_rates": (0,)}, "false positive rates must be between 0 and 1, got 0"),
        ({"confidence": 1.5}, r"confidence must be between 0 and 1, got 1\.5"),
    ],
)
def test_refuses_what_makes_no_sense(changes, message):
    good = {"members": np.zeros(3), "heldout": np.arange(4.0), "is_calibration": half(4)}
    with pytest.raises(ValueError, match=message):
        attack_quality(**(good | changes))
