"""Loads the dataset that the settings name, into memory or as a stream."""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping

import numpy as np

from side_jax.data.decode import Facts, convert, rules
from side_jax.data.printable import number
from side_jax.data.readers import READERS, concatenate, heldout
from side_jax.data.sources import Source
from side_jax.data.stream import SkippedImages, Stream, scan
from side_jax.errors import InputError
from side_jax.settings import Data

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Images with labels and names. An image's id is its position here, which is the same in every stage.

    Attributes:
      images: uint8 [n, h, w, c], 0..255; an array, or a Stream that reads images when they are indexed.
      labels: int32 [n], in 0..num_classes-1.
      num_classes: number of labels in the whole dataset.
      names: n strings that identify the images: the path of a file in its folder, or a number in its source; of a
        private audit, all "".
      heldout_start: the first id of an image from data.heldout_from; None: any image may be on either side.
      unreadable: ids of damaged images. They are black, and never part of a split.
      facts: what was changed in an image when it was read, by a number of its own; images as stored have none.
      passed_over: number of files that are not read, by their kind.
    """

    images: np.ndarray | Stream
    labels: np.ndarray
    num_classes: int
    names: tuple[str, ...]
    heldout_start: int | None = None
    unreadable: tuple[int, ...] = ()
    facts: Mapping[int, Facts] = dataclasses.field(default_factory=dict)
    passed_over: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, ids: np.ndarray) -> "Dataset":
        """Returns the images with these ids, in this order. A stream stays lazy."""
        return dataclasses.replace(
            self,
            images=self.images.select(ids) if isinstance(self.images, Stream) else self.images[ids],
            labels=self.labels[ids],
            names=tuple(self.names[i] for i in ids),
            heldout_start=None,
            unreadable=tuple(np.flatnonzero(np.isin(ids, self.unreadable)).tolist()),
        )


def load(data: Data, *, private: bool = False) -> Dataset:
    """Loads the dataset that the settings name, once per process, since several stages use it.

    Labels with fewer than data.min_per_label images are left out; this needs no decoding. In memory, all other images
    are decoded now; as a stream, none is. If it is private, no log and no table can name an image: sentences call it by
    its number.

    Raises:
      InputError: if the dataset is missing, has fewer images than the settings ask for, has another size or number of
        channels, or has more damaged images than data.max_corrupt.
    """
    # Only TFDS reads no more images than are asked for.
    uncounted = data if data.name == "tfds" else dataclasses.replace(data, num_members=0, num_heldout=0)
    _, rows, start = _listed(uncounted)
    check_enough(data, len(rows), start)
    return _load(uncounted, private)


def forget() -> None:
    """Forgets what `load` keeps, so that it reads the dataset anew."""
    _listed.cache_clear()
    _load.cache_clear()


@functools.lru_cache(maxsize=1)
def _listed(data: Data) -> tuple[Source, np.ndarray, int | None]:
    """Returns (the source, its rows with labels that are frequent enough, the first of them that is only held out)."""
    source = READERS[data.name](data)
    start = None
    if data.heldout_from:
        start, source = len(source.names), concatenate(source, heldout(data))
    distinct, values, counts = np.unique(source.labels, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(counts[values] >= data.min_per_label)
    if data.min_per_label > 1:
        logger.info(
            "data: %d of %d labels have at least %d images (data.min_per_label); %d of %d images remain.",
            (counts >= data.min_per_label).sum(),
            len(distinct),
            data.min_per_label,
            len(rows),
            len(values),
        )
    return source, rows, None if start is None else int((rows < start).sum())


@functools.lru_cache(maxsize=1)
def _load(data: Data, private: bool) -> Dataset:
    source, rows, start = _listed(data)
    used_labels, labels = np.unique(np.asarray(source.labels)[rows], return_inverse=True)
    called = tuple(number(i) if private else source.names[row] for i, row in enumerate(rows))
    shape, facts = data.shape, {}

    def read(row: int) -> np.ndarray:
        image, changed = convert(source.read(row), shape, rules(data))
        if changed != Facts():
            facts[row] = changed
        return image

    images = Stream(read, rows, called, shape)
    size, limit = math.prod(images.shape), data.memory_limit_mb * 2**20
    in_memory = data.storage == "memory" or (data.storage == "auto" and size <= limit)
    logger.info(
        "data: %s images of %s, %d labels, %s: %.1f MiB (data.storage = %s, data.memory_limit_mb = %d).",
        " x ".join(map(str, images.shape)),
        (not private and data.path) or data.tfds_name or data.name,
        len(used_labels),
        "decoded into memory" if in_memory else "read for each batch",
        size / 2**20,
        data.storage,
        data.memory_limit_mb,
    )
    skipped = SkippedImages(data.max_corrupt)
    if in_memory:
        memory = np.empty(images.shape, np.uint8)
        scan(images, lambda ids, chunk: memory.__setitem__(ids, chunk), skipped)
        images = memory
    return Dataset(
        images=images,
        labels=labels.astype(np.int32),
        num_classes=len(used_labels),
        names=("",) * len(rows) if private else called,
        heldout_start=start,
        unreadable=tuple(skipped.ids),
        facts=facts,
        passed_over=source.passed_over,
    )


def check_enough(data: Data, num_images: int, start: int | None = None) -> None:
    """Raises InputError unless both sides can be filled. Images from `start` on can only be held out."""
    if start is not None:
        where = "path" if data.path else "tfds_name"
        for number, place, available in (
            ("num_members", where, start),
            ("num_heldout", "heldout_from", num_images - start),
        ):
            if getattr(data, number) > available:
                raise InputError(
                    f"config.data.{number} = {getattr(data, number)}, but config.data.{place} = "
                    f"{getattr(data, place)!r} has only {available} different images; lower num_members and "
                    "num_heldout to that."
                )
        return
    required = data.num_members + data.num_heldout
    if num_images < required:
        left = max(num_images - data.num_members, 0)
        raise InputError(
            f"config.data.num_members = {data.num_members} and num_heldout = {data.num_heldout} need {required} "
            f"different images, but the dataset has {num_images}: {left} are left to hold out; lower both."
        )
