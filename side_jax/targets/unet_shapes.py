"""Infers a U-Net from the shapes of its weights, once these have UNet2DModel's names.

Formats that differ from UNet2DModel by their names alone rename their tensors, and leave the rest to this file.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from side_jax.errors import InputError
from side_jax.models.unet import UNet
from side_jax.settings import Diffusion
from side_jax.targets import parameters
from side_jax.targets.target_model import Origin, Target

State = dict[str, np.ndarray]  # tensors by the names of UNet2DModel's state dict


def rename(state: Mapping[str, Any], modules: Mapping[str, str]) -> dict[str, Any]:
    """Replaces the names of modules.

    Args:
      state: tensors by name.
      modules: new name of each module, by its old name. A tensor of another module keeps its name.
    """

    def new(name: str) -> str:
        module, _, leaf = name.rpartition(".")
        return f"{modules[module]}.{leaf}" if module in modules else name

    return {new(name): value for name, value in state.items()}


def numbers(state: Mapping[str, Any], prefix: str) -> list[int]:
    """The numbers that follow a prefix in the names, sorted: of "down_blocks.0.", "down_blocks.1.": [0, 1]."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    return sorted({int(found[1]) for name in state if (found := pattern.match(name))})


def has(state: Mapping[str, Any], prefix: str) -> bool:
    """Whether any tensor's name begins with a module's name."""
    return any(name.startswith(f"{prefix}.") for name in state)


def first_half(state: State, channels: int) -> State:
    """Leaves out the learned variance, if there is one: the second half of the output's channels."""
    names = [name for name in ("conv_out.weight", "conv_out.bias") if name in state]
    return state | {name: state[name][:channels] for name in names if len(state[name]) == 2 * channels}


def infer_unet(state: State, where: str, **options: Any) -> UNet:
    """The U-Net of these weights.

    Args:
      state: without a learned variance, see first_half.
      where: the source of the weights, for messages.
      **options: what shapes do not tell: attributes of UNet.

    Raises:
      InputError: if the weights are of no such U-Net.
    """
    try:
        levels = numbers(state, "down_blocks")
        layers = {len(numbers(state, f"down_blocks.{i}.resnets")) for i in levels}
        channels = tuple(state[f"down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in levels)
        width, first = state["time_embedding.linear_1.weight"].shape
        projected = state["down_blocks.0.resnets.0.time_emb_proj.weight"].shape[0]
        labels = len(state["class_embedding.weight"]) if "class_embedding.weight" in state else 0
        out_channels = state["conv_out.weight"].shape[0]
    except (KeyError, IndexError) as error:
        raise InputError(
            f"the weights in {where} are not those of a U-Net that can be read: they lack {error}; give all of one."
        ) from None
    if len(layers) != 1 or first != channels[0]:
        raise InputError(
            f"the weights in {where} are of a U-Net with {sorted(layers)} residual blocks a level and {first} channels "
            "of time, which is not supported; levels must have equally many, and as many channels as the first level."
        )
    (layers_per_block,) = layers
    return UNet(
        out_channels=out_channels,
        block_out_channels=channels,
        down_block_types=tuple(_kind(state, f"down_blocks.{i}", "Down", "downsamplers", where) for i in levels),
        up_block_types=tuple(_kind(state, f"up_blocks.{i}", "Up", "upsamplers", where) for i in levels),
        layers_per_block=layers_per_block,
        add_attention=has(state, "mid_block.attentions.0"),
        time_embedding_dim=None if width == 4 * first else width,
        resnet_time_scale_shift="scale_shift" if projected == 2 * channels[0] else "default",
        downsample_type=_resize(state, "down_blocks", "downsamplers"),
        upsample_type=_resize(state, "up_blocks", "upsamplers"),
        num_labels=labels,
        null_label=not labels,
        **options,
    )


def _kind(state: State, block: str, side: str, resizer: str, where: str) -> str:
    """The type of a block: with attention after each of its residual blocks, after none, or resized by such a block."""
    attentions, resnets = (len(numbers(state, f"{block}.{part}")) for part in ("attentions", "resnets"))
    if attentions not in (0, resnets):
        raise InputError(
            f"the weights in {where} have attention after {attentions} of the {resnets} residual blocks of {block}, "
            "which is not supported; it must follow all of a level, or none."
        )
    if attentions:
        return f"Attn{side}Block2D"
    residual = has(state, f"{block}.{resizer}.0.conv1")
    return f"Resnet{side}sampleBlock2D" if residual else f"{side}Block2D"


def _resize(state: State, side: str, resizer: str) -> str:
    """How the levels change the size, "conv" or "resnet"."""
    blocks = [f"{side}.{i}.{resizer}.0.conv1" for i in numbers(state, side)]
    return "resnet" if any(has(state, block) for block in blocks) else "conv"


def read_unet(state: State, module: UNet, where: str) -> Any:
    """The parameters of a U-Net from its state dict.

    Raises:
      InputError: if tensors are missing, left over or of another shape.
    """
    shapes = parameters.shapes_of(module, module.out_channels, 2 ** (len(module.block_out_channels) - 1))
    model, fix = "the U-Net that their shapes describe", "give a file of the format's own program, unchanged"
    return parameters.from_state_dict(state, shapes, where, model=model, fix=fix)


def unet_target(
    path: Path,
    name: str,
    state: State,
    network: UNet,
    diffusion: Diffusion,
    *,
    size: tuple[int, int] | None = None,
    notes: tuple[str, ...] = (),
) -> Target:
    """The target of a single file that holds a U-Net.

    Args:
      path: the file.
      name: of its format.
      state: its weights.
      network: the U-Net that they are of.
      diffusion: its noise.
      size: (height, width) of its images; None: the file does not say.
      notes: see Origin.
    """
    return Target(
        network=network,
        diffusion=diffusion,
        channels=network.out_channels,
        num_labels=network.num_labels,
        null_label=network.null_label,
        size=size,
        origin=Origin(
            format=name, weights=(path,), read_params=lambda: read_unet(state, network, str(path)), notes=notes
        ),
    )
