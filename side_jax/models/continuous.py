"""Makes networks of continuous noise predict x_0 at timesteps, by equations (2) and (3) of targets/target_model.py.

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

    @property
    def betas(self) -> tuple[float, ...]:
        """Of the variance-preserving schedule with its noises."""
        return tuple(grid_betas(noise_grid(self.sigma_min, self.sigma_max, self.num_timesteps)).tolist())

    def noise(self, t: jax.Array) -> jax.Array:
        """Returns sigma_t for t int32 or float32 [b], float32 [b]."""
        share = t.astype(jnp.float32) / (self.num_timesteps - 1)
        return jnp.exp(math.log(self.sigma_min) + share * math.log(self.sigma_max / self.sigma_min))


class _Denoiser(_Continuous):
    """A preconditioned denoiser D(y; sigma) = c_skip y + c_out F(c_in y; c_noise) (Karras et al. 2022, equation 7)."""

    def preconditioning(self, sigma: jax.Array) -> tuple[jax.Array, ...]:
        """Returns (c_skip, c_out, c_in, c_noise), each float32 [b], at noises [b]."""
        raise NotImplementedError

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, deterministic: bool = True, labels: jax.Array | None = None
    ) -> jax.Array:
        """Returns x_0 for x_t, as UNet's prediction; labels as there."""
        sigma = self.noise(t)
        *scale, c_noise = self.preconditioning(sigma)
        scale.append(jnp.sqrt(1.0 + jnp.square(sigma)))
        c_skip, c_out, c_in, one_over_a = (value[:, None, None, None] for value in scale)
        y = x * one_over_a
        return c_skip * y + c_out * self.net(c_in * y, c_noise, deterministic, labels)


class Edm(_Denoiser):
    """EDM's own (table 1, "Ours"). With sd = sigma_data,

        c_skip = sd^2 / (sigma^2 + sd^2),   c_out = sigma sd / sqrt(sigma^2 + sd^2),
        c_in = 1 / sqrt(sigma^2 + sd^2),    c_noise = ln(sigma) / 4.

    Attributes:
      sigma_data: sd.
    """

    sigma_data: float = 0.5

    def preconditioning(self, sigma: jax.Array) -> tuple[jax.Array, ...]:
        """As of _Denoiser."""
        total = jnp.square(sigma) + self.sigma_data**2
        one_over_root = jax.lax.rsqrt(total)
        return self.sigma_data**2 / total, sigma * self.sigma_data * one_over_root, one_over_root, jnp.log(sigma) / 4


class EdmVp(_Denoiser):
    """The variance-preserving SDE's (Song et al. 2021) in EDM's form (table 1, "VP").

        c_skip = 1,   c_out = -sigma,   c_in = 1 / sqrt(sigma^2 + 1),   c_noise = (M - 1) u,
        where ln(1 + sigma^2) = beta_d u^2 / 2 + beta_min u.

    Attributes:
      beta_d: slope of the schedule.
      beta_min: its start.
      M: timesteps of the original formulation.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    M: int = 1000

    def preconditioning(self, sigma: jax.Array) -> tuple[jax.Array, ...]:
        """As of _Denoiser."""
        height = jnp.log1p(jnp.square(sigma))
        # The root of the quadratic equation in the form that loses no digits at small noises.
        u = 2 * height / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * self.beta_d * height))
        return jnp.ones_like(sigma), -sigma, jax.lax.rsqrt(1.0 + jnp.square(sigma)), (self.M - 1) * u


class EdmVe(_Denoiser):
    """The variance-exploding SDE's in EDM's form: c_skip = c_in = 1, c_out = sigma, c_noise = ln(sigma / 2)."""

    def preconditioning(self, sigma: jax.Array) -> tuple[jax.Array, ...]:
        """As of _Denoiser."""
        return jnp.ones_like(sigma), sigma, jnp.ones_like(sigma), jnp.log(0.5 * sigma)


class ScoreVe(_Continuous):
    """The score of the variance-exploding SDE (Song et al. 2021): x_0 = y + sigma^2 score(y, sigma), y = x_t / a_t."""

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, deterministic: bool = True, labels: jax.Array | None = None
    ) -> jax.Array:
        """Returns x_0 for x_t, as UNet's prediction; labels as there."""
        sigma = self.noise(t)
        one_over_a, variance = (
            value[:, None, None, None] for value in (jnp.sqrt(1.0 + jnp.square(sigma)), jnp.square(sigma))
        )
        y = x * one_over_a
        return y + variance * self.net(y, sigma, deterministic, labels)


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
