"""Layers shared by the U-Net and the classifiers."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Conv3x3 = functools.partial(nn.Conv, kernel_size=(3, 3))
# A last convolution initialised to zero, so that every residual branch starts as the identity.
zeros_conv = functools.partial(Conv3x3, kernel_init=nn.initializers.zeros)


class GroupNorm(nn.Module):
    """Group normalisation (Wu and He 2018) with float32 statistics and Flax's parameters.

    The variance is E[(x - E[x])^2]. E[x^2] - E[x]^2 would lose digits if a group's mean is larger than its spread: with
    one channel per group and large time embeddings, the output is wrong from the third digit. Means are taken over the
    pixels first and then over a group's channels, since on CPU it is slow to reduce over the few channels of a group.
    Flax's own GroupNorm, with use_fast_variance=False, makes a training step on CPU 11 to 15% longer.

    Attributes:
      num_groups: a divisor of the number of channels.
      epsilon: added to the variance.
      dtype: of the output.
    """

    num_groups: int
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, ..., c], returned in the same shape."""
        shape, (b, c) = x.shape, (x.shape[0], x.shape[-1])
        if c % self.num_groups:
            raise ValueError(f"{c} channels can't be cut into {self.num_groups} groups")
        scale = self.param("scale", nn.initializers.ones, (c,)).reshape(1, 1, c)
        bias = self.param("bias", nn.initializers.zeros, (c,)).reshape(1, 1, c)

        def group_mean(values: jax.Array) -> jax.Array:
            mean = values.mean(axis=1).reshape(b, self.num_groups, -1).mean(axis=-1)
            return mean.repeat(c // self.num_groups, axis=-1).reshape(b, 1, c)

        x = x.astype(jnp.float32).reshape(b, -1, c)
        x = x - group_mean(x)
        scale = jax.lax.rsqrt(group_mean(jnp.square(x)) + self.epsilon) * scale
        return (x * scale + bias).reshape(shape).astype(self.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) as in PyTorch, in float32; frozen unless `train` is set.

    With train, it normalises by the batch's mean and variance and updates the collection batch_stats to
    momentum * running + (1 - momentum) * batch, with the unbiased variance (Flax uses the biased one). Otherwise it
    normalises by batch_stats, unchanged, so that no image of a batch influences another.
    """

    train: bool
    momentum: float = 0.9  # He et al. 2016; PyTorch calls it 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: float32 [b, h, w, c], returned in the same shape."""
        c, n = x.shape[-1], x.size // x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,))
        mean, var = running_mean.value, running_var.value
        if self.train:
            mean = x.mean(axis=(0, 1, 2))
            var = jnp.square(x - mean.reshape(1, 1, 1, c)).mean(axis=(0, 1, 2))
            unbiased = var * (n / max(n - 1, 1))
            running_mean.value = self.momentum * running_mean.value + (1.0 - self.momentum) * mean
            running_var.value = self.momentum * running_var.value + (1.0 - self.momentum) * unbiased
        scale = (jax.lax.rsqrt(var + self.epsilon) * scale).reshape(1, 1, 1, c)
        return (x - mean.reshape(1, 1, 1, c)) * scale + bias.reshape(1, 1, 1, c)


def sinusoidal_embedding(
    t: jax.Array, dim: int, *, flip_sin_to_cos: bool = False, freq_shift: float = 0.0, max_period: float = 10_000.0
) -> jax.Array:
    """Computes sines and cosines at geometric frequencies (Vaswani et al. 2017).

    Args:
      t: int32 or float32 [b].
      dim: even.
      flip_sin_to_cos: put the cosines first.
      freq_shift: the last frequency is max_period ** -((dim / 2 - 1) / (dim / 2 - freq_shift)); 1 in the original DDPM.
      max_period: approximate period of the slowest wave, over 2 pi.

    Returns:
      float32 [b, dim].
    """
    half = dim // 2
    frequencies = jnp.exp(-math.log(max_period) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift))
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    waves = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(waves[::-1] if flip_sin_to_cos else waves, axis=-1)


class TimeEmbedding(nn.Module):
    """A two-layer perceptron over the sinusoidal embedding of t."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, emb: jax.Array) -> jax.Array:
        """emb: [b, e]; returns [b, features]."""
        h = nn.Dense(self.features, dtype=self.dtype, name="linear_1")(emb.astype(self.dtype))
        return nn.Dense(self.features, dtype=self.dtype, name="linear_2")(nn.silu(h))
