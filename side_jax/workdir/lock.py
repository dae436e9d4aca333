"""A workdir is held by one run at a time, and can be written."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from side_jax.errors import InputError
from side_jax.workdir import files


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes the workdir and holds it for this process alone; the system lets go of it even after a kill.

    Raises:
      InputError: if it can't be written, or another process is using it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # An object store has no locks. The file is held open for as long as the block runs.
        lock = open(workdir / ".lock", "a") if files.local(workdir) else contextlib.nullcontext()  # noqa: SIM115
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"--workdir={workdir} can't be written ({reason}); choose a folder of yours.") from None
    with lock as file:
        try:
            if file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"--workdir={workdir} is in use by another run; wait for it, or use another.") from None
        yield


def check_writable(workdir: Path) -> None:
    """Raises InputError where a folder of the workdir can't be written."""
    if not files.local(workdir):
        return
    for folder in (workdir, *(p for p in workdir.iterdir() if p.is_dir())):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{folder} can't be written; change its permissions, or use another --workdir.")
