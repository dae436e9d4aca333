"""A foreign checkpoint as the target: its own config takes the place of the config's model and diffusion sections."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import ml_collections

from side_jax import convert, files
from side_jax.errors import InputError
from side_jax.settings import Model

_OURS = ("dtype", "remat")  # how the network is computed is this config's choice, what it computes is the checkpoint's


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Fills in what config.target.path says; a config without one is returned as it is.

    Once a workdir holds the weights, its config.json has all that is needed, and the folder may be gone.

    Raises:
      InputError: if the folder can't be used, its weights are not those that target.sha256 names, or config.data has
        another shape than the model's images.
    """
    target = config.get("target")
    if target is None or not target.path or (target.sha256 and not Path(target.path).exists()):
        return config
    folder = Path(target.path)
    try:
        digest = weights_digest(folder)
    except InputError as error:
        raise InputError(f"config.target.path: {error}") from None
    if target.sha256 not in ("", digest):
        raise InputError(
            f"config.target.sha256 is {target.sha256[:12]}..., but the weights in {folder} have {digest[:12]}...: they "
            "are not the ones audited before; use a new --workdir for them."
        )
    module = convert.read_module(folder)
    height, width, channels = convert.image_shape(folder)
    data = config.data
    if (height, width, channels) != (data.image_size, data.image_size, data.channels):
        raise InputError(
            f"the model in {folder} makes images of {height}x{width} pixels and {channels} channels; set "
            f"config.data.image_size = {height} and config.data.channels = {channels} (now {data.image_size} and "
            f"{data.channels})."
        )
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.target.sha256 = digest
        config.model = {name: getattr(config.model, name) for name in _OURS} | _model(module)
        config.diffusion = convert.read_schedule_options(folder)
    return config.lock()


def weights_digest(folder: Path) -> str:
    """SHA-256 over the weight files' own, in the order of their names."""
    total = hashlib.sha256()
    for path in convert.weight_files(folder):
        total.update(bytes.fromhex(files.file_digest(path)))
    return total.hexdigest()


def _model(module: Any) -> dict[str, Any]:
    """The module's options as settings: 0 stands for None, and numbers have the settings' types."""
    values = {}
    for field in dataclasses.fields(Model):
        if field.name not in _OURS:
            value = getattr(module, field.name)
            value = field.type() if value is None else value
            values[field.name] = float(value) if field.type is float else value
    return values
