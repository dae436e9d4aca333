"""Extracts SSCD descriptors (Pizzi et al. 2022) with local weights and the preprocessing of SSCD's README.

Converted weights are cached in <cache>/sscd_<sha256 of the original file>.safetensors. The original file, and PyTorch
to read TorchScript, are needed only the first time.
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
    """Returns (the parameters, the SHA-256 of the file of label.weights), from the cache if possible.

    Raises:
      InputError: if the file can't be used, or its hash is not label.weights_sha256.
    """
    digest = config_files.digest(label.weights, label.weights_sha256, "label.weights")
    with contextlib.suppress(InputError):  # not converted yet, or damaged
        return from_sscd(converted_path(cache, digest)), digest
    try:
        return from_sscd(label.weights), digest
    except InputError as error:
        raise InputError(f"config.label.weights: {error}") from None


def converted_path(cache: Path, digest: str) -> Path:
    """Returns the path of the converted weights."""
    return cache / f"sscd_{digest}.safetensors"


def extractor(label: Label, cache: Path, *, batch_size: int) -> Extractor:
    """Makes an extractor of features [n, 512].

    Args:
      label: the weights and the preprocessing.
      cache: a folder for the converted weights.
      batch_size: images per call.

    Raises:
      InputError: as in read.
    """
    params, digest = read(label, cache)
    path = converted_path(cache, digest)
    if not path.exists():
        with files.atomic(path) as file:
            file.write(save(parameters.to_state_dict(params)))

    def embed(params: Any, images: jax.Array, index: jax.Array) -> jax.Array:
        return SSCD().apply({"params": params}, preprocess.prepare(images, label))

    identity = {"name": "sscd", "weights_sha256": digest} | preprocess.description(label)
    return Extractor(identity=identity, embed=on_devices(embed, params, batch_size), batch_size=batch_size)
