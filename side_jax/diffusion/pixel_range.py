"""Converts pixels between uint8 0..255 and floats in [-1, 1]."""

import jax
import jax.numpy as jnp
import numpy as np


def to_uint8(x: jax.Array) -> jax.Array:
    """Converts images in [-1, 1] (clipped) to uint8 0..255."""
    return jnp.round((jnp.clip(x, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def to_float(images: np.ndarray) -> np.ndarray:
    """Converts uint8 0..255 to float32 in [-1, 1]; the inverse of to_uint8. Latents, which are float32, stay."""
    if images.dtype == np.float32:
        return images
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)
