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

Chance is judged by permuting which images are members, for the hits of each rate on members and held-out images
together (statistics/permutation.py); its p-value stands beside the rate. The monitor looks many times, so that a small
p-value comes by chance alone. Two statements need opposite corrections:

    memorisation has begun at the k-th look if p <= 0.05 / (k (k + 1)), which over all looks sum to at most 0.05
    a step was clean if neither it nor an earlier one had p <= 0.05, without a correction
"""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from side_jax.devices import process_group
from side_jax.diffusion import pixel_range
from side_jax.memorization import matching
from side_jax.memorization.metrics import DistanceRatio, Images, Metric, Rmse, shared_search
from side_jax.memorization.statistics.intervals import wilson_interval
from side_jax.memorization.statistics.permutation import permutation_test
from side_jax.progress import doing
from side_jax.sampling import generation
from side_jax.sampling.mode_generation import ModeGenerator, draw
from side_jax.settings import Monitor as MonitorSettings
from side_jax.workdir.curves import Curves

logger = logging.getLogger(__name__)

CONFIDENCE = 0.95
BOTH = 2  # members and held-out images together, over the members
RATES = ("matched", "copied")  # those with a control
OF = ("", "modes_")  # of the samples, and of the modes that they lead to


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sides:
    """What samples are compared with.

    Attributes:
      members: float32 [m, h, w, c] in [-1, 1].
      heldout: float32 [k, h, w, c].
      groups: int [m] and int [k], images that change sides together in a permutation; None: each is alone.
      tested: bool [m], members that take part in permutations; None: all.
    """

    members: np.ndarray
    heldout: np.ndarray
    groups: tuple[np.ndarray, np.ndarray] | None = None
    tested: np.ndarray | None = None

    @functools.cached_property
    def both(self) -> np.ndarray:
        """Members and held-out images as one set."""
        return np.concatenate([self.members, self.heldout])

    def p_value(self, hits: np.ndarray) -> float:
        """Of "members are not hit more often", for int [m + k] hits on each of `both`."""
        is_member = np.arange(len(hits)) < len(self.members)
        tested = np.ones(len(hits), bool)
        if self.tested is not None:
            tested[: len(self.members)] = self.tested
        if not (tested & is_member).any():
            return 1.0
        groups = None if self.groups is None else np.concatenate(self.groups)[tested]
        return permutation_test(hits[tested], is_member[tested], groups)[0]


def measure(samples: np.ndarray, sides: Sides, metric: Metric | None = None) -> dict[str, Any]:
    """The rates defined in the module docstring, and median distances.

    Args:
      samples: float32 [n, h, w, c] in [-1, 1].
      sides: what they are compared with.
      metric: what a match is, without features; None: matches are not counted.

    Returns:
      matched, matched_heldout, copied, copied_heldout and closer, in [0, 1]; for each, its interval [low, high] as
      <name>_ci; matched_p, copied_p and closer_p; closer_chance, the share of members among all references;
      distance_members and distance_heldout, the median RMSE to the nearest image.
    """
    interval = functools.partial(wilson_interval, trials=len(samples), confidence=CONFIDENCE)
    row: dict[str, Any] = {}
    names = ("copied", *(("matched",) if metric else ()))
    metrics = [DistanceRatio(), *([metric] if metric else [])]
    neighbors = []
    for references, suffix in ((sides.members, ""), (sides.heldout, "_heldout")):
        among = matching.references(references, metrics)
        neighbors.append(shared_search(samples, references, metrics, BOTH))
        images = Images(pixels=samples, features=None, neighbors=neighbors[-1])
        for name, one in zip(names, metrics, strict=True):
            low, high = one.bands["high"]
            value, _ = one.nearest(images, among)
            count = int(((value >= low) & (value < high)).sum())
            row |= {f"{name}{suffix}": count / len(samples), f"{name}{suffix}_ci": list(interval(count))}
    *found, nearest = matching.match_both(
        samples,
        matching.references(sides.both, metrics, thinned=BOTH),
        [*metrics, Rmse()],
        neighbors,
        [len(sides.members), len(sides.heldout)],
        thinned=BOTH,
    )
    for name, one, matches in zip(names, metrics, found, strict=True):
        row[f"{name}_p"] = sides.p_value(matches.score(one.bands["high"]).extracted)
    row["closer_p"] = sides.p_value(np.bincount(nearest.nearest, minlength=len(sides.both)))
    to_members, to_heldout = (distance[:, 0] for distance, _ in neighbors)
    closer = int((to_members < to_heldout).sum())
    row |= {"closer": closer / len(samples), "closer_ci": list(interval(closer))}
    row["closer_chance"] = len(sides.members) / len(sides.both)
    return row | {"distance_members": float(np.median(to_members)), "distance_heldout": float(np.median(to_heldout))}


def onset(rows: list[dict[str, Any]]) -> dict[str, int | None]:
    """The first step at which each recorded rate shows memorisation, or None: {"copied": step, "closer": step, ...}.

    Curves of earlier versions have no p-values, and so no entries.
    """
    level = 1 - CONFIDENCE
    return {
        name: next(
            (row["step"] for k, row in enumerate(rows, start=1) if row.get(f"{name}_p", 1.0) <= level / (k * (k + 1))),
            None,
        )
        for name in (f"{of}{rate}" for of in OF for rate in (*RATES, "closer"))
        if any(f"{name}_p" in row for row in rows)
    }


def last_clean(rows: list[dict[str, Any]]) -> int | None:
    """The last measured step before matches or copies first have p <= 0.05; None if the first step has.

    The rate `closer` does not count: a model is closer to its members long before any of them comes out.
    """
    names = [f"{of}{rate}_p" for of in OF for rate in RATES]
    clean = None
    for row in rows:
        if any(row.get(name, 1.0) <= 1 - CONFIDENCE for name in names):
            break
        clean = row["step"]
    return clean


class Monitor:
    """A watch (trainer.WatchFn) that measures memorisation, writes the curve, and decides when to stop training."""

    def __init__(
        self,
        settings: MonitorSettings,
        generator: generation.Generator,
        base: jax.Array,
        sides: Sides,
        curves: Curves,
        seeker: Callable[[np.ndarray], ModeGenerator] | None = None,
        metric: Metric | None = None,
    ):
        """Prepares the monitor.

        Args:
          settings: the interval, number of samples, and stopping rate.
          generator: the unguided sampler.
          base: the typed key of the samples' noise.
          sides: what samples are compared with.
          curves: the curve in train/monitor.jsonl.
          seeker: maps samples uint8 [n, h, w, c] to a generator of the modes that they lead to; None: modes are not
            recorded.
          metric: what a match is, without features; None: matches are not counted.
        """
        self._seeker, self._metric = seeker, metric
        self._settings, self._generator, self._base, self._curves = settings, generator, base, curves
        self._sides = sides

    def __call__(self, step: int, params: Any) -> bool:
        """Measures the host parameters of a step, unless recorded; returns whether to stop training."""
        row = next((row for row in self._curves.rows if row["step"] == step), None)
        if row is None:
            with doing("measuring memorisation"):
                row = {"step": step} | self._measured(params)
            self._curves.write(row)
        limits = {"copied": self._settings.stop_at_rate, "modes_copied": self._settings.stop_at_modes_rate}
        stop = any(limit and row[name] >= limit for name, limit in limits.items())
        if process_group.primary():
            logger.info("%s", _line(row, stop))
        return stop

    def _measured(self, params: Any) -> dict[str, Any]:
        """The rates of the samples, and of the modes that they lead to."""
        samples = self._draw(self._generator, params)
        row = measure(pixel_range.to_float(samples), self._sides, self._metric)
        if self._seeker:
            modes = self._draw(self._seeker(samples), params)
            found = measure(pixel_range.to_float(modes), self._sides, self._metric)
            row |= {f"modes_{name}": value for name, value in found.items()}
        return row

    def _draw(self, generator: generation.Generator | ModeGenerator, params: Any) -> np.ndarray:
        """The samples of a generator, uint8 [n, h, w, c]."""
        return draw(generator, {"dpm": params}, self._base, self._settings.num_samples)


def _line(row: dict[str, Any], stop: bool) -> str:
    """The log line of a measurement."""
    text = (
        f"step {row['step']}: {100 * row['copied']:.1f}% of the samples copy a member (held-out "
        f"{100 * row['copied_heldout']:.1f}%), {100 * row['closer']:.1f}% are closer to a member (chance "
        f"{100 * row['closer_chance']:.0f}%)"
    )
    if "modes_copied" in row:
        text += (
            f"; of their modes, {100 * row['modes_copied']:.1f}% copy a member (held-out "
            f"{100 * row['modes_copied_heldout']:.1f}%)"
        )
    return text + ("; this reaches the monitor's limit, so training stops." if stop else ".")
