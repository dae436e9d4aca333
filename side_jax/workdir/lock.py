"""Locks a workdir for one run at a time, and checks that it is writable."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from side_jax.errors import InputError
from side_jax.workdir import files


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Creates the workdir and locks it for this process; the system releases the lock even after a kill.

    Raises:
      InputError: if the workdir can't be written, or another process has locked it.
    """
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            if files.local(workdir):  # object stores have no locks
                stack.enter_context(filelock.FileLock(workdir / ".lock", timeout=0))
        except filelock.Timeout:
            raise InputError(
                f"--workdir={workdir} is in use by another run; wait for it to end, or use another --workdir."
            ) from None
        except (OSError, NotImplementedError) as error:  # the latter: a disk without locks
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"--workdir={workdir} can't be written ({reason}); choose another folder.") from None
        yield


def check_writable(workdir: Path) -> None:
    """Raises InputError if a folder of the workdir can't be written; checks local disks only."""
    folder = refused(workdir)
    if folder:
        raise InputError(f"{folder} can't be written; change its permissions, or use another --workdir.")


def refused(workdir: Path) -> Path | None:
    """The first folder of an existing workdir that can't be written; None if all can, and on object stores."""
    if not files.local(workdir) or not workdir.is_dir():
        return None
    folders = (workdir, *(path for path in workdir.iterdir() if path.is_dir()))
    return next((folder for folder in folders if not os.access(folder, os.W_OK | os.X_OK)), None)
