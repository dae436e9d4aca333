"""Intervals against published values, exact sums over all outcomes, and simulations with known rates."""

import functools
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from side_jax.memorization.statistics.intervals import (
    calibrated_threshold,
    combined_interval,
    difference_interval,
    distinct_interval,
    halves,
    mcnemar,
    paired_difference_interval,
    wilson_confidence,
    wilson_interval,
    zero_hits_bound,
)


def test_wilson_interval():
    """Against the formula (Wilson 1927), and never [0, 0]."""
    z, n, hits = 1.959964, 200, 7
    p = hits / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5 / (1 + z**2 / n)
    np.testing.assert_allclose(wilson_interval(hits, n, 0.95), (centre - half, centre + half), rtol=1e-6)
    low, high = wilson_interval(0, 1024, 0.95)
    assert low == 0
    assert 0.003 < high < 0.004


@pytest.mark.parametrize("hits", [0, 1, 100, 199, 200])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_confidence_of_a_wilson_interval(hits, confidence):
    interval = wilson_interval(hits, 200, confidence)
    assert wilson_confidence(hits, 200, interval) == pytest.approx(confidence, abs=1e-9)


def test_difference_interval():
    """Newcombe 1998, table II: 56 of 70 against 48 of 80 and 9 of 10 against 3 of 10, by his method 10."""
    np.testing.assert_allclose(difference_interval((56, 48), (70, 80), 0.95), (0.0524, 0.3339), atol=5e-5)
    np.testing.assert_allclose(difference_interval((9, 3), (10, 10), 0.95), (0.1705, 0.8090), atol=5e-5)
    np.testing.assert_allclose(difference_interval((5, 0), (56, 29), 0.95), (-0.0381, 0.1926), atol=5e-5)


def test_combined_interval():
    """Of two rates it is Newcombe's; of normal estimates, whose ends are symmetric, variances add up."""
    limits = [wilson_interval(*pair, 0.95) for pair in ((56, 70), (48, 80))]
    combined = combined_interval(56 / 70, limits[0], 48 / 80, limits[1])
    np.testing.assert_allclose(combined, difference_interval((56, 48), (70, 80), 0.95), rtol=1e-12)
    assert combined_interval(5.0, (2.0, 8.0), 1.0, (-3.0, 5.0)) == (4.0 - 5.0, 4.0 + 5.0)


@pytest.mark.parametrize(
    ("table", "published"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((18, 12, 2, 18), (0.0562, 0.3290)),
        ((53, 0, 0, 1), (-0.0729, 0.0729)),
        ((0, 30, 0, 0), (0.8395, 1.0)),
    ],
)
def test_paired_difference_is_as_published(table, published):
    """Newcombe 1998 (paired), his examples by his method 10."""
    np.testing.assert_allclose(paired_difference_interval(*table, 0.95), published, atol=1e-4)


def test_paired_difference_by_hand():
    """Bentur et al. 2009 in Fagerland et al. 2014: 1, 1, 7 and 12 of 21, where ad - bc = 5 is less than n / 2.

    So phi = 0, and it is the interval of independent rates. Exchanging the two only exchanges the ends and the sign.
    """
    low, high = paired_difference_interval(1, 1, 7, 12, 0.95)
    np.testing.assert_allclose((low, high), (-0.507, -0.026), atol=5e-4)
    np.testing.assert_allclose((low, high), difference_interval((2, 8), (21, 21), 0.95))
    np.testing.assert_allclose(paired_difference_interval(1, 7, 1, 12, 0.95), (-high, -low))
    # ad - bc = 40 * 40 - 9 = 1591, less n / 2 = 43, over 43^2: phi = 0.83722; both rates are 1/2.
    low, high = wilson_interval(43, 86, 0.95)
    half = math.sqrt(2 * (1 - 1548 / 1849) * (0.5 - low) * (high - 0.5))
    np.testing.assert_allclose(paired_difference_interval(40, 3, 3, 40, 0.95), (-half, half), rtol=1e-9)
    # Where the two exclude each other phi is negative, here -1 without a correction: the lengths add up.
    low, high = wilson_interval(10, 20, 0.95)
    np.testing.assert_allclose(paired_difference_interval(0, 10, 10, 0, 0.95), (low - high, high - low), rtol=1e-9)


@functools.cache
def paired(*table):
    return paired_difference_interval(*table, 0.95)


