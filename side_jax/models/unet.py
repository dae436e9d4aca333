"""The DDPM U-Net (Ho et al. 2020, appendix B): residual blocks conditioned on the timestep, attention where asked."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from side_jax.models.layers import GroupNorm, TimeEmbedding, zeros_conv


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, conv; add the projected time embedding; GroupNorm, SiLU, dropout, conv; add the input."""

    channels: int
    num_groups: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array, deterministic: bool) -> jax.Array:
        """x: [b, h, w, c]; emb: the time embedding [b, e]; returns [b, h, w, channels]."""
        h = nn.silu(GroupNorm(self.num_groups, dtype=self.dtype, name="norm1")(x))
        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype, name="conv1")(h)
        h = h + nn.Dense(self.channels, dtype=self.dtype, name="time_emb_proj")(nn.silu(emb))[:, None, None, :]
        h = nn.silu(GroupNorm(self.num_groups, dtype=self.dtype, name="norm2")(h))
        h = nn.Dropout(self.dropout)(h, deterministic=deterministic)
        h = zeros_conv(self.channels, dtype=self.dtype, name="conv2")(h)
        if x.shape[-1] != self.channels:
            x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class AttentionBlock(nn.Module):
    """Self-attention over all pixels of a feature map, with a residual connection."""

    num_groups: int
    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c], returned in the same shape."""
        b, h, w, c = x.shape
        y = GroupNorm(self.num_groups, dtype=self.dtype, name="group_norm")(x).reshape(b, h * w, c)
        y = nn.MultiHeadDotProductAttention(num_heads=self.num_heads, dtype=self.dtype, name="attention")(y)
        return x + y.reshape(b, h, w, c)


class UNet(nn.Module):
    """Predicts epsilon from (x_t, t).

    Attributes:
      out_channels: of the image.
      block_channels: channels of each resolution, finest first; every level but the last halves the image.
      layers_per_block: residual blocks for each level on the way down; one more on the way up.
      attention: for each level, whether its residual blocks are followed by attention. The middle always has it.
      num_heads: attention heads.
      num_groups: of GroupNorm; divides every entry of block_channels.
      dropout: rate in [0, 1).
      dtype: of the computation; parameters and output are float32.
    """

    out_channels: int
    block_channels: tuple[int, ...]
    layers_per_block: int
    attention: tuple[bool, ...]
    num_heads: int
    num_groups: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, deterministic: bool = True) -> jax.Array:
        """x: float32 [b, h, w, c]; t: int32 [b]; returns float32 of the shape of x."""
        levels = len(self.block_channels)
        emb = TimeEmbedding(4 * self.block_channels[0], dtype=self.dtype, name="time_embedding")(t)

        def block(h: jax.Array, channels: int, attend: bool, name: str) -> jax.Array:
            h = ResidualBlock(channels, self.num_groups, self.dropout, self.dtype, name=f"{name}_resnet")(
                h, emb, deterministic
            )
            if attend:
                h = AttentionBlock(self.num_groups, self.num_heads, self.dtype, name=f"{name}_attention")(h)
            return h

        h = nn.Conv(self.block_channels[0], (3, 3), dtype=self.dtype, name="conv_in")(x.astype(self.dtype))
        skips = [h]
        for level, channels in enumerate(self.block_channels):
            for i in range(self.layers_per_block):
                h = block(h, channels, self.attention[level], f"down_{level}_{i}")
                skips.append(h)
            if level < levels - 1:
                h = nn.Conv(channels, (3, 3), strides=2, padding=1, dtype=self.dtype, name=f"downsample_{level}")(h)
                skips.append(h)

        h = block(h, self.block_channels[-1], True, "mid_0")
        h = block(h, self.block_channels[-1], False, "mid_1")

        for level, channels in reversed(list(enumerate(self.block_channels))):
            for i in range(self.layers_per_block + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, channels, self.attention[level], f"up_{level}_{i}")
            if level > 0:
                h = h.repeat(2, axis=1).repeat(2, axis=2)
                h = nn.Conv(channels, (3, 3), dtype=self.dtype, name=f"upsample_{level}")(h)

        h = nn.silu(GroupNorm(self.num_groups, dtype=self.dtype, name="norm_out")(h))
        return zeros_conv(self.out_channels, dtype=self.dtype, name="conv_out")(h).astype(jnp.float32)
