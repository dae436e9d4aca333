"""What training steps need, made ahead of them on Grain's threads."""

from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetched(make: Callable[[int], T], steps: range, threads: int = 4, ahead: int = 4) -> Iterator[T]:
    """Yields make(step) for every step, in the order of the steps, while later ones are already being made.

    The data order belongs to `make`: what it returns must depend on the step alone, so that a run that was killed goes
    on with the same batches.

    Args:
      make: called on several threads; what it raises is raised here, when its step's turn comes.
      steps: which steps.
      threads: how many work at the same time, at least 1.
      ahead: how many steps may be made before they are asked for, at least 1; each holds its batch in memory.
    """
    import grain  # takes a second, which a run with its data in memory needs not pay

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    source = grain.MapDataset.range(steps.start, steps.stop, steps.step).map(make)
    iterator = iter(source.to_iter_dataset(options, allow_nones=True))
    try:
        yield from iterator
    finally:
        if hasattr(iterator, "close"):  # newer versions end their threads at once when a run stops early
            iterator.close()
