"""Converts the config.json of diffusers' UNet2DModel to and from the Flax module: a UNet, or NCSN++ of skip blocks."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from side_jax.errors import InputError
from side_jax.models import score_unet
from side_jax.models.condition_unet import ConditionUNet
from side_jax.models.score_unet import ScoreUNet
from side_jax.models.unet import UNet
from side_jax.settings.target import DOWN_BLOCKS, UP_BLOCKS
from side_jax.targets import condition_unets
from side_jax.targets.checkpoint_files import REPLACE, check_levels, join_values, read_json, unet_folder

# Options of UNet2DModel that the module has too, with diffusers' defaults.
_OPTIONS: dict[str, Any] = {
    "block_out_channels": (224, 448, 672, 896),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "dropout": 0.0,
    "add_attention": True,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "time_embedding_dim": None,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "resnet_time_scale_shift": "default",
    "center_input_sample": False,
    "downsample_type": "conv",
    "upsample_type": "conv",
}
# Options that must have one of these values, since the module supports no other.
_FIXED: dict[str, tuple[Any, ...]] = {
    "class_embed_type": (None,),
    "time_embedding_type": ("positional", "fourier"),
    "mid_block_type": ("UNetMidBlock2D",),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "downsample_padding": (0, 1),
}
_BLOCKS = {"down_block_types": DOWN_BLOCKS, "up_block_types": UP_BLOCKS}
_SCORE_BLOCKS = {"down_block_types": score_unet.DOWN_BLOCKS, "up_block_types": score_unet.UP_BLOCKS}


def read_module(folder: Path) -> UNet | ScoreUNet:
    """Reads the U-Net that config.json describes.

    Raises:
      InputError: if the file is missing, damaged, or describes an unsupported model.
    """
    path = unet_folder(folder) / "config.json"
    config = read_json(path)
    if config.get("_class_name") == condition_unets.CLASS:
        raise InputError(
            f"{path} describes a {condition_unets.CLASS}, which needs the text encoder and the tokenizer of its "
            "pipeline; give the folder of the whole pipeline, and config.target.prompts."
        )
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise InputError(
            f"{path} describes a {config['_class_name']}, but only unconditional UNet2DModel checkpoints are read; "
            "give the folder of one."
        )
    for name, allowed in _FIXED.items():
        if name in config and config[name] not in allowed:
            what = "class-conditional models are not read" if "class" in name else "that is not supported"
            raise InputError(
                f"{path} has {name} = {json.dumps(config[name])}; {what}, give a model with {join_values(allowed)}."
            )
    options = {name: config.get(name, default) for name, default in _OPTIONS.items()}
    score = config.get("time_embedding_type", "positional") == "fourier"
    check_levels(
        path, options, _SCORE_BLOCKS if score else _BLOCKS, among=" beside time_embedding_type = fourier" * score
    )
    channels, given = config.get("in_channels", 3), config.get("out_channels", 3)
    if given not in (channels, 2 * channels):
        raise InputError(
            f"{path} has in_channels = {channels} and out_channels = {given}; give a model whose output is one image, "
            "or one and its variance."
        )
    labels = config.get("num_class_embeds")
    if labels is not None and (type(labels) is not int or labels < 1):
        raise InputError(
            f"{path} has num_class_embeds = {json.dumps(labels)}, which is no number of labels; {REPLACE}."
        )
    read = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    if score:
        return _score_unet(path, channels, given, labels, read)
    return UNet(
        out_channels=channels,  # of a learned variance, the second half of the output, nothing is needed
        num_labels=labels or 0,
        null_label=not labels,
        **read,
    )


def _score_unet(path: Path, channels: int, out_channels: int, labels: int | None, options: dict[str, Any]) -> ScoreUNet:
    """NCSN++ of a config's options."""
    if out_channels != channels or labels:
        raise InputError(
            f"{path} describes a model with skip blocks and "
            f"{'class labels' if labels else f'{out_channels} channels as output'}, which is not supported; give one "
            "of images alone."
        )
    known = {field.name for field in dataclasses.fields(ScoreUNet)}
    return ScoreUNet(out_channels=channels, **{name: value for name, value in options.items() if name in known})


def unet_config(module: UNet) -> dict[str, Any]:
    """Returns a module as config.json, without in_channels and sample_size, which a module does not know."""
    labels = {"num_class_embeds": module.num_labels + module.null_label} if module.num_labels else {}
    return {"out_channels": module.out_channels} | {name: getattr(module, name) for name in _OPTIONS} | labels


def smallest_size(module: UNet | ScoreUNet | ConditionUNet) -> int:
    """Returns the height and width, in pixels, that a U-Net halves to 1; sizes are multiples of it."""
    return 2 ** (len(module.block_out_channels) - 1)


def image_size(folder: Path, module: UNet | ScoreUNet | ConditionUNet) -> tuple[int, int] | None:
    """Returns the images' (height, width), or None if config.json does not say.

    Raises:
      InputError: if it says what the U-Net can't process.
    """
    path = unet_folder(folder) / "config.json"
    size = read_json(path).get("sample_size")
    if size is None:
        return None
    sides = size if isinstance(size, list) else [size, size]
    fix = "write there the size of the images that it was trained on"
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise InputError(
            f"{path} has sample_size = {json.dumps(size)}, but it must be a number of pixels, [height, width] or null; "
            f"{fix}."
        )
    smallest = smallest_size(module)
    if any(side % smallest for side in sides):
        raise InputError(
            f"{path} has sample_size = {json.dumps(size)}, but its U-Net can only process multiples of {smallest} "
            f"pixels; {fix}."
        )
    return sides[0], sides[1]
