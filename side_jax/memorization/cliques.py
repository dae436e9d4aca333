"""Finds cliques of near duplicates among generated images: an image generated again and again may be memorised.

Images are the nodes of a graph whose edges connect near duplicates; a clique is a set of images that are all connected
to each other. Carlini et al. 2023 ("Extracting Training Data from Diffusion Models", section 4) predict that an image
is memorised if it is in a clique of at least 10 (CLIQUE). This needs no reference image.

Finding the largest clique is NP-hard, so each image gets one that a greedy walk finds:

    C <- {i};   for j in the neighbours of i, nearest to i first:   C <- C + {j} if j is joined to all of C     (1)
    size_i = max { |C_k| : i in C_k, k = 1..n }                                                    (2)

(2) is the size of an actual clique that contains i, so it is a lower bound of the largest one's size.
"""

import functools

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

CLIQUE = 10  # images in a clique of this size or more count as memorised
CACHE = 2**28  # bytes of cached neighbourhoods, stored as bits


def degrees(n: int, pairs: np.ndarray) -> np.ndarray:
    """Counts the near duplicates of each image, without itself; int64 [n].

    Args:
      n: number of images.
      pairs: int64 [p, 2], ids in 0..n-1, each unordered pair once.

    Raises:
      ValueError: if the pairs are invalid.
    """
    _check(n, pairs)
    return np.bincount(pairs.ravel(), minlength=n).astype(np.int64)


def components(n: int, pairs: np.ndarray) -> np.ndarray:
    """Returns each image's connected component, named by its lowest id; int64 [n].

    Arguments and errors as for degrees.
    """
    _check(n, pairs)
    graph = sparse.coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    _, label = csgraph.connected_components(graph, directed=False)
    _, first, place = np.unique(label, return_index=True, return_inverse=True)
    return first[place].astype(np.int64)


def clique_sizes(n: int, pairs: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Returns the size of a clique that contains each image, equations (1) and (2); 1 without near duplicates.

    The result depends only on the graph and the order of its distances; ties go to the lower id. Time is proportional
    to the sum over pairs of (component's size) / 30. Memory is that of the pairs, plus at most about CACHE.

    Args:
      n: number of images.
      pairs: int64 [p, 2], ids in 0..n-1, each unordered pair once.
      distances: float [p], of the pairs; smaller is nearer.

    Returns:
      int64 [n], from 1 to an image's degree + 1.

    Raises:
      ValueError: if the pairs are invalid, or distances are not one number for each pair.
    """
    _check(n, pairs)
    if distances.shape != (len(pairs),) or np.isnan(distances).any():
        raise ValueError(f"distances must be one number for each of the {len(pairs)} pairs, got {distances.shape}")
    ends, others = np.concatenate([pairs, pairs[:, ::-1]]).T
    nearest_first = others[np.lexsort((others, np.tile(distances, 2), ends))]
    stops = np.cumsum(degrees(n, pairs))
    starts = np.append(0, stops[:-1])[:n]
    position, extent = _positions(components(n, pairs))
    place = position.tolist()

    def neighbours(image: int) -> np.ndarray:
        return nearest_first[starts[image] : stops[image]]

    @functools.lru_cache(maxsize=8 * CACHE // max(1, extent))
    def neighbour_bits(image: int) -> int:
        """Returns the image's neighbours as the bits of an integer, by their positions."""
        bits = np.zeros(extent, bool)
        bits[position[neighbours(image)]] = True
        return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")

    def greedy(image: int) -> list[int]:
        clique, candidates = [image], neighbour_bits(image)
        for other in neighbours(image).tolist():
            if candidates >> place[other] & 1:
                clique.append(other)
                candidates &= neighbour_bits(other)
                if not candidates:
                    break
        return clique

    sizes = np.ones(n, np.int64)
    for image in range(n):
        # If the size is the largest that the degree allows, the neighbours form one clique and have its size already.
        if sizes[image] <= stops[image] - starts[image]:
            clique = greedy(image)
            sizes[clique] = np.maximum(sizes[clique], len(clique))
    return sizes


def _positions(label: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns (each image's position 0, 1, .. in its component [n], the size of the largest component)."""
    _, place, counts = np.unique(label, return_inverse=True, return_counts=True)
    order = np.argsort(place, kind="stable")
    position = np.empty(len(label), np.int64)
    position[order] = np.arange(len(label)) - np.repeat(np.cumsum(counts) - counts, counts)
    return position, int(counts.max(initial=0))


def _check(n: int, pairs: np.ndarray) -> None:
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise ValueError(f"pairs must be integers [p, 2], got {pairs.dtype} {list(pairs.shape)}")
    if len(pairs) and (pairs.min() < 0 or pairs.max() >= n):
        raise ValueError(f"pairs must hold ids in 0..{n - 1}, got {pairs.min()} to {pairs.max()}")
    low, high = np.sort(pairs.astype(np.int64), axis=1).T
    if (low == high).any() or not np.diff(np.sort(low * n + high)).all():
        raise ValueError("pairs must hold each unordered pair of different images once, got one twice or with itself")
