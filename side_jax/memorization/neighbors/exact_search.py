"""Exact nearest neighbours and pairs in a range of distances; memory stays bounded whatever the number of images.

Images and references are compared by blocks. All results are those of brute force in float64, ties included: the
device only bounds distances (bounds.py, equation 3), and what the bounds leave open the host decides in float64
(distances.py).

Nearest. Points in bfloat16 halve the work at least. The device keeps, for each image i, the references of the smallest
bounds L(i, j), and F(i), below which no dropped one's L lies. Let d(i) be the k-th smallest exact distance of the kept.
Then for every dropped j

    distance(i, j) >= L(i, j) >= F(i)                                                              (1)

so that d(i) < F(i), strictly, proves the k nearest: a dropped j is neither nearer nor, with a lower index, as near. If
d(i) >= F(i), all j with

    L(i, j) <= d(i)                                                                                (2)

are compared exactly, L from points in float32: the k nearest are among them, since d(i) is at least their distance.

Ranges. A pair is in [low, high) where low <= L and U < high, and outside of it where U < low or high <= L, L and U from
points in float32; all other pairs are compared exactly.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.memorization.neighbors import bounds
from side_jax.memorization.neighbors.distances import Images, Measure, in_threads, prepare

BLOCK, REFERENCE_BLOCK = 1024, 8192
_GROUP = 32  # see bounds.merge


def nearest(
    images: Any,
    references: Any,
    k: int,
    block: int = BLOCK,
    *,
    measure: str = "rmse",
    grid: int = 4,
    reference_block: int = REFERENCE_BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest references of each image.

    Args:
      images: floating-point or uint8 [n, ...]; uint8 stands for x / 127.5 - 1 in float32. An array, or anything that
        has a length and of which a slice is an array.
      references: likewise [m, ...], of the same shape.
      k: from 1 to m.
      block: images compared at a time; fewer where they are large.
      measure: rmse, tiled_l2 or cosine, equations (1) to (3) of distances.py.
      grid: tiles along each side, for tiled_l2; it divides both.
      reference_block: references compared at a time; fewer where they are large.

    Returns:
      (distances float32 [n, k], ascending, or similarities, descending; indices int64 [n, k]). Ties go to the lower
      index.

    Raises:
      ValueError: if k is not in 1..m, the shapes differ or don't suit the grid, or a number is not finite in float32.
    """
    x, y = Images(images, block), Images(references, reference_block)
    how = prepare(measure, grid, x, y)
    if not 1 <= k <= len(y):
        raise ValueError(f"k must be between 1 and the {len(y)} references, got {k}")
    keys, index, proved = np.empty((len(x), k)), np.empty((len(x), k), np.int64), np.empty(len(x), bool)
    # As many again leave room for what the bounds can't tell apart; one more than there are drops none.
    kept = min(2 * k + 8, len(y) + 1)
    for start, found in _ahead((start, _candidates(how, x, y, start, kept)) for start in x.starts):
        part = slice(start, start + x.size)
        keys[part], index[part], proved[part] = _settle(how, x.read(start), y, found, k)
    left = np.flatnonzero(~proved)
    for start in range(0, len(left), x.size):
        rows = left[start : start + x.size]
        few = Images(np.concatenate([x.read(row, 1) for row in rows]), block)
        keys[rows], index[rows] = _compare(how, few, y, keys[rows, -1], k)
    return how.values(keys).astype(np.float32), index


