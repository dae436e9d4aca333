"""Rarefaction and extrapolation against exhaustive enumeration, cases by hand and simulations with known laws."""

import dataclasses
import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import integrate, special

from side_jax.memorization.statistics.rarefaction import BetaFit, chao1, curve, extrapolate, fit, good_toulmin


def with_frequencies(*frequencies, zeros=0):
    """Counts of which frequencies[k - 1] are k."""
    return np.concatenate([np.zeros(zeros, int), np.repeat(np.arange(1, len(frequencies) + 1), frequencies)])


def simulated(p, num_images, draws, seed):
    """Counts [draws, m] of members that images match independently with probabilities p [m]."""
    return np.random.default_rng(seed).binomial(num_images, p, size=(draws, len(p)))


def expected(p, num_images):
    """Equation (2)."""
    return float((1 - (1 - p) ** num_images).sum())


def test_curve_is_the_mean_over_all_subsets():
    """Seven images that match none, one or two of five members."""
    matches = [{0}, {0, 1}, set(), {0, 2}, {1}, {3}, {0, 3}]
    counts = np.array([sum(j in found for found in matches) for j in range(5)])
    assert counts.tolist() == [4, 2, 1, 2, 0]
    for n, got in zip(range(8), curve(counts, 7, range(8)), strict=True):
        sizes = [len(set().union(*subset)) for subset in itertools.combinations(matches, n)]
        assert got == pytest.approx(np.mean(sizes), abs=1e-12)


def test_curve_is_the_mean_of_random_subsets():
    rng = np.random.default_rng(0)
    counts = rng.geometric(0.3, 40)
    images = np.repeat(np.arange(40), counts)  # every image matches one member
    draws = [len(np.unique(rng.permutation(images)[:60])) for _ in range(2000)]
    assert curve(counts, len(images), [60])[0] == pytest.approx(np.mean(draws), abs=4 * np.std(draws) / 2000**0.5)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (3, 10), (1000, 5), (7, 10**7 - 3), (2, 4 * 10**6), (10**6, 2)])
def test_curve_is_stable_for_ten_million_images(count, size):
    """Against rational numbers, to the last digits, where log-gammas would be off by a tenth."""
    num_images = 10**7
    missed = math.prod(Fraction(num_images - max(count, size) - i, num_images - i) for i in range(min(count, size)))
    assert curve(np.array([count, 0]), num_images, [size])[0] == pytest.approx(float(1 - missed), rel=1e-10)


def test_curve_rises_from_nothing_to_what_was_found():
    counts = np.array([0, 1, 5, 20, 100, 0, 3])
    values = curve(counts, 100, range(101))
    assert values[0] == 0
    assert values[1] == pytest.approx(counts.sum() / 100)
    assert values[100] == 5
    assert (np.diff(values) >= 0).all()
    assert (np.diff(values, 2) <= 1e-12).all()
    assert curve(counts, 100, []) == []


def test_expected_is_the_mean_over_the_law():
    """Equation (3) against the integral of (2); one image matches m a / (a + b) members."""
    law = BetaFit(a=0.7, b=30.0, m=500)
    sizes = [0, 1, 10, 1000]
    for n, got in zip(sizes, law.expected(sizes), strict=True):
        mean = integrate.quad(lambda p, n=n: 1 - (1 - p) ** n, 0, 1, weight="alg", wvar=(-0.3, 29.0))[0]
        assert got == pytest.approx(500 * mean / special.beta(0.7, 30), rel=1e-7)
    assert law.expected([1])[0] == pytest.approx(500 * 0.7 / 30.7)


def test_expected_is_stable():
    """Members all alike in the limit, with p = 1e-6: (2) with one p; and few of ten million images."""
    law = BetaFit(a=10.0, b=1e7 - 10, m=1000)
    np.testing.assert_allclose(
        law.expected([1, 5, 1000]), [1000 * -math.expm1(n * math.log1p(-1e-6)) for n in (1, 5, 1000)], rtol=1e-4
    )
    assert law.expected([1])[0] == pytest.approx(1e-3, rel=1e-12)
    assert 0 < BetaFit(a=1e-3, b=20, m=50000).expected([10**6])[0] < 50000


