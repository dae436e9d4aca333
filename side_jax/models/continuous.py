"""Makes networks of continuous noise predict x_0 at timesteps, as targets/target.py says in its equations (2) and (3).

Timestep t of T has the noise sigma_t = sigma_min (sigma_max / sigma_min)^(t / (T - 1)): log sigma is linear in t, also
between timesteps.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def noise_grid(sigma_min: float, sigma_max: float, num_timesteps: int) -> np.ndarray:
    """Returns sigma_t, float64 [T]."""
    return np.geomspace(sigma_min, sigma_max, num_timesteps)


def grid_betas(sigmas: np.ndarray) -> np.ndarray:
    """Returns the betas of the variance-preserving schedule with these noises, sigma_t = sqrt(1 - a_t^2) / a_t.

    Args:
      sigmas: float64 [T], increasing.
    """
    log_alpha_bar = -np.log1p(np.square(sigmas))
    return -np.expm1(np.diff(log_alpha_bar, prepend=0.0))


class _Continuous(nn.Module):
    """A network of continuous noise.

    Attributes:
      net: the network.
      sigma_min: noise of timestep 0.
      sigma_max: noise of timestep T - 1.
      num_timesteps: T, at least 2.
    """

    net: Any
    sigma_min: float
    sigma_max: float
    num_timesteps: int = 1000

    def noise(self, t: jax.Array) -> jax.Array:
        """Returns sigma_t for t int32 or float32 [b], float32 [b]."""
        share = t.astype(jnp.float32) / (self.num_timesteps - 1)
        return jnp.exp(math.log(self.sigma_min) + share * math.log(self.sigma_max / self.sigma_min))


class Edm(_Continuous):
    """EDM's preconditioned denoiser (Karras et al. 2022, table 1, "Ours").

    With sd = sigma_data,

        D(y; sigma) = c_skip y + c_out F(c_in y; ln(sigma) / 4),
        c_skip = sd^2 / (sigma^2 + sd^2),   c_out = sigma sd / sqrt(sigma^2 + sd^2),   c_in = 1 / sqrt(sigma^2 + sd^2).

    Attributes:
      sigma_data: sd.
    """

    sigma_data: float = 0.5

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, deterministic: bool = True, labels: jax.Array | None = None
    ) -> jax.Array:
        """Returns x_0 for x_t, as UNet's prediction; labels as there."""
        sigma = self.noise(t)
        total = jnp.square(sigma) + self.sigma_data**2
        scale = [jnp.sqrt(1.0 + jnp.square(sigma)), self.sigma_data**2 / total]
        scale += [sigma * self.sigma_data / jnp.sqrt(total), jax.lax.rsqrt(total)]
        one_over_a, c_skip, c_out, c_in = (value[:, None, None, None] for value in scale)
        y = x * one_over_a
        return c_skip * y + c_out * self.net(c_in * y, jnp.log(sigma) / 4, deterministic, labels)


class Flow(_Continuous):
    """Flow matching along straight lines (Lipman et al. 2023; Tong et al. 2024), where time 0 is noise and 1 is data.

    z = s x_0 + (1 - s) e,   v(z, s) = x_0 - e,   x_0 = z + (1 - s) v(z, s),   s = 1 / (1 + sigma)
    """

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, deterministic: bool = True, labels: jax.Array | None = None
    ) -> jax.Array:
        """Returns x_0 for x_t, as UNet's prediction; labels as there."""
        sigma = self.noise(t)
        time = 1.0 / (1.0 + sigma)
        shrink, rest = (value[:, None, None, None] for value in (time * jnp.sqrt(1.0 + jnp.square(sigma)), 1.0 - time))
        z = x * shrink
        return z + rest * self.net(z, time, deterministic, labels)
