"""Finds the distinct modes among images that mode seeking has moved, and how many images came to each.

Images are near duplicates if their distance is below a limit. The image with the most near duplicates is the centre of
the first mode, and they are its basin; the images that are left are treated in the same way until none is left (greedy
star clustering, Aslam, Pelekhov and Rus 2004). Every image of a basin is near its centre: unlike connected components,
no chain of near duplicates joins two modes.
"""

import dataclasses
import heapq

import numpy as np

from side_jax.memorization.statistics import rarefaction


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Basins:
    """The k modes of n images, largest basin first; of equal ones, that with the lower centre.

    Attributes:
      centre: int64 [k], the image in the middle of each basin.
      size: int64 [k], images in each basin, its centre included.
      label: int64 [n], the basin of each image, in 0..k-1.
    """

    centre: np.ndarray
    size: np.ndarray
    label: np.ndarray


def expected_modes(size: np.ndarray, factor: int) -> float:
    """Predicts the number of distinct modes that factor times as many starts would reach, by rarefaction.extrapolate.

    Args:
      size: int64 [k], images in each basin.
      factor: 1 or more.
    """
    n = int(size.sum())
    unseen = np.zeros(factor * n - len(size), np.int64)  # a start reaches one mode, so that there are no more
    return rarefaction.extrapolate(np.concatenate([size, unseen]), n, factor)


def basins(n: int, pairs: np.ndarray) -> Basins:
    """Groups images into basins.

    Args:
      n: number of images.
      pairs: int64 [p, 2], the near duplicates, ids in 0..n-1, each unordered pair once.

    Raises:
      ValueError: if an id is out of range.
    """
    if len(pairs) and (pairs.min() < 0 or pairs.max() >= n):
        raise ValueError(f"pairs must hold ids in 0..{n - 1}, got {pairs.min()} to {pairs.max()}")
    ends, others = np.concatenate([pairs, pairs[:, ::-1]]).T
    order = np.lexsort((others, ends))
    edges = np.searchsorted(ends[order], np.arange(n + 1))
    neighbours = [others[order[edges[i] : edges[i + 1]]] for i in range(n)]
    degree = np.diff(edges)  # among the images that are left
    label = np.full(n, -1, np.int64)
    queue = [(-int(degree[i]), i) for i in range(n)]
    heapq.heapify(queue)
    centres: list[int] = []
    while queue:
        negative, image = heapq.heappop(queue)
        if label[image] >= 0:
            continue
        if -negative > degree[image]:  # some of its near duplicates have joined other basins since
            heapq.heappush(queue, (-int(degree[image]), image))
            continue
        joined = [image, *(other for other in neighbours[image].tolist() if label[other] < 0)]
        label[joined] = len(centres)
        centres.append(image)
        for one in joined:
            degree[neighbours[one]] -= 1
    return Basins(
        centre=np.asarray(centres, np.int64),
        size=np.bincount(label, minlength=len(centres)).astype(np.int64),
        label=label,
    )