@pytest.mark.parametrize(
    ("a", "b", "m", "num_images"),
    [(0.3, 30, 4000, 1000), (2, 6, 3000, 50), (1e-2, 20, 50000, 10000), (0.5, 1e4, 20000, 10**6)],
)
def test_fit_recovers_the_law(a, b, m, num_images):
    """Within four standard errors, these being of the likelihood's own curvature; and the score is 0 at the fit."""
    rng = np.random.default_rng(1)
    counts = rng.binomial(num_images, rng.beta(a, b, m))
    found = fit(counts, num_images)

    def score(a, b):
        shared = special.digamma(a + b) - special.digamma(a + b + num_images)
        of_a = special.digamma(a + counts) - special.digamma(a) + shared
        of_b = special.digamma(b + num_images - counts) - special.digamma(b) + shared
        return np.stack([a * of_a, b * of_b], axis=1)  # with respect to ln a and ln b

    each = score(found.a, found.b)
    errors = np.sqrt(np.diag(np.linalg.inv(each.T @ each)))
    assert (np.abs(np.log([found.a / a, found.b / b])) < 4 * errors).all()
    assert (errors < 0.15).all()
    assert (np.abs(each.sum(axis=0)) < 0.05 / errors).all()
    assert found.m == m
    truth = BetaFit(a=a, b=b, m=m).expected([num_images, 5 * num_images])
    np.testing.assert_allclose(found.expected([num_images, 5 * num_images]), truth, rtol=0.05)


def test_fit_of_members_all_alike_is_binomial():
    """No spread: a + b is at its end, and (3) is (2) with one p."""
    counts = np.full(50, 3)
    law = fit(counts, 1000)
    assert law.a + law.b == pytest.approx(1e7, rel=1e-3)
    np.testing.assert_allclose(law.expected([1000, 3000]), [50 * (1 - 0.997**n) for n in (1000, 3000)], rtol=1e-3)


def test_fit_of_all_or_nothing_members_does_not_grow():
    np.testing.assert_allclose(fit(np.array([20] * 3 + [0] * 7), 20).expected([1, 20, 1000]), 3, rtol=1e-4)


@pytest.mark.parametrize(
    ("counts", "num_images", "values"), [([0] * 5, 9, [0, 0, 0]), ([9] * 5, 9, [0, 5, 5]), ([1], 1, [0, 1, 1])]
)
def test_fit_at_the_ends(counts, num_images, values):
    assert fit(np.array(counts), num_images).expected([0, 1, 10**5]) == values


@pytest.mark.parametrize(
    ("counts", "num_images"),
    [([1] + [0] * 999, 1000), ([2, 0], 1000), ([9, 9, 8], 9), ([0, 1], 1), ([10**6 - 1, 1], 10**6), (range(1, 11), 10)],
)
def test_fit_of_little_is_finite_and_keeps_the_mean(counts, num_images):
    law = fit(np.array(counts), num_images)
    first, last, more = law.expected([1, num_images, 2 * num_images])
    assert math.isfinite(law.a + law.b)
    assert 0 < first <= last <= more <= len(counts)
    assert first == pytest.approx(sum(counts) / num_images, rel=0.05)


def test_chao_by_hand():
    """12 members matched once, 4 twice and 10 more often, by 168 images: 26 + 167 / 168 * 12 * 11 / 10."""
    counts = with_frequencies(12, 4, 6, 4, zeros=100)
    found = chao1(counts, 168, 0.95)
    unseen = 167 / 168 * 13.2
    assert found.estimate == pytest.approx(26 + unseen)
    # The product of the distances of the log-normal ends from S is that of the estimate, squared.
    assert (found.low - 26) * (found.high - 26) == pytest.approx(unseen**2)
    variance = 167 / 168 * 13.2 + (167 / 168) ** 2 * (12 * 23**2 / 100 + 144 * 4 * 121 / 2500)
    spread = math.log((found.high - 26) / unseen) / 1.959964
    assert spread**2 == pytest.approx(math.log1p(variance / unseen**2), rel=1e-5)
    assert chao1(counts[-30:], 168, 0.95).estimate == 30  # four members are left to be found
    assert chao1(counts[-30:], 168, 0.95).high == 30


def test_chao_is_right_for_members_all_alike():
    """The estimate on average within 2%, its 95% interval in 92% of draws or more: 300 members, 37% never matched."""
    draws = simulated(np.full(300, 1 / 1000), 1000, 500, seed=2)
    found = [chao1(np.append(counts, np.zeros(700, int)), 1000, 0.95) for counts in draws]
    assert np.mean([f.estimate for f in found]) == pytest.approx(300, rel=0.02)
    assert np.mean([f.low <= 300 <= f.high for f in found]) > 0.92
    assert np.mean([f.low <= 300 <= f.high for f in found]) < 0.99
    narrow = [chao1(counts, 1000, 0.5) for counts in draws]
    assert np.mean([f.low <= 299.9 <= f.high for f in narrow]) < 0.6


