"""Reads checkpoints of w86763777/pytorch-ddpm: ckpt.pt with net_model and ema_model, of which ema_model is taken.

Its U-Net is UNet2DModel by other names: blocks are numbered without levels, and the time embedding alternates sines and
cosines, so the columns of the first time layer are reordered.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from side_jax.errors import InputError
from side_jax.settings import Diffusion
from side_jax.targets.checkpoint_files import REPLACE, arrays
from side_jax.targets.target_model import Hints, Target
from side_jax.targets.unet_shapes import State, has, infer_unet, numbers, rename, unet_target

FORMAT = "pytorch_ddpm"
# Of its program; the file does not say them, but a flagfile.txt beside it does.
_FLAGS = {"beta_1": "1e-4", "beta_T": "0.02", "mean_type": "epsilon"}
_PREDICTIONS = {"epsilon": "epsilon", "xstart": "x0"}
_TIME = "time_embedding.timembedding"
_BLOCK = {
    "block1.0": "norm1",
    "block1.2": "conv1",
    "temb_proj.1": "time_emb_proj",
    "block2.0": "norm2",
    "block2.3": "conv2",
    "shortcut": "conv_shortcut",
}
_ATTENTION = {
    "group_norm": "group_norm",
    "proj_q": "to_q",
    "proj_k": "to_k",
    "proj_v": "to_v",
    "proj": "to_out.0",
}
_ENDS = {
    "head": "conv_in",
    "tail.0": "conv_norm_out",
    "tail.2": "conv_out",
    f"{_TIME}.1": "time_embedding.linear_1",
    f"{_TIME}.3": "time_embedding.linear_2",
}


def matches(content: Any) -> bool:
    """Whether a file's content is of this format."""
    state = content.get("ema_model") if isinstance(content, Mapping) else None
    return isinstance(state, Mapping) and f"{_TIME}.0.weight" in state


def read(path: Path, content: Any, hints: Hints) -> Target:
    """Reads a checkpoint; its samples of x_T tell the size of its images.

    Raises:
      InputError: if tensors are missing or left over, or its flags describe no model that is supported.
    """
    state, num_timesteps = _state(content["ema_model"], str(path))
    network = infer_unet(
        state, str(path), attention_head_dim=None, norm_num_groups=32, flip_sin_to_cos=False, freq_shift=0.0
    )
    flags, notes = _flags(path.parent / "flagfile.txt")
    if flags["mean_type"] not in _PREDICTIONS:
        raise InputError(
            f"{path.parent / 'flagfile.txt'} has mean_type = {flags['mean_type']}; give a model that predicts "
            f"{' or '.join(_PREDICTIONS)}."
        )
    diffusion = Diffusion(
        num_timesteps=num_timesteps,
        beta_start=float(flags["beta_1"]),
        beta_end=float(flags["beta_T"]),
        prediction_type=_PREDICTIONS[flags["mean_type"]],
    )
    noise = content.get("x_T")
    size = tuple(noise.shape[2:]) if noise is not None else None
    return unet_target(path, FORMAT, state, network, diffusion, size=size, notes=notes)


def _flags(path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """The program's flags, from its flagfile.txt or its defaults, and a note on the latter."""
    if not path.is_file():
        return _FLAGS, ("the betas, 1e-4 to 0.02, and the prediction, epsilon, are its program's defaults",)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    given = dict(line.strip().lstrip("-").partition("=")[::2] for line in lines if "=" in line)
    return _FLAGS | {name: given[name] for name in _FLAGS if name in given}, ()


def _state(state: Mapping[str, Any], where: str) -> tuple[State, int]:
    """(the weights by UNet2DModel's names, the number of timesteps)."""
    state = arrays(state, where)
    table = state.pop(f"{_TIME}.0.weight")
    half = table.shape[1] // 2
    angles = np.arange(len(table))[:, None] * np.exp(-math.log(10000) * np.arange(half) / half)
    if not np.allclose(table, np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(table.shape), atol=1e-3):
        raise InputError(f"{where} has a time embedding that is not its program's sines and cosines; {REPLACE}.")
    modules = dict(_ENDS)
    for side, flat in (("down_blocks", "downblocks"), ("up_blocks", "upblocks")):
        level, block = 0, 0
        for number in numbers(state, flat):
            old = f"{flat}.{number}"
            if has(state, f"{old}.main"):  # what changes the size ends a level
                modules[f"{old}.main"] = f"{side}.{level}.{'down' if side[0] == 'd' else 'up'}samplers.0.conv"
                level, block = level + 1, 0
            else:
                modules |= _block(old, f"{side}.{level}", block)
                block += 1
    for number in numbers(state, "middleblocks"):
        modules |= _block(f"middleblocks.{number}", "mid_block", number)
    renamed = rename(state, modules)
    first = "time_embedding.linear_1.weight"
    renamed[first] = np.concatenate([renamed[first][:, ::2], renamed[first][:, 1::2]], axis=1)
    return renamed, len(table)


def _block(old: str, level: str, number: int) -> dict[str, str]:
    """The names of a residual block's modules, and of the attention inside it."""
    names = {f"{old}.{name}": f"{level}.resnets.{number}.{new}" for name, new in _BLOCK.items()}
    return names | {f"{old}.attn.{name}": f"{level}.attentions.{number}.{new}" for name, new in _ATTENTION.items()}
