"""Sets of images from anywhere, of one shape: what was generated, what was trained on, and what was held out."""

import dataclasses
import hashlib
import itertools
import math
import os

import numpy as np

from side_jax.data import duplicates
from side_jax.data.decode import as_array, fit_image
from side_jax.data.listed import Listed, describe, existing, find
from side_jax.data.printable import short
from side_jax.data.split import note_hashes
from side_jax.data.stream import Stream, scan
from side_jax.errors import InputError

MEMORY_LIMIT = 2**31  # bytes of a set up to which it is kept in memory, 2 GiB; else its images are read when indexed
MAX_SIZE = 8192  # pixels
FLAGS = ("--samples", "--members", "--heldout")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images of one shape.

    Attributes:
      path: as it was given.
      images: uint8 [n, h, w, c], 0..255; an array, or a Stream that reads the images it is indexed with.
      names: n printable texts, different from each other: see names.printable.
      hashes: n SHA-256 of each image's pixels.
      damaged: names of files that were left out since they can't be read.
    """

    path: str
    images: np.ndarray | Stream
    names: tuple[str, ...]
    hashes: tuple[str, ...]
    damaged: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def sha256(self) -> str:
        """SHA-256 of the shape of all and each one's SHA-256, in order: the same wherever equal pixels lie."""
        return hashlib.sha256(f"{tuple(self.images.shape)}{''.join(self.hashes)}".encode()).hexdigest()

    @property
    def repeats(self) -> int:
        """How many images equal an earlier one."""
        return len(self.hashes) - len(set(self.hashes))

    def take(self, ids: np.ndarray) -> "ImageSet":
        """The images at these places, int64 [k], in their order; of a stream, none is read."""
        return dataclasses.replace(
            self,
            images=self.images.select(ids) if isinstance(self.images, Stream) else self.images[ids],
            names=tuple(self.names[i] for i in ids),
            hashes=tuple(self.hashes[i] for i in ids),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Together:
    """Three sets of one shape; no held-out image is, or nearly is, a member.

    Attributes:
      samples: generated images.
      members: the images that the model was trained on.
      heldout: images it has not seen; what was dropped is not among them.
      exact_dropped: how many held-out images equalled a member.
      near_dropped: how many others were nearer to a member than the limit.
    """

    samples: ImageSet
    members: ImageSet
    heldout: ImageSet
    exact_dropped: int
    near_dropped: int


def read_images(
    path: str, flag: str, size: int | None = None, channels: int | None = None, *, max_corrupt: int = 0
) -> ImageSet:
    """Reads one set, from whatever listed.find knows.

    Pictures are decoded as in training: upright, in 8 bits, without transparency, of animations the first frame.

    Args:
      path: of a folder, an NPZ or an NPY.
      flag: the option that named it, such as --samples, for sentences.
      size: height and width, after a centre crop and an area resize; None: all have one size, and keep it.
      channels: 1 (grey), 3 (colour), or None: 3 if the mode or palette of any picture has colours, used or not.
      max_corrupt: how many files may be damaged, and are left out.

    Raises:
      InputError: if it can't be used, in one sentence that names the file or the set, and the fix.
    """
    _check_size(size)
    listed = find(path, flag, max_corrupt)
    height, width = _common_size([listed], size)
    return _read(listed, (height, width, channels or (3 if listed.colour else 1)))[0]


def read_together(
    samples: str,
    members: str,
    heldout: str,
    size: int | None = None,
    *,
    max_corrupt: int = 0,
    near_duplicate_rmse: float = 0.05,
) -> Together:
    """Reads all three, in one shape: of three channels if read_images would give any of them three.

    Held-out images that equal a member, or whose RMSE to one is below near_duplicate_rmse (pixels in [-1, 1]; 0: exact
    ones only), are dropped, as the split of a run does. The sets may be of different lengths.

    Args:
      samples: path of the generated images.
      members: path of those that the model was trained on.
      heldout: path of those that it has not seen.
      size: as in read_images.
      max_corrupt: how many files of each set may be damaged.
      near_duplicate_rmse: in 0..2.

    Raises:
      InputError: as read_images does; if two paths are the same or one folder holds another, if sizes differ and none
        is given, or if no held-out image is left.
    """
    _check_size(size)
    paths = dict(zip(FLAGS, (samples, members, heldout), strict=True))
    _check_apart(paths)
    listed = [find(path, flag, max_corrupt) for flag, path in paths.items()]
    shape = (*_common_size(listed, size), 3 if any(one.colour for one in listed) else 1)
    made, (seen, to_members), (unseen, to_heldout) = (_read(one, shape) for one in listed)
    exact = np.isin(unseen.hashes, seen.hashes)
    near = _near(seen, unseen, exact, np.concatenate([to_members, to_heldout]), near_duplicate_rmse)
    if (exact | near).all():
        raise InputError(
            f"every image of {describe('--heldout', heldout)} is, or nearly is, one of "
            f"{describe('--members', members)}; hold out images that the model has not seen."
        )
    return Together(
        samples=made[0],
        members=seen,
        heldout=unseen.take(np.flatnonzero(~exact & ~near)),
        exact_dropped=int(exact.sum()),
        near_dropped=int(near.sum()),
    )


def _check_size(size: int | None) -> None:
    if size is not None and not 1 <= size <= MAX_SIZE:
        raise InputError(f"--size is {size}, but it must be between 1 and {MAX_SIZE} pixels.")


def _check_apart(paths: dict[str, str]) -> None:
    """Raises InputError where two paths, whatever links lead there, are one, or a folder lies in another."""
    real = {flag: os.path.realpath(existing(path, flag)) for flag, path in paths.items()}
    for (first, a), (second, b) in itertools.permutations(real.items(), 2):
        both = f"{describe(first, paths[first])} and {describe(second, paths[second])}"
        if os.path.samefile(a, b):
            raise InputError(f"{both} are the same; each set needs its own images.")
        if os.path.isdir(a) and os.path.isdir(b) and os.path.commonpath([a, b]) == a:
            raise InputError(
                f"of {both}, the first holds the second; move it out, since folders are read at any depth."
            )


def _common_size(listed: list[Listed], size: int | None) -> tuple[int, int]:
    """(height, width); raises InputError if sizes differ and none is given."""
    if size is not None:
        return size, size
    height, width = listed[0].sizes[0]
    for one in listed:
        other = np.flatnonzero((one.sizes != (height, width)).any(axis=1))
        if other.size:
            first, second = (
                f"{short(of.names[i])} of {describe(of.flag, of.path)} is {of.sizes[i][1]} x {of.sizes[i][0]}"
                for of, i in ((listed[0], 0), (one, other[0]))
            )
            raise InputError(
                f"{first} pixels, but {second}; give --size=N, which crops and resizes all to N x N alike."
            )
    return int(height), int(width)


def _read(listed: Listed, shape: tuple[int, int, int]) -> tuple[ImageSet, np.ndarray]:
    """(the set in a shape, the signatures of its images); one pass over them."""
    height, width, channels = shape

    def read(i: int) -> np.ndarray:
        picture = listed.read(i)
        unchanged = (picture.height, picture.width) == (height, width)
        return as_array(picture, channels) if unchanged else fit_image(picture, height, channels)

    n = len(listed.names)
    images = listed.array
    if images is None or images.shape[1:] != shape:
        images = Stream(read, np.arange(n), tuple(map(short, listed.names)), shape)
    keep = isinstance(images, Stream) and math.prod(images.shape) <= MEMORY_LIMIT
    memory = np.empty(images.shape, np.uint8) if keep else None
    hashes = [""] * n
    signatures = np.zeros((n, duplicates.signatures(np.zeros((1, *shape), np.uint8)).size), np.float32)

    def visit(ids: np.ndarray, chunk: np.ndarray) -> None:
        signatures[ids] = duplicates.signatures(chunk)
        note_hashes(hashes, ids, chunk)
        if memory is not None:
            memory[ids] = chunk

    scan(images, visit)
    found = ImageSet(
        path=listed.path,
        images=images if memory is None else memory,
        names=listed.names,
        hashes=tuple(hashes),
        damaged=listed.damaged,
    )
    return found, signatures


def _near(members: ImageSet, heldout: ImageSet, exact: np.ndarray, signatures: np.ndarray, limit: float) -> np.ndarray:
    """Which held-out images, but the exact ones, are nearer to a member than the limit: bool [n].

    Args:
      members: m of them.
      heldout: n of them.
      exact: bool [n], which equal a member.
      signatures: float32 [m + n, k], of both.
      limit: RMSE with pixels in [-1, 1].
    """
    near, start = np.zeros(len(heldout), bool), len(members)
    if limit <= 0:
        return near
    both = Stream(
        lambda i: members.images[i] if i < start else heldout.images[i - start],
        np.arange(start + len(heldout)),
        members.names + heldout.names,
        members.images.shape[1:],
    )
    different = np.unique(members.hashes, return_index=True)[1]
    for pairs in duplicates.near_pairs(both, signatures, start + np.flatnonzero(~exact), different, limit):
        near[pairs[:, 0] - start] = True
    return near
