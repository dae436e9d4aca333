"""ADM (Dhariwal and Nichol 2021) as Karras et al. 2022 use it (table 7), with their program's options and names.

The module enc_32x32_block0 is NVlabs' enc.32x32_block0. Images are NHWC. What the program has for augmented training
images is left out: it adds nothing when no augmentation is named, as in sampling.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from side_jax.models.edm_blocks import block_class, normalise, one_hot
from side_jax.models.layers import Conv3x3, sinusoidal_embedding, zeros_conv

_EPS = 1e-5
HEAD_CHANNELS = 64


class DhariwalUNet(nn.Module):
    """F(c_in y; c_noise) of EDM's preconditioning (continuous.py).

    Attention has a head for every 64 channels, and there is none where there are fewer. It follows every block at
    attn_resolutions, of the encoder and the decoder, and the first in the middle.

    Attributes:
      img_resolution: height and width of the images.
      out_channels: of the image.
      label_dim: number of labels; 0: an unconditional model.
      model_channels: channels that the multiples multiply.
      channel_mult: multiples of each level.
      channel_mult_emb: multiple of the embedding.
      num_blocks: of each level of the encoder; the decoder has one more.
      attn_resolutions: heights of the levels with attention.
      dropout: share of activations, while training.
      dtype: of the computation, as in UNet.
      remat: recompute each block in the backward pass.
    """

    img_resolution: int
    out_channels: int
    label_dim: int = 0
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_emb: int = 4
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (32, 16, 8)
    dropout: float = 0.1
    dtype: Any = jnp.float32
    remat: bool = False

    @property
    def middle(self) -> str:
        """As MemoryUNet's."""
        return f"dec_{self._at(len(self.channel_mult) - 1)}_in1"

    @nn.compact
    def __call__(
        self, x: jax.Array, c_noise: jax.Array, deterministic: bool = True, labels: jax.Array | None = None
    ) -> jax.Array:
        """Returns float32 with the shape of x.

        Args:
          x: float32 [b, h, w, c], h = w = img_resolution.
          c_noise: float32 [b].
          deterministic: switch dropout off.
          labels: int32 [b], -1 for none; None: no image has one.
        """
        emb = self._embedding(c_noise, labels)
        make = functools.partial(block_class(self.remat), dropout=self.dropout, eps=_EPS, dtype=self.dtype)

        def block(name: str, h: jax.Array, channels: int, attend: bool = False, resize: str = "") -> jax.Array:
            heads = channels // HEAD_CHANNELS if attend else 0
            return make(channels, heads, resize=resize, name=name)(h, emb, deterministic)

        conv = functools.partial(Conv3x3, padding=1, dtype=self.dtype)
        h = conv(self.model_channels * self.channel_mult[0], name=f"enc_{self._at(0)}_conv")(x.astype(self.dtype))
        skips = [h]
        for level, multiple in enumerate(self.channel_mult):
            if level:
                h = block(f"enc_{self._at(level)}_down", h, h.shape[-1], resize="down")
                skips.append(h)
            for i in range(self.num_blocks):
                name = f"enc_{self._at(level)}_block{i}"
                h = block(name, h, self.model_channels * multiple, self._attends(level))
                skips.append(h)
        for level, multiple in reversed([*enumerate(self.channel_mult)]):
            at = f"dec_{self._at(level)}"
            if level == len(self.channel_mult) - 1:
                h = block(f"{at}_in0", h, h.shape[-1], True)
                h = block(f"{at}_in1", h, h.shape[-1])
            else:
                h = block(f"{at}_up", h, h.shape[-1], resize="up")
            for i in range(self.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(f"{at}_block{i}", h, self.model_channels * multiple, self._attends(level))
        h = nn.silu(normalise(h, "out_norm", _EPS, self.dtype))
        h = zeros_conv(self.out_channels, padding=1, dtype=self.dtype, name="out_conv")(h)
        return h.astype(jnp.float32)

    def _embedding(self, c_noise: jax.Array, labels: jax.Array | None) -> jax.Array:
        width = self.model_channels * self.channel_mult_emb
        dense = functools.partial(nn.Dense, width, dtype=self.dtype)
        emb = sinusoidal_embedding(c_noise, self.model_channels, flip_sin_to_cos=True).astype(self.dtype)
        emb = dense(name="map_layer1")(nn.silu(dense(name="map_layer0")(emb)))
        if self.label_dim:
            given = one_hot(labels, self.label_dim, len(c_noise), self.dtype)
            emb = emb + dense(use_bias=False, name="map_label")(given)
        return nn.silu(emb)

    def _at(self, level: int) -> str:
        side = self.img_resolution >> level
        return f"{side}x{side}"

    def _attends(self, level: int) -> bool:
        return self.img_resolution >> level in self.attn_resolutions
