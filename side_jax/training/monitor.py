"""The memorisation monitor: detects during training when the DPM begins to reproduce its training images.

At regular steps, a few hundred samples, always from the same noise, are compared with the members and with equally many
held-out images. Two rates are recorded, each with a Wilson interval:

    copied   fraction of samples with d1 / d2 < 1/3, the distances to the nearest and second nearest member (Yoon et al.
             2023; Gu et al. 2023); its control is the same fraction computed with held-out images
    closer   fraction of samples closer to some member than to every held-out image; chance is 50%

Memorisation has begun when an interval first excludes chance: that of `copied` lies above that of its control, or that
of `closer` lies above 50%.
"""

import functools
import logging
from typing import Any

import jax
import numpy as np

from side_jax.devices import process_group
from side_jax.diffusion import pixel_range
from side_jax.memorization.metrics import RATIO_BELOW, distance_ratio
from side_jax.memorization.neighbors import exact_search
from side_jax.memorization.statistics.intervals import wilson_interval
from side_jax.sampling import generation
from side_jax.settings import Monitor as MonitorSettings
from side_jax.workdir.curves import Curves

logger = logging.getLogger(__name__)

CONFIDENCE = 0.95


def measure(samples: np.ndarray, members: np.ndarray, heldout: np.ndarray) -> dict[str, Any]:
    """The rates defined in the module docstring, and median distances.

    Args:
      samples: float32 [n, h, w, c] in [-1, 1].
      members: float32 [m, h, w, c].
      heldout: float32 [m, h, w, c].

    Returns:
      copied, copied_heldout and closer, in [0, 1]; copied_ci, copied_heldout_ci and closer_ci, [low, high];
      distance_members and distance_heldout, the median RMSE to the nearest image.
    """
    interval = functools.partial(wilson_interval, trials=len(samples), confidence=CONFIDENCE)
    row: dict[str, Any] = {}
    nearest = {}
    for side, references, suffix in (("members", members, ""), ("heldout", heldout, "_heldout")):
        distance, _ = exact_search.nearest(samples, references, 2)
        copied = int((distance_ratio(distance) < RATIO_BELOW).sum())
        row |= {f"copied{suffix}": copied / len(samples), f"copied{suffix}_ci": list(interval(copied))}
        nearest[side] = distance[:, 0]
    closer = int((nearest["members"] < nearest["heldout"]).sum())
    row |= {"closer": closer / len(samples), "closer_ci": list(interval(closer))}
    return row | {f"distance_{side}": float(np.median(distance)) for side, distance in nearest.items()}


def onset(rows: list[dict[str, Any]]) -> dict[str, int | None]:
    """The first step at which each rate shows memorisation, or None: {"copied": step, "closer": step}."""

    def first(shows: Any) -> int | None:
        return next((row["step"] for row in rows if shows(row)), None)

    return {
        "copied": first(lambda row: row["copied_ci"][0] > row["copied_heldout_ci"][1]),
        "closer": first(lambda row: row["closer_ci"][0] > 0.5),
    }


class Monitor:
    """A watch (trainer.WatchFn) that measures memorisation, writes the curve, and decides when to stop training."""

    def __init__(
        self,
        settings: MonitorSettings,
        generator: generation.Generator,
        base: jax.Array,
        members: np.ndarray,
        heldout: np.ndarray,
        curves: Curves,
    ):
        """Prepares the monitor.

        Args:
          settings: the interval, number of samples, and stopping rate.
          generator: the unguided sampler.
          base: the typed key of the samples' noise.
          members: uint8 [m, h, w, c].
          heldout: uint8 [m, h, w, c].
          curves: the curve in train/monitor.jsonl.
        """
        self._settings, self._generator, self._base, self._curves = settings, generator, base, curves
        self._sides = pixel_range.to_float(np.asarray(members)), pixel_range.to_float(np.asarray(heldout))

    def __call__(self, step: int, params: Any) -> bool:
        """Measures the host parameters of a step, unless recorded; returns whether to stop training."""
        row = next((row for row in self._curves.rows if row["step"] == step), None)
        if row is None:
            index = np.arange(self._settings.num_samples)
            parts = [index[i : i + self._generator.batch_size] for i in index[:: self._generator.batch_size]]
            label = np.full(len(index), -1, np.int32)
            batches = [self._generator({"dpm": params}, self._base, part, label[part], 0.0) for part in parts]
            row = {"step": step} | measure(pixel_range.to_float(np.concatenate(batches)), *self._sides)
            self._curves.write(row)
        limit = self._settings.stop_at_rate
        stop = bool(limit) and row["copied"] >= limit
        if process_group.primary():
            logger.info(
                "step %d: %.1f%% of the samples copy a member (held-out %.1f%%), %.1f%% are closer to a member (chance "
                "50%%)%s",
                step,
                100 * row["copied"],
                100 * row["copied_heldout"],
                100 * row["closer"],
                f"; this reaches monitor.stop_at_rate = {limit:g}, so training stops." if stop else ".",
            )
        return stop
