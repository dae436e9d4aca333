"""Exact nearest neighbours in pixel space, blocked so that memory stays bounded.

Distances are taken as differences, not through the expansion |a|^2 - 2ab + |b|^2, whose cancellation would blur exactly
the near-copies that this project looks for.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def _rmse(rows: jax.Array, references: jax.Array) -> jax.Array:
    """Root mean squared difference of every pair: [b, d], [m, d] -> [b, m]."""
    return jnp.sqrt(jnp.mean(jnp.square(rows[:, None, :] - references[None, :, :]), axis=-1))


@functools.partial(jax.jit, static_argnames=("k",))
def _nearest_block(rows: jax.Array, references: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    negative, index = jax.lax.top_k(-_rmse(rows, references), k)
    return -negative, index


@jax.jit
def _within_block(rows: jax.Array, references: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    distance = _rmse(rows, references)
    return ((distance >= low[:, None]) & (distance < high[:, None])).any(axis=0)


def _flat(images: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    if not isinstance(images, jax.Array):
        images = np.ascontiguousarray(images, np.float32)
    return images.reshape(len(images), -1)


def nearest(images: np.ndarray, references: np.ndarray, k: int, block: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest references of each image by pixel RMSE.

    Args:
      images: float [n, ...].
      references: float [m, ...], of the same image shape and range; on the device already where many calls share them.
      k: from 1 to m.
      block: images compared at a time.

    Returns:
      (distances float32 [n, k], ascending; indices int64 [n, k]). Ties go to the lower index.

    Raises:
      ValueError: if k is not in 1..m or the shapes differ.
    """
    if images.shape[1:] != references.shape[1:]:
        raise ValueError(f"images {images.shape[1:]} and references {references.shape[1:]} differ in shape")
    if not 1 <= k <= len(references):
        raise ValueError(f"k must be between 1 and the {len(references)} references, got {k}")
    rows, references = _flat(images), jnp.asarray(_flat(references))
    parts = [_nearest_block(rows[i : i + block], references, k) for i in range(0, len(rows), block)]
    distances = np.concatenate([np.asarray(distance) for distance, _ in parts])
    return distances, np.concatenate([np.asarray(index, np.int64) for _, index in parts])


def within(
    images: np.ndarray, references: np.ndarray, low: np.ndarray, high: np.ndarray, block: int = 256
) -> np.ndarray:
    """Which references lie within [low_i, high_i) of any image i, by pixel RMSE.

    Args:
      images: float [n, ...].
      references: float [m, ...].
      low: float [n], inclusive bounds.
      high: float [n], exclusive bounds.
      block: images compared at a time.

    Returns:
      bool [m].
    """
    rows, references = _flat(images), jnp.asarray(_flat(references))
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    hit = np.zeros(len(references), bool)
    for i in range(0, len(rows), block):
        part = slice(i, i + block)
        hit |= np.asarray(_within_block(rows[part], references, low[part], high[part]))
    return hit
