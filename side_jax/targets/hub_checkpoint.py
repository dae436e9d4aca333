"""Downloads a model from the Hugging Face hub: of all files of a repository, only those that are read."""

import fnmatch
import posixpath
from collections.abc import Iterable, Mapping
from pathlib import Path

from side_jax.errors import InputError
from side_jax.hub import repository
from side_jax.hub.repository import Snapshot
from side_jax.targets import clip_tokens, text_parts
from side_jax.targets.checkpoint_files import (
    AUTOENCODERS,
    DIFFUSERS,
    TRANSFORMERS,
    UNETS,
    autoencoder_folder,
    plain_name,
    weights_name,
    weights_of,
)
from side_jax.targets.condition_unets import read_condition_unet
from side_jax.targets.monai_vae import AUTOENCODER_FILES
from side_jax.targets.unets import read_module

# Files of a pipeline, or of a U-Net alone, that say what the weights are; all are small. Those of other parts are among
# them, so that latent and conditional models are noticed.
_SETTINGS = ("model_index.json", "config.json", "scheduler_config.json", "scheduler/*.json", "*/config.json")
_SINGLE = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")


def fetch(text: str, commit: str, *, bundle: str = "", prompts: str = "", cached: bool = False) -> Path:
    """Downloads what a model needs into the hub's cache; returns the file or the folder there that the id names.

    The settings come first, and a model that can't be audited is refused before its weights are downloaded.

    Args:
      text: the id: of a repository, or of a file or a folder in it.
      commit: the commit to read; "": that of the id's revision.
      bundle: a file that a folder is read by alone, where it has it.
      prompts: config.target.prompts, without which a text-conditional model is refused.
      cached: whether only to look into the cache.

    Raises:
      InputError: if it can't be downloaded, holds no model, or one that is not read.
    """
    found = repository.snapshot(text, commit or repository.commit_of(text), cached=cached)
    path, names = repository.parse(text).path, found.names
    if path in names:
        return found.fetch([path]) / path
    if bundle and posixpath.join(path, bundle) in names:
        model = posixpath.join(path, bundle)
        beside = [posixpath.join(posixpath.dirname(model), name) for name in AUTOENCODER_FILES]
        return found.fetch([model, *(name for name in beside if name in names)]) / path
    unet = next((one for one in _places(path, ("", *UNETS)) if posixpath.join(one, "config.json") in names), None)
    if unet is None:
        raise _no_model(found, text)
    folder = found.fetch([name for name in names if _is_setting(name, path)])
    if text_parts.is_text(folder / unet):
        text_parts.check(folder / unet, prompts)
        read_condition_unet(folder / unet)  # refuses what is not read
        _fetch_text(found, path, text)
    else:
        autoencoder_folder(folder / unet)  # refuses pipelines with other parts
        read_module(folder / unet)  # refuses what is not read
    for part in (unet, *_places(path, AUTOENCODERS)):
        if posixpath.join(part, "config.json") in names:
            _fetch_weights(found, part, text)
    return folder / path


def _fetch_text(found: Snapshot, path: str, text: str) -> None:
    """Downloads the tokenizer and the text encoder of a pipeline."""
    encoder, *folders = _places(path, text_parts.FOLDERS)
    places = [posixpath.join(folder, name) for folder in folders for name in clip_tokens.FILES]
    found.fetch([name for name in places if name in found.names])
    _fetch_weights(found, encoder, text, TRANSFORMERS)


def _places(path: str, parts: Iterable[str]) -> list[str]:
    """The folders of a pipeline's parts; "" is the pipeline itself."""
    return [posixpath.join(path, part).rstrip("/") for part in parts]


def _is_setting(name: str, path: str) -> bool:
    """Whether a file is one of _SETTINGS of a folder, or of the one above it, where a U-Net's scheduler may be."""
    for root in {path, posixpath.dirname(path)}:
        below = posixpath.relpath(name, root or ".")
        same_depth = (pattern for pattern in _SETTINGS if pattern.count("/") == below.count("/"))
        if not below.startswith("..") and any(fnmatch.fnmatchcase(below, pattern) for pattern in same_depth):
            return True
    return False


def _fetch_weights(found: Snapshot, folder: str, text: str, stems: Mapping[str, str] = DIFFUSERS) -> None:
    """Downloads the one file of weights that is read, or the shards of its index."""
    beside = [posixpath.basename(name) for name in found.names if posixpath.dirname(name) == folder]
    where = f"{found.where}/{folder}".rstrip("/")
    source = weights_name(beside, where, stems)
    if not source and found.cached:
        raise found.lacks(text)
    if not source:
        raise InputError(
            f"{where} has no {plain_name(stems)}; name a repository or a folder that holds the weights too."
        )
    source = posixpath.join(folder, source)
    shards = [posixpath.join(folder, path.name) for path in weights_of(found.fetch([source]) / source)]
    gone = next((name for name in shards if name not in found.names), None)
    if gone:
        raise InputError(f"{found.where} has no {gone}, which {source} lists; name a repository that is whole.")
    found.fetch(shards)


def _no_model(found: Snapshot, text: str) -> InputError:
    """The sentence for a folder of a repository without the files of a model."""
    path = found.where.path
    inside = [name for name in found.names if name.startswith(f"{path}/" * bool(path))]
    if not inside or found.cached:
        return found.lacks(text)
    single = next((name for name in inside if name.endswith(_SINGLE)), None)
    hint = f"name the file of the model in it, such as .../{single}" if single else "name a repository of a model"
    return InputError(f"{text} holds neither config.json nor unet/config.json; {hint}.")
