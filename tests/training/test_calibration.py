"""Calibration of classifiers whose miscalibration is known."""

import numpy as np
import pytest

from side_jax.measure.records import NoiseLevel
from side_jax.memorization.statistics.intervals import wilson_interval
from side_jax.report import plots
from side_jax.training import calibration


def classifier(n=20_000, classes=5, seed=0):
    """Log-probabilities and labels that are drawn from these very probabilities: perfect calibration."""
    rng = np.random.default_rng(seed)
    log_probs = calibration.scale(1.5 * rng.normal(size=(n, classes)), 1.0)
    chosen = (np.cumsum(np.exp(log_probs), axis=1) < rng.random((n, 1))).sum(axis=1)
    return log_probs, np.minimum(chosen, classes - 1)


def test_calibration_error_by_hand():
    """Two bins: (0.5, 1] holds confidences 0.6, 0.9 and 0.9, one right; [0, 0.5] holds 0.5 and 0.4, one right."""
    probabilities = np.asarray(
        [[0.6, 0.3, 0.1], [0.05, 0.9, 0.05], [0.9, 0.1, 0.0], [0.5, 0.25, 0.25], [0.3, 0.3, 0.4]]
    )
    labels = np.asarray([1, 1, 2, 0, 0])
    expected = 3 / 5 * abs(1 / 3 - (0.6 + 0.9 + 0.9) / 3) + 2 / 5 * abs(1 / 2 - (0.5 + 0.4) / 2)
    assert calibration.expected_calibration_error(probabilities, labels, bins=2) == pytest.approx(expected)


def test_calibration_error_at_the_limits():
    certain = np.eye(4)[[0, 1, 2, 3]]
    assert calibration.expected_calibration_error(certain, np.arange(4)) == 0
    assert calibration.expected_calibration_error(certain, np.arange(4)[::-1]) == 1


def test_a_calibrated_classifier_has_no_error_and_temperature_one():
    log_probs, labels = classifier()
    assert calibration.expected_calibration_error(np.exp(log_probs), labels) < 0.015
    assert calibration.fit_temperature(log_probs, labels) == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("factor", [3.0, 0.5])
def test_the_temperature_of_a_wrongly_confident_classifier_is_recovered(factor):
    log_probs, labels = classifier()
    wrong = calibration.scale(log_probs, 1 / factor)
    (row,) = calibration.level_metrics(wrong[None].astype(np.float32), labels, [40])
    assert row["temperature"] == pytest.approx(factor, rel=0.04)
    assert row["ece"] > 0.1
    assert row["ece_scaled"] < 0.015
    np.testing.assert_array_equal(calibration.scale(wrong, factor).argmax(1), wrong.argmax(1))
    np.testing.assert_allclose(calibration.scale(wrong, factor), log_probs, atol=1e-9)


def test_all_right_and_all_wrong_reach_the_ends_of_the_range():
    log_probs = np.log(np.asarray([[0.9, 0.1], [0.8, 0.2]]))
    low, high = calibration.TEMPERATURES
    assert calibration.fit_temperature(log_probs, np.asarray([0, 0])) == pytest.approx(low, rel=0.01)
    assert calibration.fit_temperature(log_probs, np.asarray([1, 1])) == pytest.approx(high, rel=0.01)


def test_rows_of_levels():
    """Chance at the second level; the accuracy and the loss of it are ln 2 and one half."""
    sure = np.log(np.asarray([[0.99, 0.01], [0.01, 0.99]] * 20))
    rows = calibration.level_metrics(np.stack([sure, np.log(np.full((40, 2), 0.5))]), np.asarray([0, 1] * 20), [3, 90])
    assert [row["timestep"] for row in rows] == [3, 90]
    assert [row["accuracy"] for row in rows] == [1, 0.5]
    assert rows[1]["accuracy_ci"] == list(wilson_interval(20, 40, 0.95))
    np.testing.assert_allclose([row["loss"] for row in rows], [-np.log(0.99), np.log(2)])
    np.testing.assert_allclose([row["ece"] for row in rows], [0.01, 0], atol=1e-12)
    assert all(type(value) in (int, float) for row in rows for key, value in row.items() if key != "accuracy_ci")


def test_a_half_is_scaled_by_the_temperature_of_the_other():
    """Images of even position are all right and those of odd position all wrong: scaling by the wrong half is worse.

    Each half alone wants the temperature at the other end of the range. Cross-fitted, the right ones get the hottest
    (confidence near 0.5, accuracy 1) and the wrong ones the coldest (confidence 1, accuracy 0).
    """
    log_probs = np.log(np.tile([[0.9, 0.1]], (40, 1)))
    (row,) = calibration.level_metrics(log_probs[None], np.asarray([0, 1] * 20), [0])
    hot = 0.5 + 0.5 * np.tanh(np.log(9) / (2 * calibration.TEMPERATURES[1]))
    assert row["ece_scaled"] == pytest.approx(0.5 * (1 - hot) + 0.5, abs=0.01)


def test_one_image_cannot_be_cross_fitted():
    (row,) = calibration.level_metrics(np.log([[[0.7, 0.3]]]), np.asarray([0]), [5])
    assert row["ece_scaled"] is None
    assert plots.noise_levels({"side": [NoiseLevel(**row)]}, {"side": 0.5})


def test_interpolation_between_levels_and_outside():
    values = calibration.interpolate([10, 30], [1.0, 4.0], 50)
    assert values.dtype == np.float32
    assert values.shape == (50,)
    np.testing.assert_allclose(values[[0, 10, 20, 30, 49]], [1, 1, 2, 4, 4], rtol=1e-6)
    np.testing.assert_allclose(calibration.interpolate([7], [2.5], 3), 2.5)


def test_the_picture_of_noise_levels():
    log_probs, labels = classifier(n=300)
    rows = {
        name: calibration.level_metrics(factor * np.stack([log_probs, 0.5 * log_probs]), labels, [0, 500])
        for name, factor in (("side", 1.0), ("conditional", 3.0))
    }
    rows = {name: [NoiseLevel(**row) for row in levels] for name, levels in rows.items()}
    drawn = plots.noise_levels(rows, {"side": 0.2, "conditional": 0.1})
    assert "timestep 500" in drawn
    assert drawn == plots.noise_levels(rows, {"side": 0.2, "conditional": 0.1})
