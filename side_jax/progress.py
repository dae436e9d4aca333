"""Progress of long loops: a bar on a terminal, and otherwise one log line per minute."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 60.0


def progress(items: Iterable[T], *, total: int, description: str, unit: str, done: int = 0) -> Iterator[T]:
    """Yields the items while showing how many of `total` are done, the rate and the time left.

    Args:
      items: the remaining items.
      total: the number of all items, including those done before a restart.
      description: the name of the loop.
      unit: the name of one item, such as "step".
      done: the number of items done before a restart.
    """
    if sys.stderr.isatty():
        with logging_redirect_tqdm(loggers=[logging.getLogger("side_jax")]):
            yield from tqdm(items, total=total, initial=done, desc=description, unit=unit, dynamic_ncols=True)
        return
    start = last = time.monotonic()
    for count, item in enumerate(items, start=done + 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            # Items of an earlier run took none of this run's time, so the rate must exclude them.
            line = tqdm.format_meter(count, total, now - start, initial=done, unit=unit, ncols=0, prefix=description)
            logger.info("%s", line)
