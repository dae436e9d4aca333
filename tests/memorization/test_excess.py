"""The excess by hand, the coverage of its intervals, and how they grow with what is random."""

import numpy as np
import pytest

from side_jax.memorization.statistics import intervals
from side_jax.memorization.statistics.excess import excess


def sides(first, second, trials, both=0):
    """Hits on members and held-out images by different images, but for `both` of them."""
    (m, k), image = (sum(first), sum(second)), np.arange(trials)
    matched = image < m, (image >= m - both) & (image < m - both + k)
    return tuple((np.asarray(hits), match) for hits, match in zip((first, second), matched, strict=True))


def test_by_hand():
    """4 members with 6 hits on 2 of them, 2 held-out images with 1 hit: of 20 images, as many members as held-out."""
    found = excess(*sides([4, 2, 0, 0], [1, 0], 20), 0.95)
    assert found.images == pytest.approx(2 / 20 * (6 / 4 - 1 / 2))
    assert found.members == pytest.approx(4 * (2 / 4 - 1 / 2))
    low, high = intervals.paired_difference_interval(0, 6, 1, 13, 0.95, 0.5)
    assert found.images_interval[0] <= low < found.images < high <= found.images_interval[1]
    low, high = intervals.difference_interval((2, 1), (4, 2), 0.95)
    assert found.members_interval[0] <= 4 * low < 4 * high <= found.members_interval[1]


def test_without_hits_the_interval_is_that_of_the_images():
    found = excess(*sides([0] * 10, [0] * 10, 100), 0.95)
    assert (found.images, found.members) == (0, 0)
    assert found.images_interval == intervals.paired_difference_interval(0, 0, 0, 100, 0.95)


def test_images_that_match_both_sides_are_paired():
    """The interval over images is narrower, where references say nothing: each has one hit."""
    apart, paired = (excess(*sides([1] * 40, [1] * 40, 100, both), 0.95) for both in (0, 40))
    assert apart.images == paired.images == 0
    widths = [one.images_interval[1] - one.images_interval[0] for one in (apart, paired)]
    assert widths[1] < widths[0] / 2


def test_a_few_references_that_take_most_hits_widen_the_interval():
    few = [100, 100] + [0] * 18
    first, second = (excess(*sides(hits, hits, 1000), 0.95) for hits in ([10] * 20, few))
    width = [one.images_interval[1] - one.images_interval[0] for one in (first, second)]
    assert width[1] > 2 * width[0]


def test_people_widen_the_interval():
    hits = [8] * 5 + [0] * 15
    people = np.repeat([0, 1, 2, 3], 5), np.repeat([4, 5, 6, 7], 5)
    alone, grouped = (excess(*sides(hits, hits, 200), 0.95, of) for of in (None, people))
    assert np.diff(grouped.images_interval) > 1.3 * np.diff(alone.images_interval)


@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
def test_the_intervals_cover(spread):
    """Members are twice as likely to be matched as held-out images; each varies by a lognormal factor."""
    rng, covered, runs = np.random.default_rng(1), np.zeros(2), 200
    base = np.exp(rng.normal(0, spread, 200_000))
    rate = 0.3 / (3 * 50 * base.mean())  # of an image and a held-out image
    for _ in range(runs):
        chances = np.minimum(rate * rng.choice(base, 100) * np.repeat([2, 1], 50), 0.05)
        hits = rng.multinomial(1000, [*chances, 1 - chances.sum()])[:100]
        found = excess(*sides(list(hits[:50]), list(hits[50:]), 1000), 0.95)
        truth = 50 * rate * base.mean(), 50 * np.mean(np.exp(-1000 * rate * base) - np.exp(-2000 * rate * base))
        ends = found.images_interval, found.members_interval
        covered += [low <= one <= high for one, (low, high) in zip(truth, ends, strict=True)]
    assert covered.min() / runs > (0.92 if spread < 2 else 0.85)  # percentiles miss rare and very large factors
