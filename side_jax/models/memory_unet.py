"""The U-Net of lucidrains' denoising-diffusion-pytorch (Wang 2020, versions 1.8 to 2.3): attention with memory.

A level has two residual blocks, attention, and what changes the size. Every residual block of the way down gives a skip
connection, and so does the stem. Attention reads, beside the pixels, a few learned keys and values, its memory
(Sukhbaatar et al. 2019, "Augmenting Self-attention with Persistent Memory"), and is linear in the number of pixels on
levels that do not ask for all pairs (Shen et al. 2021, "Efficient Attention"). Images are NHWC.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from side_jax.models.attention import attention
from side_jax.models.layers import Conv3x3, GroupNorm, sinusoidal_embedding
from side_jax.models.unet import double


class RMSNorm(nn.Module):
    """Divides each pixel's channels by their root mean square (Zhang and Sennrich 2019), in float32; scales them."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c], returned in the same shape."""
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,)).reshape(1, 1, 1, c)
        x = x.astype(jnp.float32)
        # PyTorch's least length, 1e-12; inside the root, so that the gradient at zero is finite.
        square = jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24)
        return (x * jax.lax.rsqrt(square) * (scale * c**0.5)).astype(self.dtype)


class ResidualBlock(nn.Module):
    """Convolution, norm, scale and shift by time, SiLU; convolution, norm, SiLU; skip.

    `norm_groups` 0: RMSNorm; else a group normalisation.
    """

    channels: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
        """x: [b, h, w, c]; emb: the time embedding [b, e]; returns [b, h, w, channels]."""

        def norm(name: str) -> nn.Module:
            if self.norm_groups:
                return GroupNorm(self.norm_groups, dtype=self.dtype, name=name)
            return RMSNorm(self.dtype, name=name)

        conv = functools.partial(Conv3x3, self.channels, padding=1, dtype=self.dtype)
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        scale, shift = jnp.split(dense(2 * self.channels, name="time_emb_proj")(nn.silu(emb))[:, None, None, :], 2, -1)
        h = nn.silu(norm("norm1")(conv(name="conv1")(x)) * (1.0 + scale) + shift)
        h = nn.silu(norm("norm2")(conv(name="conv2")(h)))
        return h + (x if x.shape[-1] == self.channels else dense(self.channels, name="conv_shortcut")(x))


