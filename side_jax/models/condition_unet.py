"""The U-Net of text-conditional latent models (Rombach et al. 2022), with the names of diffusers' UNet2DConditionModel.

Its residual blocks are those of unet.py; levels with cross-attention have a transformer behind each. As in unet.py,
modules and parameters have the names of the state dict. Images are NHWC.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from side_jax.models.attention import attention
from side_jax.models.layers import Conv3x3, GroupNorm, TimeEmbedding, sinusoidal_embedding, zeros_conv
from side_jax.models.unet import BlockFactory, DownBlock, Downsample, UpBlock, Upsample

_NORM_EPS = 1e-6  # of the normalisation in front of a transformer, whatever norm_eps is


class _MultiHead(nn.Module):
    """Attention of tokens to a context, or to themselves; queries, keys and values have no bias.

    Few tokens make a context, and derivatives do not pass through it; attention's own rule needs them of all arguments.
    """

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """x: [b, n, c]; context: [b, m, e], or None for x itself; returns [b, n, c]."""
        c, source = x.shape[-1], x if context is None else context
        attend = attention if context is None else jax.nn.dot_product_attention

        def heads(name: str, of: jax.Array) -> jax.Array:
            y = nn.Dense(c, use_bias=False, dtype=self.dtype, name=name)(of)
            return y.reshape(*of.shape[:2], self.num_heads, c // self.num_heads)

        y = attend(heads("to_q", x), heads("to_k", source), heads("to_v", source)).reshape(x.shape)
        return nn.Dense(c, dtype=self.dtype, name="to_out_0")(y)


class _Gated(nn.Module):
    """GEGLU (Shazeer 2020): a linear map, times the GELU of another."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, n, c]; returns [b, n, features]."""
        value, gate = jnp.split(nn.Dense(2 * self.features, dtype=self.dtype, name="proj")(x), 2, axis=-1)
        return value * nn.gelu(gate, approximate=False)


class _FeedForward(nn.Module):
    """A gated layer of four times the width, and one back."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, n, c], returned in the same shape."""
        h = _Gated(4 * x.shape[-1], self.dtype, name="net_0")(x)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="net_2")(h)


class _TransformerBlock(nn.Module):
    """Self-attention, attention to the context and a feed-forward layer, each behind a norm and beside a skip."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """x: [b, n, c]; context: [b, m, e]; returns [b, n, c]."""

        def norm(name: str, of: jax.Array) -> jax.Array:
            return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name=name)(of)

        x = x + _MultiHead(self.num_heads, self.dtype, name="attn1")(norm("norm1", x))
        x = x + _MultiHead(self.num_heads, self.dtype, name="attn2")(norm("norm2", x), context)
        return x + _FeedForward(self.dtype, name="ff")(norm("norm3", x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over all pixels of a feature map, with a residual connection around them.

    The layers around the blocks act on each pixel, so that diffusers' use_linear_projection, whether they are 1x1
    convolutions or linear, changes the weights' shape in files and nothing else.
    """

    num_heads: int
    num_layers: int
    num_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """x: [b, h, w, c]; context: [b, m, e]; returns [b, h, w, c]."""
        b, h, w, c = x.shape
        if c % self.num_heads:
            raise ValueError(f"{c} channels can't be cut into {self.num_heads} heads")
        y = GroupNorm(self.num_groups, epsilon=_NORM_EPS, dtype=self.dtype, name="norm")(x).reshape(b, h * w, c)
        y = nn.Dense(c, dtype=self.dtype, name="proj_in")(y)
        for i in range(self.num_layers):
            y = _TransformerBlock(self.num_heads, self.dtype, name=f"transformer_blocks_{i}")(y, context)
        return x + nn.Dense(c, dtype=self.dtype, name="proj_out")(y).reshape(b, h, w, c)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerFactory:
    """Makes the transformers of a level."""

    blocks: BlockFactory
    num_heads: int
    num_layers: int

    def make(self, index: int) -> nn.Module:
        """Makes the transformer number `index` of the level."""
        cls = nn.remat(SpatialTransformer) if self.blocks.remat else SpatialTransformer
        options = (self.num_heads, self.num_layers, self.blocks.num_groups, self.blocks.dtype)
        return cls(*options, name=f"attentions_{index}")


class CrossDownBlock(nn.Module):
    """CrossAttnDownBlock2D: residual blocks, each followed by a transformer, then a downsampling."""

    factory: TransformerFactory
    channels: int
    num_layers: int
    downsample_padding: int | None  # None: no downsampling, for the last level

    @nn.compact
    def __call__(
        self, h: jax.Array, emb: jax.Array, context: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, list[jax.Array]]:
        """h: [b, h, w, c]; emb: [b, e]; context: [b, m, f]; returns (the output, the skip connections)."""
        skips, blocks = [], self.factory.blocks
        for i in range(self.num_layers):
            h = blocks.resnet(self.channels, f"resnets_{i}")(h, emb, deterministic)
            h = self.factory.make(i)(h, context)
            skips.append(h)
        if self.downsample_padding is not None:
            h = Downsample(self.downsample_padding, blocks.dtype, name="downsamplers_0")(h)
            skips.append(h)
        return h, skips


