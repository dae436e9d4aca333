"""run.log: what a run says, kept beside its results, with the date, and why it ended if it did not reach its end."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from side_jax.workdir import files

NAME = "run.log"
_logger = logging.getLogger("side_jax")


class _Handler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Says nothing: a full disk ends the run by its own error."""


@contextlib.contextmanager
def kept(workdir: Path) -> Iterator[None]:
    """In this block, log lines are also appended to the workdir's run.log; nothing on an object store, which can't."""
    if not files.local(workdir):
        yield
        return
    handler = _Handler(workdir / NAME, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    _logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        said = f"ended by {type(error).__name__}: {error}".rstrip(": ")
        handler.handle(_logger.makeRecord(_logger.name, logging.ERROR, "", 0, said, (), None))
        raise
    finally:
        _logger.removeHandler(handler)
        handler.close()
