"""Locks a workdir for one run at a time, and checks that it is writable."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from side_jax.errors import InputError
from side_jax.workdir import files


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Creates the workdir and locks it for this process; the system releases the lock even after a kill.

    Raises:
      InputError: if the workdir can't be written, or another process has locked it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Object stores have no locks. The file stays open for the whole block.
        lock = open(workdir / ".lock", "a") if files.local(workdir) else contextlib.nullcontext()  # noqa: SIM115
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"--workdir={workdir} can't be written ({reason}); choose another folder.") from None
    with lock as file:
        try:
            if file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"--workdir={workdir} is in use by another run; wait for it to end, or use another --workdir."
            ) from None
        yield


def check_writable(workdir: Path) -> None:
    """Raises InputError if a folder of the workdir can't be written; checks local disks only."""
    if not files.local(workdir):
        return
    for folder in (workdir, *(p for p in workdir.iterdir() if p.is_dir())):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{folder} can't be written; change its permissions, or use another --workdir.")
