"""DDIM and DDPM sampling as pure functions.

One step goes from timestep t to the next, less noisy t' of the grid (Song, Meng and Ermon 2021, eq. 12 and 16):

    x0_hat  = ( x_t - sqrt(1 - abar_t) epsilon_hat ) / sqrt(abar_t)                                (1)
    std     = eta sqrt( (1 - abar_t') / (1 - abar_t) ) sqrt( 1 - abar_t / abar_t' )                (2)
    x_t'    = sqrt(abar_t') x0_hat + sqrt(1 - abar_t' - std^2) epsilon_hat + std z,   z ~ N(0, I)  (3)

eta = 0 is DDIM, deterministic given x_T. eta = 1 on the full grid is the ancestral DDPM sampler with the small
variance beta_tilde (Ho et al. 2020, eq. 7). The large variance draws the noise of (3), but not its mean, with

    std     = eta sqrt( 1 - abar_t / abar_t' )                                                     (4)

(beta_t on the full grid, Ho et al. 2020, section 3.2), and none in the last step. The grid ends at abar = 1, the clean
image. Where x0_hat is clipped to [-1, 1], epsilon_hat is recomputed from it, so that (1) stays true; diffusers' DDIM
keeps the network's own epsilon_hat instead, unless asked to recompute it.

A prediction of x0 or v is turned into (epsilon, x0) by process.py's equations (4) to (6).

Randomness belongs to the sample: image i has its own key, from which its x_T and every z are derived, so neither the
batch it shares nor the number of devices changes it.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.diffusion.guidance import guide
from side_jax.diffusion.process import epsilon_and_x0
from side_jax.diffusion.schedule import Schedule, time_grid

VARIANCES = ("small", "large")

DenoiseFn = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StepTable:
    """The coefficients of equations (1) to (3) for each of S steps, noisiest first; arrays of length S.

    Attributes:
      t: int32, the timestep given to the denoiser.
      signal: float32, sqrt(abar_t).
      sigma: float32, sqrt(1 - abar_t).
      next_signal: float32, sqrt(abar_t').
      next_sigma: float32, sqrt(1 - abar_t' - std^2).
      std: float32, of the noise, equation (2) or (4); all zero for eta = 0.
      prediction_type: what the denoiser predicts.
      clip: whether x0_hat is clipped to [-1, 1].
      recompute: whether epsilon_hat is recomputed from the clipped x0_hat.
    """

    t: np.ndarray
    signal: np.ndarray
    sigma: np.ndarray
    next_signal: np.ndarray
    next_sigma: np.ndarray
    std: np.ndarray
    prediction_type: str
    clip: bool
    recompute: bool

    @property
    def num_steps(self) -> int:
        """S."""
        return self.t.size


def step_table(
    schedule: Schedule,
    num_steps: int,
    *,
    eta: float = 0.0,
    variance: str = "small",
    spacing: str = "trailing",
    clip: bool = True,
    recompute: bool = True,
) -> StepTable:
    """Precomputes the coefficients in float64 and stores them in float32.

    Args:
      schedule: the noise schedule that the DPM was trained with.
      num_steps: S, from 1 to T.
      eta: 0 (DDIM) to 1 (DDPM).
      variance: of the noise, "small" (equation 2) or "large" (equation 4).
      spacing: the time grid, see schedule.time_grid.
      clip: clip x0_hat to the data's range [-1, 1].
      recompute: where x0_hat is clipped, recompute epsilon_hat from it; eta = 1 needs that to be DDPM.

    Raises:
      ValueError: if eta is outside [0, 1], the variance is unknown or the grid is impossible.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be between 0 (DDIM) and 1 (DDPM), got {eta}")
    if variance not in VARIANCES:
        raise ValueError(f"unknown variance {variance!r}: choose one of {', '.join(VARIANCES)}")
    t = time_grid(schedule.num_timesteps, num_steps, spacing)
    abar = schedule.alpha_bar[t]
    abar_next = np.append(abar[1:], 1.0)
    std = eta * np.sqrt((1 - abar_next) / (1 - abar)) * np.sqrt(1 - abar / abar_next)
    single = {
        "signal": np.sqrt(abar),
        "sigma": np.sqrt(1 - abar),
        "next_signal": np.sqrt(abar_next),
        "next_sigma": np.sqrt(np.maximum(1 - abar_next - std**2, 0.0)),
        "std": std if variance == "small" else eta * np.sqrt(1 - abar / abar_next) * (abar_next < 1),
    }
    return StepTable(
        t=t,
        prediction_type=schedule.prediction_type,
        clip=clip,
        recompute=recompute,
        **{name: value.astype(np.float32) for name, value in single.items()},
    )


def sample_keys(base: jax.Array, index: jax.Array) -> jax.Array:
    """One key for each global sample index: fold_in(base, i), for int indices [b]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(base, index)


def _normal(keys: jax.Array, stream: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A standard normal image for each key; `stream` tells apart the draws of one sample."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, stream)
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def initial_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x_T ~ N(0, I), float32 [b, *shape], one image for each key [b]."""
    return _normal(keys, jnp.uint32(0), shape)


def sample_step(
    denoise_fn: DenoiseFn,
    table: StepTable,
    step: jax.Array,
    x: jax.Array,
    keys: jax.Array,
    gradient_fn: DenoiseFn | None = None,
    scale: jax.Array | None = None,
) -> jax.Array:
    """One step of equations (1) to (3), guided where a gradient function is given.

    Args:
      denoise_fn: (x_t, t int32 [b]) -> what table.prediction_type says.
      table: coefficients.
      step: int32 scalar, 0..S-1; may be traced.
      x: x_t, float32 [b, ...].
      keys: typed keys [b], one for each sample.
      gradient_fn: (x_t, t) -> guidance direction, see guidance.classifier_gradient.
      scale: the guidance scale lambda, a scalar; may be traced. Required with gradient_fn.

    Returns:
      x_t', the shape of x.
    """
    t = jnp.full(x.shape[:1], jnp.asarray(table.t)[step])
    at = {name: jnp.asarray(getattr(table, name))[step] for name in ("signal", "sigma", "next_signal", "next_sigma")}
    output = denoise_fn(x, t)
    if gradient_fn is not None:
        output = guide(table.prediction_type, output, gradient_fn(x, t), scale, at["signal"], at["sigma"])
    epsilon, x0 = epsilon_and_x0(table.prediction_type, output, x, at["signal"], at["sigma"])
    if table.clip:
        x0 = jnp.clip(x0, -1.0, 1.0)
        if table.recompute:
            epsilon, _ = epsilon_and_x0("x0", x0, x, at["signal"], at["sigma"])
    x = at["next_signal"] * x0 + at["next_sigma"] * epsilon
    if table.std.any():
        x = x + jnp.asarray(table.std)[step] * _normal(keys, (step + 1).astype(jnp.uint32), x.shape[1:])
    return x


def sample(
    denoise_fn: DenoiseFn,
    table: StepTable,
    keys: jax.Array,
    shape: tuple[int, ...],
    gradient_fn: DenoiseFn | None = None,
    scale: jax.Array | None = None,
) -> jax.Array:
    """The whole trajectory as one compiled loop: images float32 [b, *shape], in about [-1, 1].

    Arguments as in sample_step; `shape` is one image's (height, width, channels).
    """

    def body(step: jax.Array, x: jax.Array) -> jax.Array:
        return sample_step(denoise_fn, table, step, x, keys, gradient_fn, scale)

    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(table.num_steps), body, initial_noise(keys, shape))
