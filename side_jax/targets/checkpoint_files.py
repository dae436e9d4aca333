"""Finds and reads the files of a local checkpoint: JSON, safetensors, and pickled weights without running any code."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from side_jax.errors import InputError
from side_jax.targets import inert_pickle

REPLACE = "replace it with a whole copy of the original"
_NAME = "diffusion_pytorch_model"
WEIGHTS = f"{_NAME}.safetensors"
# How the two libraries call files of weights, by their ends.
DIFFUSERS = {"bin": _NAME, "safetensors": _NAME}
TRANSFORMERS = {"bin": "pytorch_model", "safetensors": "model"}
UNSAFE = "loading a pickle can run any code in it"
SAVE_AS = "save the weights as float32, float16 or bfloat16"
# Its restricted loader is safe since that version: CVE-2025-32434 and CVE-2026-24747 are about earlier ones.
_TORCH = (2, 10)
_PICKLED = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl")
UNETS = ("unet_ema", "unet")  # training scripts write the moving average of the weights beside the last ones
AUTOENCODERS = ("vae", "vqvae")
TEXT = ("text_encoder", "text_encoder_2", "tokenizer", "safety_checker")
_POINTER = b"version https://git-lfs.github.com/spec/"


def unet_folder(directory: str | Path) -> Path:
    """Returns the folder with the U-Net's config.json: the given one, its unet_ema/ or its unet/, in this order."""
    directory = Path(os.path.expanduser(directory))
    for folder in (directory, *(directory / name for name in UNETS)):
        if (folder / "config.json").exists():
            return folder
    if not directory.is_dir():
        if directory.suffix in {pattern[1:] for pattern in _PICKLED}:
            raise InputError(
                f"{directory} is a pickled checkpoint, and {UNSAFE}; give a diffusers folder with config.json and "
                "safetensors (torch.load it with weights_only=True, which runs no code, into a UNet2DModel, then "
                "save_pretrained)."
            )
        raise InputError(f"{directory} is not a folder; name a local diffusers folder (download it first).")
    _refuse_pickles(directory)
    raise InputError(
        f"{directory} holds neither config.json nor unet/config.json; give a pipeline or unet folder of diffusers."
    )


def autoencoder_folder(folder: Path) -> Path | None:
    """The folder of the autoencoder in the pipeline around a U-Net; None: a model of pixels.

    Raises:
      InputError: if the pipeline has other parts, which are of a model with a condition.
    """
    pipeline, others = other_parts(folder)
    if others and others not in [[name] for name in AUTOENCODERS]:
        raise InputError(
            f"{pipeline} is a pipeline with {', '.join(others)} beside the U-Net; only models of images alone are "
            f"read, whose pipeline has a unet, a scheduler and at most one of {' and '.join(AUTOENCODERS)}: give one "
            "of these."
        )
    return pipeline / others[0] if others else None


def other_parts(folder: Path) -> tuple[Path, list[str]]:
    """(the pipeline around a U-Net, its parts that are neither this U-Net nor a scheduler)."""
    pipeline = folder.parent if folder.name in UNETS else folder
    index = pipeline / "model_index.json"
    if index.exists():
        parts = [name for name, kind in read_json(index).items() if isinstance(kind, list) and any(kind)]
    else:
        parts = [name for name in (*AUTOENCODERS, *TEXT) if (pipeline / name).is_dir()]
    return pipeline, sorted({*parts} - {*UNETS, "scheduler"})


def refuse_other_parts(folder: Path) -> None:
    """Raises InputError if the pipeline around a U-Net has parts that give its output another meaning than an image."""
    pipeline, others = other_parts(folder)
    if others:
        raise InputError(
            f"{pipeline} is a pipeline with {', '.join(others)} beside the U-Net, a latent or conditional model; only "
            "models of pixels are read, whose pipeline has a unet and a scheduler alone: give one of these."
        )