def pairs_below(
    images: Any,
    references: Any,
    below: float | np.ndarray,
    *,
    measure: str = "rmse",
    grid: int = 4,
    block: int = BLOCK,
    reference_block: int = REFERENCE_BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs that are nearer than a limit.

    Args:
      images: as in `nearest`.
      references: as in `nearest`. If they are the images, the same object, pairs are those with i < j.
      below: the distance of a pair is less, or its similarity more.
      measure: as in `nearest`.
      grid: as in `nearest`.
      block: as in `nearest`.
      reference_block: as in `nearest`.

    Returns:
      (image and reference of each pair, int64 [p, 2], sorted; distances or similarities, float32 [p]).

    Raises:
      ValueError: as `nearest`, or if the limit is NaN.
    """
    x, y = Images(images, block), Images(references, reference_block)
    how, same = prepare(measure, grid, x, y), references is images
    limit = how.values(_limit(below, len(x)))
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for _, i, j, keys, _ in _sweep(how, x, y, _limits(how, None, limit), above=same):
        near = keys < limit[i]
        found.append((i[near], j[near], keys[near]))
    i, j, keys = (np.concatenate(part) for part in zip(*found, strict=True))
    order = np.lexsort((j, i))
    return np.stack([i, j], axis=1)[order], how.values(keys[order]).astype(np.float32)


def in_band_counts(
    images: Any,
    references: Any,
    low: Any,
    high: Any,
    block: int = BLOCK,
    *,
    measure: str = "rmse",
    grid: int = 4,
    reference_block: int = REFERENCE_BLOCK,
) -> np.ndarray:
    """Of each reference, how many images i are within [low_i, high_i) of it, by distance or similarity.

    Args:
      images: as in `nearest`.
      references: as in `nearest`.
      low: float [n] or one for all, inclusive.
      high: float [n] or one for all, exclusive.
      block: as in `nearest`.
      measure: as in `nearest`.
      grid: as in `nearest`.
      reference_block: as in `nearest`.

    Returns:
      int64 [m].

    Raises:
      ValueError: as `nearest`, or if an end of a range is NaN.
    """
    x, y = Images(images, block), Images(references, reference_block)
    how = prepare(measure, grid, x, y)
    low, high = _limit(low, len(x)), _limit(high, len(x))
    ends = (-high, -low) if how.cosine else (low, high)
    counts = np.zeros(len(y), np.int64)
    for start, i, j, keys, sure in _sweep(how, x, y, _limits(how, *ends)):
        value = how.values(keys)
        counts += np.bincount(j[(value >= low[i]) & (value < high[i])], minlength=len(y))
        counts[start : start + y.size] += sure[: min(y.size, len(y) - start)]
    return counts


def within(
    images: Any,
    references: Any,
    low: Any,
    high: Any,
    block: int = BLOCK,
    *,
    measure: str = "rmse",
    grid: int = 4,
    reference_block: int = REFERENCE_BLOCK,
) -> np.ndarray:
    """Which references have an image within its range: in_band_counts above 0, bool [m]."""
    options: dict[str, Any] = {"measure": measure, "grid": grid, "reference_block": reference_block}
    return in_band_counts(images, references, low, high, block, **options) > 0


def _limit(value: Any, n: int) -> np.ndarray:
    """One for each image, float64."""
    value = np.broadcast_to(np.asarray(value, np.float64), n)
    if np.isnan(value).any():
        raise ValueError("the limits of distances must be numbers, got NaN")
    return value


def _limits(how: Measure, low: np.ndarray | None, high: np.ndarray) -> np.ndarray:
    """Keys from low to high as the limits of bounds.classify, [4, n]; without low, all below high are in doubt."""
    ends = [how.reach(key, outward) for key in (high if low is None else low, high) for outward in (-1, 1)]
    if low is None:
        ends[:2] = np.full_like(ends[0], -bounds.FAR), np.full_like(ends[0], bounds.FAR)
    return np.stack(ends)


def _ahead(jobs: Iterable[Any]) -> Iterator[Any]:
    """What the device was told to do, one job late: it works on the next while the host sees to this one."""
    waiting = []
    for job in jobs:
        waiting.append(job)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def _candidates(how: Measure, x: Images, y: Images, start: int, kept: int) -> bounds.Kept:
    """Of a block of images."""
    # With so many groups, three of the nearest are rarely in one; the larger the groups, the faster.
    group = min(_GROUP, max(1, y.size // (8 * kept)))
    points, state = how.points(x.read(start), x.padded(), jnp.bfloat16), bounds.nothing(x.padded(), kept)
    for first, references in y.points(how, y.padded(group), jnp.bfloat16):
        before, state = state, bounds.merge(state, points, references, np.int32(first), group=group)
        if not y.stays(jnp.bfloat16):
            jax.block_until_ready(before)  # otherwise all blocks would wait on the device
    return state


def _settle(how: Measure, block: np.ndarray, y: Images, found: bounds.Kept, k: int) -> tuple[np.ndarray, ...]:
    """(keys [b, k], references [b, k], whether equation (1) proves them [b]) of a block of images."""
    lower, index, floor = (np.asarray(part)[: len(block)] for part in found)
    index = index.astype(np.int64)
    keys = np.full(lower.shape, np.inf)
    _fill(how, block, y, index, keys, np.broadcast_to(np.arange(lower.shape[1]) < k, lower.shape))
    reach = how.reach(keys[:, :k].max(axis=1), 1)[:, None]
    _fill(how, block, y, index, keys, (bounds.least(lower) <= reach) & np.isinf(keys))
    order = np.lexsort((index, keys))[:, :k]
    keys, index = np.take_along_axis(keys, order, axis=1), np.take_along_axis(index, order, axis=1)
    return keys, index, how.reach(keys[:, -1], 1) < bounds.least(np.minimum(floor, lower[:, -1]))


def _fill(how: Measure, block: np.ndarray, y: Images, index: np.ndarray, keys: np.ndarray, todo: np.ndarray) -> None:
    """Computes the keys [b, kept] that are to be done."""
    i, column = np.nonzero(todo)
    order = np.argsort(index[i, column], kind="stable")
    i, column = i[order], column[order]
    j = index[i, column]
    edges = np.searchsorted(j, [*y.starts, len(y)])
    parts = [(start, slice(*ends)) for start, *ends in zip(y.starts, edges[:-1], edges[1:], strict=True)]
    keys[i, column] = _keys(how, ((block, i[p], y.read(start), j[p] - start) for start, p in parts if p.start < p.stop))


def _keys(how: Measure, pairs: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Exact, of the pairs a[i], b[j] of each (a, i, b, j), in their order."""
    jobs = ((a, i[piece], b, j[piece]) for a, i, b, j in pairs for piece in how.pieces(len(i)))
    return np.concatenate([np.empty(0), *in_threads(lambda a, i, b, j: how.keys(a[i], b[j]), jobs)])


def _sweep(how: Measure, x: Images, y: Images, limits: np.ndarray, above: bool = False) -> Iterator[tuple[Any, ...]]:
    """Of each two blocks (the first reference; pairs in doubt i, j and keys; how many images surely are in range [m]).

    With `above`, only pairs with j > i, and no images that surely are.
    """
    size = x.padded(64)  # `nearest` asks for any number of rows, and each size is compiled

    def jobs() -> Iterator[tuple[int, int, tuple[jax.Array, jax.Array]]]:
        for i in x.starts:
            points, ends = how.points(x.read(i), size, jnp.float32), limits[:, i : i + x.size]
            ends = np.pad(ends, ((0, 0), (0, size - ends.shape[1])))
            for j, references in y.points(how, y.padded(), jnp.float32):
                if not above or j + y.size > i:
                    yield i, j, bounds.classify(points, references, ends)

    for first_i, first_j, (doubt, sure) in _ahead(jobs()):
        i, j = np.nonzero(np.asarray(doubt))
        if above:
            chosen = first_j + j > first_i + i
            i, j = i[chosen], j[chosen]
        keys = _keys(how, [(x.read(first_i), i, y.read(first_j), j)] if len(i) else [])
        yield first_j, first_i + i, first_j + j, keys, np.asarray(sure)


def _compare(how: Measure, few: Images, y: Images, keys: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(keys [b, k], references [b, k]) of a few images with the k-th keys d(i), by equation (2)."""
    best = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    for _, i, j, found, _ in _sweep(how, few, y, _limits(how, None, keys)):
        i, j, found = (np.concatenate(both) for both in zip(best, (i, j, found), strict=True))
        order = np.lexsort((j, found, i))
        i, j, found = i[order], j[order], found[order]
        chosen = np.arange(len(i)) - np.searchsorted(i, i) < k
        best = i[chosen], j[chosen], found[chosen]
    return best[2].reshape(-1, k), best[1].reshape(-1, k)
