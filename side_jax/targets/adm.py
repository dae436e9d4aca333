"""Reads checkpoints of openai/improved-diffusion and guided-diffusion (ADM): bare state dicts, ema_0.9999_*.pt.

Their U-Net is UNet2DModel by other names, with queries, keys and values in one layer, in one of two orders. A file does
not say how many heads attention has, in which order they stand, or the noise; settings of the section target do.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from side_jax.errors import InputError
from side_jax.models.unet import UNet
from side_jax.targets.checkpoint_files import arrays
from side_jax.targets.target_model import Hints, Target, heads_of
from side_jax.targets.unet_shapes import State, first_half, has, infer_unet, numbers, rename, unet_target

FORMAT = "adm"
_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def matches(content: Any) -> bool:
    """Whether a file's content is of this format."""
    return isinstance(content, Mapping) and {"input_blocks.0.0.weight", "time_embed.0.weight", "out.2.weight"} <= {
        *content
    }


def read(path: Path, content: Any, hints: Hints) -> Target:
    """Reads a checkpoint.

    Raises:
      InputError: if tensors are missing or left over, or a setting is that the file does not replace.
    """
    state, network = read_network(content, str(path), hints)
    diffusion, notes = hints.noise(path, per_thousand=True)
    if diffusion.num_timesteps != 1000:
        network = network.clone(timestep_scale=_timestep_scale(path, hints))
    return unet_target(path, FORMAT, state, network, diffusion, notes=notes)


def read_network(content: Mapping[str, Any], where: str, hints: Hints, **options: Any) -> tuple[State, UNet]:
    """(the weights by UNet2DModel's names, the network)."""
    state = arrays(content, where)
    if not has(state, "middle_block.1.qkv") or has(state, "middle_block.1.encoder_kv"):
        raise InputError(f"{where} holds another attention than that of a model of images alone; give such a model.")
    state = first_half(_renamed(state, where, hints), state["input_blocks.0.0.weight"].shape[1])
    heads = {"attention_head_dim": hints.target.head_channels or None}
    heads["num_attention_heads"] = hints.target.num_heads or None
    known = {"norm_num_groups": 32, "attn_norm_num_groups": 32, "flip_sin_to_cos": True, "freq_shift": 0.0}
    return state, infer_unet(state, where, **known, **heads, **options)


def _timestep_scale(path: Path, hints: Hints) -> float:
    """What the program multiplied timesteps with."""
    given, count = hints.target.timesteps, hints.diffusion.num_timesteps
    if not given:
        raise InputError(
            f"{path} does not say whether its {count} timesteps were scaled to 1000; set config.target.timesteps to "
            "rescaled if it was trained with --rescale_timesteps True (improved-diffusion's default), else to plain "
            "(guided-diffusion's)."
        )
    return 1000 / count if given == "rescaled" else 1.0


def _renamed(state: State, where: str, hints: Hints) -> State:
    blocks = numbers(state, "input_blocks"), numbers(state, "output_blocks")
    # What doubles the size ends each level but the last; input blocks begin with the first convolution.
    doubling = [i for i in blocks[1] if _resizer(state, f"output_blocks.{i}")]
    levels = len(doubling) + 1
    if len(blocks[0]) != len(blocks[1]) or len(blocks[0]) % levels:
        raise InputError(
            f"the weights in {where} are of a U-Net with {len(blocks[0])} and {len(blocks[1])} blocks in {levels} "
            "levels, which is not supported; levels must have equally many."
        )
    each = len(blocks[0]) // levels
    modules = dict(_ENDS)
    for i in blocks[0][1:]:
        level, block, old = (i - 1) // each, (i - 1) % each, f"input_blocks.{i}"
        if block < each - 1:
            modules |= _names(f"{old}.0", f"down_blocks.{level}.resnets.{block}")
            modules |= _attention(f"{old}.1", f"down_blocks.{level}.attentions.{block}")
        else:
            modules |= _names(f"{old}.0", f"down_blocks.{level}.downsamplers.0")
            modules[f"{old}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
    for i in blocks[1]:
        level, block, old = i // each, i % each, f"output_blocks.{i}"
        modules |= _names(f"{old}.0", f"up_blocks.{level}.resnets.{block}")
        if resizer := _resizer(state, old):
            modules |= _names(resizer, f"up_blocks.{level}.upsamplers.0")
            modules[f"{resizer}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
        if has(state, f"{old}.1.qkv"):
            modules |= _attention(f"{old}.1", f"up_blocks.{level}.attentions.{block}")
    for old, new in (("0", "resnets.0"), ("2", "resnets.1")):
        modules |= _names(f"middle_block.{old}", f"mid_block.{new}")
    modules |= _attention("middle_block.1", "mid_block.attentions.0")
    return _split_attention(rename(state, modules), where, hints)


def _resizer(state: State, block: str) -> str:
    """The module of an output block that doubles the size; "" if there is none."""
    for place in (1, 2):
        name = f"{block}.{place}"
        if has(state, f"{name}.conv") or has(state, f"{name}.in_layers"):
            return name
    return ""


def _names(old: str, new: str) -> dict[str, str]:
    return {f"{old}.{name}": f"{new}.{renamed}" for name, renamed in _BLOCK.items()}


def _attention(old: str, new: str) -> dict[str, str]:
    return {f"{old}.norm": f"{new}.group_norm", f"{old}.qkv": f"{new}.qkv", f"{old}.proj_out": f"{new}.to_out.0"}


def _split_attention(state: State, where: str, hints: Hints) -> State:
    """Splits the layers of queries, keys and values: [heads, 3, c] in the legacy order, [3, heads, c] in the new."""
    layers = sorted(name.removesuffix(".qkv.weight") for name in state if name.endswith(".qkv.weight"))
    if layers and not hints.target.qkv_order:
        raise InputError(
            f"{where} does not say the order of its queries, keys and values; set config.target.qkv_order to new if it "
            "was trained with --use_new_attention_order, else to legacy (improved-diffusion has no other)."
        )
    split = dict(state)
    for layer in layers:
        channels = state[f"{layer}.qkv.weight"].shape[1]
        heads = heads_of(channels, where, hints)
        for leaf in ("weight", "bias"):
            value = split.pop(f"{layer}.qkv.{leaf}")
            value = value.reshape(value.shape[0], -1)  # a convolution of width 1 has a third axis
            if hints.target.qkv_order == "legacy":
                parts = value.reshape(heads, 3, channels // heads, -1).swapaxes(0, 1)
            else:
                parts = value.reshape(3, channels, -1)
            for name, part in zip(("to_q", "to_k", "to_v"), parts, strict=True):
                part = part.reshape(channels, -1)
                split[f"{layer}.{name}.{leaf}"] = np.ascontiguousarray(part if leaf == "weight" else part[:, 0])
        out = f"{layer}.to_out.0.weight"
        split[out] = split[out].reshape(split[out].shape[:2])
    return split
