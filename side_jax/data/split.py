"""The split into members (the model trains on them) and held-out images (it never sees them)."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from side_jax import files
from side_jax.data.datasets import Dataset
from side_jax.errors import InputError
from side_jax.settings import Data


def image_hashes(images: np.ndarray) -> list[str]:
    """SHA-256 of each image's pixels: uint8 [n, h, w, c] -> n strings."""
    return [hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in images]


def make_split(dataset: Dataset, data: Data, seed: int) -> dict[str, Any]:
    """Draws disjoint members and held-out images at random.

    Of exact duplicates only the first is used, so that no image is on both sides.

    Returns:
      {"members": [{"id", "sha256"}, ...], "heldout": [...], "duplicates_left_out": n}; ids index the dataset.

    Raises:
      InputError: if fewer distinct images are left than the settings ask for.
    """
    hashes = image_hashes(dataset.images)
    first = np.asarray(sorted({h: i for i, h in reversed(list(enumerate(hashes)))}.values()))
    wanted = data.num_members + data.num_heldout
    if wanted > len(first):
        left = max(len(first) - data.num_members, 0)
        raise InputError(
            f"config.data.num_members = {data.num_members} and num_heldout = {data.num_heldout} need {wanted} "
            f"different images, but the dataset has {len(first)}: {left} are left to hold out; lower both."
        )
    order = first[np.random.default_rng([seed, 0]).permutation(len(first))]

    def rows(ids: np.ndarray) -> list[dict[str, Any]]:
        return [{"id": int(i), "sha256": hashes[i]} for i in ids]

    return {
        "members": rows(order[: data.num_members]),
        "heldout": rows(order[data.num_members : wanted]),
        "duplicates_left_out": len(hashes) - len(first),
    }


def apply_split(dataset: Dataset, path: Path) -> tuple[Dataset, Dataset, np.ndarray, np.ndarray]:
    """Reads a split file; returns (members, held-out, member ids, held-out ids).

    Raises:
      InputError: if the file is missing or damaged, or an image is no longer the one that was split.
    """
    split = files.read_json(path)
    parts = []
    for side in ("members", "heldout"):
        ids = np.asarray([row["id"] for row in split[side]], np.int64)
        if ids.max() >= len(dataset):
            raise InputError(f"{path} names image {ids.max()}, but the dataset has only {len(dataset)} images now.")
        part = dataset.take(ids)
        for row, now in zip(split[side], image_hashes(part.images), strict=True):
            if row["sha256"] != now:
                raise InputError(f"image {row['id']} of the dataset differs from the one in {path}: the data changed.")
        parts.append((part, ids))
    (members, member_ids), (heldout, heldout_ids) = parts
    return members, heldout, member_ids, heldout_ids
