"""Splits a dataset into members, which the model trains on, and held-out images, which it never sees."""

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from side_jax.data import duplicates, reading
from side_jax.data.datasets import Dataset, check_enough
from side_jax.data.decode import rules
from side_jax.data.stream import SkippedImages, Stream, scan
from side_jax.errors import InputError
from side_jax.settings import Data
from side_jax.workdir import files

ORDERS = 100  # random label orders to try until both sides can be filled
CANDIDATES = 2048  # held-out candidates compared with the members at a time


def image_hashes(images: np.ndarray | Stream) -> list[str]:
    """Returns the SHA-256 of each image's pixels, after crop and resize: uint8 [n, h, w, c] -> n strings."""
    hashes = [""] * len(images)
    scan(images, functools.partial(store_hashes, hashes))
    return hashes


def store_hashes(hashes: list[str], ids: np.ndarray, chunk: np.ndarray) -> None:
    """Stores the SHA-256 of each image of a chunk, uint8 [k, h, w, c], at its id."""
    for i, image in zip(ids, chunk, strict=True):
        hashes[i] = hashlib.sha256(np.ascontiguousarray(image)).hexdigest()


@functools.lru_cache(maxsize=1)
def make_split(dataset: Dataset, data: Data, seed: int) -> dict[str, Any]:
    """Draws disjoint members and held-out images at random. Reads each image once, and near ones again.

    - Damaged images are skipped. Only the first of exact duplicates is used, so that no image is on both sides.
    - With data.split_by = "identity", each label is on one side only. Labels in random order fill the members, later
      ones the held-out images; surplus images are left out.
    - With data.heldout_from, members have ids below dataset.heldout_start, and held-out images the other ids.
    - A held-out candidate whose RMSE to any member is below data.near_duplicate_rmse (pixels in [-1, 1]) is moved out,
      and the next candidate takes its place. The member stays, but is marked: a test that compares both sides must
      leave it out too.

    The last result is cached, since a run checks the split before writing it: do not modify it.

    Returns:
      {"members": [{"id", "sha256", "name", "label", "near_moved"}, ...], "heldout": [...], "counts": {...}}. The ids
      index the dataset, and both lists have the length that the settings ask for, if any; near_moved marks members near
      a candidate that was moved out. The counts are images_considered, corrupt_skipped, exact_duplicates_left_out,
      near_duplicates_moved, members_near_moved, near_duplicate_pairs_within_members (such pairs weaken criteria that
      compare the nearest with the second-nearest member), member_labels, heldout_labels, and reading (see reading.py).

    Raises:
      InputError: if a side can't be filled, or more images are damaged than data.max_corrupt.
    """
    start = dataset.heldout_start
    check_enough(data, len(dataset), start)
    if data.split_by == "identity" and dataset.num_classes < 2:
        raise InputError(
            f"config.data.split_by is 'identity', which needs two labels or more, but the dataset has "
            f"{dataset.num_classes}; give each identity a subfolder or a label, or split by 'image'."
        )
    hashes, signatures, unreadable = _read_all(dataset, data)
    where = "the dataset" + f" {data.path!r}" * bool(data.path)
    read = reading.summary(dataset.facts.values(), dataset.passed_over, rules(data), where)
    usable = np.setdiff1d(np.arange(len(dataset)), unreadable)
    first = np.asarray(sorted({hashes[i]: int(i) for i in reversed(usable)}.values()), np.int64)
    check_enough(data, len(first), None if start is None else int((first < start).sum()))
    rng = np.random.default_rng([seed, 0])
    order = first[rng.permutation(len(first))]
    if start is not None:
        members, candidates = order[order < start][: data.num_members or None], order[order >= start]
        if data.split_by == "identity":
            candidates = candidates[~np.isin(dataset.labels[candidates], dataset.labels[members])]
    elif data.split_by == "identity":
        members, candidates = _by_identity(order, dataset.labels, data, rng)
    else:
        count = data.num_members or len(order) // 2
        members, candidates = order[:count], order[count:]
    heldout, moved, near_moved = _heldout(dataset, signatures, members, candidates, data)
    pairs = 0
    if data.near_duplicate_rmse > 0:
        blocks = duplicates.near_pairs(dataset.images, signatures, members, members, data.near_duplicate_rmse)
        pairs = sum(len(block) for block in blocks) // 2  # each pair is found twice, once from each image

    def rows(ids: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"id": int(i), "sha256": hashes[i], "name": dataset.names[i], "label": int(dataset.labels[i])} for i in ids
        ]

    return {
        "members": [row | {"near_moved": row["id"] in near_moved} for row in rows(members)],
        "heldout": rows(heldout),
        "counts": {
            "images_considered": len(dataset),
            "corrupt_skipped": len(unreadable),
            "exact_duplicates_left_out": len(usable) - len(first),
            "near_duplicates_moved": moved,
            "members_near_moved": len(near_moved),
            "near_duplicate_pairs_within_members": pairs,
            "member_labels": len(np.unique(dataset.labels[members])),
            "heldout_labels": len(np.unique(dataset.labels[heldout])),
            "reading": read,
        },
    }


