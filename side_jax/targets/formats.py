"""Finds out the format of a checkpoint by its content, and reads it: one entry a format.

A folder is a diffusers checkpoint or a MONAI bundle; a file is a state dict or what a training program saved.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from side_jax import settings
from side_jax.config import from_config
from side_jax.errors import InputError
from side_jax.hub import repository
from side_jax.settings import Settings
from side_jax.targets import (
    adm,
    checkpoint_files,
    diffusers_unet,
    edm,
    hub_checkpoint,
    lucidrains,
    monai_unet,
    objects,
    pytorch_ddpm,
    text_parts,
    torchcfm,
    unit_range,
)
from side_jax.targets.checkpoint_files import REPLACE
from side_jax.targets.target_model import Hints, Target

# Formats of a single file: (whether a content is of it, the target of a path and its content).
_FILES: dict[str, tuple[Callable[[Any], bool], Callable[[Path, Any, Hints], Target]]] = {
    module.FORMAT: (module.matches, module.read)
    for module in (pytorch_ddpm, adm, monai_unet, torchcfm, lucidrains, edm)
}
_BUNDLE = Path("models") / "model.pt"  # in the folder of a MONAI bundle


def located(target: settings.Target, *, cached: bool = False) -> Path:
    """The local folder or file of a checkpoint; one of the hub is downloaded into its cache.

    Args:
      target: names it; of the hub, the recorded revision is read, if there is one.
      cached: whether to take one of the hub only from the cache.

    Raises:
      InputError: if it can't be downloaded.
    """
    if not repository.is_id(target.path):
        return Path(os.path.expanduser(target.path))
    bundle = _BUNDLE.as_posix() if target.format in ("", monai_unet.FORMAT) else ""
    return hub_checkpoint.fetch(target.path, target.revision, bundle=bundle, prompts=target.prompts, cached=cached)


def read_target(path: str | Path, hints: Hints) -> Target:
    """Reads a model: its network, its noise and, when asked, its weights.

    Args:
      path: a local folder or file.
      hints: what files may not say.

    Raises:
      InputError: if it can't be read, is of no known format, or does not say what a setting must; in one sentence.
    """
    target = _read(Path(os.path.expanduser(path)), hints)
    if hints.target.prompts and not text_parts.has_prompts(target):
        raise InputError(
            f"config.target.prompts is {hints.target.prompts!r}, but {path} takes no text; leave the setting empty."
        )
    if hints.target.pixels == "unit" and not (target.latent or unit_range.is_unit(target)):
        target = unit_range.with_unit_pixels(target)
    label = hints.target.null_label
    return target if label < 0 else with_null_label(target, label, str(path))


def _read(path: Path, hints: Hints) -> Target:
    name = hints.target.format
    if name == objects.FORMAT:
        raise InputError(f"{path} is no file, but a Python object; pass it to side_jax.audit as target=.")
    if path.is_dir() and (path / _BUNDLE).is_file() and name in ("", monai_unet.FORMAT):
        path = path / _BUNDLE
    if name == diffusers_unet.FORMAT or (path.is_dir() and not name):
        return diffusers_unet.read(path, hints)
    if path.is_dir():
        raise InputError(f"{path} is a folder, but config.target.format = {name} is of a file; name the file in it.")
    if not path.is_file():
        raise InputError(f"{path} is neither a folder nor a file; name a local checkpoint (download it first).")
    content = checkpoint_files.load_state(path)
    if not name:
        name = next((known for known, (matches, _) in _FILES.items() if matches(content)), "")
    elif not _FILES[name][0](content):
        raise InputError(f"{path} is not of the format {name}, which config.target.format names; {_known()}.")
    if not name:
        raise InputError(f"{path} holds no model of a known format; {_known()}.")
    try:
        return _FILES[name][1](path, content, hints)
    except InputError:
        raise
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:  # the file decides what is missing
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(f"{path} is damaged, or no {name} model that is read ({reason}); {REPLACE}.") from None


def hints(config: Any) -> Hints:
    """What files may not say, from Settings or a ConfigDict."""
    if isinstance(config, Settings):
        return Hints(target=config.target, diffusion=config.diffusion)
    sections = {"target": settings.Target, "diffusion": settings.Diffusion}
    return Hints(**{name: from_config(config[name], cls) for name, cls in sections.items()})


def with_null_label(target: Target, label: int, where: str) -> Target:
    """The same model with one of its labels as the one of images without a label, the network's last.

    Raises:
      InputError: if the model has no such label.
    """
    if label >= target.num_labels or target.num_labels == 1:
        last = target.num_labels - 1
        fix = f", 0 to {last}; name one of these" if last > 0 else " and none to spare; set it to -1"
        raise InputError(
            f"config.target.null_label is {label}, but {where} has {target.num_labels} label{'s' * (last != 0)}{fix}."
        )

    def reordered(params: Any) -> Any:
        if "class_embedding" not in params:
            return params | {"net": reordered(params["net"])}
        table = params["class_embedding"]["embedding"]
        table = np.concatenate([np.delete(table, label, axis=0), table[label : label + 1]])
        return params | {"class_embedding": {"embedding": table}}

    def renumbered(network: Any) -> Any:
        if not hasattr(network, "num_labels"):
            return network.clone(net=renumbered(network.net))
        return network.clone(num_labels=rest, null_label=True)

    rest = target.num_labels - 1
    return dataclasses.replace(
        target,
        network=renumbered(target.network),
        num_labels=rest,
        null_label=True,
        origin=dataclasses.replace(target.origin, read_params=lambda: reordered(target.origin.read_params())),
    )


def _known() -> str:
    return f"give a diffusers folder, or a file of {', '.join(_FILES)}, as docs/your_model.md describes them"
