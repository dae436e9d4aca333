"""Finds and reads the files of a local checkpoint (JSON, safetensors), and refuses pickles."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from side_jax.errors import InputError

REPLACE = "replace it with a whole copy of the original"
WEIGHTS = "diffusion_pytorch_model.safetensors"
UNSAFE = "loading a pickle can run any code in it"
_PICKLED = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl")


def unet_folder(directory: Path) -> Path:
    """Returns the folder with the U-Net's config.json: the given one, or its unet/."""
    for folder in (directory, directory / "unet"):
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


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files that hold the weights, in the order of their names.

    Raises:
      InputError: if there are none. For pickled weights it says how to convert them safely.
    """
    folder = unet_folder(folder)
    index = folder / f"{WEIGHTS}.index.json"
    if index.exists():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict):
            raise InputError(f"{index} has no weight_map; {REPLACE}.")
        paths = sorted({folder / name for name in names.values()})
    else:
        paths = [folder / WEIGHTS]
    missing = [path for path in paths if not path.exists()]
    if not missing:
        return paths
    _refuse_pickles(folder)
    raise InputError(f"{missing[0]} is missing; it should hold the weights of the model in {folder}, so put it there.")


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


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a file, by name.

    Raises:
      InputError: if it can't be read.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 safe_open is not a mapping
    except (SafetensorError, OSError, TypeError) as error:
        raise InputError(f"{path} can't be read as safetensors ({error}); {REPLACE}.") from None


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object of the checkpoint."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} can't be read as JSON ({error}); {REPLACE}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object; {REPLACE}.")
    return value


def join_values(values: Any) -> str:
    """Returns values as they are written in a config, for a message."""
    return ", ".join(json.dumps(value) for value in values)
