"""Reads and decodes images on demand, and scans whole sets on several threads."""

import logging
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from side_jax.data.printable import reason
from side_jax.errors import InputError

logger = logging.getLogger(__name__)

CHUNK = 64  # images that a thread reads at a time; fewer if they exceed CHUNK_BYTES
CHUNK_BYTES = 2**26
THREADS = 4


class Stream:
    """A lazy uint8 array [n, h, w, c] that reads images when they are indexed; thread-safe.

    `stream[ids]` is uint8 [k, h, w, c], `stream[i]` is uint8 [h, w, c], and np.asarray(stream) reads everything.
    Attributes: shape, (n, h, w, c); dtype, uint8; ndim, 4.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self, read: Callable[[int], np.ndarray], rows: np.ndarray, names: tuple[str, ...], shape: tuple[int, ...]
    ):
        """Makes a stream of the images `rows` of a source.

        Args:
          read: a row of the source -> uint8 [h, w, c]; may raise anything for a damaged image.
          rows: int64 [n], the images' rows in the source.
          names: n names for messages.
          shape: (h, w, c).
        """
        self._read, self._rows, self._names = read, rows, names
        self.shape = (len(rows), *shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Reads images by integers or a slice.

        Raises:
          InputError: if an image can't be read.
        """
        ids = np.arange(len(self))[key]
        images, failed = self.try_read(np.atleast_1d(ids))
        if failed:
            name = next(iter(failed.values()))
            raise InputError(f"the image {name} can't be read; restore it.")
        return images if ids.ndim else images[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Reads all images, on several threads."""
        if copy is False:
            raise ValueError("a stream can't be converted to an array without a copy")
        images = np.empty(self.shape, np.uint8)
        scan(self, lambda ids, chunk: images.__setitem__(ids, chunk))
        return images if dtype is None else images.astype(dtype, copy=False)

    def select(self, ids: np.ndarray) -> "Stream":
        """Returns a stream of the images with these ids, in this order; reads nothing."""
        names = tuple(self._names[i] for i in ids)
        return Stream(self._read, self._rows[ids], names, self.shape[1:])

    def try_read(self, ids: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
        """Returns (uint8 [k, h, w, c], {id: "name (reason)"} of the unreadable images, which are black)."""
        images = np.zeros((len(ids), *self.shape[1:]), np.uint8)
        failed = {}
        for image, i in zip(images, ids, strict=True):
            try:
                image[:] = self._read(int(self._rows[i]))
            except Exception as error:  # damaged files make decoders raise nearly anything
                failed[int(i)] = f"{self._names[i]} ({reason(error)})"
        return images, failed


class SkippedImages:
    """Collects unreadable images up to a limit and logs each one. Attributes: ids, a list."""

    def __init__(self, limit: int):
        self._limit = limit
        self._named: dict[int, str] = {}

    @property
    def ids(self) -> list[int]:
        """The ids of the skipped images, in order."""
        return sorted(self._named)

    def add(self, failed: dict[int, str]) -> None:
        """Adds {id: "name (reason)"}.

        Raises:
          InputError: if the limit is exceeded; names up to ten images.
        """
        for name in failed.values():
            logger.warning("data: skipped the unreadable image %s.", name)
        self._named |= failed
        if len(self._named) > self._limit:
            listed = list(self._named.values())
            names = ", ".join(listed[:10]) + (", ..." if len(listed) > 10 else "")
            raise InputError(
                f"more images can't be read than config.data.max_corrupt = {self._limit} allows: {names}; repair or "
                "remove them, or raise that limit."
            )


def scan(
    images: np.ndarray | Stream, visit: Callable[[np.ndarray, np.ndarray], Any], skipped: SkippedImages | None = None
) -> None:
    """Calls visit(ids int64 [k], images uint8 [k, h, w, c]) once for every chunk of images, on several threads.

    Args:
      images: uint8 [n, h, w, c], or anything that can be indexed by its first dimension.
      visit: called in any order and possibly concurrently, once for each image.
      skipped: collects unreadable images, which are black in `visit`; None: an unreadable image is an error.

    Raises:
      InputError: if more images can't be read than `skipped` allows, or any can't without `skipped`.
    """
    size = max(1, min(CHUNK, CHUNK_BYTES // math.prod(images.shape[1:])))

    def work(start: int) -> dict[int, str]:
        ids = np.arange(start, min(start + size, len(images)))
        chunk, failed = images.try_read(ids) if isinstance(images, Stream) and skipped else (images[ids], {})
        visit(ids, chunk)
        return failed

    pool = ThreadPoolExecutor(THREADS)
    try:
        for failed in pool.map(work, range(0, len(images), size)):
            if failed:
                skipped.add(failed)
    finally:
        pool.shutdown(cancel_futures=True)
