"""The DDPM U-Net (Ho et al. 2020, appendix B), with the options and the names of diffusers' UNet2DModel.

Modules and parameters have the names of UNet2DModel's state dict (down_blocks_0/resnets_1/conv1/kernel is
down_blocks.0.resnets.1.conv1.weight), so targets/parameters.py needs a rule instead of a table. Images are NHWC.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from side_jax.models.attention import attention
from side_jax.models.layers import Conv3x3, GroupNorm, TimeEmbedding, sinusoidal_embedding, zeros_conv


def _pointwise(x: jax.Array, kernel: jax.Array, *_: Any, precision: Any = None, **__: Any) -> jax.Array:
    """Computes a 1x1 convolution as a matrix product, in place of lax.conv_general_dilated.

    XLA does so itself on accelerators, but not on CPU, where the gradients would make a training step 3% longer.
    """
    return jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0], precision=precision)


def halve(x: jax.Array) -> jax.Array:
    """Averages 2x2 pixels: [b, h, w, c] to [b, h / 2, w / 2, c]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def double(x: jax.Array) -> jax.Array:
    """Repeats each pixel 2x2 times: [b, h, w, c] to [b, 2 h, 2 w, c]."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, conv; time embedding (added, or scale and shift); GroupNorm, SiLU, dropout, conv; skip.

    `resize`, such as halve or double, acts on both branches, in front of the first convolution. With `project` the skip
    has a 1x1 convolution even where the channels stay the same. `out_groups`: of the second norm; None: as the first.
    """

    channels: int
    num_groups: int
    eps: float
    dropout: float
    time_scale_shift: str
    scale_factor: float
    dtype: Any
    resize: Callable[[jax.Array], jax.Array] | None = None
    out_groups: int | None = None
    project: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array | None, deterministic: bool) -> jax.Array:
        """x: [b, h, w, c]; emb: the time embedding [b, e] or None; returns [b, h, w, channels], resized."""

        def norm(name: str) -> GroupNorm:
            groups = self.num_groups if name == "norm1" else self.out_groups or self.num_groups
            return GroupNorm(groups, epsilon=self.eps, dtype=self.dtype, name=name)

        h = nn.silu(norm("norm1")(x))
        if self.resize is not None:
            x, h = self.resize(x), self.resize(h)
        h = Conv3x3(self.channels, padding=1, dtype=self.dtype, name="conv1")(h)

        def projected(emb: jax.Array, width: int) -> jax.Array:
            return nn.Dense(width, dtype=self.dtype, name="time_emb_proj")(nn.silu(emb))[:, None, None, :]

        if emb is None:
            h = norm("norm2")(h)
        elif self.time_scale_shift == "scale_shift":
            scale, shift = jnp.split(projected(emb, 2 * self.channels), 2, axis=-1)
            h = norm("norm2")(h) * (1.0 + scale) + shift
        else:
            h = norm("norm2")(h + projected(emb, self.channels))
        h = nn.Dropout(self.dropout)(nn.silu(h), deterministic=deterministic)
        h = zeros_conv(self.channels, padding=1, dtype=self.dtype, name="conv2")(h)
        if self.project or x.shape[-1] != self.channels:
            one: dict[str, Any] = {"kernel_size": (1, 1), "conv_general_dilated": _pointwise}
            x = nn.Conv(self.channels, **one, dtype=self.dtype, name="conv_shortcut")(x)
        return (x + h) / self.scale_factor


