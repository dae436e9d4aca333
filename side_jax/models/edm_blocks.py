"""What the U-Nets of Karras et al. 2022 share: resampling by a filter, the residual block, the Fourier features.

Attributes and modules have the names of NVlabs' program, so that targets/edm.py needs a rule instead of a table.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from side_jax.models.attention import attention
from side_jax.models.layers import Conv3x3, GroupNorm, zeros_conv

_AXES = (1, 2)  # height and width


def edge(taps: tuple[float, ...]) -> int:
    """The zeros that a filter of an even number of taps needs on each side."""
    return (len(taps) - 1) // 2


def halve(x: jax.Array, taps: tuple[float, ...], padding: int | None = None) -> jax.Array:
    """Filters both axes and keeps every second pixel: [b, h, w, c] to [b, h / 2, w / 2, c].

    Args:
      x: the images.
      taps: an even number; they are divided by their sum.
      padding: zeros on each side; None: those that halve the size.
    """
    padding = edge(taps) if padding is None else padding
    for axis in _AXES:
        widths = [(padding, padding) if i == axis else (0, 0) for i in range(x.ndim)]
        padded = jnp.pad(x, widths)
        last = 2 * ((padded.shape[axis] - len(taps)) // 2) + 1
        parts = [jax.lax.slice_in_dim(padded, k, k + last, 2, axis) * (w / sum(taps)) for k, w in enumerate(taps)]
        x = _total(parts)
    return x


def double(x: jax.Array, taps: tuple[float, ...]) -> jax.Array:
    """The transpose of halve, times 4: [b, h, w, c] to [b, 2 h, 2 w, c].

    Pixel 2 m + r of an axis is the sum of 2 w_k x_{m - s} over the taps k = r + edge + 2 s.
    """
    for axis in _AXES:
        n, pad = x.shape[axis], len(taps) // 2
        padded = jnp.pad(x, [(pad, pad) if i == axis else (0, 0) for i in range(x.ndim)])
        phases = []
        for r in (0, 1):
            parts = []
            for k in range((r + edge(taps)) % 2, len(taps), 2):
                start = pad - (k - r - edge(taps)) // 2
                part = jax.lax.slice_in_dim(padded, start, start + n, 1, axis)
                parts.append(part * (2 * taps[k] / sum(taps)))
            phases.append(_total(parts))
        shape = [*x.shape]
        shape[axis] = 2 * n
        x = jnp.stack(phases, axis=axis + 1).reshape(shape)
    return x


def _total(parts: list[jax.Array]) -> jax.Array:
    first, *rest = parts
    for part in rest:
        first = first + part
    return first


def normalise(x: jax.Array, name: str, eps: float, dtype: Any) -> jax.Array:
    """Group normalisation with 32 groups, or fewer of 4 channels; to call inside a compact method."""
    return GroupNorm(min(32, x.shape[-1] // 4), epsilon=eps, dtype=dtype, name=name)(x)


class FourierEmbedding(nn.Module):
    """Sines and cosines of 2 pi f c at frequencies f that were drawn once (Tancik et al. 2020)."""

    features: int

    @nn.compact
    def __call__(self, c: jax.Array) -> jax.Array:
        """c: [b]; returns float32 [b, features], sines first."""
        freqs = self.param("freqs", nn.initializers.normal(16.0), (self.features // 2,))
        angles = c.astype(jnp.float32)[:, None] * (2 * math.pi * freqs)[None, :]
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class EdmBlock(nn.Module):
    """The residual block of all networks there, with resampling before its first convolution and attention at its end.

        h   = conv1(dropout(silu(norm1 and embedding of conv0(resize(silu(norm0(x)))))))
        x'  = skip_scale (skip(resize(x)) + h)
        x'' = skip_scale (x' + proj(attention(norm2(x')))),   if num_heads

    Attributes:
      channels: of the output.
      num_heads: of the attention; 0: there is none.
      resize: "", "up" or "down".
      resample_filter: the taps by which it resizes.
      resample_proj: whether the skip has a 1x1 convolution too where only the size changes.
      adaptive_scale: whether the embedding scales and shifts what norm1 returns; otherwise it is added before.
      skip_scale: of the sums.
      eps: of the norms.
    """

    channels: int
    num_heads: int
    dropout: float
    eps: float
    resample_filter: tuple[float, ...] = (1, 1)
    resample_proj: bool = False
    adaptive_scale: bool = True
    skip_scale: float = 1.0
    resize: str = ""
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array, deterministic: bool) -> jax.Array:
        """x: [b, h, w, c]; emb: [b, e]; returns [b, h', w', channels]."""
        dtype = self.dtype
        h = self._resized(nn.silu(normalise(x, "norm0", self.eps, dtype)))
        h = Conv3x3(self.channels, padding=1, dtype=dtype, name="conv0")(h)
        width = self.channels * (2 if self.adaptive_scale else 1)
        affine = nn.Dense(width, dtype=dtype, name="affine")(emb)[:, None, None, :]
        if self.adaptive_scale:
            scale, shift = jnp.split(affine, 2, axis=-1)
            h = normalise(h, "norm1", self.eps, dtype) * (1.0 + scale) + shift
        else:
            h = normalise(h + affine, "norm1", self.eps, dtype)
        h = nn.Dropout(self.dropout)(nn.silu(h), deterministic=deterministic)
        h = zeros_conv(self.channels, padding=1, dtype=dtype, name="conv1")(h)
        skip = self._resized(x)
        if x.shape[-1] != self.channels or (self.resize and self.resample_proj):
            skip = nn.Dense(self.channels, dtype=dtype, name="skip")(skip)
        x = (skip + h) * self.skip_scale
        return (x + self._attention(x)) * self.skip_scale if self.num_heads else x

    def _resized(self, x: jax.Array) -> jax.Array:
        if not self.resize:
            return x
        return (halve if self.resize == "down" else double)(x, self.resample_filter)

    def _attention(self, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        y = normalise(x, "norm2", self.eps, self.dtype).reshape(b, h * w, c)
        # Channels of a head stand together, and of each channel its query, key and value.
        qkv = nn.Dense(3 * c, dtype=self.dtype, name="qkv")(y).reshape(b, h * w, self.num_heads, -1, 3)
        y = attention(qkv[..., 0], qkv[..., 1], qkv[..., 2]).reshape(b, h * w, c)
        return nn.Dense(c, dtype=self.dtype, name="proj")(y).reshape(b, h, w, c)


def block_class(remat: bool) -> type[nn.Module]:
    """EdmBlock, or one that is computed again in the backward pass."""
    return nn.remat(EdmBlock, static_argnums=(3,)) if remat else EdmBlock


def one_hot(labels: jax.Array | None, count: int, batch: int, dtype: Any) -> jax.Array:
    """[batch, count], with zeros for images without a label: labels of -1, or all if `labels` is None."""
    labels = jnp.full((batch,), -1, jnp.int32) if labels is None else labels
    return jax.nn.one_hot(labels, count, dtype=dtype)
