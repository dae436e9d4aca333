"""SSCD's descriptors as features (Pizzi et al. 2022), from a local file of weights; preprocessing as in its README.

The weights are kept, once converted, in <cache>/sscd_<their file's sha256>.safetensors: PyTorch, which TorchScript
needs, is needed only the first time, and so is the file itself.
"""

import contextlib
from pathlib import Path
from typing import Any

import jax
from safetensors.numpy import save

from side_jax.data import config_files
from side_jax.errors import InputError
from side_jax.features import preprocess
from side_jax.features.extractors import Extractor, on_devices
from side_jax.features.sscd_weights import from_sscd
from side_jax.models.sscd_encoder import SSCD
from side_jax.settings import Label
from side_jax.targets import parameters
from side_jax.workdir import files


def read(label: Label, cache: Path) -> tuple[Any, str]:
    """(the parameters, the SHA-256 of the file that label.weights names), from the cache where they are in it.

    Raises:
      InputError: if the file can't be used, or is not the one that label.weights_sha256 names.
    """
    digest = config_files.digest(label.weights, label.weights_sha256, "label.weights")
    with contextlib.suppress(InputError):  # not converted yet, or damaged since
        return from_sscd(converted(cache, digest)), digest
    try:
        return from_sscd(label.weights), digest
    except InputError as error:
        raise InputError(f"config.label.weights: {error}") from None


def converted(cache: Path, digest: str) -> Path:
    """Where the converted weights are kept."""
    return cache / f"sscd_{digest}.safetensors"


def extractor(label: Label, cache: Path, *, batch_size: int) -> Extractor:
    """Features [n, 512].

    Args:
      label: the weights and the preprocessing.
      cache: the folder for the converted weights.
      batch_size: of each call.

    Raises:
      InputError: as read does.
    """
    params, digest = read(label, cache)
    path = converted(cache, digest)
    if not path.exists():
        with files.atomic(path) as file:
            file.write(save(parameters.to_state_dict(params)))

    def embed(params: Any, images: jax.Array, index: jax.Array) -> jax.Array:
        return SSCD().apply({"params": params}, preprocess.prepare(images, label))

    identity = {"name": "sscd", "weights_sha256": digest} | preprocess.described(label)
    return Extractor(identity=identity, embed=on_devices(embed, params, batch_size), batch_size=batch_size)
