"""Prepares images for encoders, on the device: PIL's resize, scaling to [0, 1], normalisation by channel."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.settings import Label


def resize(images: jax.Array, size: int) -> jax.Array:
    """Resizes uint8 [b, h, w, c] to [b, size, size, c]: integers 0..255 as float32.

    Bilinear; when the image shrinks, the filter widens to prevent aliasing. Like PIL, which torchvision's Resize calls,
    it resizes the width first and rounds to integers after each of the two passes.
    """
    x = images.astype(jnp.float32)
    for axis in (2, 1):
        shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
        x = jnp.floor(jax.image.resize(x, shape, "bilinear") + 0.5)
    return x


def prepare(images: jax.Array, label: Label, channels: int = 3) -> jax.Array:
    """Returns an encoder's input.

    Args:
      images: uint8 [b, h, w, c]. They are squashed to a square. Grey is repeated if the encoder takes three channels;
        other numbers of channels than the encoder's are averaged to grey first.
      label: encoder_size, encoder_mean and encoder_std.
      channels: of the encoder; if 1, only the first mean and standard deviation are used.

    Returns:
      float32 [b, encoder_size, encoder_size, channels].
    """
    scales = (label.encoder_mean, label.encoder_std)
    mean, std = (np.asarray(values[:channels], np.float32).reshape(1, 1, 1, channels) for values in scales)
    x = resize(images, label.encoder_size)
    if x.shape[-1] != channels:
        x = x.mean(axis=-1, keepdims=True)
    x = (x / 255.0 - mean) / std
    return jnp.broadcast_to(x, (*x.shape[:3], channels))


def description(label: Label) -> dict[str, Any]:
    """Returns the preprocessing, for an extractor's identity."""
    mean, std = list(label.encoder_mean), list(label.encoder_std)
    return {"resize": "PIL bilinear, to a square", "size": label.encoder_size, "mean": mean, "std": std}
