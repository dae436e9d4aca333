"""The ADM classifier (Dhariwal and Nichol 2021, section 4): the downsampling half of a U-Net and its middle block.

Its levels are those of unet.py, so a convolution of stride 2 halves the image; ADM uses residual blocks for that. The
timestep conditions by scale and shift. The last level and the middle block have attention, and the head pools by
attention.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from side_jax.models.classifier import Classifier
from side_jax.models.layers import Conv3x3, GroupNorm, TimeEmbedding, sinusoidal_embedding
from side_jax.models.unet import BlockFactory, DownBlock, MidBlock

_HEAD_DIM = 64  # channels per attention head in ADM


class AttentionPool(nn.Module):
    """CLIP's pooling (Radford et al. 2021, section 2.4) as in ADM: the mean attends to itself and all pixels."""

    features: int
    head_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c], with a fixed size because of the position embeddings; returns [b, features]."""
        b, c = x.shape[0], x.shape[-1]
        x = x.reshape(b, -1, c)
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        positions = self.param("positions", nn.initializers.normal(c**-0.5), x.shape[1:])
        x = x + positions[None]

        def heads(name: str, tokens: jax.Array) -> jax.Array:
            return nn.Dense(c, name=name)(tokens).reshape(b, -1, c // self.head_dim, self.head_dim)

        pooled = jax.nn.dot_product_attention(heads("to_q", x[:, :1]), heads("to_k", x), heads("to_v", x))
        return nn.Dense(self.features, name="to_out")(pooled.reshape(b, c))


class HalfUNet(Classifier):
    """The network above, with the attributes of Classifier. Without BatchNorm, train changes nothing."""

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, train: bool = False) -> jax.Array:
        """See Classifier."""
        last = len(self.stage_sizes) - 1
        head_dim = math.gcd(_HEAD_DIM, self.width * 2**last)
        factory = BlockFactory(
            num_groups=self.capped_groups,
            attn_num_groups=self.capped_groups,
            eps=1e-5,
            dropout=0.0,
            head_dim=head_dim,
            num_heads=None,
            time_scale_shift="scale_shift",
            dtype=jnp.float32,
            remat=False,
        )
        emb = None
        if self.time_dependent:
            emb = sinusoidal_embedding(t, self.width, flip_sin_to_cos=True)
            emb = TimeEmbedding(4 * self.width, name="time_embedding")(emb)
        h = Conv3x3(self.width, padding=1, name="conv_in")(x)
        for i, layers in enumerate(self.stage_sizes):
            padding = None if i == last else 1
            block = DownBlock(factory, self.width * 2**i, layers, i == last, padding, name=f"down_blocks_{i}")
            h, _ = block(h, emb, True)
        h = MidBlock(factory, attend=True, scale_factor=1.0, name="mid_block")(h, emb, True)
        h = nn.silu(GroupNorm(self.capped_groups, name="norm_out")(h))
        return nn.log_softmax(AttentionPool(self.num_classes, head_dim, name="pool")(h))
