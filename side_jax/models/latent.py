"""A diffusion model of latents (Rombach et al. 2022): a denoiser, and the autoencoder of the images."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Latent(nn.Module):
    """Predicts at latents x_t; encodes images to latents and decodes them.

        z = (E(image) - shift_factor) scaling_factor,   image = D(z / scaling_factor + shift_factor)

    Initialised, it has the parameters of all parts: {"net": ..., "autoencoder": ...}.

    Attributes:
      net: the denoiser, called as UNet is.
      autoencoder: an Autoencoder.
      scaling_factor: of the latents.
      shift_factor: of the latents.
      unit_pixels: whether the autoencoder's images are in [0, 1] and not in [-1, 1].
    """

    net: Any
    autoencoder: Any
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    unit_pixels: bool = False

    @property
    def factor(self) -> int:
        """How many times larger images are than latents, in height and in width."""
        return self.autoencoder.factor

    @property
    def latent_channels(self) -> int:
        """Of the latents."""
        return self.autoencoder.latent_channels

    def __call__(
        self, x: jax.Array, t: jax.Array, deterministic: bool = True, labels: jax.Array | None = None
    ) -> jax.Array:
        """The prediction for latents x_t, float32 [b, h, w, latent_channels], as UNet's; t and labels as there."""
        if self.is_initializing():
            self.encode(self.decode(x))
        return self.net(x, t, deterministic, labels)

    def encode(self, images: jax.Array) -> jax.Array:
        """images: float32 [b, f h, f w, c], in [-1, 1]; returns latents z, float32 [b, h, w, latent_channels]."""
        if self.unit_pixels:
            images = (images + 1.0) / 2.0
        return (self.autoencoder.encode(images) - self.shift_factor) * self.scaling_factor

    def decode(self, z: jax.Array) -> jax.Array:
        """z: latents as encode returns them; returns images, float32 [b, f h, f w, c], clipped to [-1, 1]."""
        images = self.autoencoder.decode(z / self.scaling_factor + self.shift_factor)
        if self.unit_pixels:
            images = 2.0 * images - 1.0
        return jnp.clip(images, -1.0, 1.0)
