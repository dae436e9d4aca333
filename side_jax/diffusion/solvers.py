"""Solvers: each takes a step from x_t to the next, less noisy x_t', given the network's prediction at t.

A solver defines the coefficients of its steps (computed once for a time grid), the mean of x_t' given x_t, and the
noise that is added to it. sampler.py takes the steps; steps.py holds the table of coefficients.

DDIM and DDPM (Song, Meng and Ermon 2021, eq. 12 and 16), where abar' is alpha_bar at t':

    std     = eta sqrt( (1 - abar') / (1 - abar) ) sqrt( 1 - abar / abar' )                        (1)
    mean    = sqrt(abar') x0_hat + sqrt(1 - abar' - std^2) epsilon_hat                             (2)
    x_t'    = mean + std z,   z ~ N(0, I)                                                          (3)

eta = 0 is DDIM, deterministic given x_T. eta = 1 on the full grid is the ancestral DDPM sampler with the small
variance beta_tilde (Ho et al. 2020, eq. 7). The large variance (beta_t on the full grid, Ho et al. 2020, section 3.2)
uses the following std for the noise in (3), but not for the mean, and no noise in the last step:

    std     = eta sqrt( 1 - abar / abar' )                                                         (4)

DPM-Solver++ (2M) (Lu et al. 2022, "DPM-Solver++", algorithm 2) is (2) with std = 0, where x0_hat is first extrapolated
from the previous step's, and epsilon_hat recomputed from the result. With the step h in log(sqrt(abar / (1 - abar))),

    D = x0_hat + c (x0_hat - previous x0_hat),   c = h / (2 previous h),                           (5)

and c = 0 in the first step and in the last, which ends at an infinite log-SNR.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar

import jax
import numpy as np

from side_jax.diffusion.process import epsilon_and_x0
from side_jax.diffusion.schedule import Schedule

VARIANCES = ("small", "large")
_TRACED = ("number", "t", "next_t", "signal", "sigma", "next_signal", "next_sigma", "std", "extrapolation")


@functools.partial(jax.tree_util.register_dataclass, data_fields=_TRACED, meta_fields=("prediction_type", "solver"))
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """Coefficients of one step (scalars that may be traced) or of several (arrays); int32, then float32.

    Attributes:
      number: int32, 0..S-1.
      t: int32, the timestep given to the denoiser.
      next_t: int32, t'; 0 in the last step, which ends at the clean image.
      signal: sqrt(abar_t).
      sigma: sqrt(1 - abar_t).
      next_signal: sqrt(abar_t').
      next_sigma: sqrt(1 - abar_t' - std^2), with the std of equation (1).
      std: standard deviation of the solver's noise.
      extrapolation: the weight c of equation (5).
      prediction_type: what the denoiser predicts.
      solver: the solver that takes the step.
    """

    number: jax.Array
    t: jax.Array
    next_t: jax.Array
    signal: jax.Array
    sigma: jax.Array
    next_signal: jax.Array
    next_sigma: jax.Array
    std: jax.Array
    extrapolation: jax.Array
    prediction_type: str
    solver: "Solver"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM:
    """Equations (1) to (4).

    Attributes:
      eta: 0 (DDIM) to 1 (DDPM).
      variance: of the noise: "small" (equation 1) or "large" (equation 4).
      clip: whether x0_hat is clipped to the data's range [-1, 1].
      recompute: whether epsilon_hat is recomputed from the clipped x0_hat; needed for eta = 1.
    """

    eta: float = 0.0
    variance: str = "small"
    clip: bool = True
    recompute: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must be between 0 (DDIM) and 1 (DDPM), got {self.eta}")
        if self.variance not in VARIANCES:
            raise ValueError(f"unknown variance {self.variance!r}: choose one of {', '.join(VARIANCES)}")

    @property
    def stochastic(self) -> bool:
        """Whether the solver draws noise."""
        return self.eta > 0

    def coefficients(self, schedule: Schedule, t: np.ndarray) -> Mapping[str, np.ndarray]:
        """Returns `std`, `next_sigma` and `extrapolation`, float64 [S], of the steps from timesteps t, int32 [S]."""
        abar = schedule.alpha_bar[t]
        abar_next = np.append(abar[1:], 1.0)
        small = self.eta * np.sqrt((1 - abar_next) / (1 - abar)) * np.sqrt(1 - abar / abar_next)
        large = self.eta * np.sqrt(1 - abar / abar_next) * (abar_next < 1)
        return {
            "std": large if self.variance == "large" else small,
            "next_sigma": np.sqrt(np.maximum(1 - abar_next - small**2, 0.0)),
            "extrapolation": np.zeros(len(t)),
        }

    def mean(self, step: Step, x: jax.Array, x0: jax.Array, previous_x0: jax.Array, epsilon: jax.Array) -> jax.Array:
        """Returns the mean of equation (2)."""
        return step.next_signal * x0 + step.next_sigma * epsilon


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP2M:
    """Equation (5), deterministic.

    Attributes:
      clip: whether x0_hat is clipped to the data's range [-1, 1].
    """

    clip: bool = True

    recompute: ClassVar[bool] = True  # the solver uses x0_hat alone
    stochastic: ClassVar[bool] = False

    def coefficients(self, schedule: Schedule, t: np.ndarray) -> Mapping[str, np.ndarray]:
        """Returns the same as DDIM's, with the weights of equation (5)."""
        extrapolation = np.zeros(len(t))
        if len(t) > 2:
            h = np.diff(0.5 * schedule.log_snr[t])  # without the last step, which goes to a log-SNR of infinity
            extrapolation[1:-1] = h[1:] / (2 * h[:-1])
        return dict(DDIM().coefficients(schedule, t)) | {"extrapolation": extrapolation}

    def mean(self, step: Step, x: jax.Array, x0: jax.Array, previous_x0: jax.Array, epsilon: jax.Array) -> jax.Array:
        """Returns the mean of equation (2) with D of equation (5)."""
        x0 = x0 + step.extrapolation * (x0 - previous_x0)
        epsilon, _ = epsilon_and_x0("x0", x0, x, step.signal, step.sigma)
        return step.next_signal * x0 + step.next_sigma * epsilon


Solver = DDIM | DPMSolverPP2M
SOLVERS: dict[str, type[Solver]] = {"ddim": DDIM, "dpmpp_2m": DPMSolverPP2M}