def weight_files(directory: str | Path, stems: Mapping[str, str] = DIFFUSERS) -> list[Path]:
    """Returns the files that hold the weights, safetensors or pickled, in the order of their names.

    Args:
      directory: of the weights and their config.json.
      stems: of the files' names, DIFFUSERS or TRANSFORMERS.

    Raises:
      InputError: if there are none, if it is not clear which they are, or if they are pointers of Git LFS.
    """
    folder = unet_folder(directory)
    source = weights_name([path.name for path in folder.iterdir()], folder, stems)
    if not source:
        _refuse_pickles(folder)
    paths = weights_of(folder / (source or plain_name(stems)))
    for path in paths:
        if not path.is_file():
            raise InputError(
                f"{path} is missing; it should hold the weights of the model in {folder}, so put it there."
            )
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise InputError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` in that folder.")
    return paths


def plain_name(stems: Mapping[str, str]) -> str:
    """What a library calls its usual file of weights; `stems` as for weight_files."""
    return f"{stems['safetensors']}.safetensors"


def weights_name(names: Iterable[str], where: str | Path, stems: Mapping[str, str] = DIFFUSERS) -> str:
    """The file of a folder's weights, or the index of their shards: the plain one, or the only variant (fp16, ...).

    Args:
      names: of the folder's files.
      where: the folder, for messages.
      stems: as for weight_files.

    Returns:
      Its name; "" if there is none.

    Raises:
      InputError: if there are several variants and no plain one.
    """
    found: dict[str, str] = {}
    names = sorted(names)
    for end, stem in stems.items():  # of one variant, the last counts: safetensors, and shards
        for pattern in (rf"{stem}(\.(?!.*-of-).+)?\.{end}", rf"{stem}\.{end}\.index(\..+)?\.json"):
            found |= {match[1] or "": name for name in names if (match := re.fullmatch(pattern, name))}
    if len(found) > 1 and "" not in found:
        listed = ", ".join(sorted(found.values()))
        raise InputError(
            f"{where} has several weights ({listed}), but no {plain_name(stems)}; leave only one of them there."
        )
    return found.get("") or next(iter(found.values()), "")


def weights_of(source: Path) -> list[Path]:
    """The files of the weights that weights_name names: itself, or the shards that an index lists.

    Raises:
      InputError: if the index is damaged.
    """
    if source.suffix != ".json":
        return [source]
    names = read_json(source).get("weight_map")
    if not isinstance(names, dict) or any(Path(str(name)).name != name for name in names.values()):
        raise InputError(f"{source} has no weight_map of files beside it; {REPLACE}.")
    return sorted({source.with_name(name) for name in names.values()})


def _refuse_pickles(folder: Path) -> None:
    """Raises InputError if the folder has pickled weights, and says how to convert them safely."""
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise InputError(
            f"{folder} has pickled weights ({pickled[0]}), and {UNSAFE}; convert them once in that folder, "
            f"{unpickle_command(pickled[0], WEIGHTS)}, with UNet2DModel's names and config.json."
        )


def unpickle_command(path: str, target: str) -> str:
    """Returns, for a message, how to convert a pickled state dict safely."""
    return f"without running code: safetensors.torch.save_file(torch.load({path!r}, weights_only=True), {target!r})"


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a file, by name: of safetensors, or of a pickle, if PyTorch is installed.

    Raises:
      InputError: if it can't be read.
    """
    return read_safetensors(path) if path.suffix == ".safetensors" else _read_pickled(path)


def read_folder_weights(folder: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a folder's weight files, by name.

    Raises:
      InputError: if there are none, or one can't be read.
    """
    state: dict[str, np.ndarray] = {}
    for path in weight_files(folder):
        state |= read_weights(path)
    return state


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a safetensors file, by name.

    Raises:
      InputError: if it can't be read.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {}
            for name in file.keys():  # noqa: SIM118 safe_open is not a mapping
                try:
                    tensors[name] = file.get_tensor(name)
                except (TypeError, AttributeError):  # a type that NumPy does not have
                    kind = file.get_slice(name).get_dtype()
                    raise InputError(f"{path} holds {name} as {kind}, which can't be read; {SAVE_AS}.") from None
            return tensors
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} can't be read as safetensors ({error}); {REPLACE}.") from None


def _read_pickled(path: Path) -> dict[str, np.ndarray]:
    """Reads a pickled state dict by PyTorch's restricted loader, which makes tensors and nothing else."""
    content = load_pickled(path)
    try:
        return arrays(content, str(path))
    except (TypeError, AttributeError):
        raise _not_tensors(path) from None


def load_state(path: Path) -> Any:
    """Loads what a file holds: a dict of tensors, or what a training program saved around them.

    Raises:
      InputError: if it can't be read.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return inert_pickle.read(path) if inert_pickle.is_plain_pickle(path) else load_pickled(path)


def load_pickled(path: Path) -> Any:
    """Loads what torch.save wrote: tensors, numbers and text in dicts and lists; never runs anything of the file.

    Raises:
      InputError: if PyTorch is not installed, or the file is damaged or holds more than that.
    """
    try:
        import torch
    except ImportError:
        torch = None
    if torch is None or torch.__version__ < _TORCH:
        raise InputError(
            f"{path.parent} has pickled weights ({path.name}), and {UNSAFE}; run `pip install 'torch>=2.10'`, which "
            f"reads them without that, or convert them once in that folder, {unpickle_command(path.name, WEIGHTS)}."
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # the file decides what goes wrong, and the loader's own message says how to run its code
        raise _not_tensors(path) from None


def _not_tensors(path: Path) -> InputError:
    return InputError(
        f"{path} is not a pickled dict of tensors, or is damaged, and {UNSAFE}; save the U-Net's state dict alone, "
        "best as safetensors."
    )


def arrays(state: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
    """Converts tensors, PyTorch's or NumPy's, to float32 arrays.

    Raises:
      InputError: if one is of another type than weights are; names it.
    """
    for name, value in state.items():
        if not hasattr(value, "dtype"):
            raise InputError(f"{where} holds {name}, which is no tensor; give a file with the model's weights alone.")
        refuse_type(where, name, str(value.dtype).removeprefix("torch."))
    return {
        name: value.astype(np.float32) if isinstance(value, np.ndarray) else value.detach().float().numpy()
        for name, value in state.items()
    }


def refuse_type(where: str, name: str, kind: str) -> None:
    """Raises InputError if a tensor is of another type than weights are, such as numbers that stand for others."""
    if kind not in ("float64", "float32", "float16", "bfloat16"):
        raise InputError(f"{where} holds {name} as {kind}, which can't be read as weights; {SAVE_AS}.")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object of the checkpoint."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} can't be read as JSON ({error}); {REPLACE}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object; {REPLACE}.")
    return value


def check_values(path: Path, config: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises InputError if an option of a config has none of its supported values; one that is absent is fine."""
    for name, allowed in supported.items():
        if name in config and config[name] not in allowed:
            raise InputError(
                f"{path} has {name} = {json.dumps(config[name])}, which is not supported; give a model with "
                f"{join_values(allowed)}."
            )


def check_levels(path: Path, config: Mapping[str, Any], blocks: Mapping[str, tuple[str, ...]], among: str = "") -> int:
    """The number of a network's levels, each with an entry in block_out_channels and in the lists of its blocks.

    Args:
      path: of the config.
      config: the options, with all of these lists.
      blocks: the supported kinds of each list of blocks.
      among: what supports no others, for messages.

    Raises:
      InputError: if the lists differ in length, or a kind is not supported.
    """
    lists = ("block_out_channels", *blocks)
    counts = {len(config[name]) if isinstance(config[name], list | tuple) else 0 for name in lists}
    if len(counts) != 1 or 0 in counts:
        raise InputError(f"{path} must have lists of one length as {', '.join(lists)}; {REPLACE}.")
    for name, allowed in blocks.items():
        for kind in config[name]:
            if kind not in allowed:
                raise InputError(
                    f"{path} has {json.dumps(kind)} among its {name}{among}, which is not supported; give a model with "
                    f"{join_values(allowed)}."
                )
    return counts.pop()


def whole_number(path: Path, name: str, value: Any) -> int:
    """The value of an option, once it is a whole number of at least 1."""
    if type(value) is not int or value < 1:
        raise InputError(f"{path} has {json.dumps(value)} as {name}, which is no number of these; {REPLACE}.")
    return value


def join_values(values: Any) -> str:
    """Returns values as they are written in a config, for a message."""
    return ", ".join(json.dumps(value) for value in values)