class CrossMidBlock(nn.Module):
    """UNetMidBlock2DCrossAttn: a residual block, a transformer, a residual block."""

    factory: TransformerFactory
    scale_factor: float

    @nn.compact
    def __call__(self, h: jax.Array, emb: jax.Array, context: jax.Array, deterministic: bool) -> jax.Array:
        """h: [b, h, w, c], returned in the same shape; emb and context as in CrossDownBlock."""
        blocks, channels = self.factory.blocks, h.shape[-1]
        h = blocks.resnet(channels, "resnets_0", self.scale_factor)(h, emb, deterministic)
        h = self.factory.make(0)(h, context)
        return blocks.resnet(channels, "resnets_1", self.scale_factor)(h, emb, deterministic)


class CrossUpBlock(nn.Module):
    """CrossAttnUpBlock2D: residual blocks over skips, a transformer after each, an upsampling."""

    factory: TransformerFactory
    channels: int
    upsample: bool

    @nn.compact
    def __call__(
        self, h: jax.Array, skips: list[jax.Array], emb: jax.Array, context: jax.Array, deterministic: bool
    ) -> jax.Array:
        """h: [b, h, w, c]; skips: one per layer, used from the last; returns [b, h', w', channels]."""
        blocks = self.factory.blocks
        for i, skip in enumerate(reversed(skips)):
            h = blocks.resnet(self.channels, f"resnets_{i}")(jnp.concatenate([h, skip], axis=-1), emb, deterministic)
            h = self.factory.make(i)(h, context)
        return Upsample(blocks.dtype, name="upsamplers_0")(h) if self.upsample else h


class ConditionUNet(nn.Module):
    """Predicts epsilon, x0 or v from (x_t, t, context).

    Attributes:
      out_channels: of the image or its latents.
      num_heads: of each level's attention, finest level first. diffusers calls it attention_head_dim.
      transformer_layers_per_block: blocks of each level's transformers, finest level first.
      dtype: of the computation, as UNet's.
      remat: recompute each residual block and transformer in the backward pass.
      The others are those of diffusers' UNet2DConditionModel.
    """

    out_channels: int
    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    num_heads: tuple[int, ...]
    transformer_layers_per_block: tuple[int, ...]
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    time_embedding_dim: int | None = None
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1.0
    resnet_time_scale_shift: str = "default"
    center_input_sample: bool = False
    dtype: Any = jnp.float32
    remat: bool = False

    def _factories(self) -> list[TransformerFactory]:
        """Of each level, finest first."""
        blocks = BlockFactory(
            num_groups=self.norm_num_groups,
            attn_num_groups=None,
            eps=self.norm_eps,
            dropout=0.0,  # such models are read and never trained here
            head_dim=None,
            num_heads=None,
            time_scale_shift=self.resnet_time_scale_shift,
            dtype=self.dtype,
            remat=self.remat,
        )
        levels = zip(self.num_heads, self.transformer_layers_per_block, strict=True)
        return [TransformerFactory(blocks=blocks, num_heads=heads, num_layers=layers) for heads, layers in levels]

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, context: jax.Array, deterministic: bool = True) -> jax.Array:
        """Returns the prediction, float32 with the shape of x.

        Args:
          x: float32 [b, h, w, c].
          t: int32 or float32 [b].
          context: float32 [b, m, e], such as the embedded tokens of a text.
          deterministic: has no effect: there is no dropout.
        """
        first, last = self.block_out_channels[0], len(self.block_out_channels) - 1
        factories, context = self._factories(), context.astype(self.dtype)
        emb = sinusoidal_embedding(t, first, flip_sin_to_cos=self.flip_sin_to_cos, freq_shift=self.freq_shift)
        emb = TimeEmbedding(self.time_embedding_dim or 4 * first, self.dtype, name="time_embedding")(emb)
        if self.center_input_sample:
            x = 2.0 * x - 1.0
        h = Conv3x3(first, padding=1, dtype=self.dtype, name="conv_in")(x.astype(self.dtype))
        skips = [h]
        for i, (channels, kind) in enumerate(zip(self.block_out_channels, self.down_block_types, strict=True)):
            layers, name = self.layers_per_block, f"down_blocks_{i}"
            padding = None if i == last else self.downsample_padding
            if kind == "CrossAttnDownBlock2D":
                block = CrossDownBlock(factories[i], channels, layers, padding, name=name)
                h, more = block(h, emb, context, deterministic)
            else:
                h, more = DownBlock(factories[i].blocks, channels, layers, False, padding, name=name)(
                    h, emb, deterministic
                )
            skips += more
        middle = CrossMidBlock(factories[-1], self.mid_block_scale_factor, name="mid_block")
        h = middle(h, emb, context, deterministic)
        for i, (channels, kind) in enumerate(zip(self.block_out_channels[::-1], self.up_block_types, strict=True)):
            layers, factory, name = self.layers_per_block + 1, factories[last - i], f"up_blocks_{i}"
            if kind == "CrossAttnUpBlock2D":
                up = CrossUpBlock(factory, channels, i != last, name=name)
                h = up(h, skips[-layers:], emb, context, deterministic)
            else:
                plain = UpBlock(factory.blocks, channels, layers, False, i != last, name=name)
                h = plain(h, skips[-layers:], emb, deterministic)
            del skips[-layers:]
        norm = GroupNorm(self.norm_num_groups, epsilon=self.norm_eps, dtype=self.dtype, name="conv_norm_out")
        h = zeros_conv(self.out_channels, padding=1, dtype=self.dtype, name="conv_out")(nn.silu(norm(h)))
        return h.astype(jnp.float32)
