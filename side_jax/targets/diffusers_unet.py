"""Converts unconditional diffusers checkpoints to (module, params, schedule) and back.

It reads only JSON and safetensors, and does not need diffusers.
"""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from side_jax.diffusion.schedule import Schedule
from side_jax.errors import InputError
from side_jax.models.unet import UNet
from side_jax.targets import parameters
from side_jax.targets.checkpoint_files import REPLACE, WEIGHTS, read_safetensors, unet_folder, weight_files
from side_jax.targets.schedules import read_schedule, scheduler_config
from side_jax.targets.unets import image_shape, read_module, unet_config
from side_jax.workdir import files


def from_diffusers(directory: str | Path) -> tuple[UNet, Any, Schedule]:
    """Reads a local diffusers checkpoint.

    Args:
      directory: a pipeline folder (model_index.json, unet/, scheduler/) or a UNet2DModel folder (config.json and
        diffusion_pytorch_model.safetensors, sharded or not), with scheduler_config.json in it or in ../scheduler.

    Returns:
      (module, params, schedule). module.apply({"params": params}, x, t) is the model's prediction for images x, float32
      [b, h, w, c], and timesteps t, int32 [b]; schedule.prediction_type names what it predicts.

    Raises:
      InputError: if a file is missing, damaged, pickled or does not belong to an unconditional UNet2DModel.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from side_jax import from_diffusers
      >>> module, params, schedule = from_diffusers("model")
      >>> x, t = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, jnp.int32)
      >>> jax.jit(module.apply)({"params": params}, x, t).shape
      (1, 8, 8, 1)
    """
    folder = unet_folder(Path(os.path.expanduser(directory)))
    module, schedule = read_module(folder), read_schedule(folder)
    x = jax.ShapeDtypeStruct((1, *image_shape(folder)), jnp.float32)
    try:
        shapes = jax.eval_shape(module.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.int32))["params"]
    except (ValueError, TypeError, ArithmeticError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{folder / 'config.json'} describes no network that can be built ({reason}); {REPLACE}."
        ) from None
    state: dict[str, np.ndarray] = {}
    for path in weight_files(folder):
        state |= read_safetensors(path)
    return module, parameters.from_state_dict(state, shapes, str(folder)), schedule


def to_diffusers(
    directory: str | Path, module: UNet, params: Any, schedule: Schedule, *, image_size: int | tuple[int, int]
) -> None:
    """Writes a pipeline folder that diffusers' DDPMPipeline and DDIMPipeline load.

    Args:
      directory: created if needed; existing files of the same names are replaced.
      module: the U-Net. A conditional one is written with one extra class for "no label", and can't be read back here.
      params: its parameters.
      schedule: the noise schedule, written as trained_betas in full precision.
      image_size: height and width, or (height, width); the pipelines use it.

    Example:
      >>> import os
      >>> from side_jax import from_diffusers, to_diffusers
      >>> to_diffusers("copy", *from_diffusers("model"), image_size=8)
      >>> sorted(os.listdir("copy"))
      ['model_index.json', 'scheduler', 'unet']
    """
    directory = Path(os.path.expanduser(directory))
    channels = np.shape(params["conv_in"]["kernel"])[2]
    config = {"_class_name": "UNet2DModel", "sample_size": image_size, "in_channels": channels}
    files.write_json(directory / "unet" / "config.json", config | unet_config(module))
    files.write_json(directory / "scheduler" / "scheduler_config.json", scheduler_config(schedule))
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    files.write_json(directory / "model_index.json", {"_class_name": "DDPMPipeline"} | parts)
    state = parameters.to_state_dict(jax.device_get(params))
    with files.atomic(directory / "unet" / WEIGHTS) as file:
        save_file(state, file.name, metadata={"format": "pt"})
