"""The spread of labels against closed forms, and its false alarms and finds by simulation."""

import numpy as np
import pytest
from scipy import stats

from side_jax.memorization.label_spread import LEAST_LABELS, judge, limit, spread

RATE = 0.05


def drawn(scales, images=16, values=64, seed=0):
    """The spreads of labels whose images are Gaussian with these standard deviations."""
    rng = np.random.default_rng(seed)
    return np.asarray([spread(scale * rng.standard_normal((images, values)))[0] for scale in scales])


def test_spread_by_hand():
    """Two images that differ by 2 in every value: variance 2, RMSE 2."""
    variance, rmse = spread(np.asarray([np.zeros((2, 2, 1)), np.full((2, 2, 1), 2.0)]))
    assert (variance, rmse) == pytest.approx((2.0, 2.0))
    assert spread(np.ones((3, 4, 4, 1), np.float32)) == (0.0, 0.0)
    with pytest.raises(ValueError, match="at least two images, got 1"):
        spread(np.ones((1, 4)))


def test_spread_is_the_variance_of_gaussian_images():
    """By equation (1) as SciPy has it, and (2) pair by pair; the estimate is that of the known variance."""
    images = 0.3 * np.random.default_rng(0).standard_normal((40, 6, 5, 3)) + 0.5
    variance, rmse = spread(images)
    flat = images.reshape(40, -1)
    apart = [np.sqrt(np.mean((a - b) ** 2)) for i, a in enumerate(flat) for b in flat[:i]]
    assert variance == pytest.approx(flat.var(axis=0, ddof=1).mean(), rel=1e-12)
    assert rmse == pytest.approx(np.mean(apart), rel=1e-12)
    assert np.mean(np.square(apart)) == pytest.approx(2 * variance, rel=1e-12)
    assert variance == pytest.approx(0.09, rel=4 * np.sqrt(2 / (39 * 90)))


@pytest.mark.parametrize("count", [8, 9, 30, 100])
def test_a_clean_model_is_flagged_at_most_as_often_as_stated(count):
    """Log spreads of one wide normal law, where the quarter is no limit: false alarms of 4,000 models are binomial."""
    rng = np.random.default_rng(count)
    alarms = sum(judge(np.exp(3 * rng.standard_normal(count) - 2), RATE).flagged.any() for _ in range(4000))
    low, high = stats.binom(4000, RATE).ppf([1e-4, 1 - 1e-4])
    assert low <= alarms <= high


def test_labels_of_one_variance_are_not_flagged():
    """Their spreads agree so closely that some are far below in deviations, but never at a quarter of the median."""
    assert not any(judge(drawn(np.ones(10), seed=seed), RATE).flagged.any() for seed in range(300))


def test_a_flagged_spread_is_below_a_quarter_of_the_median():
    near = np.linspace(0.99, 1.01, 11)
    assert judge(np.asarray([*near, 0.26]), RATE).flagged.sum() == 0
    assert judge(np.asarray([*near, 0.24]), RATE).flagged.nonzero()[0].tolist() == [11]


@pytest.mark.parametrize(("clean", "planted"), [(8, 1), (10, 4), (10, 8), (20, 1), (60, 40)])
def test_a_planted_constant_label_is_always_found(clean, planted):
    for seed in range(50):
        scales = np.exp(0.2 * np.random.default_rng(seed).standard_normal(clean))
        found = judge(drawn([*scales, *np.zeros(planted)], seed=seed), RATE)
        assert found.flagged[clean:].all()
        assert np.isneginf(found.z[clean:]).all()
        assert not found.undecided


def test_a_label_of_far_lower_spread_is_found():
    """At a hundredth of the others' standard deviation; and one of a tenth less is not abnormal."""
    scales = np.exp(0.2 * np.random.default_rng(1).standard_normal(20))
    assert judge(drawn([*scales, 0.01]), RATE).flagged.nonzero()[0].tolist() == [20]
    assert not judge(drawn([*scales, 0.9]), RATE).flagged.any()


def test_flagged_labels_are_those_below_the_stated_spread():
    found = judge(values := drawn([*np.linspace(0.8, 1.2, 12), 0.01, 0.02]), RATE)
    assert (values < found.below).tolist() == found.flagged.tolist() == [False] * 12 + [True] * 2


def test_the_scale_and_the_order_of_pixels_do_not_matter():
    values = drawn([*np.linspace(0.8, 1.2, 12), 0.1])
    found, scaled = judge(values, RATE), judge(127.5**2 * values, RATE)
    np.testing.assert_allclose(scaled.z, found.z, rtol=1e-9)
    assert scaled.below == pytest.approx(127.5**2 * found.below)
    assert judge(values[::-1], RATE).flagged.tolist() == found.flagged[::-1].tolist()


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.linspace(1, 2, LEAST_LABELS - 1), "7 labels are too few"),
        ([], "0 labels are too few"),
        ([0.0] * 5 + [1.0, 1.1, 1.2, 1.3, 1.4], "half of the labels or more are all the same"),
        ([0.0] * 6 + [1.0, 1.1, 1.2, 1.3], "half of the labels or more are all the same"),
        ([1.0] * 6 + [0.0, 0.7, 0.8, 0.9], "one and the same spread"),
    ],
)
def test_what_can_not_be_decided_is_said(values, why):
    found = judge(np.asarray(values, np.float64), RATE)
    assert why in found.undecided
    assert found.below is None
    assert not found.flagged.any()
    assert len(found.z) == len(values)


def test_limits():
    """A lower rate and fewer labels need more; for many labels it is the normal law's, of which S is sigma."""
    assert limit(10, 0.01) > limit(10, 0.05) > limit(40, 0.05) > 0
    many = -stats.norm.ppf(1 - 0.95 ** (1 / 500))
    assert limit(500, 0.05) == pytest.approx(many, rel=0.03)
    for count, rate in ((2, 0.05), (10, 0.0), (10, 1.0)):
        with pytest.raises(ValueError, match="limit needs"):
            limit(count, rate)
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="finite and at least 0"):
            judge(np.full(9, wrong), RATE)
