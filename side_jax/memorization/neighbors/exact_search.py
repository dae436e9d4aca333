"""Finds exact nearest neighbours and all pairs below a distance, in memory that does not grow with the images.

Images and references are compared in blocks. All results equal brute force in float64, including ties: the device only
computes lower bounds of distances (bounds.py, equation 3), and the host decides the rest in float64 (distances.py).

Nearest. Points in bfloat16 at least halve the work. For each image i the device keeps the references with the smallest
bounds L(i, j), and F(i), which no dropped L is below. Let d(i) be the k-th smallest exact distance of the references
kept. Then for every dropped j

    distance(i, j) >= L(i, j) >= F(i)                                                              (1)

so d(i) < F(i), strictly, proves that the k nearest are found: a dropped j is neither nearer nor equally near with a
lower index. If d(i) >= F(i), all j with

    L(i, j) <= d(i)                                                                                (2)

are compared exactly, with L from points in float32. The k nearest are among them, since d(i) is at least their
distance.

Pairs below a limit. All pairs with L at most the limit, from points in float32, are compared exactly.
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
    """Finds the k nearest references of each image.

    Args:
      images: floating-point or uint8 [n, ...]; uint8 stands for x / 127.5 - 1 in float32. An array, or anything with a
        length whose slices are arrays.
      references: likewise [m, ...], with images of the same shape.
      k: from 1 to m.
      block: images compared at a time; fewer if they are large.
      measure: rmse, tiled_l2 or cosine, equations (1) to (3) of distances.py.
      grid: tiles along each side, for tiled_l2; it divides height and width.
      reference_block: references compared at a time; fewer if they are large.

    Returns:
      (distances float32 [n, k], ascending, or similarities, descending; indices int64 [n, k]). Ties go to the lower
      index.

    Raises:
      ValueError: if k is not in 1..m, the shapes differ or don't fit the grid, or a number is not finite in float32.
    """
    x, y = Images(images, block), Images(references, reference_block)
    prepared = prepare(measure, grid, x, y)
    if not 1 <= k <= len(y):
        raise ValueError(f"k must be between 1 and the {len(y)} references, got {k}")
    keys, index, proved = np.empty((len(x), k)), np.empty((len(x), k), np.int64), np.empty(len(x), bool)
    # Twice as many candidates leave room for bounds that are too close; more than all references drop none.
    count = min(2 * k + 8, len(y) + 1)
    for start, candidates in _ahead((start, _candidates(prepared, x, y, start, count)) for start in x.starts):
        part = slice(start, start + x.size)
        keys[part], index[part], proved[part] = _settle(prepared, x.read(start), y, candidates, k)
    unproved = np.flatnonzero(~proved)
    for start in range(0, len(unproved), x.size):
        rows = unproved[start : start + x.size]
        few = Images(np.concatenate([x.read(row, 1) for row in rows]), block)
        keys[rows], index[rows] = _compare(prepared, few, y, keys[rows, -1], k)
    return prepared.values(keys).astype(np.float32), index


def pairs_below(
    images: Any,
    references: Any,
    below: Any,
    *,
    measure: str = "rmse",
    grid: int = 4,
    block: int = BLOCK,
    reference_block: int = REFERENCE_BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds all pairs that are nearer than a limit.

    Args:
      images: as in `nearest`.
      references: as in `nearest`. If they are the same object as the images, only pairs with i < j are returned.
      below: float, or float [n] for each image: distances are below this limit, or similarities above it.
      measure: as in `nearest`.
      grid: as in `nearest`.
      block: as in `nearest`.
      reference_block: as in `nearest`.

    Returns:
      (image and reference of each pair, int64 [p, 2], sorted; distances or similarities, float32 [p]).

    Raises:
      ValueError: as in `nearest`, or if the limit is NaN.
    """
    x, y = Images(images, block), Images(references, reference_block)
    prepared, same = prepare(measure, grid, x, y), references is images
    limit = np.broadcast_to(np.asarray(below, np.float64), len(x))
    if np.isnan(limit).any():
        raise ValueError("limits of distances must be numbers, got NaN")
    limit = prepared.values(limit)
    results = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for i, j, keys in _sweep(prepared, x, y, limit, above=same):
        near = keys < limit[i]
        results.append((i[near], j[near], keys[near]))
    i, j, keys = (np.concatenate(part) for part in zip(*results, strict=True))
    order = np.lexsort((j, i))
    return np.stack([i, j], axis=1)[order], prepared.values(keys[order]).astype(np.float32)