@pytest.mark.parametrize(
    "p", [(0.1, 0.3, 0.1, 0.5), (0.4, 0.05, 0.05, 0.5), (0.0, 0.15, 0.05, 0.8), (0.7, 0.2, 0, 0.1)]
)
def test_paired_difference_covers_by_the_sum_over_all_tables(p):
    n = 16
    tables = [t for t in itertools.product(range(n + 1), repeat=4) if sum(t) == n]
    weights = stats.multinomial.pmf(tables, n, p)
    inside = [low <= p[1] - p[2] <= high for low, high in (paired(*t) for t in tables)]
    assert weights.sum() == pytest.approx(1)
    assert 0.93 < weights @ inside < 0.995


def test_paired_difference_covers_rare_matches():
    """2000 images, 1% of which match both sets; the paired interval is the shorter for being paired."""
    p = (0.01, 0.02, 0.005, 0.965)
    draws = np.random.default_rng(0).multinomial(2000, p, size=400).tolist()
    found = np.array([paired(*draw) for draw in draws])
    assert 0.92 < ((found[:, 0] <= 0.015) & (found[:, 1] >= 0.015)).mean() < 0.98
    alone = np.array([difference_interval((a + b, a + c), (2000, 2000), 0.95) for a, b, c, _ in draws[:50]])
    assert (np.diff(found[:50]) < np.diff(alone)).all()


def test_mcnemar():
    """9 and 1 of ten trials that tell the two apart: (10 + 1) / 2^10; against the sum for others."""
    assert mcnemar(9, 1) == pytest.approx(11 / 1024)
    assert mcnemar(1, 9) == pytest.approx(1023 / 1024)
    assert mcnemar(0, 0) == 1
    for b, c in ((3, 4), (0, 5), (12, 2)):
        assert mcnemar(b, c) == pytest.approx(sum(math.comb(b + c, i) for i in range(b, b + c + 1)) / 2 ** (b + c))


def test_zero_hits_bound():
    assert zero_hits_bound(1000, 0.95) == pytest.approx(3 / 1000, rel=2e-3)
    assert zero_hits_bound(50, 0.99) == pytest.approx(math.log(100) / 50)
    assert zero_hits_bound(2, 0.95) == 1
    for n, confidence in itertools.product((5, 20, 3000), (0.5, 0.9, 0.95)):
        exact = stats.binomtest(0, n).proportion_ci(2 * confidence - 1 or 1e-12, method="exact").high
        assert exact == pytest.approx(1 - (1 - confidence) ** (1 / n))
        bound = zero_hits_bound(n, confidence)
        assert exact < bound < exact + bound**2 / 2


def nearest_pairs(counts):
    """Each image hits one reference: counts [m]."""
    reference = np.repeat(np.arange(len(counts)), counts)
    return np.stack([np.arange(len(reference)), reference], axis=1)


NUM_IMAGES, DRAWS = 2000, 400
RANK = np.arange(1, 2001.0)
# The expected number of images that hit each reference.
LAWS = {
    "few singletons": np.full(300, 5.0),
    "hardly any singleton": np.full(20, 9.0),
    "half singletons": np.full(200, 1.0),
    "mostly singletons": np.full(20000, 1 / 200),
    "power 1": 60 / RANK,
    "power 1.5": 300 / RANK**1.5,
    "log-normal": np.exp(np.random.default_rng(0).normal(-2, 2, 1000)),
    "six, heavy-tailed": 4 / RANK[:200] ** 1.5,
    "three in all": np.full(3000, 1 / 1000),
    "one in all": np.full(3000, 1 / 3000),
    "one reference": np.full(1, 2.0),
}


def drawn(law, rng):
    """(counts of nearest references [DRAWS, m], what is expected of the number of different ones)."""
    p = LAWS[law] / NUM_IMAGES
    counts = rng.multinomial(NUM_IMAGES, [*p, 1 - p.sum()], size=DRAWS)[:, :-1]
    return counts, (1 - (1 - p) ** NUM_IMAGES).sum()


@pytest.mark.parametrize("law", LAWS)
def test_distinct_covers(law):
    """At least 95% but for the simulation's error; where few are hit twice, not by being wide: at 50% it misses."""
    counts, expected = drawn(law, np.random.default_rng(1))

    def intervals(level):
        return np.array([distinct_interval(nearest_pairs(c), NUM_IMAGES, len(c), level) for c in counts])

    wide = intervals(0.95)
    assert (wide[:, 0] < wide[:, 1]).all()
    assert ((wide[:, 0] <= expected) & (expected <= wide[:, 1])).mean() > 0.95 - 2 * math.sqrt(0.95 * 0.05 / DRAWS)
    if law in ("mostly singletons", "power 1", "power 1.5"):
        spread, narrow = (counts > 0).sum(axis=1).std(), intervals(0.5)
        assert np.diff(wide).mean() < 1.2 * 2 * 1.96 * spread
        assert ((narrow[:, 0] <= expected) & (expected <= narrow[:, 1])).mean() < 0.65


