"""ResNets (He et al. 2016), optionally time-dependent: basic blocks (ResNet-18, -34) or bottlenecks (ResNet-50).

In SIDE's figure 9 (Chen et al. 2024), the timestep conditions each block at ONE point, right after its first norm:

    h = norm1(conv1(x));   h = h * (1 + scale(t)) + shift(t);   h = relu(h);   h = norm2(conv2(h));   out = relu(x + h)

where (scale, shift) is a linear map of the time embedding, initialised to zero. For small images the stem is a 3x3
convolution without pooling.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from side_jax.models.classifier import Classifier
from side_jax.models.layers import BatchNorm, Conv3x3, GroupNorm, TimeEmbedding, sinusoidal_embedding


class ResidualBlock(nn.Module):
    """One residual block as above; `stride` 2 halves the feature map.

    A basic block has two 3x3 convolutions, the first with the stride. A bottleneck has a 1x1 convolution, a 3x3 one
    with the stride, and a 1x1 one to four times the channels.
    """

    channels: int
    stride: int
    bottleneck: bool
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array | None) -> jax.Array:
        """x: [b, h, w, c]; emb: the time embedding [b, e] or None; returns [b, h / stride, w / stride, channels']."""
        sizes: tuple[int, ...] = (3, 3)
        strides: tuple[int, ...] = (self.stride, 1)
        widths: tuple[int, ...] = (1, 1)
        if self.bottleneck:
            sizes, strides, widths = (1, 3, 1), (1, self.stride, 1), (1, 1, 4)
        h = x
        for i, (size, stride, times) in enumerate(zip(sizes, strides, widths, strict=True), start=1):
            h = h if i == 1 else nn.relu(h)
            cls = functools.partial(nn.Conv, kernel_size=(1, 1)) if size == 1 else Conv3x3
            conv = cls(times * self.channels, strides=stride, padding=size // 2, use_bias=False, name=f"conv{i}")
            h = self.norm(name=f"norm{i}")(conv(h))
            if i == 1 and emb is not None:
                dense = nn.Dense(2 * self.channels, kernel_init=nn.initializers.zeros, name="time_proj")
                scale, shift = jnp.split(dense(nn.silu(emb))[:, None, None, :], 2, axis=-1)
                h = h * (1.0 + scale) + shift
        if x.shape != h.shape:
            x = nn.Conv(h.shape[-1], (1, 1), self.stride, use_bias=False, name="conv_shortcut")(x)
            x = self.norm(name="norm_shortcut")(x)
        return nn.relu(x + h)


class ResNet(Classifier):
    """A residual classifier, with the attributes of Classifier and three more.

    Attributes:
      bottleneck: use bottlenecks. ResNet-18 has basic blocks, stage_sizes (2, 2, 2, 2) and width 64; ResNet-34 has
        (3, 4, 6, 3); ResNet-50 has (3, 4, 6, 3) with bottlenecks.
      norm: "group", or "batch" as in the paper.
      stem_stride: stride of the first convolution: 1 for small images, 2 for large ones.
    """

    bottleneck: bool = False
    norm: str = "group"
    stem_stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, train: bool = False) -> jax.Array:
        """See Classifier."""
        norms: dict[str, Callable[..., nn.Module]] = {
            "group": functools.partial(GroupNorm, self.capped_groups),
            "batch": functools.partial(BatchNorm, train),
        }
        norm = norms[self.norm]
        emb = None
        if self.time_dependent:
            emb = TimeEmbedding(4 * self.width, name="time_embedding")(sinusoidal_embedding(t, 2 * self.width))
        h = Conv3x3(self.width, strides=self.stem_stride, padding=1, use_bias=False, name="conv_in")(x)
        h = nn.relu(norm(name="norm_in")(h))
        for stage, blocks in enumerate(self.stage_sizes):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                block = ResidualBlock(self.width * 2**stage, stride, self.bottleneck, norm, name=f"stage_{stage}_{i}")
                h = block(h, emb)
        return nn.log_softmax(nn.Dense(self.num_classes, name="head")(h.mean(axis=(1, 2))))
