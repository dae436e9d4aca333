"""The autoencoders of latent diffusion models (Rombach et al. 2022, appendix G), by KL or vector-quantised.

One module serves diffusers' AutoencoderKL and VQModel and MONAI's AutoencoderKL, which differ in what surrounds the
same blocks. Modules and parameters have the names of diffusers' state dicts, as unet.py's have. Images and latents are
NHWC.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from side_jax.models.layers import Conv3x3, GroupNorm
from side_jax.models.unet import BlockFactory, DownBlock, MidBlock, Upsample

# Distances to codes that are held at once.
_MOST_DISTANCES = 2**22


class _Half(nn.Module):
    """What encoder and decoder share.

    Attributes:
      out_channels: of the output.
      block_out_channels: of each level, in the order in which they are computed.
      layers: number of residual blocks of each level.
      attention: whether attention follows each residual block of a level.
      middle: what stands at the lowest resolution: "attention" between two residual blocks, "plain", these alone, or
        "", nothing.
      final_silu: whether an activation stands between the last normalisation and the last convolution.
      factory: of the blocks.
    """

    out_channels: int
    block_out_channels: tuple[int, ...]
    layers: tuple[int, ...]
    attention: tuple[bool, ...]
    middle: str
    final_silu: bool
    factory: BlockFactory

    def first(self, h: jax.Array) -> jax.Array:
        """The first convolution."""
        dtype = self.factory.dtype
        return Conv3x3(self.block_out_channels[0], padding=1, dtype=dtype, name="conv_in")(h.astype(dtype))

    def mid(self, h: jax.Array) -> jax.Array:
        """The blocks at the lowest resolution."""
        return MidBlock(self.factory, self.middle == "attention", 1.0, name="mid_block")(h, None, True)

    def last(self, h: jax.Array) -> jax.Array:
        """The last convolution."""
        factory = self.factory
        h = GroupNorm(factory.num_groups, epsilon=factory.eps, dtype=factory.dtype, name="conv_norm_out")(h)
        h = nn.silu(h) if self.final_silu else h
        return Conv3x3(self.out_channels, padding=1, dtype=factory.dtype, name="conv_out")(h)


class Encoder(_Half):
    """Levels of residual blocks that halve the size between them, then the middle."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, h, w, c]; returns [b, h / f, w / f, out_channels] with f = 2^(levels - 1)."""
        h, last = self.first(x), len(self.block_out_channels) - 1
        for i, (channels, layers, attend) in enumerate(
            zip(self.block_out_channels, self.layers, self.attention, strict=True)
        ):
            padding = None if i == last else 0
            h, _ = DownBlock(self.factory, channels, layers, attend, padding, name=f"down_blocks_{i}")(h, None, True)
        return self.last(self.mid(h) if self.middle else h)


class DecoderBlock(nn.Module):
    """UpDecoderBlock2D and AttnUpDecoderBlock2D: residual blocks, attention after each if `attend`, an upsampling."""

    factory: BlockFactory
    channels: int
    num_layers: int
    attend: bool
    upsample: bool

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        """h: [b, h, w, c]; returns [b, h', w', channels]."""
        for i in range(self.num_layers):
            h = self.factory.resnet(self.channels, f"resnets_{i}")(h, None, True)
            if self.attend:
                h = self.factory.attention(self.channels, i)(h)
        return Upsample(self.factory.dtype, name="upsamplers_0")(h) if self.upsample else h


class Decoder(_Half):
    """The middle, then levels of residual blocks that double the size between them."""

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """z: [b, h, w, c]; returns [b, f h, f w, out_channels] with f = 2^(levels - 1)."""
        h, last = self.first(z), len(self.block_out_channels) - 1
        h = self.mid(h) if self.middle else h
        for i, (channels, layers, attend) in enumerate(
            zip(self.block_out_channels, self.layers, self.attention, strict=True)
        ):
            h = DecoderBlock(self.factory, channels, layers, attend, i != last, name=f"up_blocks_{i}")(h)
        return self.last(h)