def test_chao_is_a_lower_bound_for_unlike_members():
    p = 0.05 / np.arange(1, 1001)
    found = np.mean([chao1(counts, 2000, 0.95).estimate for counts in simulated(p, 2000, 200, seed=3)])
    assert expected(p, 2000) < 0.8 * found
    assert found < 900


def test_chao_at_the_ends():
    """Nothing found says nothing; nothing found once says that little is left, never that m is reached for sure."""
    nothing = chao1(np.zeros(9, int), 100, 0.95)
    assert (nothing.estimate, nothing.low, nothing.high) == (0, 0, 9)
    often = chao1(with_frequencies(0, 0, 30, zeros=9), 100, 0.95)
    assert often.estimate == 30
    assert often.low == pytest.approx(30, abs=0.5)
    assert 30 < often.high < 35
    # One found once, one three times: S / (1 - P) = 2 / (1 - (e^-1 + e^-3) / 2), and its half-width.
    one = chao1(with_frequencies(1, 0, 1, zeros=9), 100, 0.95)
    kept = 1 - (math.exp(-1) + math.exp(-3)) / 2
    half = 1.959964 * math.sqrt(math.exp(-1) - math.exp(-2) + math.exp(-3) - math.exp(-6)) / kept
    assert one.high == pytest.approx(2 / kept + half, rel=1e-6)
    assert (one.estimate, one.low) == (2, 2)


def test_extrapolate_by_hand():
    """26 + 13.12 (1 - (1 - 12 / (168 * 13.12 + 12))^168) at twice the images; all of it at last; S at once."""
    counts = with_frequencies(12, 4, 6, 4, zeros=100)
    unseen = 167 / 168 * 13.2
    twice = 26 + unseen * (1 - (1 - 12 / (168 * unseen + 12)) ** 168)
    assert extrapolate(counts, 168, 2) == pytest.approx(twice)
    assert extrapolate(counts, 168, 1) == 26
    assert extrapolate(counts, 168, 1000) == pytest.approx(chao1(counts, 168, 0.95).estimate)
    # It leaves S at the rate of a first match, f_1 / N an image.
    assert (extrapolate(counts, 168, 1 + 1e-5) - 26) / (168e-5) == pytest.approx(12 / 168, rel=0.01)
    assert extrapolate(counts[-28:], 168, 1000) == pytest.approx(28)
    assert extrapolate(counts[-26:], 168, 2) == 26
    assert extrapolate(np.zeros(4, int), 168, 2) == 0
    assert extrapolate(np.array([1, 0, 0]), 168, 2) == 1


@pytest.mark.parametrize("factor", [1.5, 2, 4])
def test_extrapolate_is_right_for_members_all_alike(factor):
    p = np.full(400, 1 / 1000)
    found = [extrapolate(np.append(counts, np.zeros(600, int)), 500, factor) for counts in simulated(p, 500, 400, 4)]
    assert np.mean(found) == pytest.approx(expected(p, int(500 * factor)), rel=0.015)


def test_good_toulmin_by_hand():
    """S = 17 of 50 members; f = 10, 4, 2, 1: 10 - 4 + 2 - 1 more at twice the images, 10 / 2 - 4 / 4 + ... at 1.5."""
    counts = with_frequencies(10, 4, 2, 1, zeros=33)
    twice = good_toulmin(counts, 2)
    assert (twice.expected, twice.smoothed, twice.valid) == (24, False, True)
    assert good_toulmin(counts, 1.5).expected == 17 + 5 - 1 + 0.25 - 0.0625
    assert good_toulmin(counts, 1).expected == 17


def test_good_toulmin_smoothed_by_hand():
    """30 matches and t = 2: log_3(30 * 4) / 2 = 2.18, so L ~ Binomial(2, 1/2): 3/4 * 2 * 10 - 1/4 * 4 * 4 = 11."""
    counts = with_frequencies(10, 4, *[0] * 9, 1, zeros=85)
    assert counts.sum() == 30
    found = good_toulmin(counts, 3)
    assert found.expected == pytest.approx(15 + 11)
    assert found.smoothed
    assert found.valid  # 2 <= ln 30 = 3.4
    assert not good_toulmin(counts, 4.5).valid
    assert good_toulmin(counts[-20:], 3).expected == 20
    assert good_toulmin(with_frequencies(0, 9, zeros=5), 2).expected == 9  # 9 - 9 would be fewer than were found


