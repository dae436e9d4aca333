"""The spread of labels against closed forms, and what is flagged on cases whose answer is known."""

import numpy as np
import pytest
from scipy import stats

from side_jax.memorization.label_spread import LEAST_FALL, LEAST_LABELS, NEAR_FALL, ROUNDING, judge, spread


def drawn(scales, images=16, values=64, seed=0):
    """The spreads of labels whose images are Gaussian with these standard deviations."""
    rng = np.random.default_rng(seed)
    return np.asarray([spread(scale * rng.standard_normal((images, values)))[1] for scale in scales])


def test_spread_by_hand():
    """Two images that differ by 2 in every value: variance 2, half the square of their distance 2."""
    assert spread(np.asarray([np.zeros((2, 2, 1)), np.full((2, 2, 1), 2.0)])) == pytest.approx((2.0, 2.0))
    assert spread(np.ones((3, 4, 4, 1), np.float32)) == (0.0, 0.0)
    with pytest.raises(ValueError, match="at least two images, got 1"):
        spread(np.ones((1, 4)))


def test_spread_is_the_variance_of_gaussian_images():
    """By equation (1) as SciPy has it, and (2) pair by pair; the estimates are those of the known variance.

    Half the squared distance of two images of D values is the variance times a chi squared law of D degrees over D.
    """
    images = 0.3 * np.random.default_rng(0).standard_normal((40, 6, 5, 3)) + 0.5
    variance, typical = spread(images)
    flat = images.reshape(40, -1)
    apart = [np.mean((a - b) ** 2) / 2 for i, a in enumerate(flat) for b in flat[:i]]
    assert variance == pytest.approx(flat.var(axis=0, ddof=1).mean(), rel=1e-12)
    assert np.mean(apart) == pytest.approx(variance, rel=1e-12)
    assert typical == pytest.approx(np.median(apart), rel=1e-12)
    assert variance == pytest.approx(0.09, rel=4 * np.sqrt(2 / (39 * 90)))
    assert typical == pytest.approx(0.09 * stats.chi2(90).median() / 90, rel=4 * np.sqrt(2 / (39 * 90)))


def test_a_stray_image_moves_the_variance_and_not_the_spread():
    """With 1 of 16 images far away, 105 of 120 pairs are as before."""
    images = 0.01 * np.random.default_rng(0).standard_normal((16, 64))
    stray = np.concatenate([images[:15], images[15:] + 1])
    assert spread(stray)[0] > 100 * spread(images)[0]
    assert spread(stray)[1] == pytest.approx(spread(images)[1], rel=0.1)


def test_falls_are_from_the_geometric_mean_of_the_upper_half():
    """Nine labels: the upper half has five, of spreads 1 to 16, whose geometric mean is 4."""
    values = np.asarray([8, 0.5, 1, 0.25, 2, 16, 0.4, 4, 0.3]) / 100
    found = judge(values)
    assert found.ordinary == pytest.approx(0.04)
    assert found.falls == pytest.approx(0.04 / values)
    assert found.flagged.tolist() == [False, True, False, True, False, False, True, False, True]
    assert found.undecided == ""


@pytest.mark.parametrize(
    ("fall", "flagged", "undecided"),
    [
        (0.99 * NEAR_FALL, 0, ""),
        (1.01 * NEAR_FALL, 0, "4.0"),
        (0.99 * LEAST_FALL, 0, "7.9"),
        (1.01 * LEAST_FALL, 1, ""),
    ],
)
def test_between_two_falls_nothing_is_decided(fall, flagged, undecided):
    found = judge(np.asarray([*np.full(11, 0.1), 0.1 / fall]))
    assert found.flagged.sum() == flagged
    assert bool(found.undecided) == bool(undecided)
    assert f"{undecided} times smaller" in found.undecided or not undecided


@pytest.mark.parametrize("labels", [8, 10, 100])
def test_ordinary_labels_are_not_flagged(labels):
    """Standard deviations that differ by a tenth or so, and images of 16 draws, of 200 models."""
    for seed in range(200):
        scales = np.exp(0.1 * np.random.default_rng(seed).standard_normal(labels))
        found = judge(0.1 * drawn(scales, seed=seed))
        assert not found.flagged.any()
        assert not found.undecided


def test_false_alarms_of_a_normal_law_are_those_of_its_tail():
    """Of many labels the upper half's mean is known: sigma sqrt(2 / pi) above the middle of a normal law."""
    sigma, labels = 0.9, 400
    rng = np.random.default_rng(0)
    shares = [judge(np.exp(sigma * rng.standard_normal(labels)) / 100).flagged.mean() for _ in range(300)]
    expected = stats.norm.cdf(np.sqrt(2 / np.pi) - np.log(LEAST_FALL) / sigma)
    assert np.mean(shares) == pytest.approx(expected, abs=4 * np.sqrt(expected / (labels * 300)) + 0.001)


@pytest.mark.parametrize(("clean", "planted"), [(8, 1), (10, 4), (10, 8), (20, 1), (60, 40)])
def test_a_planted_constant_label_is_always_found(clean, planted):
    for seed in range(50):
        scales = np.exp(0.2 * np.random.default_rng(seed).standard_normal(clean))
        found = judge(0.1 * drawn([*scales, *np.zeros(planted)], seed=seed))
        assert found.flagged.nonzero()[0].tolist() == list(range(clean, clean + planted))
        assert found.falls[clean:] == pytest.approx(found.ordinary / ROUNDING)  # finite: no less is seen
        assert not found.undecided


def test_the_scale_and_the_order_of_labels_do_not_matter():
    values = 0.1 * drawn([*np.linspace(0.8, 1.2, 12), 0.1])
    found, scaled = judge(values), judge(4 * values)
    np.testing.assert_allclose(scaled.falls, found.falls, rtol=1e-9)
    assert judge(values[::-1]).flagged.tolist() == found.flagged[::-1].tolist()
    assert found.flagged.any()


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.linspace(1, 2, LEAST_LABELS - 1), "7 labels are too few"),
        ([], "0 labels are too few"),
        ([0.0] * 6 + [1.0, 1.1, 1.2, 1.3], "half of the labels or more are all the same"),
    ],
)
def test_what_can_not_be_decided_is_said(values, why):
    found = judge(np.asarray(values, np.float64))
    assert why in found.undecided
    assert found.ordinary is None
    assert np.isnan(found.falls).all()
    assert not found.flagged.any()
    assert len(found.flagged) == len(found.falls) == len(values)


def test_spreads_are_finite_and_not_negative():
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="finite and at least 0"):
            judge(np.full(9, wrong))