class Codebook(nn.Module):
    """The vectors that latents are rounded to (van den Oord et al. 2017, equation 2)."""

    codes: int
    channels: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """z: float32 [b, h, w, channels]; returns each vector's nearest code, of equally near ones the first."""
        codes = nn.Embed(self.codes, self.channels, name="embedding").embedding
        squares = jnp.square(codes).sum(axis=1)

        def nearest(vector: jax.Array) -> jax.Array:
            # |z - c|^2 without |z|^2. At the usual precision of accelerators' matrix products, others would be nearest.
            return jnp.argmin(squares - 2.0 * jnp.matmul(codes, vector, precision=jax.lax.Precision.HIGHEST))

        rows = max(1, _MOST_DISTANCES // self.codes)
        chosen = jax.lax.map(nearest, z.reshape(-1, self.channels), batch_size=rows)
        return codes[chosen].reshape(z.shape)


class Autoencoder(nn.Module):
    """Encodes images to latents and decodes them.

    Attributes:
      channels: of the images.
      latent_channels: of the latents.
      block_out_channels: of each level, the first at the images' resolution.
      encoder_layers: number of residual blocks of each level of the encoder.
      decoder_layers: those of the decoder, whose first level is the last of the encoder.
      encoder_attention: whether attention follows each residual block of a level.
      decoder_attention: the same of the decoder.
      encoder_middle: "attention", "plain" or "", as _Half explains.
      decoder_middle: the same of the decoder.
      encoded_channels: of the encoder's output, of which a 1x1 convolution, quant_conv, makes the latents; 0: there is
        no such convolution, and the output is the latents.
      decoded_channels: what a 1x1 convolution, post_quant_conv, makes of latents for the decoder; 0: there is none.
      final_silu: whether an activation stands between the last normalisation and the last convolution of each half;
        MONAI's has none.
      codes: number of vectors of the codebook, to which latents are rounded before they are decoded; 0: none.
      norm_num_groups: of every normalisation.
      norm_eps: of every normalisation.
      dtype: of the computation. Parameters, latents and images, and the statistics of norms and softmaxes are float32.
    """

    channels: int
    latent_channels: int
    block_out_channels: tuple[int, ...]
    encoder_layers: tuple[int, ...]
    decoder_layers: tuple[int, ...]
    encoder_attention: tuple[bool, ...]
    decoder_attention: tuple[bool, ...]
    encoder_middle: str = "attention"
    decoder_middle: str = "attention"
    encoded_channels: int = 0
    decoded_channels: int = 0
    final_silu: bool = True
    codes: int = 0
    norm_num_groups: int = 32
    norm_eps: float = 1e-6
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Names the parts as the state dict does."""
        factory = BlockFactory(
            num_groups=self.norm_num_groups,
            attn_num_groups=self.norm_num_groups,
            eps=self.norm_eps,
            dropout=0.0,
            head_dim=None,
            num_heads=None,
            time_scale_shift="default",
            dtype=self.dtype,
            remat=False,
        )
        encoded, levels = self.encoded_channels or self.latent_channels, self.block_out_channels
        shared: dict[str, Any] = {"final_silu": self.final_silu, "factory": factory}
        down = (self.encoder_layers, self.encoder_attention, self.encoder_middle)
        up = (self.decoder_layers, self.decoder_attention, self.decoder_middle)
        self.encoder = Encoder(encoded, levels, *down, **shared)
        self.decoder = Decoder(self.channels, levels[::-1], *up, **shared)
        if self.encoded_channels:
            self.quant_conv = nn.Conv(self.latent_channels, (1, 1), dtype=self.dtype)
        if self.decoded_channels:
            self.post_quant_conv = nn.Conv(self.decoded_channels, (1, 1), dtype=self.dtype)
        if self.codes:
            self.quantize = Codebook(self.codes, self.latent_channels)

    @property
    def factor(self) -> int:
        """How many times larger images are than latents, in height and in width."""
        return 2 ** (len(self.block_out_channels) - 1)

    def encode(self, images: jax.Array) -> jax.Array:
        """images: float32 [b, f h, f w, channels]; returns the latents, float32 [b, h, w, latent_channels].

        They are the mean of the posterior, or what is not yet rounded to codes.
        """
        h = self.encoder(images)
        return (self.quant_conv(h) if self.encoded_channels else h).astype(jnp.float32)

    def decode(self, z: jax.Array) -> jax.Array:
        """z: float32 [b, h, w, latent_channels]; returns images, float32 [b, f h, f w, channels]."""
        h = self.quantize(z) if self.codes else z
        return self.decoder(self.post_quant_conv(h) if self.decoded_channels else h).astype(jnp.float32)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes and decodes images."""
        return self.decode(self.encode(images))
