"""Reading and atomically writing files: a kill at any moment leaves the old or the new file, never part of one.

A workdir may be on a local disk or in any object store that etils.epath supports, such as gs://bucket/folder. Its paths
are then epath.Path objects, which have pathlib's methods; `local` guards what works on local disks only.
"""

import contextlib
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from etils import epath

from side_jax.errors import InputError


def as_path(text: str | Path) -> Path:
    """A path on the local disk, with `~` expanded, or a URL of an object store.

    Raises:
      InputError: if no installed library can open the URL.
    """
    try:
        path = epath.Path(os.path.expanduser(text))
        path.exists()
    except (ImportError, KeyError) as error:  # no library for this scheme, or an unknown one
        reason = str(error) if isinstance(error, ImportError) else "an unknown kind of URL"
        raise InputError(
            f"{text} can't be opened here ({reason}); install what etils.epath needs for it (gcsfs for gs://), or use "
            "a local folder."
        ) from None
    return path


def local(path: Path) -> bool:
    """Whether a path is on a local or mounted disk."""
    return "://" not in os.fspath(path)


def make_private(folder: Path) -> None:
    """Creates a folder that only its owner can open, on a local disk; an existing one keeps its mode."""
    if local(folder):
        with contextlib.suppress(OSError):  # whoever writes there next says what is wrong
            os.makedirs(folder, mode=0o700, exist_ok=True)


@contextlib.contextmanager
def atomic(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Opens a temporary file that replaces `path` if the block ends without an error.

    The temporary file lies beside `path` and carries the process index, so that several processes may write the same
    path. A leftover from a killed run is overwritten.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{jax.process_index()}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8"}
    try:
        with temporary.open(mode, **text) as file:
            yield file
            file.flush()
            if local(path):
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # frees the space, which matters on a full disk
        raise


def move(folder: Path, target: Path, last: str) -> None:
    """Moves a folder to a path that does not exist yet.

    An object store has no atomic move of a folder: its files are copied and then deleted. The file `last` is deleted
    after all others, so that after a kill it still identifies the remaining ones.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if local(folder):
        folder.rename(target)
        return
    _copy(folder, target)
    for path in folder.iterdir():
        if path.name != last:
            path.rmtree()  # also deletes a file
    folder.rmtree()


def _copy(folder: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in folder.iterdir():
        copy = target / path.name
        if path.is_dir():
            _copy(path, copy)
        else:
            path.copy(copy)  # a method of epath.Path; only object stores get here


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with sorted keys, atomically; NaN and infinity raise ValueError."""
    with atomic(path, "w") as file:
        file.write(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
      InputError: if the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; run the stage that writes it first.") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); delete it and run the stage that writes it again.") from None


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Writes a compressed NPZ, atomically."""
    with atomic(path) as file:
        np.savez_compressed(file, **arrays)


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Reads the arrays of an NPZ, all or those named; never unpickles.

    Raises:
      InputError: if the file is missing or damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in (archive.files if names is None else names)}
    except FileNotFoundError:
        raise InputError(f"{path} is missing; run the stage that writes it first.") from None
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and run the stage that writes it again.") from None


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def array_digest(arrays: Any) -> str:
    """SHA-256 of the shapes, dtypes and contents of a sequence of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()
