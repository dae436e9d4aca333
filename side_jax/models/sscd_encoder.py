"""SSCD's image encoder (Pizzi et al. 2022): a ResNet-50, GeM pooling, a projection to 512; inference only.

Its blocks are resnet.py's bottlenecks, with the stride in the 3x3 convolution, as in torchvision's resnet50. Images are
NHWC.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from side_jax.models.resnet import ResidualBlock

STAGES = (3, 4, 6, 3)  # of ResNet-50 (He et al. 2016, table 1)
SIZE = 512  # size of the embedding


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with the training statistics: (x - mean) / sqrt(var + 1e-5) * scale + bias."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c], returned in the same shape."""
        c = x.shape[-1]
        scale, var = (self.param(name, nn.initializers.ones, (c,)) for name in ("scale", "var"))
        bias, mean = (self.param(name, nn.initializers.zeros, (c,)) for name in ("bias", "mean"))
        scale = scale * jax.lax.rsqrt(var + 1e-5)
        return x * scale.reshape(1, 1, 1, c) + (bias - mean * scale).reshape(1, 1, 1, c)


def gem(x: jax.Array, p: float = 3.0, eps: float = 1e-6) -> jax.Array:
    """Computes the generalised mean over the pixels, (mean max(x, eps)^p)^(1/p) (Radenovic et al. 2018, eq. 3).

    Args:
      x: [b, h, w, c].
      p: 1 gives the mean; large values approach the maximum.
      eps: the lower bound of values.

    Returns:
      [b, c].
    """
    return jnp.mean(jnp.maximum(x, eps) ** p, axis=(1, 2)) ** (1.0 / p)


class SSCD(nn.Module):
    """Image descriptors; the cosine of two is high for copies, also edited ones."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: float32 [b, h, w, 3], normalised; returns float32 [b, 512] of unit norm."""
        h = nn.Conv(64, (7, 7), 2, padding=3, use_bias=False, name="conv1")(x)
        h = nn.relu(FrozenBatchNorm(name="norm1")(h))
        h = nn.max_pool(h, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(STAGES):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                h = ResidualBlock(64 * 2**stage, stride, True, FrozenBatchNorm, name=f"layer{stage + 1}_{i}")(h, None)
        h = nn.Dense(SIZE, name="fc")(gem(h))
        return h / jnp.maximum(jnp.linalg.norm(h, axis=-1, keepdims=True), 1e-12)