def _ahead(jobs: Iterable[Any]) -> Iterator[Any]:
    """Yields jobs one behind, so that the device works on the next while the host handles the current one."""
    waiting = []
    for job in jobs:
        waiting.append(job)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def _candidates(measure: Measure, x: Images, y: Images, start: int, count: int) -> bounds.Candidates:
    """Finds the candidates of a block of images, on the device."""
    # With this many groups, three of the nearest are rarely in one group; larger groups are faster.
    group = min(_GROUP, max(1, y.size // (8 * count)))
    points = measure.points(x.read(start), x.padded_size(), jnp.bfloat16)
    state = bounds.no_candidates(x.padded_size(), count)
    for first, references in y.points(measure, y.padded_size(group), jnp.bfloat16):
        previous, state = state, bounds.merge(state, points, references, np.int32(first), group=group)
        if not y.fits_device(jnp.bfloat16):
            jax.block_until_ready(previous)  # otherwise all blocks would be queued on the device
    return state


def _settle(
    measure: Measure, block: np.ndarray, y: Images, candidates: bounds.Candidates, k: int
) -> tuple[np.ndarray, ...]:
    """Returns (keys [b, k], references [b, k], whether (1) proves them [b]) of a block of images."""
    lower, index, floor = (np.asarray(part)[: len(block)] for part in candidates)
    index = index.astype(np.int64)
    keys = np.full(lower.shape, np.inf)
    _fill(measure, block, y, index, keys, np.broadcast_to(np.arange(lower.shape[1]) < k, lower.shape))
    limit = measure.upper_distances(keys[:, :k].max(axis=1))[:, None]
    _fill(measure, block, y, index, keys, (bounds.least_merged(lower) <= limit) & np.isinf(keys))
    order = np.lexsort((index, keys))[:, :k]
    keys, index = np.take_along_axis(keys, order, axis=1), np.take_along_axis(index, order, axis=1)
    proved = measure.upper_distances(keys[:, -1]) < bounds.least_merged(np.minimum(floor, lower[:, -1]))
    return keys, index, proved


def _fill(
    measure: Measure, block: np.ndarray, y: Images, index: np.ndarray, keys: np.ndarray, missing: np.ndarray
) -> None:
    """Computes the missing keys [b, count] in place."""
    i, column = np.nonzero(missing)
    order = np.argsort(index[i, column], kind="stable")
    i, column = i[order], column[order]
    j = index[i, column]
    edges = np.searchsorted(j, [*y.starts, len(y)])
    parts = [(start, slice(*ends)) for start, *ends in zip(y.starts, edges[:-1], edges[1:], strict=True)]
    pairs = ((block, i[p], y.read(start), j[p] - start) for start, p in parts if p.start < p.stop)
    keys[i, column] = _keys(measure, pairs)


def _keys(measure: Measure, pairs: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Computes the exact keys of the pairs a[i], b[j] of each (a, i, b, j), in order."""
    jobs = ((a, i[part], b, j[part]) for a, i, b, j in pairs for part in measure.slices(len(i)))
    return np.concatenate([np.empty(0), *in_threads(lambda a, i, b, j: measure.keys(a[i], b[j]), jobs)])


def _sweep(
    measure: Measure, x: Images, y: Images, limit: np.ndarray, above: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (i, j, exact keys) of the pairs that may be within their image's limit, for every two blocks.

    Args:
      measure: of the images.
      x: images.
      y: references.
      limit: keys, float64 [n].
      above: yield only pairs with j > i.
    """
    size = x.padded_size(64)  # `nearest` passes any number of rows, and each size is compiled
    limit = measure.upper_distances(limit)

    def jobs() -> Iterator[tuple[int, int, jax.Array]]:
        for i in x.starts:
            points, ends = measure.points(x.read(i), size, jnp.float32), limit[i : i + x.size]
            ends = np.pad(ends, (0, size - len(ends)))
            for j, references in y.points(measure, y.padded_size(), jnp.float32):
                if not above or j + y.size > i:
                    yield i, j, bounds.within(points, references, ends)

    for first_i, first_j, possible in _ahead(jobs()):
        i, j = np.nonzero(np.asarray(possible))
        if above:
            chosen = first_j + j > first_i + i
            i, j = i[chosen], j[chosen]
        keys = _keys(measure, [(x.read(first_i), i, y.read(first_j), j)] if len(i) else [])
        yield first_i + i, first_j + j, keys


def _compare(measure: Measure, few: Images, y: Images, keys: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (keys [b, k], references [b, k]) of a few images with the k-th keys d(i), by equation (2)."""
    best = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
    for block in _sweep(measure, few, y, keys):
        i, j, key = (np.concatenate(parts) for parts in zip(best, block, strict=True))
        order = np.lexsort((j, key, i))
        i, j, key = i[order], j[order], key[order]
        chosen = np.arange(len(i)) - np.searchsorted(i, i) < k
        best = i[chosen], j[chosen], key[chosen]
    return best[2].reshape(-1, k), best[1].reshape(-1, k)
