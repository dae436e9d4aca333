"""The forward (noising) process and the training loss.

With the notation of schedule.py:

    q(x_t | x_0) = N( sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I )                                 (1)
    L_simple     = E_{t, x_0, epsilon} || epsilon - epsilon_theta(x_t, t) ||^2                     (2)

(Ho et al. 2020, eq. 4 and 14). Images are float32 in [-1, 1], laid out [batch, height, width, channels].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from side_jax.diffusion.schedule import Schedule


def bcast(values: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes per-sample values [b] so that they broadcast against `like` [b, ...]."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def q_sample(schedule: Schedule, x0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
    """Draws x_t given x_0, equation (1).

    Args:
      schedule: the noise schedule.
      x0: clean images [b, ...], in [-1, 1].
      t: int32 [b], timesteps in 0..T-1.
      noise: standard normal, the shape of x0.
    """
    alpha_bar = schedule.alpha_bar
    signal = jnp.asarray(alpha_bar**0.5, x0.dtype)[t]
    sigma = jnp.asarray((1.0 - alpha_bar) ** 0.5, x0.dtype)[t]
    return bcast(signal, x0) * x0 + bcast(sigma, x0) * noise


def diffuse(schedule: Schedule, x0: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws uniform timesteps and noise for a batch; returns (x_t, t, noise)."""
    key_t, key_noise = jax.random.split(key)
    t = jax.random.randint(key_t, x0.shape[:1], 0, schedule.num_timesteps)
    noise = jax.random.normal(key_noise, x0.shape, x0.dtype)
    return q_sample(schedule, x0, t, noise), t, noise


def denoising_loss(
    denoise_fn: Callable[[jax.Array, jax.Array], jax.Array], schedule: Schedule, x0: jax.Array, key: jax.Array
) -> jax.Array:
    """L_simple, equation (2), averaged over pixels: one value for each image, float32 [b].

    Args:
      denoise_fn: (x_t [b, h, w, c], t int32 [b]) -> predicted epsilon, same shape as x_t.
      schedule: the noise schedule.
      x0: clean images [b, h, w, c] in [-1, 1].
      key: a typed PRNG key for the timesteps and the noise.
    """
    xt, t, noise = diffuse(schedule, x0, key)
    error = jnp.square(denoise_fn(xt, t) - noise)
    return error.mean(axis=tuple(range(1, error.ndim)))
