"""Reads 2-D DiffusionModelUNets of MONAI, and of GenerativeModels before it: a bare state dict, or a bundle's folder.

The network is UNet2DModel by other names. A file does not say how many channels an attention head has, or the noise;
settings of the section target do. With the file of an AutoencoderKL beside it, it is a model of latents (monai_vae.py).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from side_jax.errors import InputError
from side_jax.targets import monai_vae
from side_jax.targets.checkpoint_files import arrays
from side_jax.targets.monai_attention import whole_attention
from side_jax.targets.target_model import Hints, Target, heads_of
from side_jax.targets.unet_shapes import State, first_half, infer_unet, unet_target

FORMAT = "monai"
# In this order, names of MONAI's modules and UNet2DModel's, which both number levels and blocks.
_NAMES = (
    (r"^time_embed\.0\.", "time_embedding.linear_1."),
    (r"^time_embed\.2\.", "time_embedding.linear_2."),
    (r"^out\.0\.", "conv_norm_out."),
    (r"^out\.2\.conv\.", "conv_out."),
    (r"^middle_block\.resnet_1\.", "mid_block.resnets.0."),
    (r"^middle_block\.resnet_2\.", "mid_block.resnets.1."),
    (r"^middle_block\.attention\.", "mid_block.attentions.0."),
    (r"\.downsampler\.op\.conv\.", ".downsamplers.0.conv."),
    (r"\.upsampler\.(post)?conv\.conv\.", ".upsamplers.0.conv."),
    (r"\.downsampler\.", ".downsamplers.0."),
    (r"\.upsampler\.", ".upsamplers.0."),
    (r"\.skip_connection\.conv\.", ".conv_shortcut."),
    (r"\.skip_connection\.", ".conv_shortcut."),
    (r"\.(conv1|conv2|conv_shortcut)\.conv\.", r".\1."),
    (r"^conv_in\.conv\.", "conv_in."),
    (r"\.attentions\.(\d+)\.norm\.", r".attentions.\1.group_norm."),
    (r"\.attn\.out_proj\.", ".to_out.0."),
    (r"\.proj_attn\.", ".to_out.0."),  # of GenerativeModels
    (r"\.attn\.(to_[qkv]|qkv)\.", r".\1."),
)


def matches(content: Any) -> bool:
    """Whether a file's content is of this format."""
    return isinstance(content, Mapping) and {"conv_in.conv.weight", "time_embed.0.weight"} <= {*content}


def read(path: Path, content: Any, hints: Hints) -> Target:
    """Reads a checkpoint.

    Raises:
      InputError: if it is of volumes or of a model with another condition, tensors are missing or left over, or a
        setting is that the file does not replace.
    """
    state = _renamed(arrays(content, str(path)), str(path))
    channels = state["conv_in.weight"].shape[1]
    state = first_half(state, channels)
    if attended := _attended(state):
        heads_of(attended, str(path), hints)
    groups, note = _groups(state, str(path), hints)
    network = infer_unet(
        state,
        str(path),
        attention_head_dim=hints.target.head_channels or None,
        num_attention_heads=hints.target.num_heads or None,
        norm_num_groups=groups,
        norm_eps=1e-6,
        flip_sin_to_cos=True,
        freq_shift=0.0,
    )
    diffusion, notes = hints.noise(path)
    target = unet_target(path, FORMAT, state, network, diffusion, notes=notes + note)
    autoencoder = monai_vae.beside(path)
    if autoencoder:
        return monai_vae.with_autoencoder(target, autoencoder, hints)
    if not hints.target.pixels:
        raise InputError(
            f"{path} does not say the range of its pixels; set config.target.pixels to unit ([0, 1], as MONAI's "
            "tutorials scale them) or signed ([-1, 1]), what it was trained with."
        )
    return target


def _renamed(state: State, where: str) -> State:
    if state["conv_in.conv.weight"].ndim != 4:
        raise InputError(f"{where} is a model of volumes; only models of 2-D images are read, so give one of these.")
    if any(".transformer_blocks." in name for name in state):
        raise InputError(
            f"{where} is a model with cross-attention to a condition; only models of images alone, or with class "
            "labels, are read, so give one of these."
        )
    renamed = {}
    for name, value in state.items():
        for old, new in _NAMES:
            name = re.sub(old, new, name)
        renamed[name] = value
    return whole_attention(renamed)


def _attended(state: State) -> int:
    """The fewest channels that any attention has, of which all others are multiples; 0 without attention."""
    return min((len(value) for name, value in state.items() if name.endswith(".to_q.weight")), default=0)


def _groups(state: State, where: str, hints: Hints) -> tuple[int, tuple[str, ...]]:
    """(the groups of every normalisation, a note if they are MONAI's default)."""
    if hints.target.norm_groups:
        return hints.target.norm_groups, ()
    if any(len(value) % 32 for name, value in state.items() if name.endswith(".norm1.weight")):
        raise InputError(
            f"{where} does not say how many groups its normalisations have, and MONAI's default, 32, does not divide "
            "its channels; set config.target.norm_groups to what it was trained with (norm_num_groups)."
        )
    return 32, ("its normalisations are taken to have 32 groups, MONAI's default; config.target.norm_groups sets it",)
