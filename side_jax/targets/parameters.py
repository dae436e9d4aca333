"""Converts parameter trees to and from PyTorch state dicts, by one rule: modules have the state dict's names.

The path down_blocks_0/resnets_1/conv1/kernel becomes down_blocks.0.resnets.1.conv1.weight. Kernels of convolutions are
[h, w, in, out] in Flax and [out, in, h, w] in PyTorch; dense kernels are [in, out] and [out, in]; embeddings are
[rows, features] in both. Values do not change, so a float32 round trip is exact.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.errors import InputError
from side_jax.targets.checkpoint_files import REPLACE, refuse_type

# Modules in lists, whose number is a part of its own; other numbers, as in linear_1 and conv1, belong to the name.
_LISTED = (
    "down_blocks|up_blocks|resnets|attentions|transformer_blocks|net|layers|downsamplers|upsamplers|to_out|layer[1-4]"
)
# Names of the attention layers in diffusers before version 0.17; such checkpoints are still in use.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# What torch.compile and DataParallel put before the names of the module that they wrap.
_WRAPPERS = ("_orig_mod.", "module.")

# PyTorch's names of a module's own parameters, if not "weight".
_LEAVES = {"bias": "bias", "mean": "running_mean", "var": "running_var"}

# PyTorch's axis order in terms of Flax's axes, by the number of dimensions: bias or scale, dense kernel, convolution.
_TO_PYTORCH = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}
_EMBEDDING = (0, 1)


def state_dict_name(path: tuple[str, ...]) -> str:
    """Maps a path to a name: ("down_blocks_0", "conv", "kernel") -> "down_blocks.0.conv.weight"."""
    *modules, leaf = (re.sub(rf"^({_LISTED})_(\d+)$", r"\1.\2", part) for part in path)
    return ".".join([*modules, _LEAVES.get(leaf, "weight")])


def shapes_of(module: Any, channels: int, side: int, *more: jax.ShapeDtypeStruct) -> Any:
    """The tree of a network's parameters, of shapes alone; for images of `channels` channels and side x side pixels.

    What the network takes behind x and t comes last.
    """
    x = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), x, jax.ShapeDtypeStruct((1,), jnp.int32), *more)["params"]


def described_shapes(where: str, *arguments: Any) -> Any:
    """As shapes_of, of a network that a file describes.

    Args:
      where: the file, for messages.
      *arguments: of shapes_of.

    Raises:
      InputError: if there is no such network.
    """
    try:
        return shapes_of(*arguments)
    except (ValueError, TypeError, ArithmeticError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{where} describes no network that can be built ({reason}); {REPLACE}.") from None


def to_state_dict(params: Any) -> dict[str, np.ndarray]:
    """Converts parameters to a state dict of float32 arrays."""
    return {state_dict_name(path): _transpose(value, _axes(path, np.ndim(value))) for path, value in _leaves(params)}


def from_state_dict(
    state: dict[str, np.ndarray],
    shapes: Any,
    where: str,
    *,
    model: str = "the model that config.json describes",
    fix: str = "take both from the same checkpoint",
) -> Any:
    """Converts a state dict to parameters.

    Args:
      state: arrays of any floating type by PyTorch's names, also as a wrapped module has them; converted to float32.
      shapes: the expected tree; its leaves have a shape, as those of jax.eval_shape of the module's init.
      where: the source of the state, for messages.
      model: the expected model, for messages.
      fix: what to do about a mismatch, for messages.

    Raises:
      InputError: if tensors are missing, left over, or of another shape or type than the model's; names them.
    """
    while state and (wrapper := next((w for w in _WRAPPERS if all(name.startswith(w) for name in state)), None)):
        state = {name.removeprefix(wrapper): value for name, value in state.items()}
    state = {_current_name(name): value for name, value in state.items()}
    expected = {state_dict_name(path): (path, leaf.shape) for path, leaf in _leaves(shapes)}
    missing, extra = expected.keys() - state.keys(), state.keys() - expected.keys()
    for names, mismatch in ((missing, "lack {} that it has"), (extra, "hold {} that it does not have")):
        if names:
            listed = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            mismatch = mismatch.format(f"{len(names)} tensors")
            raise InputError(f"the weights in {where} are not those of {model}: they {mismatch} ({listed}); {fix}.")
    tree: dict[str, Any] = {}
    for name, (path, shape) in expected.items():
        refuse_type(where, name, str(state[name].dtype))
        # Attention was once a 1x1 convolution: [out, in, 1, 1] with the same values.
        value = np.asarray(state[name], np.float32)
        if len(shape) == 2 and value.ndim == 4 and value.shape[2:] == (1, 1):
            value = value[:, :, 0, 0]
        axes = _axes(path, len(shape))
        expected_shape = tuple(shape[axis] for axis in axes)
        if value.shape != expected_shape:
            raise InputError(
                f"the weights in {where} are not those of {model}: {name} has shape {value.shape}, but it should be "
                f"{expected_shape}; {fix}."
            )
        value = _transpose(value, np.argsort(axes))
        branch = tree
        for part in path[:-1]:
            branch = branch.setdefault(part, {})
        branch[path[-1]] = value
    return tree


def _axes(path: tuple[str, ...], ndim: int) -> tuple[int, ...]:
    return _EMBEDDING if path[-1] == "embedding" else _TO_PYTORCH[ndim]


def _transpose(value: Any, axes: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(value, np.float32).transpose(axes))


def _current_name(name: str) -> str:
    parts = name.split(".")
    if "attentions" in parts:
        parts = [_OLD_NAMES.get(part, part) for part in parts]
    return ".".join(parts)


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [leaf for name, branch in tree.items() for leaf in _leaves(branch, (*path, name))]
