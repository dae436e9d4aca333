"""DDPM++ and NCSN++ (Song et al. 2021, appendix H), with the options and the names of Karras et al. 2022 (table 7).

The module enc_32x32_block0 is NVlabs' enc.32x32_block0. Images are NHWC. What the program has for augmented training
images is left out: it adds nothing when no augmentation is named, as in sampling.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from side_jax.models.edm_blocks import FourierEmbedding, block_class, double, edge, halve, normalise, one_hot
from side_jax.models.layers import Conv3x3, sinusoidal_embedding, zeros_conv

_EPS = 1e-6
EMBEDDINGS = ("positional", "fourier")
ENCODERS = ("standard", "skip", "residual")
DECODERS = ("standard", "skip")


class SongUNet(nn.Module):
    """F(c_in y; c_noise) of EDM's preconditioning (continuous.py).

    All sums are scaled by sqrt(1/2). Attention has one head. It follows every block of the encoder at attn_resolutions,
    the first in the middle, and the last of the decoder's blocks at each of attn_resolutions.

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
      embedding_type: of the noise: "positional" (DDPM++) or "fourier" (NCSN++).
      channel_mult_noise: multiple of the embedding of the noise before its layers.
      encoder_type: "standard", or with the image beside it, halved ("skip") and convolved ("residual", NCSN++).
      decoder_type: "standard", or the sum of images of all levels ("skip").
      resample_filter: taps of the resampling, of an even number.
      dtype: of the computation, as in UNet.
      remat: recompute each block in the backward pass.
    """

    img_resolution: int
    out_channels: int
    label_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.1
    embedding_type: str = "positional"
    channel_mult_noise: int = 1
    encoder_type: str = "standard"
    decoder_type: str = "standard"
    resample_filter: tuple[float, ...] = (1, 1)
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
        make = functools.partial(
            block_class(self.remat),
            dropout=self.dropout,
            eps=_EPS,
            resample_filter=self.resample_filter,
            resample_proj=True,
            adaptive_scale=False,
            skip_scale=math.sqrt(0.5),
            dtype=self.dtype,
        )

        def block(name: str, h: jax.Array, channels: int, attend: bool = False, resize: str = "") -> jax.Array:
            return make(channels, int(attend), resize=resize, name=name)(h, emb, deterministic)

        skips = self._encode(x.astype(self.dtype), block)
        return self._decode(skips, block).astype(jnp.float32)

    def _embedding(self, c_noise: jax.Array, labels: jax.Array | None) -> jax.Array:
        width = self.model_channels * self.channel_mult_noise
        if self.embedding_type == "fourier":
            emb = FourierEmbedding(width, name="map_noise")(c_noise)
        else:
            emb = sinusoidal_embedding(c_noise, width, freq_shift=1.0)
        emb = emb.astype(self.dtype)
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        if self.label_dim:
            given = one_hot(labels, self.label_dim, len(c_noise), self.dtype) * math.sqrt(self.label_dim)
            emb = emb + dense(width, name="map_label")(given)
        for name in ("map_layer0", "map_layer1"):
            emb = nn.silu(dense(self.model_channels * self.channel_mult_emb, name=name)(emb))
        return emb

    def _encode(self, x: jax.Array, block: Any) -> list[jax.Array]:
        """The feature maps that the decoder uses; the last is the encoder's output."""
        h = Conv3x3(self.model_channels, padding=1, dtype=self.dtype, name=f"enc_{self._at(0)}_conv")(x)
        skips, image = [h], x
        for level, multiple in enumerate(self.channel_mult):
            at = f"enc_{self._at(level)}"
            if level:
                channels = h.shape[-1]
                h = block(f"{at}_down", h, channels, resize="down")
                if self.encoder_type == "skip":
                    image = halve(image, self.resample_filter)
                    h = h + nn.Dense(channels, dtype=self.dtype, name=f"{at}_aux_skip")(image)
                elif self.encoder_type == "residual":
                    # All zeros are added in front of the convolution, and none between it and the filter.
                    padding = 1 + edge(self.resample_filter)
                    conv = Conv3x3(channels, padding=padding, dtype=self.dtype, name=f"{at}_aux_residual")
                    h = image = (h + halve(conv(image), self.resample_filter, padding=0)) * math.sqrt(0.5)
                skips.append(h)
            for i in range(self.num_blocks):
                h = block(f"{at}_block{i}", h, self.model_channels * multiple, self._attends(level))
                skips.append(h)
        return skips

    def _decode(self, skips: list[jax.Array], block: Any) -> jax.Array:
        h, last = skips[-1], len(self.channel_mult) - 1
        images: list[jax.Array] = []
        for level, multiple in reversed([*enumerate(self.channel_mult)]):
            at = f"dec_{self._at(level)}"
            if level == last:
                h = block(f"{at}_in0", h, h.shape[-1], True)
                h = block(f"{at}_in1", h, h.shape[-1])
            else:
                h = block(f"{at}_up", h, h.shape[-1], resize="up")
            for i in range(self.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                attend = i == self.num_blocks and self._attends(level)
                h = block(f"{at}_block{i}", h, self.model_channels * multiple, attend)
            if self.decoder_type == "skip" or level == 0:
                y = nn.silu(normalise(h, f"{at}_aux_norm", _EPS, self.dtype))
                y = zeros_conv(self.out_channels, padding=1, dtype=self.dtype, name=f"{at}_aux_conv")(y)
                images.append(y + double(images[-1], self.resample_filter) if images else y)
        return images[-1]

    def _at(self, level: int) -> str:
        side = self.img_resolution >> level
        return f"{side}x{side}"

    def _attends(self, level: int) -> bool:
        return self.img_resolution >> level in self.attn_resolutions
