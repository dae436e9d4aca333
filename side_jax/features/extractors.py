"""Defines feature extractors and runs them: in batches, checked, scaled to unit norm, cached."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from side_jax.devices import placement
from side_jax.errors import InputError
from side_jax.progress import progress
from side_jax.workdir import files

_ROWS = 1024

Embed = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extractor:
    """A kind of features, with its weights.

    Attributes:
      identity: everything but the images that the features depend on, a JSON value with a "name"; results record it.
      embed: (images uint8 [b, h, w, c], index uint32 [b]) -> float32 [b, d], of any norm. The index is the image's
        number in its set, for noise that depends on nothing else. A row must not depend on the rest of its batch.
      batch_size: b, constant, so that embed compiles once; divisible by the number of local devices.
      centre: whether to subtract the mean over the set.
    """

    identity: dict[str, Any]
    embed: Embed
    batch_size: int
    centre: bool = False


def on_devices(fn: Callable, params: Any, batch_size: int) -> Embed:
    """Wraps fn(params, images, index) as an Extractor's embed that shards each batch over the local devices."""
    return functools.partial(placement.in_batches(fn, batch_size), placement.place(params, placement.local_mesh()))


def embed_all(extractor: Extractor, images: np.ndarray) -> np.ndarray:
    """Computes raw features of images uint8 [n, h, w, c], without centring or scaling: float32 [n, d].

    Raises:
      InputError: if features are not finite.
    """
    n, size, name = len(images), extractor.batch_size, extractor.identity["name"]
    starts, parts = range(0, n, size), []
    for start in progress(starts, total=len(starts), description=f"{name} features", unit="batch"):
        index = np.arange(start, start + size).clip(max=n - 1)  # pads the last batch with the last image
        parts.append(extractor.embed(images[index], index.astype(np.uint32)))
    features = np.concatenate(parts)[:n]
    bad = n - int(np.isfinite(features).all(axis=1).sum())
    if bad:
        raise InputError(
            f"the {name} features of {bad} of {n} images are not finite numbers; check the weights, or choose other "
            "features."
        )
    return features


def extract(extractor: Extractor, images: np.ndarray, cache: Path) -> np.ndarray:
    """Computes the features of a set of images; the cosine of two features is the similarity of their images.

    Args:
      extractor: computes the features.
      images: uint8 [n, h, w, c].
      cache: a folder for <hash of images and identity>.npz; cached features are not computed again.

    Returns:
      float32 [n, d] of unit norm; zero for an image without a direction (constant pixels, or equal to the mean).

    Raises:
      InputError: if features are not finite, all of them are zero, or the cached file is damaged.
    """
    key = files.digest({"images": files.array_digest([images]), "identity": extractor.identity})
    path, name = cache / f"{key}.npz", extractor.identity["name"]
    if path.exists():
        return files.read_npz(path)["features"]
    features = embed_all(extractor, images)
    _to_directions(features, _mean(features) if extractor.centre else np.zeros((1, 1)))
    if not features.any():
        raise InputError(
            f"the {name} features of all {len(images)} images are zero, so none can be compared; look at the images, "
            "and if they are as expected, choose other features with config.label.features."
        )
    files.write_npz(path, features=features)
    return features


def member_frame(extractor: Extractor, members: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from images uint8 [n, h, w, c] to unit-norm features float32 [n, d], comparable across sets.

    If the extractor centres features, the members' mean is subtracted from all images.
    """
    mean = _mean(embed_all(extractor, members)) if extractor.centre else np.zeros((1, 1))
    return lambda images: _to_directions(embed_all(extractor, images), mean)


def _mean(features: np.ndarray) -> np.ndarray:
    return features.mean(axis=0, keepdims=True, dtype=np.float64)


def _to_directions(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Subtracts the mean and scales rows to unit norm, in place; rows without a direction become zero."""
    for start in range(0, len(features), _ROWS):  # in blocks, since float64 takes twice the memory
        rows = features[start : start + _ROWS].astype(np.float64)
        # A remainder as small as the rounding error of float32 is no direction either.
        rounding = 1e-6 * np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows - mean
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        features[start : start + _ROWS] = np.divide(rows, norm, out=np.zeros_like(rows), where=norm > rounding)
    return features
