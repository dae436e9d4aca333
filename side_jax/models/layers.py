"""Layers that the U-Net and the classifiers share."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# A last convolution that starts at zero, so that every residual branch starts as the identity.
zeros_conv = functools.partial(nn.Conv, kernel_size=(3, 3), kernel_init=nn.initializers.zeros)


class GroupNorm(nn.Module):
    """GroupNorm over [b, h, w, c] with float32 statistics; groups are capped so that each has a channel at least."""

    num_groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c], returned in the same shape."""
        groups = math.gcd(self.num_groups, x.shape[-1])
        return nn.GroupNorm(num_groups=groups, epsilon=1e-5, dtype=self.dtype, name="norm")(x)


def sinusoidal_embedding(t: jax.Array, dim: int, max_period: float = 10_000.0) -> jax.Array:
    """Sines and cosines at geometric frequencies (Vaswani et al. 2017): int32 [b] -> float32 [b, dim]; dim is even."""
    half = dim // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """A two-layer perceptron over the sinusoidal embedding of t: int32 [b] -> [b, features]."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """t: int32 [b]; returns [b, features]."""
        h = sinusoidal_embedding(t, self.features // 2).astype(self.dtype)
        h = nn.silu(nn.Dense(self.features, dtype=self.dtype, name="linear_1")(h))
        return nn.Dense(self.features, dtype=self.dtype, name="linear_2")(h)
