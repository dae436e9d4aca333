"""Lists the images that a path holds (a folder, the shards of a run, an NPZ or an NPY) and checks each one."""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from side_jax.data import readers, safe_npz
from side_jax.data.decode import as_array
from side_jax.data.printable import printable, reason, short
from side_jax.data.stream import THREADS, scan
from side_jax.errors import InputError
from side_jax.settings import Data

logger = logging.getLogger(__name__)

ImageSource = str | Path | np.ndarray  # a path, or images: uint8 [n, h, w] or [n, h, w, 1 or 3]

GREY = ("1", "L", "LA", "La", "I")  # PIL modes; the 16-bit modes, which begin with "I;16", are grey too


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """Readable images of any size.

    Attributes:
      flag: the option that named the path, for messages.
      path: as given.
      names: n printable strings: a file's path in its folder, a position in an array, or an index in shards.
      read: position in 0..n-1 -> picture; may raise anything, and is safe to call from several threads.
      sizes: int32 [n, 2], height and width.
      colour: whether any picture's mode or palette has colours, used or not.
      array: all images, uint8 [n, h, w, c], if the file is an array; else None.
      damaged: names of unreadable images, which are not among the n.
    """

    flag: str
    path: str
    names: tuple[str, ...]
    read: Callable[[int], Image.Image]
    sizes: np.ndarray
    colour: bool
    array: np.ndarray | None = None
    damaged: tuple[str, ...] = ()


def describe(flag: str, path: ImageSource) -> str:
    """Returns the name of a set in messages, such as --samples=out/samples."""
    return f"{flag}={short(location(path))}"


def location(path: ImageSource) -> str:
    """Returns the path as text, with `~` expanded; for an array, a description."""
    if isinstance(path, np.ndarray):
        return f"<array of shape {path.shape}>"
    return os.path.expanduser(path)


def check_path(path: str, flag: str) -> Path:
    """Returns the path.

    Raises:
      InputError: if it does not exist, or is neither a folder nor a file.
    """
    what = "name a folder of images, an NPZ or an NPY"
    if not os.path.exists(path):
        raise InputError(f"{describe(flag, path)} does not exist; {what}.")
    if not os.path.isdir(path) and not os.path.isfile(path):
        raise InputError(f"{describe(flag, path)} is neither a folder nor a file; {what}.")
    return Path(path)


def find(path: ImageSource, flag: str, max_corrupt: int = 0) -> Listing:
    """Lists the images of a path and checks each one, on several threads.

    Args:
      path: a folder of image files at any depth; a folder of shard_*.npz; an NPZ with an array `images` or else
        `arr_0`; or an NPY; or an array itself. Arrays are uint8 [n, h, w] or [n, h, w, 1 or 3].
      flag: the option that named the path.
      max_corrupt: number of pictures in a folder that may be damaged; they are logged and left out.

    Raises:
      InputError: if the path does not exist, holds no image or more damaged ones, or holds an unusable array.
    """
    if isinstance(path, np.ndarray):
        safe_npz.check_images(path.shape, path.dtype, describe(flag, path))
        return _listed(path, location(path), flag)
    path = location(path)
    checked = check_path(path, flag)
    if checked.is_file():
        return _array(checked, path, flag)
    shards = sorted(checked.glob("shard_*.npz"), key=lambda shard: (len(shard.name), shard.name))
    if not shards:
        return _folder(path, flag, max_corrupt)
    if any(other.name.lower().endswith(readers.SUFFIXES) for other in checked.iterdir()):
        raise InputError(f"{describe(flag, path)} holds both shards and pictures; move one of them elsewhere.")
    return _shards(shards, path, flag)