@pytest.mark.parametrize("law", ["mostly singletons", "power 1.5"])
def test_bootstraps_of_images_do_not_cover(law):
    """What distinct_interval is there for: the percentiles are too low, and shifted to the estimate too close."""
    rng = np.random.default_rng(2)
    counts, expected = drawn(law, rng)
    covered = np.zeros(2)
    for c in counts[:200]:
        c = c[c > 0]
        resampled = rng.multinomial(NUM_IMAGES, [*c / NUM_IMAGES, 1 - c.sum() / NUM_IMAGES], size=200)[:, :-1] > 0
        ends = np.quantile(resampled.sum(axis=1), [0.025, 0.975])
        for i, shift in enumerate((0, len(c) - resampled.sum(axis=1).mean())):
            covered[i] += ends[0] + shift <= expected <= ends[1] + shift
    assert covered[0] / 200 < 0.05
    assert covered[1] / 200 < 0.85


@pytest.mark.parametrize(("groups", "rate", "level"), [(1000, 0.01, 0.95), (1000, 0.003, 0.92), (60, 1.0, 0.95)])
def test_distinct_covers_references_hit_together(groups, rate, level):
    """An image that is near five duplicates hits each with probability 0.8.

    Less than 95% only where three images in all are near any: often none is, which says nothing of duplicates.
    """
    rng = np.random.default_rng(3)
    size, share = 5, 0.8
    expected = groups * size * (1 - math.exp(-rate * share))
    found = []
    for _ in range(DRAWS):
        group = np.repeat(np.arange(groups), rng.poisson(rate, groups))
        image, member = np.nonzero(rng.random((len(group), size)) < share)
        pairs = np.stack([image, group[image] * size + member], axis=1)
        found.append(distinct_interval(rng.permutation(pairs), NUM_IMAGES, groups * size, 0.95))
    low, high = np.transpose(found)
    assert ((low <= expected) & (expected <= high)).mean() > level - 2 * math.sqrt(0.95 * 0.05 / DRAWS)


def test_distinct_by_hand():
    """Ten images: 0 hits references 0 and 1 alone, 1 and 2 hit reference 2; so u = (2, 0, ..., 0) and v = 9 * 0.36."""
    pairs = np.array([[1, 2], [0, 0], [2, 2], [0, 1], [0, 1]])  # a pair said twice is one
    low, high = distinct_interval(pairs, 10, 1000, 0.9)
    dispersion = 9 * 0.36 / 3
    assert stats.gamma.cdf(low / dispersion, 3 / dispersion) == pytest.approx(0.05)
    assert stats.gamma.cdf(high / dispersion, 3 / dispersion + 1) == pytest.approx(0.95)
    assert distinct_interval(pairs, 10, 4, 0.9) == (low, 4)


def test_distinct_of_singletons_is_the_interval_of_a_poisson_mean():
    """100 of a million images hit one reference each: Garwood's exact limits, by the Poisson law that they invert."""
    pairs = np.repeat(np.arange(100)[:, None], 2, axis=1)
    low, high = distinct_interval(pairs, 10**6, 10**6, 0.95)
    assert stats.poisson.sf(99, low) == pytest.approx(0.025, rel=2e-2)
    assert stats.poisson.cdf(100, high) == pytest.approx(0.025, rel=2e-2)


def test_distinct_of_no_hits_is_no_point():
    low, high = distinct_interval(np.empty((0, 2), np.int64), 500, 100, 0.95)
    assert low == 0
    assert high == pytest.approx(500 * zero_hits_bound(500, 0.975))
    assert high == pytest.approx(math.log(40))


def test_the_threshold_holds_its_rate_exactly():
    """Leave one of n + 1 out as the fresh one: k of them, no more, lie below the threshold of the others."""
    rng = np.random.default_rng(4)
    for n, rate, k in ((19, 0.05, 1), (30, 0.1, 3), (48, 1 / 49, 1), (97, 0.29, 28), (10, 0.999, 10)):
        values = rng.normal(size=n + 1)
        below = [values[i] < calibrated_threshold(np.delete(values, i), rate) for i in range(n + 1)]
        assert sum(below) == k
        tied = rng.integers(0, 4, n + 1).astype(np.float32)
        below = [tied[i] < calibrated_threshold(np.delete(tied, i), rate) for i in range(n + 1)]
        assert sum(below) <= k