class Attention(nn.Module):
    """Self-attention over all pixels of a feature map, with a residual connection; the softmax is in float32."""

    head_dim: int | None
    num_groups: int | None
    eps: float
    scale_factor: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c], returned in the same shape."""
        b, h, w, c = x.shape
        head_dim = self.head_dim or c
        y = x.reshape(b, h * w, c)
        if self.num_groups is not None:
            y = GroupNorm(self.num_groups, epsilon=self.eps, dtype=self.dtype, name="group_norm")(y)

        def heads(name: str) -> jax.Array:
            return nn.Dense(c, dtype=self.dtype, name=name)(y).reshape(b, h * w, c // head_dim, head_dim)

        y = attention(heads("to_q"), heads("to_k"), heads("to_v")).reshape(b, h * w, c)
        y = nn.Dense(c, dtype=self.dtype, name="to_out_0")(y)
        return (x + y.reshape(b, h, w, c)) / self.scale_factor


class Downsample(nn.Module):
    """A convolution of stride 2; with padding 0 it pads one row at the bottom and one column on the right."""

    padding: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c]; returns [b, h / 2, w / 2, c]."""
        padding = ((1, 1), (1, 1)) if self.padding else ((0, 1), (0, 1))
        return Conv3x3(x.shape[-1], strides=2, padding=padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, then a convolution."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c]; returns [b, 2 h, 2 w, c]."""
        return Conv3x3(x.shape[-1], padding=1, dtype=self.dtype, name="conv")(double(x))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockFactory:
    """Makes the residual blocks and attention layers of all levels, with the options that they share."""

    num_groups: int
    attn_num_groups: int | None
    eps: float
    dropout: float
    head_dim: int | None
    num_heads: int | None
    time_scale_shift: str
    dtype: Any
    remat: bool

    def resnet(
        self,
        channels: int,
        name: str,
        scale_factor: float = 1.0,
        resize: Callable[[jax.Array], jax.Array] | None = None,
        num_groups: int | None = None,
        out_groups: int | None = None,
        project: bool = False,
    ) -> nn.Module:
        """Makes a ResnetBlock; its output is divided by scale_factor. num_groups None: the factory's."""
        cls = nn.remat(ResnetBlock, static_argnums=(3,)) if self.remat else ResnetBlock
        return cls(
            channels,
            num_groups=num_groups or self.num_groups,
            eps=self.eps,
            dropout=self.dropout,
            time_scale_shift=self.time_scale_shift,
            scale_factor=scale_factor,
            dtype=self.dtype,
            resize=resize,
            out_groups=out_groups,
            project=project,
            name=name,
        )

    def attention(self, channels: int, index: int, scale_factor: float = 1.0, middle: bool = False) -> nn.Module:
        """Makes the Attention number `index` of a level; its output is divided by scale_factor."""
        cls = nn.remat(Attention) if self.remat else Attention
        num_groups = self.attn_num_groups if middle else self.num_groups
        head_dim = channels // self.num_heads if self.num_heads else self.head_dim
        return cls(head_dim, num_groups, self.eps, scale_factor, self.dtype, name=f"attentions_{index}")


def block_factory(network: Any, num_groups: int, num_heads: int | None = None) -> BlockFactory:
    """The factory of a U-Net with UNet2DModel's options.

    As in diffusers, the middle's attention without its own number of groups is normalised only under "default".

    Args:
      network: the UNet, or one with its attributes.
      num_groups: of every normalisation but that.
      num_heads: of every attention layer; None: as many as attention_head_dim makes.
    """
    middle = num_groups if network.resnet_time_scale_shift == "default" else None
    return BlockFactory(
        num_groups=num_groups,
        attn_num_groups=network.attn_norm_num_groups or middle,
        eps=network.norm_eps,
        dropout=network.dropout,
        head_dim=network.attention_head_dim,
        num_heads=num_heads,
        time_scale_shift=network.resnet_time_scale_shift,
        dtype=network.dtype,
        remat=network.remat,
    )


class DownBlock(nn.Module):
    """DownBlock2D and others: residual blocks, each followed by attention if `attend`, then a downsampling."""

    factory: BlockFactory
    channels: int
    num_layers: int
    attend: bool
    downsample_padding: int | None  # None: no downsampling, for the last level
    downsample_type: str = "conv"

    @nn.compact
    def __call__(self, h: jax.Array, emb: jax.Array | None, deterministic: bool) -> tuple[jax.Array, list[jax.Array]]:
        """h: [b, h, w, c]; emb: as in ResnetBlock; returns (the output, the skip connections)."""
        skips = []
        for i in range(self.num_layers):
            h = self.factory.resnet(self.channels, f"resnets_{i}")(h, emb, deterministic)
            if self.attend:
                h = self.factory.attention(self.channels, i)(h)
            skips.append(h)
        if self.downsample_padding is not None:
            if self.downsample_type == "resnet":
                h = self.factory.resnet(self.channels, "downsamplers_0", resize=halve)(h, emb, deterministic)
            else:
                h = Downsample(self.downsample_padding, self.factory.dtype, name="downsamplers_0")(h)
            skips.append(h)
        return h, skips


class MidBlock(nn.Module):
    """UNetMidBlock2D: a residual block, attention if `attend`, a residual block."""

    factory: BlockFactory
    attend: bool
    scale_factor: float

    @nn.compact
    def __call__(self, h: jax.Array, emb: jax.Array | None, deterministic: bool) -> jax.Array:
        """h: [b, h, w, c], returned in the same shape; emb: as in ResnetBlock."""
        channels = h.shape[-1]
        h = self.factory.resnet(channels, "resnets_0", self.scale_factor)(h, emb, deterministic)
        if self.attend:
            h = self.factory.attention(channels, 0, self.scale_factor, middle=True)(h)
        return self.factory.resnet(channels, "resnets_1", self.scale_factor)(h, emb, deterministic)


class UpBlock(nn.Module):
    """UpBlock2D and others: residual blocks over skips, attention after each if `attend`, an upsampling."""

    factory: BlockFactory
    channels: int
    num_layers: int
    attend: bool
    upsample: bool
    upsample_type: str = "conv"

    @nn.compact
    def __call__(self, h: jax.Array, skips: list[jax.Array], emb: jax.Array, deterministic: bool) -> jax.Array:
        """h: [b, h, w, c]; skips: one per layer, used from the last; returns [b, h', w', channels]."""
        for i, skip in enumerate(reversed(skips)):
            h = self.factory.resnet(self.channels, f"resnets_{i}")(
                jnp.concatenate([h, skip], axis=-1), emb, deterministic
            )
            if self.attend:
                h = self.factory.attention(self.channels, i)(h)
        if not self.upsample:
            return h
        if self.upsample_type == "resnet":
            return self.factory.resnet(self.channels, "upsamplers_0", resize=double)(h, emb, deterministic)
        return Upsample(self.factory.dtype, name="upsamplers_0")(h)


def _sampling(kind: str, always: str, of_attention: str) -> str:
    """How a block of some kind changes the size, "conv" or "resnet"; as in diffusers, the option is for attention."""
    return "resnet" if kind == always else of_attention if kind.startswith("Attn") else "conv"


class UNet(nn.Module):
    """Predicts epsilon, x0 or v from (x_t, t).

    Attributes:
      out_channels: of the image.
      num_labels: number of labels C, whose embedding is added to the time embedding. 0: an unconditional model, without
        this embedding.
      null_label: whether the embedding has one row more, the last, for images without a label. Without it, an image
        without a label has no embedding added.
      num_attention_heads: of every attention layer; None: as many as attention_head_dim makes.
      timestep_scale: what timesteps are multiplied with before they are embedded.
      dtype: of the computation. Parameters, output, the angles of the time embedding, the statistics of norms and
        softmaxes are always float32.
      remat: recompute each residual block and attention layer in the backward pass.
      The others are those of diffusers' UNet2DModel, with None for null; settings.Model explains each.
    """

    out_channels: int
    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    layers_per_block: int = 2
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    dropout: float = 0.0
    add_attention: bool = True
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    time_embedding_dim: int | None = None
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1.0
    resnet_time_scale_shift: str = "default"
    center_input_sample: bool = False
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    num_attention_heads: int | None = None
    timestep_scale: float = 1.0
    num_labels: int = 0
    null_label: bool = True
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, deterministic: bool = True, labels: jax.Array | None = None
    ) -> jax.Array:
        """Returns the prediction, float32 with the shape of x.

        Args:
          x: float32 [b, h, w, c].
          t: int32 or float32 [b].
          deterministic: switch dropout off.
          labels: int32 [b], in 0..num_labels-1, or -1 for no label; None: no image has one. Ignored if num_labels is 0.
        """
        first, last = self.block_out_channels[0], len(self.block_out_channels) - 1
        factory = block_factory(self, self.norm_num_groups, self.num_attention_heads)
        if self.timestep_scale != 1.0:
            t = t.astype(jnp.float32) * self.timestep_scale
        emb = sinusoidal_embedding(t, first, flip_sin_to_cos=self.flip_sin_to_cos, freq_shift=self.freq_shift)
        width = self.time_embedding_dim or 4 * first
        emb = TimeEmbedding(width, self.dtype, name="time_embedding")(emb)
        if self.num_labels:
            labels = jnp.full(x.shape[:1], -1, jnp.int32) if labels is None else labels
            # PyTorch's initialisation of nn.Embedding; Flax's default would be negligible beside the time embedding.
            options = {"embedding_init": nn.initializers.normal(1.0), "dtype": self.dtype, "name": "class_embedding"}
            if self.null_label:
                table = nn.Embed(self.num_labels + 1, width, **options)
                emb = emb + table(jnp.where(labels < 0, self.num_labels, labels))
            else:
                label_emb = nn.Embed(self.num_labels, width, **options)(jnp.maximum(labels, 0))
                emb = emb + jnp.where(labels[:, None] < 0, jnp.zeros_like(label_emb), label_emb)
        if self.center_input_sample:
            x = 2.0 * x - 1.0
        h = Conv3x3(first, padding=1, dtype=self.dtype, name="conv_in")(x.astype(self.dtype))
        skips = [h]
        for i, (channels, kind) in enumerate(zip(self.block_out_channels, self.down_block_types, strict=True)):
            attend, padding = kind == "AttnDownBlock2D", None if i == last else self.downsample_padding
            sampling = _sampling(kind, "ResnetDownsampleBlock2D", self.downsample_type)
            block = DownBlock(
                factory, channels, self.layers_per_block, attend, padding, sampling, name=f"down_blocks_{i}"
            )
            h, more = block(h, emb, deterministic)
            skips += more
        h = MidBlock(factory, self.add_attention, self.mid_block_scale_factor, name="mid_block")(h, emb, deterministic)
        for i, (channels, kind) in enumerate(zip(self.block_out_channels[::-1], self.up_block_types, strict=True)):
            layers, sampling = self.layers_per_block + 1, _sampling(kind, "ResnetUpsampleBlock2D", self.upsample_type)
            attend = kind == "AttnUpBlock2D"
            up = UpBlock(factory, channels, layers, attend, i != last, sampling, name=f"up_blocks_{i}")
            h = up(h, skips[-layers:], emb, deterministic)
            del skips[-layers:]
        norm = GroupNorm(self.norm_num_groups, epsilon=self.norm_eps, dtype=self.dtype, name="conv_norm_out")
        h = zeros_conv(self.out_channels, padding=1, dtype=self.dtype, name="conv_out")(nn.silu(norm(h)))
        return h.astype(jnp.float32)
