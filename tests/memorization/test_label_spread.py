"""The spread of labels against closed forms, and its false alarms and finds by simulation."""

import numpy as np
import pytest
from scipy import stats

from side_jax.memorization.label_spread import LEAST_LABELS, judge, limits, spread

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


@pytest.mark.parametrize("count", [8, 9, 14, 30, 100])
def test_a_clean_model_is_flagged_at_most_as_often_as_stated(count):
    """Log spreads of one wide normal law, where the fall is no limit: false alarms of 4,000 models are binomial."""
    rng = np.random.default_rng(count)
    found = [judge(np.exp(7 * rng.standard_normal(count) - 2), RATE) for _ in range(4000)]
    low, high = stats.binom(4000, RATE).ppf([1e-4, 1 - 1e-4])
    assert low <= sum(one.flagged.any() for one in found) <= high
    assert low <= sum(one.score > 1 for one in found) <= high


def test_clean_models_of_any_number_of_labels_have_scores_of_one_scale():
    """The share of scores above 1 is the stated rate, whatever the number of labels."""
    rng = np.random.default_rng(3)
    for rate in (0.02, 0.2):
        above = [np.mean([judge(np.exp(rng.standard_normal(n)), rate).score > 1 for _ in range(3000)]) for n in (8, 20)]
        assert above == pytest.approx([rate, rate], abs=4 * np.sqrt(rate * (1 - rate) / 3000))


def test_labels_of_one_variance_are_not_flagged():
    """Their spreads agree so closely that some are far below in deviations, but never by four times."""
    assert not any(judge(drawn(np.ones(10), seed=seed), RATE).flagged.any() for seed in range(300))


def test_a_flagged_spread_is_a_quarter_of_the_others():
    near = np.linspace(0.99, 1.01, 11)
    assert judge(np.asarray([*near, 0.24]), RATE).flagged.nonzero()[0].tolist() == [11]
    found = judge(np.asarray([*near, 0.26]), RATE)
    assert not found.flagged.any()
    assert found.score > 1
    assert "none is 4 times lower" in found.undecided


@pytest.mark.parametrize(("clean", "planted"), [(8, 1), (10, 4), (10, 8), (20, 1), (60, 40)])
def test_a_planted_constant_label_is_always_found(clean, planted):
    for seed in range(50):
        scales = np.exp(0.2 * np.random.default_rng(seed).standard_normal(clean))
        found = judge(drawn([*scales, *np.zeros(planted)], seed=seed), RATE)
        assert found.flagged[clean:].all()
        assert found.score > 1
        assert not found.undecided


def test_planted_labels_do_not_hide_each_other():
    """Of 14 labels, 4 are planted 5 standard deviations down: by simulation, all are found in 97% of models or more."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        logs = np.concatenate([rng.standard_normal(10), np.full(4, -5.0)])
        hits += judge(np.exp(0.5 * logs), RATE).flagged[10:].all()
    assert hits / 400 > 0.97


def test_the_ordinary_labels_are_those_above_the_planted_ones():
    values = drawn([*np.linspace(0.8, 1.2, 12), 0.01, 0.02, 0.015])
    found = judge(values, RATE)
    assert found.ordinary == pytest.approx(stats.gmean(values[:12]))
    assert found.below == pytest.approx(found.ordinary / 4)
    assert (values < found.below).tolist() == found.flagged.tolist() == [False] * 12 + [True] * 3


def test_a_label_of_far_lower_spread_is_found():
    """At a hundredth of the others' standard deviation; and one of a tenth less is not abnormal."""
    scales = np.exp(0.2 * np.random.default_rng(1).standard_normal(20))
    assert judge(drawn([*scales, 0.01]), RATE).flagged.nonzero()[0].tolist() == [20]
    clean = judge(drawn([*scales, 0.9]), RATE)
    assert not clean.flagged.any()
    assert (clean.below, clean.undecided) == (0, "")
    assert clean.score < 1


def test_the_score_by_hand():
    """Eight labels: each of the lower four against all above it, the largest of those over the limit."""
    logs = np.asarray([2.0, 1.7, 1.6, 1.0, 0.9, 0.2, 0.1, -1.0])
    scales, limit = limits(8, RATE)
    drops = [(logs[:k].mean() - logs[k]) / logs[:k].std(ddof=1) for k in range(4, 8)]
    found = judge(np.exp(logs[[3, 1, 0, 2, 7, 6, 5, 4]]), RATE)
    assert found.score == pytest.approx(max(drops / scales) / limit)


def test_the_scale_and_the_order_of_labels_do_not_matter():
    values = drawn([*np.linspace(0.8, 1.2, 12), 0.1])
    found, scaled = judge(values, RATE), judge(127.5**2 * values, RATE)
    assert scaled.score == pytest.approx(found.score, rel=1e-9)
    assert scaled.below == pytest.approx(127.5**2 * found.below)
    assert judge(values[::-1], RATE).flagged.tolist() == found.flagged[::-1].tolist()
    assert found.flagged.any()


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.linspace(1, 2, LEAST_LABELS - 1), "7 labels are too few"),
        ([], "0 labels are too few"),
        ([0.0] * 6 + [1.0, 1.1, 1.2, 1.3], "half of the labels or more are all the same"),
        ([1.0] * 6 + [0.0, 0.7, 0.8, 0.9], "one and the same spread"),
    ],
)
def test_what_can_not_be_decided_is_said(values, why):
    found = judge(np.asarray(values, np.float64), RATE)
    assert why in found.undecided
    assert (found.ordinary, found.below, found.score) == (None, None, None)
    assert not found.flagged.any()
    assert len(found.flagged) == len(values)


def test_limits():
    """Each label alone exceeds its scale in as many models as stated, over the number of labels that are compared."""
    scales, limit = limits(12, 0.06)
    rng, counts = np.random.default_rng(0), np.zeros(6)
    for _ in range(10_000):
        logs = np.sort(rng.standard_normal(12))[::-1]
        counts += [(logs[:k].mean() - logs[k]) / logs[:k].std(ddof=1) > scales[k - 6] for k in range(6, 12)]
    assert counts / 10_000 == pytest.approx(np.full(6, 0.01), abs=0.005)
    assert 0.8 < limit < 1.02  # they do so together in fewer models than in the sum of their shares
    for count, rate in ((3, 0.05), (10, 0.0), (10, 1.0)):
        with pytest.raises(ValueError, match="limits needs"):
            limits(count, rate)
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="finite and at least 0"):
            judge(np.full(9, wrong), RATE)
