"""What image encoders see: images resized as PIL does, scaled to [0, 1], normalised by channel; on the device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.settings import Label


def resize(images: jax.Array, size: int) -> jax.Array:
    """uint8 [b, h, w, c] to [b, size, size, c]: whole numbers 0..255 in float32.

    Bilinear; where the image shrinks, the triangle widens, against aliasing. As PIL does, which torchvision's Resize
    calls, the width is resized first, and each of the two passes rounds to whole numbers.
    """
    x = images.astype(jnp.float32)
    for axis in (2, 1):
        shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
        x = jnp.floor(jax.image.resize(x, shape, "bilinear") + 0.5)
    return x


def prepare(images: jax.Array, label: Label, channels: int = 3) -> jax.Array:
    """An encoder's input.

    Args:
      images: uint8 [b, h, w, c]; grey ones are repeated where the encoder takes three channels.
      label: encoder_size, encoder_mean and encoder_std.
      channels: of the encoder; where it is 1, the first mean and deviation count.

    Returns:
      float32 [b, encoder_size, encoder_size, channels].
    """
    scales = (label.encoder_mean, label.encoder_std)
    mean, std = (np.asarray(values[:channels], np.float32).reshape(1, 1, 1, channels) for values in scales)
    x = (resize(images, label.encoder_size) / 255.0 - mean) / std
    return jnp.broadcast_to(x, (*x.shape[:3], channels))


def described(label: Label) -> dict[str, Any]:
    """The preprocessing, for an extractor's identity."""
    mean, std = list(label.encoder_mean), list(label.encoder_std)
    return {"resize": "PIL bilinear", "size": label.encoder_size, "mean": mean, "std": std}
