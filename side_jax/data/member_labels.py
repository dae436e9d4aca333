"""The members' labels that a conditional DPM is trained with, from wherever condition.labels says."""

from pathlib import Path
from typing import Any

import numpy as np

from side_jax.data import config_files, safe_npz
from side_jax.data.datasets import Dataset
from side_jax.errors import InputError
from side_jax.settings import Condition, Settings, random_streams


def check(settings: Settings, dataset: Dataset, made: dict[str, Any]) -> None:
    """Raises InputError where the members of a split, see split.make_split, have no labels as the settings promise."""
    if settings.condition.labels:
        ids = np.asarray([row["id"] for row in made["members"]], np.int64)
        member_labels(settings, dataset.take(ids), ids)


def member_labels(settings: Settings, members: Dataset, ids: np.ndarray) -> np.ndarray | None:
    """The label of each member, int32 [n] in 0..num_labels-1, each of which some member has; None: unconditional.

    Args:
      settings: of the run.
      members: n of them; their own labels are numbered in order, without those that no member has.
      ids: int64 [n], of the members in the dataset.

    Raises:
      InputError: if members have another number of labels than condition.num_labels, or the file has not one label for
        each.
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
    own, labels = np.unique(members.labels, return_inverse=True)
    if len(own) != condition.num_labels:
        fix = f"set it to {len(own)}" if len(own) > 1 else "set condition.labels to random, single or file"
        raise InputError(
            f"config.condition.num_labels is {condition.num_labels}, but the {len(ids)} members have "
            f"{len(own)} different label{'s' * (len(own) > 1)}; {fix}."
        )
    return labels.astype(np.int32)


def _from_file(condition: Condition, ids: np.ndarray) -> np.ndarray:
    path, where = Path(condition.path), f"the file {condition.path!r} (config.condition.path)"
    config_files.digest(condition.path, condition.sha256, "condition.path")
    if not path.is_file():
        raise InputError(f"{where} is gone; put it back, its SHA-256 is {condition.sha256}.")
    names = ("id", "label")
    if not set(names) <= set(safe_npz.names(path, where)):
        raise InputError(
            f"{where} must hold the arrays `id` and `label`; save it with np.savez(path, id=..., label=...)."
        )
    found = {name: safe_npz.read(path, where, name) for name in names}
    for name, array in found.items():
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or len(array) != len(found["id"]):
            raise InputError(
                f"`{name}` in {where} is {array.dtype} of the shape {array.shape}, but both arrays must be integers "
                "of one shape [n], a label for each id."
            )
    low, high = found["label"].min(initial=0), found["label"].max(initial=0)
    if low < 0 or high >= condition.num_labels:
        raise InputError(
            f"`label` in {where} goes from {low} to {high}, but config.condition.num_labels is "
            f"{condition.num_labels}: labels are 0 to {condition.num_labels - 1}, so correct either."
        )
    of_members = np.isin(found["id"], ids)
    known, place, counts = np.unique(found["id"][of_members], return_index=True, return_counts=True)
    if len(known) < len(ids):
        lacking = np.setdiff1d(ids, known)
        raise InputError(
            f"{where} has no label for {len(lacking)} of the {len(ids)} members (image {lacking[0]} of the dataset is "
            "one); give each exactly one."
        )
    if counts.max() > 1:
        twice = known[counts > 1]
        raise InputError(f"{where} has several labels for image {twice[0]} of the dataset; give each exactly one.")
    labels = found["label"][of_members][place][np.searchsorted(known, ids)].astype(np.int32)
    unused = np.setdiff1d(np.arange(condition.num_labels), labels)
    if len(unused):
        raise InputError(
            f"{where} gives no member the label {unused[0]}, which the model would never learn; number the labels "
            "that members have from 0, and set config.condition.num_labels to how many they are."
        )
    return labels
