"""The coefficients of a sampler's steps, precomputed for a time grid.

With the notation of process.py, one step goes from timestep t to the next, less noisy t' of the grid; the last one ends
at the clean image, alpha_bar = 1. sampler.py has the equations that the coefficients belong to.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import jax
import numpy as np

from side_jax.diffusion.schedule import Schedule, time_grid

SOLVERS = ("ddim", "dpmpp_2m")
VARIANCES = ("small", "large", "learned_range")
_TRACED = ("number", "t", "next_t", "signal", "sigma", "next_signal", "next_sigma", "std", "std_large", "extrapolate")
_STATIC = ("prediction_type", "learned", "stochastic", "multistep", "clip", "recompute")


@functools.partial(jax.tree_util.register_dataclass, data_fields=_TRACED, meta_fields=_STATIC)
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One step's coefficients, scalars that may be traced, or arrays of several; float32 but for the first three.

    Attributes:
      number: int32, 0..S-1.
      t: int32, the timestep given to the denoiser.
      next_t: int32, t'; 0 in the last step, which ends at the clean image.
      signal: sqrt(abar_t).
      sigma: sqrt(1 - abar_t).
      next_signal: sqrt(abar_t').
      next_sigma: sqrt(1 - abar_t' - std^2), with the std of equation (2).
      std: of the noise, equation (2) or (4); zero for eta = 0. For a learned variance, its lower end.
      std_large: equation (4), the upper end of a learned variance.
      extrapolate: the weight c of equation (6); zero for DDIM and DDPM.
      prediction_type: what the denoiser predicts.
      learned: whether the denoiser's output has the variance's coefficients beside its prediction.
      stochastic: whether the sampler draws noise.
      multistep: whether the sampler looks back at the step before.
      clip: whether x0_hat is clipped to [-1, 1].
      recompute: whether epsilon_hat is recomputed from the clipped x0_hat.
    """

    number: jax.typing.ArrayLike
    t: jax.typing.ArrayLike
    next_t: jax.typing.ArrayLike
    signal: jax.typing.ArrayLike
    sigma: jax.typing.ArrayLike
    next_signal: jax.typing.ArrayLike
    next_sigma: jax.typing.ArrayLike
    std: jax.typing.ArrayLike
    std_large: jax.typing.ArrayLike
    extrapolate: jax.typing.ArrayLike
    prediction_type: str
    learned: bool
    stochastic: bool
    multistep: bool
    clip: bool
    recompute: bool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StepTable:
    """The S steps of a sampler, noisiest first.

    Attributes:
      steps: of arrays of length S, on the host.
      guided: bool [S], whether guidance acts in each.
    """

    steps: Step
    guided: np.ndarray

    @property
    def num_steps(self) -> int:
        """S."""
        return self.guided.size

    def __getitem__(self, which: int | slice) -> Step:
        return jax.tree.map(lambda array: array[which], self.steps)

    def segments(self, guided: bool) -> Iterator[tuple[int, int, bool]]:
        """The runs of steps [start, stop) that are all guided or all not.

        Args:
          guided: whether there is a guidance at all.
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
    eta: float = 0.0,
    variance: str = "small",
    spacing: str = "trailing",
    interval: tuple[int, ...] = (),
    clip: bool = True,
    recompute: bool = True,
) -> StepTable:
    """Computes the coefficients in float64 and stores them in float32.

    Args:
      schedule: the noise schedule that the DPM was trained with.
      num_steps: S, from 1 to T.
      solver: "ddim" (with eta = 1, DDPM) or "dpmpp_2m".
      eta: 0 (DDIM) to 1 (DDPM).
      variance: of the noise: "small" (equation 2), "large" (equation 4), or "learned_range" between them (equation 5).
      spacing: the time grid, see schedule.time_grid.
      interval: (t_low, t_high), the timesteps at which guidance acts, both included (Kynkaanniemi et al. 2024,
        "Applying Guidance in a Limited Interval"); empty: at all.
      clip: clip x0_hat to the data's range [-1, 1].
      recompute: where x0_hat is clipped, recompute epsilon_hat from it; eta = 1 and DPM-Solver++ need that.

    Raises:
      ValueError: if eta is outside [0, 1], a name is unknown, the grid is impossible, the interval is empty, or the
        solver can't have them together.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be between 0 (DDIM) and 1 (DDPM), got {eta}")
    for name, value, known in (("variance", variance, VARIANCES), ("solver", solver, SOLVERS)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
    if solver != "ddim" and (eta or not recompute):
        raise ValueError(f"{solver} draws no noise and knows x0 alone: eta must be 0 and recompute true")
    if variance == "learned_range" and eta != 1:
        raise ValueError(f"a learned variance is DDPM's: eta must be 1, got {eta}")
    if interval and not (len(interval) == 2 and 0 <= interval[0] <= interval[1]):
        raise ValueError(f"interval must be (t_low, t_high) with 0 <= t_low <= t_high, got {interval}")
    t = time_grid(schedule, num_steps, spacing)
    abar = schedule.alpha_bar[t]
    abar_next = np.append(abar[1:], 1.0)
    std = eta * np.sqrt((1 - abar_next) / (1 - abar)) * np.sqrt(1 - abar / abar_next)
    std_large = eta * np.sqrt(1 - abar / abar_next) * (abar_next < 1)
    extrapolate = np.zeros(num_steps)
    if solver == "dpmpp_2m" and num_steps > 2:
        h = np.diff(0.5 * schedule.log_snr[t])  # of every step but the last, which goes to a log-SNR of infinity
        extrapolate[1:-1] = h[1:] / (2 * h[:-1])
    single = {
        "signal": np.sqrt(abar),
        "sigma": np.sqrt(1 - abar),
        "next_signal": np.sqrt(abar_next),
        "next_sigma": np.sqrt(np.maximum(1 - abar_next - std**2, 0.0)),
        "std": std_large if variance == "large" else std,
        "std_large": std_large,
        "extrapolate": extrapolate,
    }
    steps = Step(
        number=np.arange(num_steps, dtype=np.int32),
        t=t,
        next_t=np.append(t[1:], 0).astype(np.int32),
        prediction_type=schedule.prediction_type,
        learned=variance == "learned_range",
        stochastic=eta > 0,
        multistep=solver == "dpmpp_2m",
        clip=clip,
        recompute=recompute,
        **{name: value.astype(np.float32) for name, value in single.items()},
    )
    low, high = interval or (0, schedule.num_timesteps)
    return StepTable(steps=steps, guided=(low <= t) & (t <= high))
