"""Makes a model of pixels u in [0, 1] one of x = 2 u - 1, in [-1, 1], in which all else here computes.

The model was trained on z = a' u + s' e with a'^2 + s'^2 = 1 (diffusion/schedule.py). Then

    x_t = (z - a' / 2) / n = a x_0 + s e,   a = a' / (2 n),   s = s' / n,   n = sqrt(a'^2 / 4 + s'^2)         (1)

is noise of the same kind, with sigma = s / a twice as large as sigma' = s' / a'. Of the predictions, epsilon stays,
x_0 = 2 u - 1, and v = a e - s x_0 with e = s' z + a' v' and u = a' z - s' v'.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class UnitPixels(nn.Module):
    """A network of pixels in [0, 1], with the inputs and the output of one of pixels in [-1, 1].

    Attributes:
      net: the network, called as UNet is.
      betas: of the noise that it was trained with.
      prediction_type: what it predicts, "epsilon", "x0" or "v"; this network predicts the same.
    """

    net: Any
    betas: tuple[float, ...]
    prediction_type: str = "epsilon"

    @property
    def noise_levels(self) -> np.ndarray:
        """Returns sigma = 2 sigma' of each timestep, float64 [T]."""
        log_alpha_bar = np.cumsum(np.log1p(-np.asarray(self.betas, np.float64)))
        return 2.0 * np.sqrt(np.expm1(-log_alpha_bar))

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, deterministic: bool = True, labels: jax.Array | None = None
    ) -> jax.Array:
        """The prediction for x_t, as UNet's; t and labels as there. Between timesteps, log sigma is linear in t."""
        levels = np.log(self.noise_levels / 2.0).astype(np.float32)
        grid = np.arange(len(levels), dtype=np.float32)
        sigma = jnp.exp(jnp.interp(t.astype(jnp.float32), grid, levels))
        own_a = jax.lax.rsqrt(1.0 + jnp.square(sigma))
        own_s = sigma * own_a
        n = jnp.sqrt(jnp.square(own_a) / 4.0 + jnp.square(own_s))
        own_a, own_s, n = (value[:, None, None, None] for value in (own_a, own_s, n))
        z = n * x + own_a / 2.0
        predicted = self.net(z, t, deterministic, labels)
        if self.prediction_type == "epsilon":
            return predicted
        if self.prediction_type == "x0":
            return 2.0 * predicted - 1.0
        noise, u = own_s * z + own_a * predicted, own_a * z - own_s * predicted
        return own_a / (2.0 * n) * noise - own_s / n * (2.0 * u - 1.0)
