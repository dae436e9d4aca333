"""A set of generated images as shards: one NPZ for each batch, with images, index and label (-1 = none).

Each process makes its own contiguous part of the shards. While one batch is copied from the device, compressed and
written, the next ones are computed; no more than a few are ever in memory, however many images there are. A shard is
there whole or not at all, and its bytes depend on nothing but the settings: what a kill, a full disk or a careless hand
took away is made again, and nothing else.
"""

import collections
import dataclasses
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from side_jax.devices import placement, process_group
from side_jax.devices.preemption import Preemption
from side_jax.errors import InputError, StoppedError
from side_jax.progress import progress
from side_jax.sampling.generation import Generator
from side_jax.workdir import files

logger = logging.getLogger(__name__)

IN_FLIGHT = 2  # batches that are computed or written at a time
CHUNK = 2**23  # pixels and channels read at a time
ARRAYS = ("images", "index", "label")  # of a shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file, and the global indices of its images."""

    path: Path
    index: range

    def intact(self, *, thorough: bool) -> bool:
        """Whether the file is there and whole; thorough: every byte of it is checked, not only its ends."""
        try:
            self.read(ARRAYS if thorough else ARRAYS[1:])
        except InputError:
            return False
        return True

    def read(self, names: tuple[str, ...] = ARRAYS) -> dict[str, np.ndarray]:
        """Its arrays of some names, index and label among them.

        Raises:
          InputError: if it is missing or damaged, or holds other images.
        """
        found = files.read_npz(self.path, names)
        if not np.array_equal(found["index"], np.asarray(self.index)) or len(found["label"]) != len(self.index):
            raise InputError(
                f"{self.path} does not hold images {self.index.start} to {self.index.stop - 1}; delete it and run the "
                "stage that writes it again."
            )
        return found


def layout(directory: Path, num_images: int, batch_size: int) -> list[Shard]:
    """The shards that hold images 0..num_images-1."""
    ends = [*range(batch_size, num_images, batch_size), num_images]
    return [
        Shard(path=directory / f"shard_{i:05d}.npz", index=range(i * batch_size, end)) for i, end in enumerate(ends)
    ]


def complete(shards: list[Shard]) -> bool:
    """Whether all are there; says so where not."""
    absent = [shard.path.name for shard in shards if not shard.intact(thorough=False)]
    if absent:
        where = shards[0].path.parent
        logger.info("%s: %d of %d shards are missing or damaged: made again.", where, len(absent), len(shards))
    return not absent


def write(
    generator: Generator,
    shards: list[Shard],
    *,
    params: Any,
    base: jax.Array,
    labels: np.ndarray,
    scale: float,
    description: str,
) -> None:
    """Makes those of this process's shards that are missing or damaged.

    Args:
      generator: makes the images.
      shards: all of them, of every process.
      params: for the generator.
      base: the typed key of this set of images.
      labels: int32 [n], the target class of each global index; -1 where sampling is unguided.
      scale: the guidance scale lambda.
      description: for the progress bar.

    Raises:
      StoppedError: on SIGTERM, to whichever process, once the batches in flight are written.
      InputError: if another process failed, once the batches in flight are written.
      OSError: if a shard can't be written; those before it are there.
    """
    own = [shards[i] for i in process_group.share(len(shards))]
    todo = [shard for shard in own if not shard.intact(thorough=True)]
    writing: collections.deque = collections.deque()

    def save(shard: Shard, made: jax.Array) -> None:
        index = np.asarray(shard.index)
        images = placement.merge(made)[: len(index)]
        files.write_npz(shard.path, images=images, index=index, label=labels[index])

    bar = progress(todo, total=len(own), description=description, unit="batch", done=len(own) - len(todo))
    with Preemption() as preemption, ThreadPoolExecutor(1) as writer:
        for shard in bar:
            index = np.asarray(shard.index)
            writing.append(writer.submit(save, shard, generator.dispatch(params, base, index, labels[index], scale)))
            if len(writing) >= IN_FLIGHT:
                writing.popleft().result()
            process_group.check_others()
            if preemption.told():
                break
        for written in writing:
            written.result()
    if preemption.happened:
        made = sum(shard.path.exists() for shard in own)
        raise StoppedError(
            f"{description}: stopped by SIGTERM with {made} of {len(own)} batches saved; run the same command again to "
            "go on."
        )


def stream(shards: list[Shard], size: int = CHUNK) -> Iterator[dict[str, np.ndarray]]:
    """Reads one after another, as many at a time as hold `size` pixels and channels, at least one.

    Yields:
      images uint8 [n, h, w, c], index int64 [n], label int32 [n].

    Raises:
      InputError: if one is missing or damaged.
    """
    parts: list[dict[str, np.ndarray]] = []
    for shard in shards:
        parts.append(shard.read())
        if sum(part["images"].size for part in parts) >= size:
            whole, parts = _join(parts), []  # not held twice while the caller works on it
            yield whole
            del whole
    if parts:
        yield _join(parts)


def read(shards: list[Shard]) -> dict[str, np.ndarray]:
    """All of them at once.

    Raises:
      InputError: if one is missing or damaged.
    """
    return _join(list(stream(shards)))


def pick(shards: list[Shard], index: np.ndarray) -> np.ndarray:
    """The images of some global indices, uint8 [len(index), h, w, c], in their order.

    Raises:
      InputError: if a shard that holds one is missing or damaged.
    """
    holding = [shard for shard in shards if np.isin(index, np.asarray(shard.index)).any()]
    found = {i: image for part in stream(holding) for i, image in zip(part["index"], part["images"], strict=True)}
    return np.stack([found[i] for i in index])


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in ARRAYS}
