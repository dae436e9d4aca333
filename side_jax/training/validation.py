"""What a classifier knows at each noise level, on images that were held back from its training; and when to stop.

Every held-back image is noised once at each of a few timesteps, always by the same noise. While the classifier is
trained, its mean loss there says when it no longer gets better; at the end, accuracy, calibration and the temperature
that would calibrate it are reported for each level (calibration.py).
"""

import logging
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
    """The timesteps looked at, int32 [L]: from 0 to T-1, evenly."""
    return np.unique(np.linspace(0, num_timesteps - 1, NUM_LEVELS).round()).astype(np.int32)


class Predictions:
    """A classifier's log-probabilities of the same images, clean or at any noise level."""

    def __init__(self, module: Any, schedule: Schedule | None, images: np.ndarray, base: jax.Array, batch_size: int):
        """Prepares the compiled function.

        Args:
          module: the classifier.
          schedule: by which images are noised; None: they stay clean.
          images: uint8 [n, h, w, c].
          base: the typed key of the noise.
          batch_size: divisible by the number of local devices.
        """
        self._images = images

        def predict(params, images, index, t):
            x = pixel_range.to_float(images)
            if schedule is None:
                return log_probs(module, params, x, t)
            keys = jax.vmap(jax.random.fold_in)(sample_keys(base, index), t)
            noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
            return log_probs(module, params, q_sample(schedule, x, t, noise), t)

        self._predict = placement.in_batches(predict, batch_size)

    def __call__(self, params: Any, levels: np.ndarray) -> np.ndarray:
        """float32 [L, n, C], for parameters on the host and timesteps int32 [L]."""
        index = np.arange(len(self._images), dtype=np.uint32)
        return np.stack([self._predict(params, self._images, index, np.full(len(index), t, np.int32)) for t in levels])


class EarlyStop:
    """Watches a classifier's training: writes the curve, keeps the best parameters, and says when to stop."""

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
          predictions: of the held-back images.
          labels: int32 [n], theirs.
          levels: the timesteps whose mean loss counts.
          patience: measurements without a lower loss after which to stop; 0: never, and nothing is kept.
          curves: of validation.jsonl.
          best: the folder for a checkpoint of the best parameters.
          meta: for that checkpoint.
        """
        self._predictions, self._labels, self._levels = predictions, labels, levels
        self._patience, self._curves, self._best, self._meta = patience, curves, best, meta

    def __call__(self, step: int, params: Any) -> bool:
        """Measures the parameters of a step, unless that is done; returns whether to stop training."""
        rows = self._curves.rows
        if not any(row["step"] == step for row in rows):
            found = self._predictions(params, self._levels)
            losses = [float(cross_entropy(jnp.asarray(one), jnp.asarray(self._labels)).mean()) for one in found]
            accuracy = float((found.argmax(axis=2) == self._labels).mean())
            self._curves.write({"step": step, "loss": float(np.mean(losses)), "accuracy": accuracy})
        if not self._patience:
            return False
        best = min(rows, key=lambda row: row["loss"])
        if best["step"] == step:
            with Checkpoints(self._best, keep=1) as store:
                if (store.latest_step() or 0) < step:  # else a run that was killed had come further
                    store.save(step, ema=placement.place(params, placement.mesh()), meta=self._meta)
        since = sum(row["step"] > best["step"] for row in rows)
        if since >= self._patience:
            logger.info("step %d: the validation loss was lowest at step %d; training ends here.", step, best["step"])
        return since >= self._patience
