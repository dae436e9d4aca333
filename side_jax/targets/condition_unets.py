"""Converts the config.json of diffusers' UNet2DConditionModel, the U-Net of Stable Diffusion 1 and 2, to the module."""

import json
from pathlib import Path
from typing import Any

from side_jax.errors import InputError
from side_jax.models.condition_unet import ConditionUNet
from side_jax.targets.checkpoint_files import check_levels, check_values, read_json, whole_number

CLASS = "UNet2DConditionModel"
# Options that the module has too, with diffusers' defaults.
_OPTIONS: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "time_embedding_dim": None,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "resnet_time_scale_shift": "default",
    "center_input_sample": False,
}
# Options that must have one of these values, since the module supports no other. Those that only a refused one gives a
# meaning, and those of training, are not looked at.
_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "downsample_padding": (0, 1),
    "time_embedding_type": ("positional",),
    "attention_type": ("default",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "resnet_out_scale_factor": (1.0,),
    "only_cross_attention": (False,),
    "mid_block_only_cross_attention": (None, False),
    "dual_cross_attention": (False,),
    "resnet_skip_time_act": (False,),
    "class_embeddings_concat": (False,),
}
_FIXED |= dict.fromkeys(
    (
        *("class_embed_type", "num_class_embeds", "encoder_hid_dim", "encoder_hid_dim_type", "num_attention_heads"),
        *("time_embedding_act_fn", "timestep_post_act", "time_cond_proj_dim", "cross_attention_norm"),
        "reverse_transformer_layers_per_block",
    ),
    (None,),
)
_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def read_condition_unet(folder: Path) -> tuple[ConditionUNet, int]:
    """Reads the U-Net that config.json describes.

    Returns:
      (the module, the width of its context).

    Raises:
      InputError: if the file is missing, damaged, or describes an unsupported model.
    """
    path = folder / "config.json"
    config = read_json(path)
    if config.get("_class_name", CLASS) != CLASS:
        raise InputError(
            f"{path} describes a {config['_class_name']}, but a pipeline with a text encoder is read with a {CLASS} "
            "alone; give such a pipeline."
        )
    _check(path, config)
    read = {name: config.get(name, default) for name, default in _OPTIONS.items()}
    count = check_levels(path, read, _BLOCKS)
    channels, given = config.get("in_channels", 4), config.get("out_channels", 4)
    if given != channels:
        raise InputError(
            f"{path} has in_channels = {json.dumps(channels)} and out_channels = {json.dumps(given)}, as models that "
            "fill in or change images have; give one that generates them from text alone."
        )
    module = ConditionUNet(
        out_channels=whole_number(path, "out_channels", given),
        num_heads=_of_levels(path, config, "attention_head_dim", 8, count),
        transformer_layers_per_block=_of_levels(path, config, "transformer_layers_per_block", 1, count),
        **{name: tuple(value) if isinstance(value, list) else value for name, value in read.items()},
    )
    whole_number(path, "layers_per_block", module.layers_per_block)
    (width,) = {*_of_levels(path, config, "cross_attention_dim", 1280, 1)}
    return module, width


def _check(path: Path, config: dict[str, Any]) -> None:
    """Raises InputError if an option has a value that is not supported."""
    if config.get("addition_embed_type") is not None:
        raise InputError(
            f"{path} has addition_embed_type = {json.dumps(config['addition_embed_type'])}, a condition beside the "
            "text, as Stable Diffusion XL's; give a model without it, such as one of Stable Diffusion 1 or 2."
        )
    check_values(path, config, _FIXED)


def _of_levels(path: Path, config: dict[str, Any], name: str, default: int, count: int) -> tuple[int, ...]:
    """An option that is one number, or one for each of `count` levels."""
    given = config.get(name, default)
    values = tuple(given) if isinstance(given, list) else (given,) * count
    if len(values) != count:
        raise InputError(
            f"{path} has {len(values)} numbers as {name}, but only one, or one for each level, is read; give a model "
            "with that."
        )
    return tuple(whole_number(path, name, value) for value in values)
