"""Noise schedules of a discrete-time DPM, and the time grids of samplers.

Notation (Ho, Jain and Abbeel 2020, "Denoising Diffusion Probabilistic Models"), for t = 0..T-1, larger = noisier.
Their beta_1 is `betas[0]` here, so index t holds the quantities after t + 1 noising steps:

    alpha_t     = 1 - beta_t                                                                       (1)
    alpha_bar_t = prod_{s <= t} alpha_s                                                            (2)
    x_t         = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) epsilon,   epsilon ~ N(0, I)       (3)

By convention alpha_bar_{-1} = 1: the clean image.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

SCHEDULES = ("linear", "scaled_linear", "cosine")
SPACINGS = ("leading", "trailing", "linspace", "log_snr")
PREDICTIONS = ("epsilon", "x0", "v")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """A variance-preserving schedule and the prediction type of a network trained on it.

    Attributes:
      betas: float64 [T], the variance added by each step, each in (0, 1).
      prediction_type: one of PREDICTIONS, see process.py.
    """

    betas: np.ndarray
    prediction_type: str = "epsilon"

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTIONS:
            raise ValueError(
                f"unknown prediction type {self.prediction_type!r}: choose one of {', '.join(PREDICTIONS)}"
            )
        betas = self.betas
        if betas.ndim != 1 or betas.size == 0 or not ((betas > 0) & (betas < 1)).all():
            raise ValueError("betas must be a non-empty vector with every value strictly between 0 and 1")
        if self.alpha_bar[-1] < np.finfo(np.float32).tiny:
            raise ValueError(
                f"the betas, {betas[0]:.3g} to {betas[-1]:.3g} in {len(betas)} steps, leave {self.alpha_bar[-1]:.3g} "
                "of the image's variance at the last step, too little for float32; use fewer steps or smaller betas"
            )

    @property
    def num_timesteps(self) -> int:
        """T."""
        return self.betas.size

    @property
    def alpha_bar(self) -> np.ndarray:
        """Equation (2), float64 [T], strictly decreasing."""
        return np.cumprod(1.0 - self.betas)

    @property
    def log_snr(self) -> np.ndarray:
        """Log of the signal-to-noise ratio, log( alpha_bar / (1 - alpha_bar) ), float64 [T], strictly decreasing."""
        return np.log(self.alpha_bar) - np.log1p(-self.alpha_bar)


def make_schedule(
    name: str,
    num_timesteps: int,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    prediction_type: str = "epsilon",
    trained_betas: Sequence[float] = (),
) -> Schedule:
    """Builds a schedule by name, or from given betas.

    Args:
      name: `linear` (Ho et al. 2020: betas linear from beta_start to beta_end), `scaled_linear` (Rombach et al. 2022:
        the square roots of the betas are linear) or `cosine` (Nichol and Dhariwal 2021, eq. 17, betas capped at 0.999;
        beta_start and beta_end are not used).
      num_timesteps: T, at least 1.
      beta_start: beta of the first step, in (0, 1).
      beta_end: beta of the last step, in (0, 1).
      prediction_type: what the network predicts, one of PREDICTIONS.
      trained_betas: the betas themselves; if not empty, the arguments before prediction_type are ignored.

    Raises:
      ValueError: if the name or the prediction type is unknown, betas are outside (0, 1), or they leave so little of
        the image that float32 can't hold it.
    """
    if len(trained_betas):
        betas = np.asarray(trained_betas, np.float64)
    elif name == "linear":
        betas = np.linspace(beta_start, beta_end, num_timesteps)
    elif name == "scaled_linear":
        betas = np.linspace(beta_start**0.5, beta_end**0.5, num_timesteps) ** 2
    elif name == "cosine":
        u = np.arange(num_timesteps + 1) / num_timesteps
        f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    else:
        raise ValueError(f"unknown schedule {name!r}: choose one of {', '.join(SCHEDULES)}")
    return Schedule(betas=betas, prediction_type=prediction_type)


def time_grid(schedule: Schedule, num_steps: int, spacing: str = "trailing") -> np.ndarray:
    """Returns the timesteps at which a sampler calls the denoiser, noisiest first.

    Three names are those of Lin et al. 2024 ("Common Diffusion Noise Schedules and Sample Steps are Flawed", table 2):
    `trailing` starts at T - 1, `leading` ends at 0, `linspace` does both. `log_snr` also does both, with uniform steps
    in log(alpha_bar / (1 - alpha_bar)) (Lu et al. 2022, "DPM-Solver"), rounded to timesteps; duplicates move to free
    neighbouring timesteps. All give the full grid T-1..0 if num_steps = T.

    Args:
      schedule: a schedule with T timesteps.
      num_steps: S, from 1 to T.
      spacing: one of SPACINGS.

    Returns:
      int32 [S], strictly decreasing, within 0..T-1.

    Raises:
      ValueError: if num_steps is not in 1..T or the spacing is unknown.
    """
    num_timesteps = schedule.num_timesteps
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"num_steps must be between 1 and the schedule's {num_timesteps} timesteps, got {num_steps}")
    if spacing == "trailing":
        # As in diffusers, so that ties are rounded in the same way; rounding errors can add one value too many.
        grid = np.round(np.arange(num_timesteps, 0, -num_timesteps / num_steps))[:num_steps] - 1
    elif spacing == "leading":
        grid = np.arange(num_steps)[::-1] * (num_timesteps // num_steps)
    elif spacing == "linspace":
        grid = np.round(np.linspace(0, num_timesteps - 1, num_steps))[::-1]
        grid[0] = num_timesteps - 1  # needed for a single step, where linspace gives its first end
    elif spacing == "log_snr":
        log_snr = schedule.log_snr
        targets = np.linspace(log_snr[-1], log_snr[0], num_steps)
        grid = np.round(np.interp(-targets, -log_snr, np.arange(num_timesteps)))
        # Separate duplicates upwards from the clean end, then downwards from the noisy one.
        place = np.arange(num_steps)
        grid = np.maximum.accumulate(grid[::-1] - place) + place
        grid = np.minimum(grid, num_timesteps - num_steps + place)[::-1]
    else:
        raise ValueError(f"unknown spacing {spacing!r}: choose one of {', '.join(SPACINGS)}")
    return grid.astype(np.int32)
