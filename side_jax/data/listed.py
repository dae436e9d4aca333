"""Lists the images of one set of an audit of images alone, and checks each one."""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from side_jax.data import safe_npz, sources
from side_jax.data.decode import Picture, Rules, convert
from side_jax.data.printable import number, printable, reason, short
from side_jax.data.sources import Source
from side_jax.data.stream import scan
from side_jax.errors import InputError

logger = logging.getLogger(__name__)

ImageSource = str | Path | np.ndarray  # a path, or images: uint8 [n, h, w] or [n, h, w, c]

GREY = ("1", "L", "LA", "La", "I")  # PIL modes; the 16-bit modes, which begin with "I;16", are grey too


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """Readable images of any size.

    Attributes:
      flag: the option that named the path, for messages.
      path: as given.
      names: n printable strings: a file's path in its folder, a position in an array, or an index in shards.
      read: position in 0..n-1 -> decoded picture; may raise anything, and is safe to call from several threads.
      sizes: int32 [n, 2], height and width.
      channels: 1, or 3 if any picture's mode or palette has colours, used or not, or as many as the arrays have.
      array: all images, uint8 [n, h, w, c], if the file is an array; else None.
      damaged: names of unreadable images, which are not among the n.
      passed_over: number of files that are not read, by their kind.
      rules: by which pictures are converted.
    """

    flag: str
    path: str
    names: tuple[str, ...]
    read: Callable[[int], Picture]
    sizes: np.ndarray
    channels: int
    array: np.ndarray | None = None
    damaged: tuple[str, ...] = ()
    passed_over: Mapping[str, int] = dataclasses.field(default_factory=dict)
    rules: Rules = Rules()  # noqa: RUF009 it is frozen


def describe(flag: str, path: ImageSource) -> str:
    """Returns the name of a set in messages, such as --samples=out/samples."""
    return sources.describe(flag, location(path))


def location(path: ImageSource) -> str:
    """Returns the path as text, with `~` expanded; for an array, a description."""
    if isinstance(path, np.ndarray):
        return f"<array of shape {path.shape}>"
    return os.path.expanduser(path)


def find(
    path: ImageSource, flag: str, max_corrupt: int = 0, rules: Rules | None = None, *, private: bool = False
) -> Listing:
    """Lists the images of a path and checks each one, on several threads.

    Args:
      path: as of sources.open_source, or an array: uint8 [n, h, w] or [n, h, w, c].
      flag: the option that named the path.
      max_corrupt: number of pictures that may be damaged; they are logged and left out.
      rules: by which pictures will be converted.
      private: whether images go by their number, in the log and in sentences too.

    Raises:
      InputError: if the path does not exist, holds no image or more damaged ones, or holds an unusable array.
    """
    rules = rules or Rules()
    if isinstance(path, np.ndarray):
        safe_npz.check_images(path.shape, path.dtype, describe(flag, path))
        return _listing(sources.in_memory(path), location(path), flag, max_corrupt, rules)
    path = location(path)
    source = sources.open_source(path, flag, rules.orientation)
    if private:
        source = dataclasses.replace(source, names=[number(row) for row in range(len(source.names))])
    return _listing(source, path, flag, max_corrupt, rules)


def _listing(source: Source, path: str, flag: str, max_corrupt: int, rules: Rules) -> Listing:
    where = sources.describe(flag, path)
    names = [printable(name) for name in source.names]
    sizes, channels, damaged = np.zeros((len(names), 2), np.int32), np.ones(len(names), np.int32), {}

    def check_rows(_: np.ndarray, rows: np.ndarray) -> None:
        for row in rows.tolist():
            try:
                picture = source.read(row)
                several = isinstance(picture.image, tuple)
                own = len(picture.image) if several else 3 if _coloured(picture.first) else 1
                convert(picture, (*picture.size, own), rules)  # a few kinds can't be converted
            except InputError:
                raise  # a damaged array, of which no picture can be left out
            except Exception as error:  # damaged files make decoders raise nearly anything
                damaged[row] = f"{short(source.names[row])} ({reason(error)})"
            else:
                sizes[row], channels[row] = picture.size, own

    if source.array is None:
        scan(np.arange(len(names)), check_rows)
    else:
        sizes[:], channels[:] = source.array.shape[1:3], source.array.shape[3]
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

    def read(i: int) -> Picture:
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
        channels=common_channels(channels, where),
        array=source.array,
        damaged=tuple(names[row] for row in sorted(damaged)),
        passed_over=source.passed_over,
        rules=rules,
    )


def common_channels(channels: Iterable[int], where: str) -> int:
    """The number of channels of images that have these: grey ones become coloured, others must be alike.

    Raises:
      InputError: if they can't be made alike.
    """
    found = sorted({int(number) for number in channels})
    if len(found) > 1 and found != [1, 3]:
        raise InputError(
            f"the images of {where} have {' and '.join(map(str, found))} channels; save all with the same number."
        )
    return found[-1]


def _coloured(picture: Image.Image) -> bool:
    if picture.mode == "P":
        palette = np.asarray(picture.getpalette("RGB")).reshape(-1, 3)
        return bool((palette != palette[:, :1]).any())
    return picture.mode not in GREY and not picture.mode.startswith("I;16")