def _folder(path: str, flag: str, max_corrupt: int) -> Listing:
    where = describe(flag, path)
    try:
        source = readers.folder(Data(name="folder", path=path))
    except RecursionError:  # before Python 3.12
        raise InputError(f"{where} has folders nested too deep to list; move the images higher.") from None
    except InputError as error:
        raise InputError(str(error).replace("config.data.path", flag)) from None
    names = [printable(name) for name in source.names]
    sizes, colour, damaged = np.zeros((len(names), 2), np.int32), np.zeros(len(names), bool), {}

    def check_rows(_: np.ndarray, rows: np.ndarray) -> None:
        for row in rows.tolist():
            try:
                picture = source.read(row)
                as_array(picture, 1)  # a few kinds of pictures can't be converted
            except Exception as error:  # damaged files make decoders raise nearly anything
                damaged[row] = f"{short(source.names[row])} ({reason(error)})"
            else:
                sizes[row] = picture.height, picture.width
                colour[row] = _coloured(picture)

    scan(np.arange(len(names)), check_rows)
    reasons = [damaged[row] for row in sorted(damaged)]
    if len(damaged) > max_corrupt or len(damaged) == len(names):
        listed = ", ".join(reasons[:10]) + (", ..." if len(reasons) > 10 else "")
        raise InputError(
            f"{len(damaged)} of the {len(names)} images of {where} can't be read, where {max_corrupt} may be damaged: "
            f"{listed}; repair or remove them."
        )
    for damage in reasons:
        logger.warning("%s: left out the unreadable image %s.", where, damage)
    rows = np.setdiff1d(np.arange(len(names)), list(damaged)).astype(np.int64)

    def read(i: int) -> Image.Image:
        try:
            return source.read(int(rows[i]))
        except Exception as error:
            raise ValueError(reason(error)) from None

    return Listing(
        flag=flag,
        path=path,
        names=tuple(names[row] for row in rows),
        read=read,
        sizes=sizes[rows],
        colour=bool(colour.any()),
        damaged=tuple(names[row] for row in sorted(damaged)),
    )


def _coloured(picture: Image.Image) -> bool:
    if picture.mode == "P":
        palette = np.asarray(picture.getpalette("RGB")).reshape(-1, 3)
        return bool((palette != palette[:, :1]).any())
    return picture.mode not in GREY and not picture.mode.startswith("I;16")


def _array(file: Path, path: str, flag: str) -> Listing:
    where = f"the file {describe(flag, path)}"
    name = None
    if not safe_npz.is_npy(file, where):
        names = safe_npz.names(file, where)
        name = next((name for name in ("images", "arr_0") if name in names), None)
        if name is None:
            raise InputError(
                f"{where} has no array `images` or `arr_0`, but {short(', '.join(names)) or 'none'}; save it with "
                "np.savez(path, images=...)."
            )
    return _listed(safe_npz.read_images(file, where, name), path, flag)


def _listed(images: np.ndarray, path: str, flag: str) -> Listing:
    """Lists images in memory."""
    images = images[..., None] if images.ndim == 3 else images
    return Listing(
        flag=flag,
        path=path,
        names=tuple(map(str, range(len(images)))),
        read=lambda i: _picture(images[i]),
        sizes=np.full((len(images), 2), images.shape[1:3], np.int32),
        colour=images.shape[3] == 3,
        array=images,
    )


def _shards(files: list[Path], path: str, flag: str) -> Listing:
    """Lists shards in the format that extraction writes; together they must hold images 0..n-1 in order."""

    @functools.lru_cache(maxsize=THREADS)  # images are read in order, so each shard is unpacked about once
    def load(file: Path) -> np.ndarray:
        images = safe_npz.read_images(file, f"the shard {describe(flag, str(file))}", "images")
        return images[..., None] if images.ndim == 3 else images

    sizes, colour, ends = [], False, [0]
    for file in files:
        where = f"the shard {describe(flag, str(file))}"
        if not {"images", "index"} <= set(safe_npz.names(file, where)):
            raise InputError(f"{where} has no `images` or no `index`; move files that are not shards elsewhere.")
        images, index = load(file), safe_npz.read(file, where, "index")
        expected = range(ends[-1], ends[-1] + len(images))
        if not np.array_equal(index, np.asarray(expected)):
            raise InputError(
                f"{where} does not hold images {expected.start} to {expected.stop - 1}, which come next; finish the "
                "run that writes these shards."
            )
        sizes.append(np.full((len(images), 2), images.shape[1:3], np.int32))
        colour |= images.shape[3] == 3
        ends.append(expected.stop)

    def read(i: int) -> Image.Image:
        shard = int(np.searchsorted(ends, i, side="right")) - 1
        return _picture(load(files[shard])[i - ends[shard]])

    names = tuple(map(str, range(ends[-1])))
    return Listing(flag=flag, path=path, names=names, read=read, sizes=np.concatenate(sizes), colour=colour)


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image.squeeze(-1) if image.shape[2] == 1 else np.ascontiguousarray(image))
