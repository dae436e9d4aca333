"""Residual classifiers, time-dependent (SIDE's surrogate) or not (the conditional baseline).

A ResNet of basic blocks (He et al. 2016) with GroupNorm in place of BatchNorm, so that the images of a batch never
influence each other. SIDE's figure 9 conditions each block on time at ONE point, right after its first normalisation:

    h = norm1(conv1(x));   h = h * (1 + scale(t)) + shift(t);   h = relu(h);   h = norm2(conv2(h));   out = relu(x + h)

where (scale, shift) is a linear map of the time embedding that starts at zero.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from side_jax.models.layers import GroupNorm, TimeEmbedding


class BasicBlock(nn.Module):
    """One residual block of the module docstring; `stride` 2 halves the feature map."""

    channels: int
    stride: int
    num_groups: int

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array | None) -> jax.Array:
        """x: [b, h, w, c]; emb: the time embedding [b, e] or None; returns [b, h / stride, w / stride, channels]."""
        h = nn.Conv(self.channels, (3, 3), self.stride, padding=1, use_bias=False, name="conv1")(x)
        h = GroupNorm(self.num_groups, name="norm1")(h)
        if emb is not None:
            projection = nn.Dense(2 * self.channels, kernel_init=nn.initializers.zeros, name="time_proj")(nn.silu(emb))
            scale, shift = jnp.split(projection[:, None, None, :], 2, axis=-1)
            h = h * (1.0 + scale) + shift
        h = nn.Conv(self.channels, (3, 3), padding=1, use_bias=False, name="conv2")(nn.relu(h))
        h = GroupNorm(self.num_groups, name="norm2")(h)
        if x.shape != h.shape:
            x = nn.Conv(self.channels, (1, 1), self.stride, use_bias=False, name="conv_shortcut")(x)
            x = GroupNorm(self.num_groups, name="norm_shortcut")(x)
        return nn.relu(x + h)


class Classifier(nn.Module):
    """Log-probabilities of each class.

    Attributes:
      num_classes: C.
      stage_sizes: blocks of each stage; every stage but the first halves the image and doubles the channels.
        ResNet-18 is (2, 2, 2, 2), ResNet-34 is (3, 4, 6, 3).
      width: channels of the first stage.
      time_dependent: condition every block on the timestep; otherwise t is not used.
      num_groups: of GroupNorm, capped to what divides the channels.
      stem_stride: of the first convolution: 1 for small images, 2 for large ones.
    """

    num_classes: int
    stage_sizes: tuple[int, ...]
    width: int
    time_dependent: bool
    num_groups: int = 8
    stem_stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """x: float32 [b, h, w, c] in about [-1, 1]; t: int32 [b]; returns float32 [b, num_classes]."""
        emb = TimeEmbedding(4 * self.width, name="time_embedding")(t) if self.time_dependent else None
        h = nn.Conv(self.width, (3, 3), self.stem_stride, padding=1, use_bias=False, name="conv_in")(x)
        h = nn.relu(GroupNorm(self.num_groups, name="norm_in")(h))
        for stage, blocks in enumerate(self.stage_sizes):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                h = BasicBlock(self.width * 2**stage, stride, self.num_groups, name=f"stage_{stage}_{i}")(h, emb)
        return nn.log_softmax(nn.Dense(self.num_classes, name="head")(h.mean(axis=(1, 2))))
