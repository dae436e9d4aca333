"""What a path holds: a folder of pictures, the shards of a run, an NPZ or an NPY; each image looked at, none kept."""

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

GREY = ("1", "L", "LA", "La", "I")  # PIL's modes, and all of 16 bits, which begin with I


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Listed:
    """Images that can be read, of any sizes.

    Attributes:
      flag: the option that named the path, for sentences.
      path: as it was given.
      names: n printable texts: of a file, its path in the folder; in an array, its place; in shards, its index.
      read: place in 0..n-1 -> picture; may raise anything, and may be called from several threads.
      sizes: int32 [n, 2], height and width.
      colour: whether the mode or the palette of any picture has colours, used or not.
      array: all of them, uint8 [n, h, w, c], where the file is an array; else None.
      damaged: names of images that can't be read; they are not among the n.
    """

    flag: str
    path: str
    names: tuple[str, ...]
    read: Callable[[int], Image.Image]
    sizes: np.ndarray
    colour: bool
    array: np.ndarray | None = None
    damaged: tuple[str, ...] = ()


def describe(flag: str, path: str) -> str:
    """What sentences call a set, such as --samples=out/samples."""
    return f"{flag}={short(path)}"


def existing(path: str, flag: str) -> Path:
    """The path.

    Raises:
      InputError: if nothing is there, or neither a folder nor a file.
    """
    what = "name a folder of images, an NPZ or an NPY"
    if not os.path.exists(path):
        raise InputError(f"{describe(flag, path)} does not exist; {what}.")
    if not os.path.isdir(path) and not os.path.isfile(path):
        raise InputError(f"{describe(flag, path)} is neither a folder nor a file; {what}.")
    return Path(path)


def find(path: str, flag: str, max_corrupt: int = 0) -> Listed:
    """Looks at every image of a path, on several threads.

    Args:
      path: a folder of image files, at any depth; a folder of shard_*.npz; an NPZ whose array `images`, or else
        `arr_0`, or an NPY whose only array is uint8 [n, h, w] or [n, h, w, 1 or 3].
      flag: the option that named it.
      max_corrupt: how many pictures of a folder may be damaged; they are named in the log and left out.

    Raises:
      InputError: if there is nothing, no image, more damaged ones, or an array that can't be used.
    """
    found = existing(path, flag)
    if found.is_file():
        return _array(found, path, flag)
    shards = sorted(found.glob("shard_*.npz"), key=lambda shard: (len(shard.name), shard.name))
    if not shards:
        return _folder(path, flag, max_corrupt)
    if any(other.name.lower().endswith(readers.SUFFIXES) for other in found.iterdir()):
        raise InputError(f"{describe(flag, path)} holds both shards and pictures; move one of them elsewhere.")
    return _shards(shards, path, flag)


def _folder(path: str, flag: str, max_corrupt: int) -> Listed:
    where = describe(flag, path)
    try:
        source = readers.folder(Data(name="folder", path=path))
    except RecursionError:  # before Python 3.12
        raise InputError(f"{where} has folders in folders too deep to be listed; move the images higher.") from None
    except InputError as error:
        raise InputError(str(error).replace("config.data.path", flag)) from None
    names = [printable(name) for name in source.names]
    sizes, colour, damaged = np.zeros((len(names), 2), np.int32), np.zeros(len(names), bool), {}

    def look(_: np.ndarray, rows: np.ndarray) -> None:
        for row in rows.tolist():
            try:
                picture = source.read(row)
                as_array(picture, 1)  # a few kinds can't be converted
            except Exception as error:  # damaged files make decoders raise nearly anything
                damaged[row] = f"{short(source.names[row])} ({reason(error)})"
            else:
                sizes[row] = picture.height, picture.width
                colour[row] = _coloured(picture)

    scan(np.arange(len(names)), look)
    reasons = [damaged[row] for row in sorted(damaged)]
    if len(damaged) > max_corrupt or len(damaged) == len(names):
        some = ", ".join(reasons[:10]) + (", ..." if len(reasons) > 10 else "")
        raise InputError(
            f"{len(damaged)} of the {len(names)} images of {where} can't be read, where {max_corrupt} may be damaged: "
            f"{some}; repair or remove them."
        )
    for one in reasons:
        logger.warning("%s: left out the image %s: it can't be read.", where, one)
    rows = np.setdiff1d(np.arange(len(names)), list(damaged)).astype(np.int64)

    def read(i: int) -> Image.Image:
        try:
            return source.read(int(rows[i]))
        except Exception as error:
            raise ValueError(reason(error)) from None

    return Listed(
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


def _array(file: Path, path: str, flag: str) -> Listed:
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
    images = safe_npz.read_images(file, where, name)
    images = images[..., None] if images.ndim == 3 else images
    return Listed(
        flag=flag,
        path=path,
        names=tuple(map(str, range(len(images)))),
        read=lambda i: _picture(images[i]),
        sizes=np.full((len(images), 2), images.shape[1:3], np.int32),
        colour=images.shape[3] == 3,
        array=images,
    )


def _shards(files: list[Path], path: str, flag: str) -> Listed:
    """Shards as extraction writes them: together they hold images 0..n-1, in order."""

    @functools.lru_cache(maxsize=THREADS)  # images are read in order: each shard is unpacked about once
    def load(file: Path) -> np.ndarray:
        images = safe_npz.read_images(file, f"the shard {describe(flag, str(file))}", "images")
        return images[..., None] if images.ndim == 3 else images

    sizes, colour, ends = [], False, [0]
    for file in files:
        where = f"the shard {describe(flag, str(file))}"
        if not {"images", "index"} <= set(safe_npz.names(file, where)):
            raise InputError(f"{where} has no `images` or no `index`; move what is no shard of a run elsewhere.")
        images, index = load(file), safe_npz.read(file, where, "index")
        wanted = range(ends[-1], ends[-1] + len(images))
        if not np.array_equal(index, np.asarray(wanted)):
            raise InputError(
                f"{where} does not hold images {wanted.start} to {wanted.stop - 1}, which come next; finish the run "
                "that writes these shards."
            )
        sizes.append(np.full((len(images), 2), images.shape[1:3], np.int32))
        colour |= images.shape[3] == 3
        ends.append(wanted.stop)

    def read(i: int) -> Image.Image:
        shard = int(np.searchsorted(ends, i, side="right")) - 1
        return _picture(load(files[shard])[i - ends[shard]])

    names = tuple(map(str, range(ends[-1])))
    return Listed(flag=flag, path=path, names=names, read=read, sizes=np.concatenate(sizes), colour=colour)


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image.squeeze(-1) if image.shape[2] == 1 else np.ascontiguousarray(image))
