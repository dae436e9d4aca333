"""Calibration of a classifier at each noise level: calibration error and temperature scaling (Guo et al. 2017)."""

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from side_jax.memorization.statistics.intervals import wilson_interval

TEMPERATURES = (0.05, 20.0)  # range of the search


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Mean gap of confidence and accuracy over equal-width bins of confidence (Guo et al. 2017, equation 3).

    Args:
      probabilities: [n, C], each row summing to 1.
      labels: int [n], in 0..C-1.
      bins: each (i / bins, (i + 1) / bins].

    Returns:
      The mean gap in [0, 1], each bin weighted by its number of images.
    """
    confidence = np.asarray(probabilities.max(axis=1), np.float64)
    gap = (probabilities.argmax(axis=1) == labels) - confidence
    which = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1).astype(int)
    return float(np.abs(np.bincount(which, weights=gap)).sum() / len(labels))


def scale(log_probs: np.ndarray, temperature: float) -> np.ndarray:
    """The log of softmax(log_probs / T), float64 [n, C]; T > 1 lowers confidence (Guo et al. 2017, section 4.2)."""
    return log_softmax(np.asarray(log_probs, np.float64) / temperature, axis=1)


def fit_temperature(log_probs: np.ndarray, labels: np.ndarray) -> float:
    """The T in TEMPERATURES that minimises the mean negative log-likelihood after `scale` (Guo et al. 2017, 4.2).

    Args:
      log_probs: [n, C], n >= 1, log-probabilities or logits.
      labels: int [n], in 0..C-1.

    Returns:
      T; near an end of the range if the minimum lies outside it, as when all images are classified correctly.
    """
    result = minimize_scalar(
        lambda log_t: _loss(scale(log_probs, np.exp(log_t)), labels),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
    )
    return float(np.exp(result.x))


def level_metrics(
    log_probs: np.ndarray, labels: np.ndarray, levels: np.ndarray, confidence: float = 0.95
) -> list[dict[str, Any]]:
    """Accuracy and calibration at each noise level.

    Args:
      log_probs: [L, n, C], for the same n images at each level.
      labels: int [n], in 0..C-1.
      levels: int [L], the timesteps of the noise.
      confidence: level of the accuracy's interval, in (0, 1).

    Returns:
      For each level {timestep, accuracy in [0, 1], accuracy_ci (Wilson), loss in nats, ece, temperature, ece_scaled}.
      The temperature is fitted to all images. ece_scaled is cross-fitted: images at even positions are scaled by the
      temperature of those at odd positions and vice versa; None for fewer than two images.
    """
    halves = np.arange(len(labels)) % 2 == 0
    rows = []
    for level, values in zip(levels, log_probs, strict=True):
        correct = values.argmax(axis=1) == labels
        scaled = np.empty(values.shape)
        if len(labels) >= 2:
            for half in (halves, ~halves):
                scaled[half] = scale(values[half], fit_temperature(values[~half], labels[~half]))
        rows.append(
            {
                "timestep": int(level),
                "accuracy": float(correct.mean()),
                "accuracy_ci": list(wilson_interval(int(correct.sum()), len(labels), confidence)),
                "loss": _loss(scale(values, 1.0), labels),
                "ece": expected_calibration_error(np.exp(scale(values, 1.0)), labels),
                "temperature": fit_temperature(values, labels),
                "ece_scaled": expected_calibration_error(np.exp(scaled), labels) if len(labels) >= 2 else None,
            }
        )
    return rows


def interpolate(levels: np.ndarray, temperatures: np.ndarray, num_timesteps: int) -> np.ndarray:
    """The temperature at every timestep: log T is interpolated linearly between levels and constant beyond them.

    Args:
      levels: int [L], ascending timesteps.
      temperatures: [L], each above 0.
      num_timesteps: T.

    Returns:
      float32 [T].
    """
    return np.exp(np.interp(np.arange(num_timesteps), levels, np.log(temperatures))).astype(np.float32)


def _loss(log_probs: np.ndarray, labels: np.ndarray) -> float:
    return float(-log_probs[np.arange(len(labels)), labels].mean())
