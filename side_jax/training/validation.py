"""Validates a classifier on held-back images at several noise levels, and stops its training early.

Every held-back image is noised once at each of a few timesteps, always by the same noise. During training, the mean
loss on these images determines when to stop; afterwards calibration.py computes accuracy, calibration error and
temperature for each level.
"""

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.devices import placement
from side_jax.diffusion import pixel_range
from side_jax.diffusion.process import q_sample
from side_jax.diffusion.sampler import sample_keys
from side_jax.diffusion.schedule import Schedule
from side_jax.models.classifier import log_probs
from side_jax.training.losses import cross_entropy
from side_jax.workdir.checkpoint import Checkpoints
from side_jax.workdir.curves import Curves

logger = logging.getLogger(__name__)

NUM_LEVELS = 11


def noise_levels(num_timesteps: int) -> np.ndarray:
    """The validated timesteps, int32 [L]: evenly spaced from 0 to T-1, at most NUM_LEVELS."""
    return np.unique(np.linspace(0, num_timesteps - 1, NUM_LEVELS).round()).astype(np.int32)


@functools.lru_cache(maxsize=4)  # classifiers that differ only in what they learned share one program
def _predictor(module: Any, schedule: Schedule | None, batch_size: int) -> Callable[..., np.ndarray]:
    """Maps ((parameters, typed key), images, global indices, timesteps), of any length, to log-probabilities."""

    def predict(given: Any, images: jax.Array, index: jax.Array, t: jax.Array) -> jax.Array:
        params, base = given
        x = pixel_range.to_float(images)
        if schedule is None:
            return log_probs(module, params, x, t)
        keys = jax.vmap(jax.random.fold_in)(sample_keys(base, index), t)
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
        return log_probs(module, params, q_sample(schedule, x, t, noise), t)

    return placement.in_batches(predict, batch_size)


class Predictions:
    """A classifier's log-probabilities of the same images, clean or at any noise level."""

    def __init__(self, module: Any, schedule: Schedule | None, images: np.ndarray, base: jax.Array, batch_size: int):
        """Prepares the compiled function.

        Args:
          module: the classifier.
          schedule: the noise schedule; None: clean images.
          images: uint8 [n, h, w, c].
          base: the typed key of the noise.
          batch_size: divisible by the number of local devices.
        """
        self._images, self._base = images, base
        self._predict = _predictor(module, schedule, batch_size)

    def __call__(self, params: Any, levels: np.ndarray) -> np.ndarray:
        """Log-probabilities float32 [L, n, C], given host parameters and timesteps int32 [L]."""
        given, index = (params, self._base), np.arange(len(self._images), dtype=np.uint32)
        return np.stack([self._predict(given, self._images, index, np.full(len(index), t, np.int32)) for t in levels])


class EarlyStop:
    """A watch (trainer.WatchFn) that validates a classifier, keeps its best parameters, and decides when to stop."""

    def __init__(
        self,
        predictions: Predictions,
        labels: np.ndarray,
        levels: np.ndarray,
        patience: int,
        curves: Curves,
        best: Path,
        meta: dict[str, Any],
    ):
        """Prepares the watch.

        Args:
          predictions: predicts for the held-back images.
          labels: int32 [n], of the held-back images.
          levels: the timesteps over which the loss is averaged.
          patience: validations without a lower loss after which to stop; 0: never stop and save no best parameters.
          curves: the curve in validation.jsonl.
          best: the folder for a checkpoint of the best parameters.
          meta: for that checkpoint.
        """
        self._predictions, self._labels, self._levels = predictions, labels, levels
        self._patience, self._curves, self._best, self._meta = patience, curves, best, meta

    def __call__(self, step: int, params: Any) -> bool:
        """Validates the parameters of a step, unless recorded; returns whether to stop training."""
        rows = self._curves.rows
        if not any(row["step"] == step for row in rows):
            log_probabilities = self._predictions(params, self._levels)
            losses = [
                float(cross_entropy(jnp.asarray(one), jnp.asarray(self._labels)).mean()) for one in log_probabilities
            ]
            accuracy = float((log_probabilities.argmax(axis=2) == self._labels).mean())
            self._curves.write({"step": step, "loss": float(np.mean(losses)), "accuracy": accuracy})
        if not self._patience:
            return False
        best = min(rows, key=lambda row: row["loss"])
        if best["step"] == step:
            with Checkpoints(self._best, keep=1) as store:
                if (store.latest_step() or 0) < step:  # else a killed run had saved this step or a later one
                    store.save(step, ema=placement.place(params, placement.training_mesh()), meta=self._meta)
        since = sum(row["step"] > best["step"] for row in rows)
        if since >= self._patience:
            logger.info("step %d: the validation loss was lowest at step %d; training stops.", step, best["step"])
        return since >= self._patience
