"""Reads the image sets of a samples-only audit: generated images, members and held-out images, in one shape."""

import dataclasses
import hashlib
import itertools
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from side_jax.data import duplicates, reading
from side_jax.data.decode import Facts, Rules, convert
from side_jax.data.listed import ImageSource, Listing, common_channels, describe, find, location
from side_jax.data.printable import short
from side_jax.data.sources import check_path, hub_files
from side_jax.data.split import store_hashes
from side_jax.data.stream import Stream, scan
from side_jax.errors import InputError
from side_jax.hub import repository

MEMORY_LIMIT = 2**31  # bytes, 2 GiB; larger sets are read when they are indexed
MAX_SIZE = 8192  # pixels, of height and width
FLAGS = ("--samples", "--members", "--heldout")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images of one shape.

    Attributes:
      path: as given.
      images: uint8 [n, h, w, c], 0..255; an array, or a Stream that reads images when they are indexed.
      names: n different printable strings, see printable.printable.
      hashes: the SHA-256 of each image's pixels.
      damaged: names of the unreadable files, which are left out.
      colour: whether any of them has colours.
      reading: what reading left out or changed, see reading.summary.
    """

    path: str
    images: np.ndarray | Stream
    names: tuple[str, ...]
    hashes: tuple[str, ...]
    damaged: tuple[str, ...] = ()
    colour: bool = False
    reading: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def sha256(self) -> str:
        """SHA-256 of the shape and the hashes in order; it does not depend on where the images are stored."""
        return hashlib.sha256(f"{tuple(self.images.shape)}{''.join(self.hashes)}".encode()).hexdigest()

    @property
    def repeats(self) -> int:
        """Number of images that equal an earlier one."""
        return len(self.hashes) - len(set(self.hashes))

    def take(self, ids: np.ndarray) -> "ImageSet":
        """Returns the images at these positions, int64 [k], in this order. A stream stays lazy."""
        return dataclasses.replace(
            self,
            images=self.images.select(ids) if isinstance(self.images, Stream) else self.images[ids],
            names=tuple(self.names[i] for i in ids),
            hashes=tuple(self.hashes[i] for i in ids),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageSets:
    """Three sets of one shape. No held-out image equals a member or is its near duplicate.

    Attributes:
      samples: generated images.
      members: the images that the model was trained on.
      heldout: images that the model has not seen, without the dropped ones.
      exact_dropped: number of held-out images that equalled a member.
      near_dropped: number of other held-out images whose distance to a member was below the limit.
      shared: hashes of the members that dropped held-out images equal or are near to.
      member_pairs: pairs of different members nearer to each other than the limit.
    """

    samples: ImageSet
    members: ImageSet
    heldout: ImageSet
    exact_dropped: int
    near_dropped: int
    shared: frozenset[str]
    member_pairs: int


def read_sets(
    samples: ImageSource,
    members: ImageSource,
    heldout: ImageSource,
    size: int | None = None,
    *,
    max_corrupt: int = 0,
    near_duplicate_rmse: float = 0.05,
    rules: Rules | None = None,
    private: bool = False,
) -> ImageSets:
    """Reads all three sets in one shape. It has three channels if any picture has colours.

    Pictures are decoded as in training: 8 bits, no transparency, the first frame of an animation. As in the
    split of a run, held-out images are dropped if they equal a member or if their RMSE to one is below
    near_duplicate_rmse (pixels in [-1, 1]; 0: only equal images are dropped). The sets may differ in length.

    Args:
      samples: the generated images: a path or an array, see listed.find.
      members: the images that the model was trained on.
      heldout: images that it has not seen.
      size: height and width, after an area resize; None: all images must have one size, and keep it.
      max_corrupt: number of files in each set that may be damaged; they are left out.
      near_duplicate_rmse: in 0..2.
      rules: by which pictures are converted; None: the defaults.
      private: whether images go by their number, in the log and in sentences too.

    Raises:
      InputError: if a set can't be used, two paths are the same, one folder contains another, sizes differ and no size
        is given, or no held-out image is left.
    """
    _check_size(size)
    paths = dict(zip(FLAGS, (samples, members, heldout), strict=True))
    _check_apart(paths)
    listings = [find(path, flag, max_corrupt, rules, private=private) for flag, path in paths.items()]
    channels = common_channels((listing.channels for listing in listings), "the three sets")
    shape = (*common_size(listings, size), channels)
    (generated, _), (seen, seen_signatures), (unseen, unseen_signatures) = (
        read_set(listing, shape) for listing in listings
    )
    exact = np.isin(unseen.hashes, seen.hashes)
    signatures = np.concatenate([seen_signatures, unseen_signatures])
    near, members_near, member_pairs = _near(seen, unseen, exact, signatures, near_duplicate_rmse)
    if (exact | near).all():
        raise InputError(
            f"every image of {describe('--heldout', heldout)} equals or nearly equals one of "
            f"{describe('--members', members)}; hold out images that the model has not seen."
        )
    return ImageSets(
        samples=generated,
        members=seen,
        heldout=unseen.take(np.flatnonzero(~exact & ~near)),
        exact_dropped=int(exact.sum()),
        near_dropped=int(near.sum()),
        member_pairs=member_pairs,
        shared=frozenset(seen.hashes[i] for i in np.flatnonzero(members_near)) | set(seen.hashes) & set(unseen.hashes),
    )


def _check_size(size: int | None) -> None:
    if size is not None and not 1 <= size <= MAX_SIZE:
        raise InputError(f"--size is {size}, but it must be between 1 and {MAX_SIZE} pixels.")


def _check_apart(sources: dict[str, ImageSource]) -> None:
    """Raises InputError if two paths lead to the same place or share files, or if one folder contains another."""
    paths = {flag: location(source) for flag, source in sources.items() if not isinstance(source, np.ndarray)}
    _check_hub_apart({flag: path for flag, path in paths.items() if repository.is_id(path)})
    paths = {flag: path for flag, path in paths.items() if not repository.is_id(path)}
    for flag, path in paths.items():
        check_path(path, flag)
    real = {flag: os.path.realpath(path) for flag, path in paths.items()}
    for (first, a), (second, b) in itertools.permutations(real.items(), 2):
        both = f"{describe(first, paths[first])} and {describe(second, paths[second])}"
        if os.path.samefile(a, b):
            raise InputError(f"{both} are the same; each set needs its own images.")
        if os.path.isdir(a) and os.path.isdir(b) and os.path.commonpath([a, b]) == a:
            raise InputError(
                f"of {both}, the first contains the second; move it out, since folders are read at any depth."
            )


def _check_hub_apart(paths: dict[str, str]) -> None:
    """Raises InputError if two ids of the hub name the same files."""
    found = {flag: hub_files(path, flag) for flag, path in paths.items()}
    files = {flag: {one.folder / name for name in one.names} for flag, one in found.items()}
    for first, second in itertools.combinations(files, 2):
        if shared := files[first] & files[second]:
            both = f"{describe(first, paths[first])} and {describe(second, paths[second])}"
            raise InputError(f"{both} share {len(shared)} of their files; each set needs its own images.")


def common_size(listings: list[Listing], size: int | None) -> tuple[int, int]:
    """Returns (height, width): the given size, or the one that all images have.

    Raises:
      InputError: if no size is given and the images differ in size.
    """
    if size is not None:
        return size, size
    height, width = listings[0].sizes[0]
    for listing in listings:
        different = np.flatnonzero((listing.sizes != (height, width)).any(axis=1))
        if different.size:
            first, second = (
                f"{short(source.names[i])} of {describe(source.flag, source.path)} is "
                f"{source.sizes[i][1]} x {source.sizes[i][0]}"
                for source, i in ((listings[0], 0), (listing, different[0]))
            )
            raise InputError(
                f"{first} pixels, but {second}; give --size=N, which crops and resizes all images to N x N."
            )
    return int(height), int(width)


def read_set(listing: Listing, shape: tuple[int, int, int]) -> tuple[ImageSet, np.ndarray]:
    """Reads a set in the shape (height, width, channels), in one pass; also returns the signatures of its images."""
    facts: dict[int, Facts] = {}

    def read(i: int) -> np.ndarray:
        image, facts[i] = convert(listing.read(i), shape, listing.rules)
        return image

    n = len(listing.names)
    images = listing.array
    if images is None or images.shape[1:] != shape:
        images = Stream(read, np.arange(n), tuple(map(short, listing.names)), shape)
    keep = isinstance(images, Stream) and math.prod(images.shape) <= MEMORY_LIMIT
    memory = np.empty(images.shape, np.uint8) if keep else None
    hashes = [""] * n
    signatures = np.zeros((n, duplicates.signatures(np.zeros((1, *shape), np.uint8)).size), np.float32)

    def visit(ids: np.ndarray, chunk: np.ndarray) -> None:
        signatures[ids] = duplicates.signatures(chunk)
        store_hashes(hashes, ids, chunk)
        if memory is not None:
            memory[ids] = chunk

    scan(images, visit)
    image_set = ImageSet(
        path=listing.path,
        images=images if memory is None else memory,
        names=listing.names,
        hashes=tuple(hashes),
        damaged=listing.damaged,
        colour=listing.channels > 1,
        reading=reading.summary(
            facts.values(), listing.passed_over, listing.rules, describe(listing.flag, listing.path)
        ),
    )
    return image_set, signatures


def _near(
    members: ImageSet, heldout: ImageSet, exact: np.ndarray, signatures: np.ndarray, limit: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Finds pairs closer than the limit.

    Returns:
      bool [n], held-out images, apart from exact copies, that are near a member; bool [m], members that these are near
      to, of equal ones only the first; and the number of pairs of different members.

    Args:
      members: the m members.
      heldout: the n held-out images.
      exact: bool [n], which held-out images equal a member.
      signatures: float32 [m + n, k], of the members and the held-out images.
      limit: RMSE, with pixels in [-1, 1].
    """
    near, of, start = np.zeros(len(heldout), bool), np.zeros(len(members), bool), len(members)
    if limit <= 0:
        return near, of, 0
    both = Stream(
        lambda i: members.images[i] if i < start else heldout.images[i - start],
        np.arange(start + len(heldout)),
        members.names + heldout.names,
        members.images.shape[1:],
    )
    different = np.unique(members.hashes, return_index=True)[1]
    for pairs in duplicates.near_pairs(both, signatures, start + np.flatnonzero(~exact), different, limit):
        near[pairs[:, 0] - start] = True
        of[pairs[:, 1]] = True
    within = duplicates.near_pairs(both, signatures, different, different, limit)
    return near, of, sum(map(len, within)) // 2  # each pair is found from both of its images
