"""NCSN++ (Song et al. 2021, appendix H) as diffusers' UNet2DModel builds it of its skip blocks, with its names.

It predicts the score, the gradient of log p(y; sigma), of y = x_0 + sigma e. Images are NHWC.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from side_jax.models import edm_blocks
from side_jax.models.edm_blocks import FourierEmbedding, normalise
from side_jax.models.layers import Conv3x3, GroupNorm, TimeEmbedding, zeros_conv
from side_jax.models.unet import BlockFactory, MidBlock, block_factory

DOWN_BLOCKS = ("SkipDownBlock2D", "AttnSkipDownBlock2D")
UP_BLOCKS = ("SkipUpBlock2D", "AttnSkipUpBlock2D")
_TAPS = (1.0, 3.0, 3.0, 1.0)  # the filter of every change of size
_SCALE = math.sqrt(2.0)  # divides the sums of residual blocks and attention


def _halve(x: jax.Array) -> jax.Array:
    return edm_blocks.halve(x, _TAPS)


def _double(x: jax.Array) -> jax.Array:
    return edm_blocks.double(x, _TAPS)


def _groups(channels: int) -> int:
    """The groups of a normalisation, which diffusers derives from a number of channels."""
    return min(channels // 4, 32)


class ScoreDownBlock(nn.Module):
    """Residual blocks, each followed by attention if `attend`, then half the size, where the image enters again."""

    factory: BlockFactory
    channels: int
    num_layers: int
    attend: bool
    downsample: bool

    @nn.compact
    def __call__(
        self, h: jax.Array, image: jax.Array, emb: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
        """h, image: [b, h, w, .]; emb: as in ResnetBlock; returns (the output, the image, the skip connections)."""
        own, skips = _groups(self.channels), []
        for i in range(self.num_layers):
            groups = _groups(h.shape[-1])
            resnet = self.factory.resnet(self.channels, f"resnets_{i}", _SCALE, num_groups=groups, out_groups=own)
            h = resnet(h, emb, deterministic)
            if self.attend:
                h = self.factory.attention(self.channels, i, _SCALE)(h)
            skips.append(h)
        if self.downsample:
            down = self.factory.resnet(
                self.channels, "resnet_down", _SCALE, resize=_halve, num_groups=own, project=True
            )
            h, image = down(h, emb, deterministic), _halve(image)
            h = h + nn.Dense(self.channels, dtype=self.factory.dtype, name="skip_conv")(image)
            skips.append(h)
        return h, image, skips


class ScoreUpBlock(nn.Module):
    """Residual blocks over skips, attention at the end if `attend`, a term of the output image, twice the size."""

    factory: BlockFactory
    channels: int
    out_channels: int
    attend: bool
    upsample: bool

    @nn.compact
    def __call__(
        self, h: jax.Array, skips: list[jax.Array], image: jax.Array | None, emb: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        """h: [b, h, w, c]; skips: one per layer, used from the last; image: the sum so far, of half the size, or None.

        Returns (the output, the sum).
        """
        own = _groups(self.channels)
        for i, skip in enumerate(reversed(skips)):
            # With attention, diffusers divides the channels of the skip alone by 4.
            first, second = h.shape[-1], skip.shape[-1]
            groups = min(first + second // 4, 32) if self.attend else _groups(first + second)
            resnet = self.factory.resnet(self.channels, f"resnets_{i}", _SCALE, num_groups=groups, out_groups=own)
            h = resnet(jnp.concatenate([h, skip], axis=-1), emb, deterministic)
        if self.attend:
            h = self.factory.attention(self.channels, 0, _SCALE)(h)
        if image is not None:
            image = _double(image)
        if self.upsample:
            options: dict[str, Any] = {"padding": 1, "dtype": self.factory.dtype, "name": "skip_conv"}
            y = nn.silu(normalise(h, "skip_norm", self.factory.eps, self.factory.dtype))
            y = zeros_conv(self.out_channels, **options)(y)
            image = y if image is None else image + y
            up = self.factory.resnet(self.channels, "resnet_up", _SCALE, resize=_double, num_groups=own, project=True)
            h = up(h, emb, deterministic)
        return h, image


class ScoreUNet(nn.Module):
    """Predicts the score of y at noise sigma.

    Attributes:
      out_channels: of the image.
      norm_num_groups: of the middle block and the last normalisation; None: by their channels.
      dtype: of the computation, as in UNet.
      remat: recompute each block in the backward pass.
      The others are those of diffusers' UNet2DModel, with None for null; settings.Model explains each.
    """

    out_channels: int
    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    layers_per_block: int = 2
    attention_head_dim: int | None = 8
    norm_num_groups: int | None = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    dropout: float = 0.0
    add_attention: bool = True
    time_embedding_dim: int | None = None
    mid_block_scale_factor: float = 1.0
    resnet_time_scale_shift: str = "default"
    center_input_sample: bool = False
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, y: jax.Array, sigma: jax.Array, deterministic: bool = True, labels: jax.Array | None = None
    ) -> jax.Array:
        """Returns the score, float32 with the shape of y.

        Args:
          y: float32 [b, h, w, c].
          sigma: [b], above 0.
          deterministic: switch dropout off.
          labels: ignored.
        """
        channels, last = self.block_out_channels, len(self.block_out_channels) - 1
        sigma = sigma.astype(jnp.float32)
        emb = FourierEmbedding(2 * channels[0], name="time_proj")(jnp.log(sigma))
        emb = TimeEmbedding(self.time_embedding_dim or 4 * channels[0], self.dtype, name="time_embedding")(emb)
        if self.center_input_sample:
            y = 2.0 * y - 1.0
        image = y.astype(self.dtype)
        h = Conv3x3(channels[0], padding=1, dtype=self.dtype, name="conv_in")(image)
        skips, factory = [h], block_factory(self, 32)  # attention always has 32 groups here
        for i, (width, kind) in enumerate(zip(channels, self.down_block_types, strict=True)):
            attend = kind.startswith("Attn")
            block = ScoreDownBlock(factory, width, self.layers_per_block, attend, i != last, name=f"down_blocks_{i}")
            h, image, more = block(h, image, emb, deterministic)
            skips += more
        of_middle = block_factory(self, self.norm_num_groups or _groups(channels[-1]))
        middle = MidBlock(of_middle, self.add_attention, self.mid_block_scale_factor, name="mid_block")
        h = middle(h, emb, deterministic)
        total, layers = None, self.layers_per_block + 1
        for i, (width, kind) in enumerate(zip(channels[::-1], self.up_block_types, strict=True)):
            attend = kind.startswith("Attn")
            up = ScoreUpBlock(factory, width, self.out_channels, attend, i != last, name=f"up_blocks_{i}")
            h, total = up(h, skips[-layers:], total, emb, deterministic)
            del skips[-layers:]
        groups = self.norm_num_groups or _groups(channels[0])
        h = nn.silu(GroupNorm(groups, epsilon=self.norm_eps, dtype=self.dtype, name="conv_norm_out")(h))
        out = zeros_conv(self.out_channels, padding=1, dtype=self.dtype, name="conv_out")(h)
        out = (out if total is None else out + total).astype(jnp.float32)
        return out / sigma[:, None, None, None]
