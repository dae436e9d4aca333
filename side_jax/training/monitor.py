"""The memorisation monitor: detects during training when the DPM begins to reproduce its training images.

At regular steps, a few hundred samples, always from the same noise, are compared with the members and with equally many
held-out images. Three rates are recorded, each with a Wilson interval:

    matched  fraction of samples that match a member by the metric of the evaluation that comes first; its control is
             the same fraction computed with held-out images
    copied   fraction of samples with d1 / d2 < 1/3, the distances to the nearest and second nearest member (Yoon et al.
             2023; Gu et al. 2023); its control is the same fraction computed with held-out images
    closer   fraction of samples closer to some member than to every held-out image; chance is 50%

The same samples are then taken to modes of the model (diffusion/mode_seeking.py), for which the same rates are recorded
as modes_matched, modes_copied and modes_closer.

Memorisation has begun when an interval first excludes chance: that of `matched` or `copied` lies above that of its
control, or that of `closer` lies above 50%.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from side_jax.devices import process_group
from side_jax.diffusion import pixel_range
from side_jax.memorization import matching
from side_jax.memorization.metrics import DistanceRatio, Images, Metric, shared_search
from side_jax.memorization.statistics.intervals import wilson_interval
from side_jax.sampling import generation
from side_jax.sampling.mode_generation import ModeGenerator, draw
from side_jax.settings import Monitor as MonitorSettings
from side_jax.workdir.curves import Curves

logger = logging.getLogger(__name__)

CONFIDENCE = 0.95
RATES = ("matched", "copied")  # those with a control
OF = ("", "modes_")  # of the samples, and of the modes that they lead to


def measure(
    samples: np.ndarray, members: np.ndarray, heldout: np.ndarray, metric: Metric | None = None
) -> dict[str, Any]:
    """The rates defined in the module docstring, and median distances.

    Args:
      samples: float32 [n, h, w, c] in [-1, 1].
      members: float32 [m, h, w, c].
      heldout: float32 [m, h, w, c].
      metric: what a match is, without features; None: matches are not counted.

    Returns:
      matched, matched_heldout, copied, copied_heldout and closer, in [0, 1]; for each, its interval [low, high] as
      <name>_ci; distance_members and distance_heldout, the median RMSE to the nearest image.
    """
    interval = functools.partial(wilson_interval, trials=len(samples), confidence=CONFIDENCE)
    row: dict[str, Any] = {}
    nearest = {}
    metrics = [DistanceRatio(), *([metric] if metric else [])]
    for side, references, suffix in (("members", members, ""), ("heldout", heldout, "_heldout")):
        among = matching.references(references, metrics)
        images = Images(pixels=samples, features=None, neighbors=shared_search(samples, references, metrics))
        for name, one in zip(("copied", "matched"), metrics, strict=False):
            low, high = one.bands["high"]
            value = one.compare(images, among, 0.0).value  # with a limit of 0 no pairs are looked for
            count = int(((value >= low) & (value < high)).sum())
            row |= {f"{name}{suffix}": count / len(samples), f"{name}{suffix}_ci": list(interval(count))}
        nearest[side] = images.neighbors[0][:, 0]
    closer = int((nearest["members"] < nearest["heldout"]).sum())
    row |= {"closer": closer / len(samples), "closer_ci": list(interval(closer))}
    return row | {f"distance_{side}": float(np.median(distance)) for side, distance in nearest.items()}


def onset(rows: list[dict[str, Any]]) -> dict[str, int | None]:
    """The first step at which each recorded rate shows memorisation, or None: {"copied": step, "closer": step, ...}."""

    def first(shows: Any) -> int | None:
        return next((row["step"] for row in rows if shows(row)), None)

    found = {}
    for of in OF:
        for name in (f"{of}{rate}" for rate in RATES):
            if any(f"{name}_ci" in row for row in rows):
                found[name] = first(lambda row, name=name: row[f"{name}_ci"][0] > row[f"{name}_heldout_ci"][1])
        if any(f"{of}closer_ci" in row for row in rows):
            found[f"{of}closer"] = first(lambda row, of=of: row[f"{of}closer_ci"][0] > 0.5)
    return found


def last_clean(rows: list[dict[str, Any]]) -> int | None:
    """The last measured step before any rate with a control shows memorisation; None if one shows it from the start on.

    The rate `closer` does not count: where a split is by identity it shows learned identities.
    """
    shown = [step for name, step in onset(rows).items() if not name.endswith("closer") and step is not None]
    clean = [row["step"] for row in rows if not shown or row["step"] < min(shown)]
    return clean[-1] if clean else None


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
        seeker: Callable[[np.ndarray], ModeGenerator] | None = None,
        metric: Metric | None = None,
    ):
        """Prepares the monitor.

        Args:
          settings: the interval, number of samples, and stopping rate.
          generator: the unguided sampler.
          base: the typed key of the samples' noise.
          members: uint8 [m, h, w, c].
          heldout: uint8 [m, h, w, c].
          curves: the curve in train/monitor.jsonl.
          seeker: maps samples uint8 [n, h, w, c] to a generator of the modes that they lead to; None: modes are not
            recorded.
          metric: what a match is, without features; None: matches are not counted.
        """
        self._seeker, self._metric = seeker, metric
        self._settings, self._generator, self._base, self._curves = settings, generator, base, curves
        self._sides = pixel_range.to_float(np.asarray(members)), pixel_range.to_float(np.asarray(heldout))

    def __call__(self, step: int, params: Any) -> bool:
        """Measures the host parameters of a step, unless recorded; returns whether to stop training."""
        row = next((row for row in self._curves.rows if row["step"] == step), None)
        if row is None:
            samples = self._draw(self._generator, params)
            row = {"step": step} | measure(pixel_range.to_float(samples), *self._sides, self._metric)
            if self._seeker:
                modes = self._draw(self._seeker(samples), params)
                found = measure(pixel_range.to_float(modes), *self._sides, self._metric)
                row |= {f"modes_{name}": value for name, value in found.items()}
            self._curves.write(row)
        limits = {"copied": self._settings.stop_at_rate, "modes_copied": self._settings.stop_at_modes_rate}
        stop = any(limit and row[name] >= limit for name, limit in limits.items())
        if process_group.primary():
            logger.info("%s", _line(row, stop))
        return stop

    def _draw(self, generator: generation.Generator | ModeGenerator, params: Any) -> np.ndarray:
        """The samples of a generator, uint8 [n, h, w, c]."""
        return draw(generator, {"dpm": params}, self._base, self._settings.num_samples)


def _line(row: dict[str, Any], stop: bool) -> str:
    """The log line of a measurement."""
    text = (
        f"step {row['step']}: {100 * row['copied']:.1f}% of the samples copy a member (held-out "
        f"{100 * row['copied_heldout']:.1f}%), {100 * row['closer']:.1f}% are closer to a member (chance 50%)"
    )
    if "modes_copied" in row:
        text += (
            f"; of their modes, {100 * row['modes_copied']:.1f}% copy a member (held-out "
            f"{100 * row['modes_copied_heldout']:.1f}%)"
        )
    return text + ("; this reaches the monitor's limit, so training stops." if stop else ".")
