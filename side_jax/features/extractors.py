"""What every feature extractor is, and the one way to use it: in batches, checked, scaled to unit norm, cached."""

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
    """One kind of features, with its weights.

    Attributes:
      identity: all that the features depend on but the images, as a JSON value with a "name"; results record it.
      embed: (images uint8 [b, h, w, c], index uint32 [b]) -> float32 [b, d], of any norm; index numbers an image within
        its set, for noise that depends on nothing else. An image's row must not depend on its batch.
      batch_size: b, always the same, so that embed compiles once; divisible by the number of local devices.
      centre: whether the set's mean is subtracted.
    """

    identity: dict[str, Any]
    embed: Embed
    batch_size: int
    centre: bool = False


def on_devices(fn: Callable, params: Any, batch_size: int) -> Embed:
    """fn(params, images, index) on each local device's share of a batch, as an Extractor's embed."""
    return functools.partial(placement.in_batches(fn, batch_size), placement.place(params, placement.local_mesh()))


def embed_all(extractor: Extractor, images: np.ndarray) -> np.ndarray:
    """What an extractor makes of a set of images uint8 [n, h, w, c], as it is: float32 [n, d].

    Raises:
      InputError: if it is not finite.
    """
    n, size, name = len(images), extractor.batch_size, extractor.identity["name"]
    starts, parts = range(0, n, size), []
    for start in progress(starts, total=len(starts), description=f"{name} features", unit="batch"):
        index = np.arange(start, start + size).clip(max=n - 1)  # the last image fills up the last batch
        parts.append(extractor.embed(images[index], index.astype(np.uint32)))
    features = np.concatenate(parts)[:n]
    bad = n - int(np.isfinite(features).all(axis=1).sum())
    if bad:
        raise InputError(
            f"the {name} features of {bad} of {n} images are not finite numbers; check the weights that they come "
            "from, or choose others."
        )
    return features


def extract(extractor: Extractor, images: np.ndarray, cache: Path) -> np.ndarray:
    """Features of a set of images, whose cosine says how alike two images are.

    Args:
      extractor: makes them.
      images: uint8 [n, h, w, c].
      cache: a folder for <hash of images and identity>.npz; what is there already is read, not computed again.

    Returns:
      float32 [n, d] of unit norm; an image without a direction (flat in pixels, or equal to the mean) becomes zero.

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
            f"the {name} features of all {len(images)} images are zero, so no two can be compared; look at the images, "
            "and where they are as they should be, choose other features by config.label.features."
        )
    files.write_npz(path, features=features)
    return features


def comparer(extractor: Extractor, members: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from images uint8 [n, h, w, c] to features float32 [n, d] of unit norm that compare with the members'.

    Where the extractor's features are centred, all images' are at the mean of the members'.
    """
    mean = _mean(embed_all(extractor, members)) if extractor.centre else np.zeros((1, 1))
    return lambda images: _to_directions(embed_all(extractor, images), mean)


def _mean(features: np.ndarray) -> np.ndarray:
    return features.mean(axis=0, keepdims=True, dtype=np.float64)


def _to_directions(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Scales rows to unit norm after subtracting the mean, in place; what has no direction becomes zero."""
    for start in range(0, len(features), _ROWS):  # in float64, but not all of them at once
        rows = features[start : start + _ROWS].astype(np.float64)
        # What is left of a row by rounding errors of float32 alone has no direction either.
        rounding = 1e-6 * np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows - mean
        norm = np.linalg.norm(rows, axis=1, keepdims=True)
        features[start : start + _ROWS] = np.divide(rows, norm, out=np.zeros_like(rows), where=norm > rounding)
    return features
