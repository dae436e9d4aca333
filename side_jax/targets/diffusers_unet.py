"""Converts unconditional diffusers checkpoints to (module, params, schedule) and back.

It reads JSON, safetensors and, by PyTorch's restricted loader, pickled weights, and does not need diffusers.
"""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from side_jax.diffusion.schedule import Schedule
from side_jax.errors import InputError
from side_jax.hub import repository
from side_jax.models.continuous import ScoreVe
from side_jax.models.score_unet import ScoreUNet
from side_jax.models.unet import UNet
from side_jax.settings import Diffusion
from side_jax.targets import diffusers_text, diffusers_vae, hub_checkpoint, parameters, text_parts
from side_jax.targets.checkpoint_files import (
    WEIGHTS,
    autoencoder_folder,
    read_folder_weights,
    read_json,
    refuse_other_parts,
    unet_folder,
    weight_files,
)
from side_jax.targets.schedules import read_exploding_noise, read_noise, scheduler_config
from side_jax.targets.target_model import Hints, Origin, Target
from side_jax.targets.unets import image_size, read_module, smallest_size, unet_config
from side_jax.targets.unit_range import with_unit_pixels
from side_jax.workdir import files

FORMAT = "diffusers"
logger = logging.getLogger(__name__)


def from_diffusers(directory: str | Path) -> tuple[Any, Any, Schedule]:
    """Reads a diffusers checkpoint.

    Args:
      directory: a pipeline folder (model_index.json, unet/ or unet_ema/, scheduler/) or a UNet2DModel folder
        (config.json and diffusion_pytorch_model.safetensors, sharded or not, or a single variant of it, or .bin if
        PyTorch is installed), with scheduler_config.json in it or in ../scheduler. Of unet/ and unet_ema/, unet_ema/.
        Or an id of the Hugging Face hub, such as hf://google/ddpm-cifar10-32, which is downloaded.

    Returns:
      (module, params, schedule). module.apply({"params": params}, x, t) is the model's prediction for images x, float32
      [b, h, w, c], and timesteps t, int32 [b]; schedule.prediction_type names what it predicts.

    Raises:
      InputError: if a file is missing, damaged, pickled with more than tensors, or does not belong to an unconditional
        UNet2DModel of images that was trained with DDPM's discrete noise, or, if it is an NCSN++, by its score.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from side_jax import from_diffusers
      >>> module, params, schedule = from_diffusers("model")
      >>> x, t = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, jnp.int32)
      >>> jax.jit(module.apply)({"params": params}, x, t).shape
      (1, 8, 8, 1)
    """
    folder = unet_folder(hub_checkpoint.fetch(directory, "") if repository.is_id(directory) else directory)
    refuse_other_parts(folder)
    target = _read_unet(folder, latent=False)
    if folder.name == "unet_ema" and (folder.parent / "unet").is_dir():
        logger.info("%s: unet_ema is read, the moving average of the weights, and not unet.", folder.parent)
    return target.network, target.origin.read_params(), target.schedule


def read(path: Path, hints: Hints) -> Target:
    """Reads a checkpoint as a target; see from_diffusers. With vae/ or vqvae/ beside unet/, it is a model of latents.

    With text_encoder/ too, its labels are the prompts of config.target.prompts.

    Raises:
      InputError: as from_diffusers.
    """
    folder = unet_folder(path)
    if text_parts.is_text(folder):
        return diffusers_text.read(folder, hints)
    autoencoder = autoencoder_folder(folder)
    target = _read_unet(folder, latent=bool(autoencoder), pixels=hints.target.pixels)
    return diffusers_vae.with_autoencoder(target, autoencoder, hints) if autoencoder else target


def _read_unet(folder: Path, *, latent: bool, pixels: str = "") -> Target:
    """Reads the U-Net alone; `pixels` is config.target.pixels."""
    module = read_module(folder)
    plain = isinstance(module, UNet)
    noise = read_noise(folder, latent=latent) if plain else read_exploding_noise(folder)  # refuses, before weights do
    size, weights = image_size(folder, module), tuple(weight_files(folder))
    origin = Origin(format=FORMAT, weights=weights, read_params=lambda: _read_params(folder, module))
    if plain:
        return Target(
            network=module,
            diffusion=noise,
            channels=module.out_channels,
            num_labels=module.num_labels,
            null_label=module.null_label,
            size=size,
            origin=origin,
        )
    network = ScoreVe(net=module, **noise)
    target = Target(
        network=network,
        diffusion=Diffusion(num_timesteps=noise["num_timesteps"], trained_betas=network.betas, prediction_type="x0"),
        channels=module.out_channels,
        size=size,
        origin=dataclasses.replace(origin, read_params=lambda: {"net": _read_params(folder, module)}),
    )
    if latent or pixels == "signed":
        return target
    note = "its pixels are taken to be in [0, 1], as its pipeline has them; config.target.pixels sets it"
    return with_unit_pixels(target, notes=() if pixels else (note,))


def _read_params(folder: Path, module: UNet | ScoreUNet) -> Any:
    """Reads the parameters of a checkpoint's module.

    Raises:
      InputError: as from_diffusers.
    """
    whole = module.clone(out_channels=read_json(folder / "config.json").get("out_channels", 3))
    where = str(folder / "config.json")
    shapes = parameters.described_shapes(where, whole, module.out_channels, smallest_size(module))
    params = parameters.from_state_dict(read_folder_weights(folder), shapes, str(folder))
    # Without a learned variance, which nothing needs: the second half of the output's channels.
    params["conv_out"] = {name: leaf[..., : module.out_channels] for name, leaf in params["conv_out"].items()}
    return params


def to_diffusers(
    directory: str | Path, module: UNet, params: Any, schedule: Schedule, *, image_size: int | tuple[int, int]
) -> None:
    """Writes a pipeline folder that diffusers' DDPMPipeline and DDIMPipeline load.

    Args:
      directory: created if needed; existing files of the same names are replaced.
      module: the U-Net. A conditional one is written with one extra class for "no label", its last, which
        config.target.null_label names when it is read back.
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
    if not isinstance(module, UNet):
        raise InputError(f"a {type(module).__name__} can't be written as a diffusers pipeline; give a UNet.")
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