def _read_all(dataset: Dataset, data: Data) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Returns (hash of each image, signature of each, ids of the damaged ones), in one pass over the images."""
    hashes = [""] * len(dataset)
    entries = duplicates.signatures(np.zeros((1, *dataset.images.shape[1:]), np.uint8)).size
    signatures = np.zeros((len(dataset), entries), np.float32)

    def visit(ids: np.ndarray, chunk: np.ndarray) -> None:
        signatures[ids] = duplicates.signatures(chunk)
        store_hashes(hashes, ids, chunk)

    skipped = SkippedImages(data.max_corrupt)
    scan(dataset.images, visit, skipped)
    return hashes, signatures, np.union1d(dataset.unreadable, skipped.ids).astype(np.int64)


def _by_identity(
    order: np.ndarray, labels: np.ndarray, data: Data, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (members, held-out candidates) without a common label; images with the same label are consecutive."""
    groups = [order[labels[order] == label] for label in np.unique(labels[order])]
    count = data.num_members or len(order) // 2
    for _ in range(ORDERS):
        shuffled = [groups[k] for k in rng.permutation(len(groups))]
        ends = np.cumsum([len(group) for group in shuffled])
        end = ends[np.searchsorted(ends, count)]  # after the label that completes the members
        if ends[-1] - end >= max(data.num_heldout, 1):
            images = np.concatenate(shuffled)
            return images[:count], images[end:]
    raise InputError(
        f"config.data.split_by = 'identity' can't fill num_members = {data.num_members} and num_heldout = "
        f"{data.num_heldout} with different labels: the {len(groups)} labels have {len(order)} different images, the "
        f"largest {max(map(len, groups))}; lower both numbers, or split by 'image'."
    )


def _heldout(
    dataset: Dataset, signatures: np.ndarray, members: np.ndarray, candidates: np.ndarray, data: Data
) -> tuple[np.ndarray, int, set[int]]:
    """Returns (the first candidates near no member, the number of near ones before the last, members near these)."""
    limit, accepted, count = data.near_duplicate_rmse, np.empty(0, np.int64), 0
    most = data.num_heldout or len(candidates)
    near_moved: set[int] = set()
    for start in range(0, len(candidates), CANDIDATES):
        block = candidates[start : start + CANDIDATES]
        pairs = np.empty((0, 2), np.int64)
        if limit > 0:
            pairs = np.concatenate([*duplicates.near_pairs(dataset.images, signatures, block, members, limit)])
        near = np.isin(block, pairs[:, 0])
        clear = np.flatnonzero(~near)[: most - len(accepted)]
        accepted = np.concatenate([accepted, block[clear]])
        full = len(accepted) == most
        if full:
            near[clear[-1] :] = False  # these were not needed
        moved = block[near]
        count += len(moved)
        near_moved.update(pairs[np.isin(pairs[:, 0], moved), 1].tolist())
        if full:
            return accepted, count, near_moved
    if not data.num_heldout and len(accepted):
        return accepted, count, near_moved
    raise InputError(
        f"config.data.num_heldout = {data.num_heldout}, but only {len(accepted)} of the {len(candidates)} images left "
        f"to hold out differ from every member by an RMSE of config.data.near_duplicate_rmse = {limit:g}; lower that, "
        "or num_members and num_heldout."
    )


def apply_split(dataset: Dataset, path: Path) -> tuple[Dataset, Dataset, np.ndarray, np.ndarray]:
    """Reads a split file; returns (members, held-out, member ids, held-out ids). Reads each image once.

    Raises:
      InputError: if the file is missing or damaged, or if an image has changed since the split.
    """
    split = files.read_json(path)
    parts = []
    for side in ("members", "heldout"):
        ids = np.asarray([row["id"] for row in split[side]], np.int64)
        if ids.max() >= len(dataset):
            raise InputError(
                f"{path} names image {ids.max()}, but the dataset has only {len(dataset)} images now; make the "
                "data what they were."
            )
        part = dataset.take(ids)
        for row, name, current in zip(split[side], part.names, image_hashes(part.images), strict=True):
            if row["sha256"] != current:
                if row["name"] and name and row["name"] != name:
                    raise InputError(
                        f"image {row['id']} of the dataset is {name} now, but was {row['name']} when {path} was made: "
                        "images were added or removed; make the data what they were."
                    )
                raise InputError(
                    f"image {row['id']} of the dataset differs from the one in {path}{f', {name}' * bool(name)}: the "
                    "data, or data.fit, data.orientation or data.bit_range, changed; make them what they were."
                )
        parts.append((part, ids))
    (members, member_ids), (heldout, heldout_ids) = parts
    return members, heldout, member_ids, heldout_ids
