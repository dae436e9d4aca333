"""Provides the labels that a conditional DPM is trained with, from the source that condition.labels names."""

from pathlib import Path
from typing import Any

import numpy as np

from side_jax.data import config_files, safe_npz
from side_jax.data.datasets import Dataset
from side_jax.errors import InputError
from side_jax.settings import Condition, Settings, random_streams
from side_jax.settings.target import OWN


def check(settings: Settings, dataset: Dataset, split: dict[str, Any]) -> None:
    """Raises InputError if the members of a split (see split.make_split) lack the labels that the settings ask for.

    The labels of a model that was trained elsewhere need no members.
    """
    if settings.condition.labels not in ("", OWN):
        ids = np.asarray([row["id"] for row in split["members"]], np.int64)
        member_labels(settings, dataset.take(ids), ids)


def member_labels(settings: Settings, members: Dataset, ids: np.ndarray) -> np.ndarray | None:
    """Returns each member's label, int32 [n] in 0..num_labels-1, all of them used; None for an unconditional DPM.

    Args:
      settings: of the run.
      members: the n members. Their own labels are renumbered in order, without the labels that no member has.
      ids: int64 [n], their ids in the dataset.

    Raises:
      InputError: if the members' number of labels differs from condition.num_labels, or if the label file does not
        have exactly one label for each member.
    """
    condition = settings.condition
    if not condition.labels:
        return None
    if condition.labels == "single":
        return np.zeros(len(ids), np.int32)
    if condition.labels == "random":
        rng = np.random.default_rng(random_streams.stream_seed(settings, "member labels"))
        return rng.permutation(np.arange(len(ids), dtype=np.int32) % condition.num_labels)
    if condition.labels == "file":
        return _from_file(condition, ids)
    distinct, labels = np.unique(members.labels, return_inverse=True)
    if len(distinct) != condition.num_labels:
        fix = f"set it to {len(distinct)}" if len(distinct) > 1 else "set condition.labels to random, single or file"
        raise InputError(
            f"config.condition.num_labels is {condition.num_labels}, but the {len(ids)} members have "
            f"{len(distinct)} different label{'s' * (len(distinct) > 1)}; {fix}."
        )
    return labels.astype(np.int32)


def _from_file(condition: Condition, ids: np.ndarray) -> np.ndarray:
    path, where = Path(condition.path), f"the file {condition.path!r} (config.condition.path)"
    config_files.digest(condition.path, condition.sha256, "condition.path")
    if not path.is_file():
        raise InputError(f"{where} is gone; put it back (its SHA-256 is {condition.sha256}).")
    names = ("id", "label")
    if not set(names) <= set(safe_npz.names(path, where)):
        raise InputError(
            f"{where} must hold the arrays `id` and `label`; save it with np.savez(path, id=..., label=...)."
        )
    arrays = {name: safe_npz.read(path, where, name) for name in names}
    for name, array in arrays.items():
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or len(array) != len(arrays["id"]):
            raise InputError(
                f"`{name}` in {where} has the type {array.dtype} and the shape {array.shape}, but both arrays must be "
                "integers of one shape [n], a label for each id."
            )
    low, high = arrays["label"].min(initial=0), arrays["label"].max(initial=0)
    if low < 0 or high >= condition.num_labels:
        raise InputError(
            f"`label` in {where} goes from {low} to {high}, but config.condition.num_labels is "
            f"{condition.num_labels}: labels must be 0 to {condition.num_labels - 1}; correct the file or the setting."
        )
    of_members = np.isin(arrays["id"], ids)
    known, place, counts = np.unique(arrays["id"][of_members], return_index=True, return_counts=True)
    if len(known) < len(ids):
        missing = np.setdiff1d(ids, known)
        raise InputError(
            f"{where} has no label for {len(missing)} of the {len(ids)} members (for example image {missing[0]} of the "
            "dataset); give each member exactly one."
        )
    if counts.max() > 1:
        repeated = known[counts > 1]
        raise InputError(f"{where} has several labels for image {repeated[0]} of the dataset; give each exactly one.")
    labels = arrays["label"][of_members][place][np.searchsorted(known, ids)].astype(np.int32)
    unused = np.setdiff1d(np.arange(condition.num_labels), labels)
    if len(unused):
        raise InputError(
            f"{where} gives no member the label {unused[0]}, which the model would never learn; number the members' "
            "labels from 0 without gaps, and set config.condition.num_labels to their number."
        )
    return labels
