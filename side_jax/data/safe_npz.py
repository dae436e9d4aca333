"""Reads NPZ and NPY arrays safely: headers are checked before memory is allocated, and nothing is unpickled."""

import contextlib
import math
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from side_jax.data.printable import reason, short
from side_jax.errors import InputError

LIMIT = 2**34  # bytes of one array, 16 GiB
MOST_CHANNELS = 16  # of an image; a last axis that is longer is no axis of channels
RATIOS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}  # largest number of bytes per packed byte
NPY, ZIP = b"\x93NUMPY", (b"PK\x03\x04", b"PK\x05\x06")  # first bytes of the files; the last is an empty ZIP


def is_npy(path: Path, where: str) -> bool:
    """Returns whether a file is a single array.

    Raises:
      InputError: if it is not a readable file.
    """
    with _refusing(where), _regular(path) as file:
        return file.read(len(NPY)) == NPY


def names(path: Path, where: str) -> list[str]:
    """Returns the names of the arrays in an NPZ.

    Args:
      path: the file.
      where: the file's name in messages.

    Raises:
      InputError: if it is not an NPZ.
    """
    with _refusing(where), _regular(path) as file, _archive(file) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read(path: Path, where: str, name: str | None) -> np.ndarray:
    """Reads one array of an NPZ, or (name None) the array of an NPY, of any type but Python objects.

    Raises:
      InputError: if the array is damaged, holds objects, has more than LIMIT bytes, or disagrees with its header.
    """
    with _refusing(where), _opened(path, name) as (file, size):
        _header(file, size)
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def header(path: Path, where: str, name: str | None) -> tuple[tuple[int, ...], np.dtype]:
    """Returns (shape, type) of the array that `read` would read.

    Raises:
      InputError: as `read`, but for data that is damaged.
    """
    with _refusing(where), _opened(path, name) as (file, size):
        return _header(file, size)


def image_shape(path: Path, where: str, name: str | None) -> tuple[int, ...]:
    """Returns the shape of an array of images, from its header: [n, h, w] or [n, h, w, c], nowhere empty.

    Raises:
      InputError: if it can't be read or is not such an array of uint8.
    """
    shape, dtype = header(path, where, name)
    check_images(shape, dtype, where if name is None else f"`{name}` in {where}")
    return shape


def read_images(path: Path, where: str, name: str | None) -> np.ndarray:
    """Reads an array of images as read() does, after the check of image_shape."""
    image_shape(path, where, name)
    return read(path, where, name)


def check_images(shape: tuple[int, ...], dtype: np.dtype, what: str) -> None:
    """Raises InputError unless an array is uint8 [n, h, w] or [n, h, w, c], all of them at least 1, c at most 16.

    Args:
      shape: of the array.
      dtype: of the array.
      what: what sentences call it.
    """
    if dtype != np.uint8:
        raise InputError(
            f"{what} is of type {dtype.name}, but it must be uint8 (0..255); scale its values to that range, round "
            "them and save them as uint8."
        )
    first = len(shape) == 4 and shape[1] in (1, 3) and shape[3] not in (1, 3)
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] > MOST_CHANNELS) or first or 0 in shape:
        hint = "; np.transpose(images, (0, 2, 3, 1)) puts channels last" if first else ""
        raise InputError(
            f"{what} has the shape {short(str(shape))}, but it must be [n, h, w] or [n, h, w, c] with at most "
            f"{MOST_CHANNELS} channels c{hint}."
        )
    if len(shape) == 3 and shape[2] == 3:
        raise InputError(
            f"{what} has the shape {shape}, which may be one picture in colour or {shape[0]} grey ones of 3 columns; "
            "save it with four dimensions, [n, h, w, 1 or 3]."
        )


class _UnusableError(ValueError):
    """An array that must not be read, whatever wrote it; its second argument says what to do."""


@contextlib.contextmanager
def _refusing(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # untrusted bytes make zipfile, zlib and NumPy's parser raise nearly anything
        fix = "save it with np.savez(path, name=array)"
        if isinstance(error, _UnusableError):
            error, fix = ValueError(error.args[0]), error.args[1]
        raise InputError(f"{where} can't be read as an NPZ of plain arrays ({reason(error)}); {fix}.") from None


def _regular(path: Path) -> IO[bytes]:
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
        raise ValueError("it is not a regular file")
    return open(path, "rb")


@contextlib.contextmanager
def _archive(file: IO[bytes]) -> Iterator[zipfile.ZipFile]:
    magic = file.read(4)
    if magic not in ZIP:
        raise ValueError("it is empty" if not magic else "it is another kind of file")
    with zipfile.ZipFile(file) as archive:
        yield archive


@contextlib.contextmanager
def _opened(path: Path, name: str | None) -> Iterator[tuple[IO[bytes], int]]:
    """Yields (the array as an NPY file, its size in bytes)."""
    with _regular(path) as file:
        if name is None:
            yield file, os.fstat(file.fileno()).st_size
            return
        with _archive(file) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.compress_type not in RATIOS:
                raise ValueError("its compression method is not one that NumPy uses")
            if member.file_size > member.compress_size * RATIOS[member.compress_type]:
                raise _UnusableError(
                    f"it claims {member.file_size} bytes, more than its packed size allows",
                    "it is damaged, or made to fill the memory: take it from its source again",
                )
            with archive.open(member) as unpacked:
                yield unpacked, member.file_size


def _header(file: IO[bytes], size: int) -> tuple[tuple[int, ...], np.dtype]:
    """Returns (shape, type); raises ValueError unless the data has exactly the size in the header."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # other versions allow headers of 4 GiB, and NumPy uses them for no plain array
        raise ValueError(f"its NPY format is {version[0]}.{version[1]}, not 1.0")
    try:
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception:  # whatever Python's parser raises; its message may quote the file
        raise ValueError("its header can't be parsed") from None
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which could run any code when loaded")
    if min(shape, default=0) < 0:
        raise ValueError("it has a negative size")
    promised, actual = math.prod(shape) * dtype.itemsize, size - file.tell()
    if promised != actual:
        raise ValueError(f"its header promises {promised} bytes of data, but {actual} follow")
    if promised > LIMIT:
        raise _UnusableError(
            f"it has {promised} bytes, but at most {LIMIT} are read at once",
            "use a folder of several such files, or of pictures",
        )
    return shape, dtype