def test_good_toulmin_at_the_ends():
    nothing = good_toulmin(np.zeros(9, int), 2)
    assert (nothing.expected, nothing.valid) == (0, False)
    assert good_toulmin(np.zeros(9, int), 3).expected == 0
    one = good_toulmin(np.array([1, 0]), 2)
    assert (one.expected, one.valid) == (2, True)
    assert good_toulmin(np.array([10**6, 10**6]), 50).expected == 2


HEAVY = np.random.default_rng(5).beta(0.2, 60, 3000)  # of 1000 images, a tenth of the members


@pytest.mark.parametrize("factor", [1.25, 2])
def test_good_toulmin_is_unbiased(factor):
    """Its mean is the truth within four standard errors (1% of it), for any p."""
    found = [good_toulmin(counts, factor).expected for counts in simulated(HEAVY, 1000, 300, seed=6)]
    error = np.std(found) / 300**0.5
    assert np.mean(found) == pytest.approx(expected(HEAVY, int(1000 * factor)), abs=4 * error)
    assert error < 0.01 * np.mean(found)


@pytest.mark.parametrize(("factor", "share"), [(3, 0.1), (4, 0.1), (6, 0.2)])
def test_smoothed_good_toulmin_recovers_what_the_series_cannot(factor, share):
    """The root of the mean square error is within the bound of Orlitsky et al., and a tenth or fifth of the truth."""
    t, truth = factor - 1, expected(HEAVY, 1000 * factor)
    draws = simulated(HEAVY, 1000, 200, seed=7)
    found = [good_toulmin(counts, factor) for counts in draws]
    error = np.mean([(f.expected - truth) ** 2 for f in found]) ** 0.5
    assert all(f.valid and f.smoothed for f in found)
    assert error < t * draws.sum(axis=1).mean() ** (1 - math.log(1 + 2 / t, 3) / 2)
    assert error < share * truth
    assert min(abs(sum((-float(t)) ** c for c in counts if c)) for counts in draws[:10].tolist()) > 1e6


def test_the_estimates_agree_where_all_hold():
    """One draw of a beta law at twice its images: fit, Chao's and Good and Toulmin's within 10% of the truth."""
    p = np.random.default_rng(8).beta(1.0, 800, 3000)
    counts = simulated(p, 500, 1, seed=9)[0]
    truth = expected(p, 1000)
    assert fit(counts, 500).expected([1000])[0] == pytest.approx(truth, rel=0.1)
    assert extrapolate(counts, 500, 2) == pytest.approx(truth, rel=0.1)
    assert good_toulmin(counts, 2).expected == pytest.approx(truth, rel=0.1)
    assert curve(counts, 500, [250])[0] == pytest.approx(expected(p, 250), rel=0.1)


def test_results_are_written_as_json():
    counts = with_frequencies(3, 2, 1, zeros=4)
    results = [dataclasses.asdict(f) for f in (fit(counts, 20), chao1(counts, 20, 0.9), good_toulmin(counts, 3))]
    results += [curve(counts, 20, np.arange(3)), extrapolate(counts, 20, 2.5)]
    assert json.loads(json.dumps(results)) == results


def test_refuses_what_it_cannot_count():
    good = np.array([1, 2, 0])
    for bad in (np.array([1.0, 2.0]), np.array([[1, 2]]), np.array([-1, 2]), np.array([4, 2])):
        with pytest.raises(ValueError, match="counts must be whole numbers"):
            curve(bad, 3, [1])
    with pytest.raises(ValueError, match="from 0 to 3"):
        curve(good, 3, [4])
    with pytest.raises(ValueError, match="sizes must be whole numbers"):
        BetaFit(a=1.0, b=1.0, m=1).expected([-1])
    with pytest.raises(ValueError, match="num_images must be 1 or more, got 0"):
        fit(np.zeros(3, int), 0)
    with pytest.raises(ValueError, match="counts must have a member"):
        fit(np.zeros(0, int), 3)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 1"):
        chao1(good, 3, 1)
    for factor in (0.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="factor must be 1 or more"):
            extrapolate(good, 3, factor)
    with pytest.raises(ValueError, match=r"factor must be 1 or more, got 0\.9"):
        good_toulmin(good, 0.9)
