"""Stores a set of generated images in shards: one NPZ per batch, with images, index and label (-1 = none).

Each process generates a contiguous part of the shards. While one batch is copied from the device, compressed and
written, the next ones are computed; at most a few batches are in memory at a time. Shards are written atomically and
their bytes depend on the settings alone, so that only missing or damaged shards are regenerated.
"""

import collections
import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from side_jax.devices import placement, process_group, signals
from side_jax.devices.preemption import Preemption
from side_jax.errors import InputError, StoppedError
from side_jax.progress import progress
from side_jax.sampling.generation import Generator
from side_jax.sampling.genetic_search import GeneticSearch
from side_jax.sampling.mode_generation import ModeGenerator
from side_jax.workdir import files, work_units

logger = logging.getLogger(__name__)

IN_FLIGHT = 2  # batches being computed or written at a time
CHUNK = 2**23  # array elements of `images` read at a time
ARRAYS = ("images", "index", "label")  # of a shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file, the global indices of its images, and the SHA-256 that it must have, if one is recorded."""

    path: Path
    index: range
    sha256: str | None = None

    def intact(self, *, thorough: bool) -> bool:
        """Whether the file exists and is undamaged; thorough: also decompresses the images and checks their CRC."""
        try:
            self.read(ARRAYS if thorough else ARRAYS[1:])
        except InputError:
            return False
        return True

    def read(self, names: tuple[str, ...] = ARRAYS) -> dict[str, np.ndarray]:
        """The arrays of the given names, which must include index and label.

        Raises:
          InputError: if the file is missing, changed or damaged, or holds other images.
        """
        if self.sha256 and work_units.differs(self.path, self.sha256):
            raise InputError(f"{work_units.change(self.path)}; run the stage that writes it again.")
        arrays = files.read_npz(self.path, names)
        if not np.array_equal(arrays["index"], np.asarray(self.index)) or len(arrays["label"]) != len(self.index):
            raise InputError(
                f"{self.path} does not hold images {self.index.start} to {self.index.stop - 1}; delete it and run the "
                "stage that writes it again."
            )
        return arrays


def layout(directory: Path, num_images: int, batch_size: int, known: Mapping[str, str] | None = None) -> list[Shard]:
    """The shards of images 0..num_images-1; `known` maps names of files to the SHA-256 that they must have."""
    ends, known = [*range(batch_size, num_images, batch_size), num_images], known or {}
    names = [f"shard_{i:05d}.npz" for i in range(len(ends))]
    return [
        Shard(path=directory / name, index=range(i * batch_size, end), sha256=known.get(name))
        for i, (name, end) in enumerate(zip(names, ends, strict=True))
    ]


def complete(shards: list[Shard]) -> bool:
    """Whether all shards exist and are readable; if not, logs how many are affected.

    Does not compare the SHA-256, which their unit does as it begins.
    """
    plain = (dataclasses.replace(shard, sha256=None) for shard in shards)
    absent = [shard.path.name for shard in plain if not shard.intact(thorough=False)]
    if absent:
        folder = shards[0].path.parent
        logger.info("%s: regenerating %d of %d shards, which are missing or damaged.", folder, len(absent), len(shards))
    return not absent


def write(
    generator: Generator | ModeGenerator | GeneticSearch,
    shards: list[Shard],
    *,
    params: Any,
    base: jax.Array,
    labels: np.ndarray,
    scale: float,
    description: str,
) -> None:
    """Generates this process's missing or damaged shards.

    Args:
      generator: generates the images.
      shards: all shards, of all processes.
      params: for the generator.
      base: the typed key of this set of images.
      labels: int32 [n], the target class of each global index; -1 for unguided sampling.
      scale: the guidance scale lambda.
      description: for the progress bar.

    Raises:
      StoppedError: on SIGTERM or Ctrl-C to any process, once the batches in flight are written.
      InputError: if another process failed, once the batches in flight are written.
      OSError: if a shard can't be written; earlier shards are kept.
    """
    assigned = [shards[i] for i in process_group.own_range(len(shards))]
    todo = [shard for shard in assigned if not shard.intact(thorough=True)]
    writing: collections.deque = collections.deque()

    def save(shard: Shard, batch: jax.Array | np.ndarray) -> None:
        index = np.asarray(shard.index)
        images = placement.merge(batch)[: len(index)]
        files.write_npz(shard.path, images=images, index=index, label=labels[index])

    options = {"description": description, "unit": "batch", "done": len(assigned) - len(todo)}
    bar = progress(todo, total=len(assigned), main=True, **options)
    with Preemption() as preemption, ThreadPoolExecutor(1) as writer, contextlib.closing(bar):
        for shard in bar:
            index = np.asarray(shard.index)
            writing.append(writer.submit(save, shard, generator.dispatch(params, base, index, labels[index], scale)))
            if len(writing) >= IN_FLIGHT:
                writing.popleft().result()
            process_group.check_others()
            if preemption.requested():
                break
        for write_job in writing:
            write_job.result()
    if preemption.happened:
        saved = sum(shard.path.exists() for shard in assigned)
        raise StoppedError(
            f"{description}: stopped by {signals.cause()} with {saved} of {len(assigned)} batches saved; run the same "
            "command again to continue."
        )


def stream(shards: list[Shard], size: int = CHUNK) -> Iterator[dict[str, np.ndarray]]:
    """Reads the shards in order, in chunks of whole shards with at least `size` array elements of images.

    Yields:
      images uint8 [n, h, w, c], index int64 [n], label int32 [n].

    Raises:
      InputError: if a shard is missing or damaged.
    """
    parts: list[dict[str, np.ndarray]] = []
    for shard in shards:
        parts.append(shard.read())
        if sum(part["images"].size for part in parts) >= size:
            whole, parts = _join(parts), []  # free the memory while the caller works
            yield whole
            del whole
    if parts:
        yield _join(parts)


def read(shards: list[Shard]) -> dict[str, np.ndarray]:
    """Reads all shards at once; the arrays are those of `stream`.

    Raises:
      InputError: if a shard is missing or damaged.
    """
    return _join(list(stream(shards)))


def pick(shards: list[Shard], index: np.ndarray) -> np.ndarray:
    """The images of the given global indices, in their order, uint8 [len(index), h, w, c].

    Raises:
      InputError: if a shard that holds one of them is missing or damaged.
    """
    holding = [shard for shard in shards if np.isin(index, np.asarray(shard.index)).any()]
    images = {i: image for part in stream(holding) for i, image in zip(part["index"], part["images"], strict=True)}
    return np.stack([images[i] for i in index])


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in ARRAYS}
