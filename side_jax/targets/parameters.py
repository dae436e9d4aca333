"""Parameter trees to and from PyTorch state dicts, by one rule: the modules have the state dict's own names.

A path such as down_blocks_0/resnets_1/conv1/kernel is down_blocks.0.resnets.1.conv1.weight. A convolution's kernel is
[h, w, in, out] here and [out, in, h, w] there, a dense one [in, out] and [out, in], an embedding [rows, features] on
both sides. No value is changed, so a float32 round trip is exact.
"""

import re
from typing import Any

import numpy as np

from side_jax.errors import InputError

# The numbers of lists; other numbers, as in linear_1 and conv1, belong to the name.
_LISTED = "down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers|to_out|layer[1-4]"
# What diffusers called the attention's layers before version 0.17; checkpoints from then are still about.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# What PyTorch calls a module's own parameters, where it isn't weight.
_LEAVES = {"bias": "bias", "mean": "running_mean", "var": "running_var"}

# Which of our axes each of PyTorch's is: of a bias or scale, a dense kernel, a convolution's.
_TO_PYTORCH = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
_EMBEDDING = (0, 1)


def state_dict_name(path: tuple[str, ...]) -> str:
    """("down_blocks_0", "conv", "kernel") -> "down_blocks.0.conv.weight"."""
    *modules, leaf = (re.sub(rf"^({_LISTED})_(\d+)$", r"\1.\2", part) for part in path)
    return ".".join([*modules, _LEAVES.get(leaf, "weight")])


def to_state_dict(params: Any) -> dict[str, np.ndarray]:
    """Parameters as a state dict of float32 arrays."""
    return {state_dict_name(path): _turned(value, _axes(path, np.ndim(value))) for path, value in _leaves(params)}


def from_state_dict(
    state: dict[str, np.ndarray],
    shapes: Any,
    where: str,
    *,
    model: str = "the model that config.json describes",
    fix: str = "take both from the same checkpoint",
) -> Any:
    """Parameters from a state dict.

    Args:
      state: PyTorch's names and arrays, of any floating type; taken as float32.
      shapes: the expected tree of anything with a shape, such as jax.eval_shape of the module's init.
      where: for messages, where the state came from.
      model: for messages, what it should be of.
      fix: for messages, what to do where it isn't.

    Raises:
      InputError: naming the tensors that are missing, left over, or of another shape than the model's.
    """
    state = {_modern(name): value for name, value in state.items()}
    expected = {state_dict_name(path): (path, leaf.shape) for path, leaf in _leaves(shapes)}
    lacking, extra = expected.keys() - state.keys(), state.keys() - expected.keys()
    for names, what in ((lacking, "lack {} that it has"), (extra, "hold {} that it doesn't have")):
        if names:
            listed = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            what = what.format(f"{len(names)} tensors")
            raise InputError(f"the weights in {where} are not of {model}: they {what} ({listed}); {fix}.")
    tree: dict[str, Any] = {}
    for name, (path, shape) in expected.items():
        # Attention was once a 1x1 convolution: [out, in, 1, 1] with the same numbers.
        value = np.asarray(state[name], np.float32)
        if len(shape) == 2 and value.ndim == 4 and value.shape[2:] == (1, 1):
            value = value[:, :, 0, 0]
        axes = _axes(path, len(shape))
        asked = tuple(shape[axis] for axis in axes)
        if value.shape != asked:
            raise InputError(
                f"the weights in {where} are not of {model}: {name} has shape {value.shape}, but there it would be "
                f"{asked}; {fix}."
            )
        value = _turned(value, np.argsort(axes))
        branch = tree
        for part in path[:-1]:
            branch = branch.setdefault(part, {})
        branch[path[-1]] = value
    return tree


def _axes(path: tuple[str, ...], ndim: int) -> tuple[int, ...]:
    return _EMBEDDING if path[-1] == "embedding" else _TO_PYTORCH[ndim]


def _turned(value: Any, axes: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(value, np.float32).transpose(axes))


def _modern(name: str) -> str:
    parts = name.split(".")
    if "attentions" in parts:
        parts = [_OLD_NAMES.get(part, part) for part in parts]
    return ".".join(parts)


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [leaf for name, branch in tree.items() for leaf in _leaves(branch, (*path, name))]