def test_the_threshold_holds_its_rate_in_simulation():
    """60 held-out images at 5%: 3 / 61 of fresh ones match, by Beta(3, 58); fewer where values are tied."""
    rng = np.random.default_rng(5)
    null = rng.random((4000, 60))
    rates = np.array([calibrated_threshold(row, 0.05) for row in null])  # of a uniform law, the rate is the threshold
    assert rates.mean() == pytest.approx(3 / 61, abs=4 * rates.std() / math.sqrt(4000))
    assert stats.kstest(rates, stats.beta(3, 58).cdf).pvalue > 1e-3
    tied = np.floor(null * 8) / 8
    assert np.mean([calibrated_threshold(row, 0.05) for row in tied]) <= 0.05  # P(floor(8 U) / 8 < tau) = tau


def test_the_threshold_needs_enough_images():
    for rate, enough in ((0.05, 19), (0.01, 99), (1 / 49, 48), (0.3, 3)):
        assert calibrated_threshold(np.arange(enough - 1.0), rate) is None
        assert calibrated_threshold(np.arange(float(enough))[::-1], rate) == 0
    assert calibrated_threshold(np.empty(0), 0.5) is None


def test_halves():
    first, second = halves(101, 7)
    assert len(first) == 50
    assert sorted([*first, *second]) == list(range(101))
    assert (np.diff(first) > 0).all()
    assert (np.diff(second) > 0).all()
    np.testing.assert_array_equal(halves(101, 7)[0], first)
    assert halves(101, 8)[0].tolist() != first.tolist()
    share = np.mean([np.isin(np.arange(10), halves(10, seed)[0]) for seed in range(400)], axis=0)
    np.testing.assert_allclose(share, 0.5, atol=0.1)


def test_halves_keep_groups_whole():
    groups = np.random.default_rng(0).permutation(np.repeat([7, 3, 5, 9], [10, 10, 10, 70]))
    for seed in range(20):
        first, second = halves(100, seed, groups)
        assert sorted([*first, *second]) == list(range(100))
        assert not set(groups[first]) & set(groups[second])
        assert len(first) in (10, 20, 30, 70, 80, 90)
    first, second = halves(90, 0, np.repeat(np.arange(9), 10))
    assert sorted((len(first), len(second))) == [40, 50]  # as near to half as groups allow
    np.testing.assert_array_equal(halves(30, 5, np.arange(30)[::-1])[0].size, 15)
    np.testing.assert_array_equal(halves(30, 5, np.zeros(30)), halves(30, 5))  # one group can't be told apart


def test_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match=r"not all 0, got \(0, 0, 0, 0\)"):
        paired_difference_interval(0, 0, 0, 0, 0.95)
    with pytest.raises(ValueError, match="must be 0 or more"):
        paired_difference_interval(5, -1, 0, 0, 0.95)
    with pytest.raises(ValueError, match="trials must be 1 or more, got 0"):
        zero_hits_bound(0, 0.95)
    for call in (lambda: zero_hits_bound(9, 1.0), lambda: distinct_interval(np.zeros((0, 2)), 9, 9, 0.0)):
        with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\)"):
            call()
    with pytest.raises(ValueError, match="must be an image and a reference, got 0 and 5"):
        distinct_interval(np.zeros((0, 2)), 0, 5, 0.95)
    for pair in ([9, 0], [0, 5], [-1, 0]):
        with pytest.raises(ValueError, match="pairs must be of 9 images and 5 references"):
            distinct_interval(np.array([pair]), 9, 5, 0.95)
    with pytest.raises(ValueError, match=r"pairs must be \[p, 2\], got shape \(2, 3\)"):
        distinct_interval(np.zeros((2, 3), int), 9, 5, 0.95)
    for null in (np.array([0.1, np.nan]), np.zeros((2, 2))):
        with pytest.raises(ValueError, match="null must be"):
            calibrated_threshold(null, 0.5)
    with pytest.raises(ValueError, match=r"false_match_rate must be in \(0, 1\), got 1"):
        calibrated_threshold(np.zeros(3), 1)
    with pytest.raises(ValueError, match="n must be 2 or more, got 1"):
        halves(1, 0)
    with pytest.raises(ValueError, match="groups must be 4 numbers, got 3"):
        halves(4, 0, np.arange(3))
