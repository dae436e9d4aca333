"""Foreign checkpoints to and from Flax: unconditional diffusers models and SSCD, as local files, never pickled."""

from side_jax.convert.diffusers import from_diffusers, to_diffusers
from side_jax.convert.folder import weight_files
from side_jax.convert.schedules import read_schedule_options
from side_jax.convert.sscd import from_sscd
from side_jax.convert.unets import image_shape, read_module

__all__ = [
    "from_diffusers",
    "from_sscd",
    "image_shape",
    "read_module",
    "read_schedule_options",
    "to_diffusers",
    "weight_files",
]
