"""Computes the coefficients of a sampler's steps, once for a time grid.

One step goes from timestep t to the next, less noisy t' of the grid; the last one ends at the clean image, where
alpha_bar is 1. The equations are in solvers.py.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from side_jax.diffusion.schedule import Schedule, time_grid
from side_jax.diffusion.solvers import SOLVERS, Step


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StepTable:
    """The S steps of a sampler, noisiest first.

    Attributes:
      steps: arrays of length S, on the host.
      guided: bool [S], whether each step is guided.
    """

    steps: Step
    guided: np.ndarray

    @property
    def num_steps(self) -> int:
        """S."""
        return self.guided.size

    def __getitem__(self, index: int | slice) -> Step:
        return jax.tree.map(lambda array: array[index], self.steps)

    def last(self, count: int) -> "StepTable":
        """The last steps, for an x that no earlier step has made: a solver that looks back begins anew."""
        rest = slice(self.num_steps - count, None)
        steps = self[rest]
        steps = dataclasses.replace(steps, extrapolation=steps.extrapolation * (np.arange(count) > 0))
        return StepTable(steps=steps, guided=self.guided[rest])

    def segments(self, guided: bool) -> Iterator[tuple[int, int, bool]]:
        """Yields (start, stop, guided) for each run of steps that are all guided or all not.

        Args:
          guided: whether there is any guidance.
        """
        flags = self.guided & guided
        edges = [0, *(np.flatnonzero(np.diff(flags)) + 1), self.num_steps]
        for start, stop in itertools.pairwise(edges):
            yield int(start), int(stop), bool(flags[start])


def step_table(
    schedule: Schedule,
    num_steps: int,
    *,
    solver: str = "ddim",
    spacing: str = "trailing",
    interval: tuple[int, ...] = (),
    **options: Any,
) -> StepTable:
    """Computes the coefficients in float64 and stores them in float32.

    Args:
      schedule: the noise schedule that the DPM was trained with.
      num_steps: S, from 1 to T.
      solver: name of the solver, a key of SOLVERS.
      spacing: the time grid, see schedule.time_grid.
      interval: (t_low, t_high), the first and last timestep with guidance (Kynkaanniemi et al. 2024, "Applying Guidance
        in a Limited Interval"); empty: all timesteps.
      **options: the solver's attributes.

    Raises:
      ValueError: if a name or an option is unknown, an option is out of range, the grid is impossible, or the
        interval is empty.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}: choose one of {', '.join(SOLVERS)}")
    known = [field.name for field in dataclasses.fields(SOLVERS[solver])]
    if unknown := options.keys() - set(known):
        raise ValueError(f"{solver} has no option {', '.join(sorted(unknown))}: it has {', '.join(known)}")
    if interval and not (len(interval) == 2 and 0 <= interval[0] <= interval[1]):
        raise ValueError(f"interval must be (t_low, t_high) with 0 <= t_low <= t_high, got {interval}")
    instance = SOLVERS[solver](**options)
    t = time_grid(schedule, num_steps, spacing)
    abar = schedule.alpha_bar[t]
    values = {
        "signal": np.sqrt(abar),
        "sigma": np.sqrt(1 - abar),
        "next_signal": np.sqrt(np.append(abar[1:], 1.0)),
        **instance.coefficients(schedule, t),
    }
    places: dict[str, Any] = {
        "number": np.arange(num_steps, dtype=np.int32),
        "t": t,
        "next_t": np.append(t[1:], 0).astype(np.int32),
    }
    steps = Step(
        prediction_type=schedule.prediction_type,
        solver=instance,
        **places,
        **{name: value.astype(np.float32) for name, value in values.items()},
    )
    low, high = interval or (0, schedule.num_timesteps)
    return StepTable(steps=steps, guided=(low <= t) & (t <= high))