class MemoryAttention(nn.Module):
    """Self-attention over all pixels and the memory, with a residual connection; softmaxes are in float32.

    With `full`, softmax(q k^T / sqrt(d)) v for each head. Else softmax(q) (softmax(k)^T v) / sqrt(d), where the softmax
    of q is over its d features and that of k over pixels and memory (Shen et al. 2021, section 3.2); then a norm.
    """

    heads: int
    head_channels: int
    num_memory: int
    full: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c], returned in the same shape."""
        (b, h, w, c), size = x.shape, (self.heads, self.head_channels)
        y = nn.Dense(
            3 * self.heads * self.head_channels,
            use_bias=False,
            dtype=self.dtype,
            name="to_qkv",
        )(RMSNorm(self.dtype, name="norm")(x))
        q, k, v = jnp.moveaxis(y.reshape(b, h * w, 3, *size), 2, 0)
        if self.num_memory:
            k, v = self.remember("memory_keys", k), self.remember("memory_values", v)
        if self.full:
            y = attention(q, k, v)
        else:
            q = jax.nn.softmax(q.astype(jnp.float32), axis=-1) * self.head_channels**-0.5
            k = jax.nn.softmax(k.astype(jnp.float32), axis=1)
            context = jnp.einsum("bnhd,bnhe->bhde", k.astype(self.dtype), v)
            y = jnp.einsum("bhde,bnhd->bnhe", context, q.astype(self.dtype))
        y = nn.Dense(c, dtype=self.dtype, name="to_out")(y.reshape(b, h, w, -1))
        return x + (y if self.full else RMSNorm(self.dtype, name="out_norm")(y))

    def remember(self, name: str, values: jax.Array) -> jax.Array:
        """Puts the memory in front of the pixels: [b, n, heads, d] to [b, num_memory + n, heads, d]."""
        table = nn.Embed(
            self.num_memory,
            self.heads * self.head_channels,
            embedding_init=nn.initializers.normal(1.0),
            dtype=self.dtype,
            name=name,
        )
        memory = table(jnp.arange(self.num_memory)).reshape(1, self.num_memory, *values.shape[2:])
        memory = jnp.broadcast_to(memory, (len(values), *memory.shape[1:]))
        return jnp.concatenate([memory, values], axis=1)


def unshuffle(x: jax.Array) -> jax.Array:
    """Turns each 2x2 pixels into channels, those of one channel together: [b, h, w, c] to [b, h / 2, w / 2, 4 c]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4).reshape(b, h // 2, w // 2, 4 * c)


class MemoryUNet(nn.Module):
    """Predicts epsilon, x0 or v from (x_t, t).

    Attributes:
      out_channels: of the image.
      time_channels: of the sinusoidal embedding of t, which a perceptron makes four times as many.
      stem_channels: of the first convolution.
      block_out_channels: channels after each level; every level but the last halves the image.
      heads: of each level's attention. The middle has those of the last level.
      head_channels: of each level's attention heads.
      full_attention: whether each level's attention is over all pairs of pixels, as that of the middle is.
      num_memory: keys and values that each attention layer has beside those of the pixels; versions before 1.9: 0.
      norm_groups: of the group normalisation in residual blocks, as versions before 2.0 have it; 0: RMSNorm.
      dtype: of the computation. Parameters, output, the angles of the time embedding, the statistics of norms and
        softmaxes are always float32.
      remat: recompute each residual block and attention layer in the backward pass.
    """

    out_channels: int
    time_channels: int
    stem_channels: int
    block_out_channels: tuple[int, ...]
    heads: tuple[int, ...]
    head_channels: tuple[int, ...]
    full_attention: tuple[bool, ...]
    num_memory: int = 4
    norm_groups: int = 0
    dtype: Any = jnp.float32
    remat: bool = False

    @property
    def middle(self) -> str:
        """The name of the module whose output is the coarsest feature map."""
        return "middle_block_1"

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, deterministic: bool = True, labels: jax.Array | None = None
    ) -> jax.Array:
        """Returns the prediction, float32 with the shape of x.

        Args:
          x: float32 [b, h, w, c], with sides that are multiples of 2 to the number of levels less one.
          t: int32 or float32 [b].
          deterministic: ignored; there is no dropout.
          labels: ignored; the network has none.
        """

        def block(h: jax.Array, channels: int, name: str) -> jax.Array:
            cls = nn.remat(ResidualBlock) if self.remat else ResidualBlock
            return cls(channels, self.norm_groups, self.dtype, name=name)(h, emb)

        def attend(h: jax.Array, level: int, full: bool, name: str) -> jax.Array:
            cls = nn.remat(MemoryAttention) if self.remat else MemoryAttention
            options = self.heads[level], self.head_channels[level], self.num_memory
            return cls(*options, full, self.dtype, name=name)(h)

        conv = functools.partial(Conv3x3, padding=1, dtype=self.dtype)
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        last, before = len(self.block_out_channels) - 1, (self.stem_channels, *self.block_out_channels[:-1])
        emb = sinusoidal_embedding(t, self.time_channels, freq_shift=1.0).astype(self.dtype)
        emb = nn.gelu(dense(4 * self.time_channels, name="time_1")(emb), approximate=False)
        emb = dense(4 * self.time_channels, name="time_2")(emb)
        h = nn.Conv(self.stem_channels, (7, 7), padding=3, dtype=self.dtype, name="conv_in")(x.astype(self.dtype))
        skips = [h]
        for i, (channels, after) in enumerate(zip(before, self.block_out_channels, strict=True)):
            h = block(h, channels, f"down_{i}_block_0")
            skips.append(h)
            h = attend(block(h, channels, f"down_{i}_block_1"), i, self.full_attention[i], f"down_{i}_attention")
            skips.append(h)
            name = f"down_{i}_resize"
            h = conv(after, name=name)(h) if i == last else dense(after, name=name)(unshuffle(h))
        h = attend(block(h, h.shape[-1], "middle_block_0"), last, True, "middle_attention")
        h = block(h, h.shape[-1], "middle_block_1")
        for i in range(last, -1, -1):  # levels have the same number on both sides
            channels = self.block_out_channels[i]
            for j in range(2):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), channels, f"up_{i}_block_{j}")
            h = attend(h, i, self.full_attention[i], f"up_{i}_attention")
            h = conv(before[i], name=f"up_{i}_resize")(double(h) if i else h)
        h = block(jnp.concatenate([h, skips.pop()], axis=-1), self.stem_channels, "final_block")
        return dense(self.out_channels, name="conv_out")(h).astype(jnp.float32)
