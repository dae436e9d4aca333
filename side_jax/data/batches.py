"""Prefetches training batches on Grain's threads."""

from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetch(make_batch: Callable[[int], T], steps: range, threads: int = 4, buffer_size: int = 4) -> Iterator[T]:
    """Yields make_batch(step) for every step in order, and prepares later batches in the background.

    make_batch must depend on the step alone, so that a killed run continues with the same batches.

    Args:
      make_batch: called on several threads. Its exceptions are raised here, at the turn of their step.
      steps: the steps.
      threads: number of threads, at least 1.
      buffer_size: number of batches prepared ahead, at least 1; they are held in memory.
    """
    import grain  # this takes a second, which a run with its data in memory does not need

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer_size)
    source = grain.MapDataset.range(steps.start, steps.stop, steps.step).map(make_batch)
    iterator = iter(source.to_iter_dataset(options, allow_nones=True))
    try:
        yield from iterator
    finally:
        if hasattr(iterator, "close"):  # newer versions of Grain stop their threads here
            iterator.close()
