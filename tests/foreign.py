"""A checkpoint as diffusers writes it, of a tiny U-Net with random weights; and a pickle that must not be run."""

import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.diffusion.schedule import make_schedule
from side_jax.models.unet import UNet
from side_jax.targets.diffusers_unet import to_diffusers

TINY = UNet(
    out_channels=1,
    block_out_channels=(4, 8),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    attention_head_dim=None,
    norm_num_groups=2,
    norm_eps=1e-6,
    downsample_padding=0,
    freq_shift=1,
    time_embedding_dim=6,
    mid_block_scale_factor=2**0.5,
)


def random_params(module, shape=(8, 8, 1)):
    x, t = jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, t)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def write(directory, module=TINY):
    schedule = make_schedule("cosine", 30, prediction_type="v")
    to_diffusers(directory, module, random_params(module), schedule, image_size=8)
    return schedule


def write_smallest(directory):
    """As small a model as there is, of 8x8 pixels; returns the folder."""
    module = UNet(
        out_channels=1,
        block_out_channels=(4,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=2,
        add_attention=False,
    )
    to_diffusers(directory, module, random_params(module), make_schedule("linear", 10), image_size=8)
    return directory


class Hostile:
    """Unpickled, it creates a folder."""

    def __init__(self, path):
        self.path = path
        pickle.loads(pickle.dumps(self))
        path.rmdir()  # so it does

    def __reduce__(self):
        return os.mkdir, (str(self.path),)
