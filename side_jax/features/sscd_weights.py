"""Converts SSCD's published weights (safetensors or TorchScript, torchvision's or Classy Vision's names) to Flax.

PyTorch is needed for TorchScript only. Its loader is safe, since TorchScript runs no pickled Python code.
"""

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.errors import InputError
from side_jax.models.sscd_encoder import SSCD
from side_jax.targets import parameters
from side_jax.targets.checkpoint_files import REPLACE, UNSAFE, read_safetensors, unpickle_command

_FIX = "give weights of an SSCD ResNet-50 with 512 dimensions, such as sscd_disc_mixup"
# Classy Vision's resnet50 is a list of blocks with numbered convolutions, norms and activations.
_NUMBERED = {"0": "conv1", "1": "norm1", "3": "conv2", "4": "norm2", "6": "conv3"}


def from_sscd(path: str | Path) -> Any:
    """Reads the parameters of models.sscd_encoder.SSCD from a local file.

    Args:
      path: safetensors or TorchScript with the tensors of SSCD's Model.

    Raises:
      InputError: if the file is missing, damaged, pickled, of another model, or TorchScript without PyTorch installed.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file; {_FIX} (download them first).")
    state = {_flax_name(name): value for name, value in _read(path).items() if "num_batches" not in name}
    shapes = jax.eval_shape(SSCD().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    return parameters.from_state_dict(state, shapes["params"], str(path), model="SSCD's ResNet-50", fix=_FIX)


def _read(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        head = file.read(9)
    if head[:4] == b"PK\3\4":
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as error:
            raise InputError(f"{path} can't be read as TorchScript ({error}); {REPLACE}.") from None
        if any(name.endswith("/constants.pkl") for name in names):
            return _read_torchscript(path)
    elif head[:1] != b"\x80" or head[8:] == b"{":  # b"\x80" starts a pickle; safetensors is a length, then JSON
        return read_safetensors(path)
    command = unpickle_command(str(path), f"{path.stem}.safetensors")
    raise InputError(f"{path} has pickled weights, and {UNSAFE}; convert them once, {command}.")


def _read_torchscript(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path} is TorchScript, which needs PyTorch once; run `pip install 'side_jax[sscd]'`, or give safetensors."
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript as a whole is deprecated
        try:
            state = torch.jit.load(path, map_location="cpu").state_dict()
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"{path} can't be read as TorchScript ({reason}); {REPLACE}.") from None
    if not state:
        raise InputError(
            f"{path} is TorchScript frozen for inference, without named weights; give the .torchvision.pt of the same "
            f"model, converted {unpickle_command('sscd.torchvision.pt', 'sscd.safetensors')}."
        )
    return {name: value.float().numpy() for name, value in state.items()}


def _flax_name(name: str) -> str:
    """Maps blocks.0.block0-1.convolutional_block.3.weight, or layer1.1.conv2.weight, to layer1.1.conv2.weight."""
    name = name.removeprefix("backbone.")
    name = re.sub(r"^embeddings\.1\.", "fc.", name)
    name = re.sub(r"^initial_block\._module\.([01])\.", lambda m: f"{_NUMBERED[m[1]]}.", name)
    name = re.sub(r"^blocks\.([0-3])\.block\1-(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.{m[2]}.", name)
    name = re.sub(r"\.convolutional_block\.([01346])\.", lambda m: f".{_NUMBERED[m[1]]}.", name)
    name = re.sub(r"^(layer\d\.\d+)\.bn\.", r"\1.norm3.", name)
    name = name.replace(".downsample.0.", ".conv_shortcut.").replace(".downsample.1.", ".norm_shortcut.")
    return re.sub(r"(^|\.)bn(\d)\.", r"\1norm\2.", name)
