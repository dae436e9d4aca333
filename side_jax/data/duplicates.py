"""Finds near duplicates: exactly the pairs of images whose RMSE is below a limit, without comparing all pixels."""

from collections.abc import Iterator

import numpy as np

from side_jax.data.stream import Stream

ENTRIES = 256  # largest size of a signature
ROWS, COLUMNS = 512, 8192  # of one block of distances, which takes 16 MiB


def signatures(images: np.ndarray) -> np.ndarray:
    """Returns scaled block means; the distance of two signatures is a lower bound of the RMSE of their images.

    An image is cut into g x g blocks. g is at most the image's size, and g * g * c is at most ENTRIES. Let w_b be the
    share of block b in all N pixel values, and d the difference of two images in [-1, 1]. By Jensen's inequality the
    square of a block's mean is at most the mean of its squares, so

        RMSE^2 = sum_b w_b mean_b(d^2) >= sum_b w_b mean_b(d)^2 = |s - s'|^2,  with  s_b = sqrt(w_b) mean_b(x).

    Blocks may differ in size, since each is weighted by its share. If every pixel has its own block (images of at most
    ENTRIES values), both sides are equal.

    Args:
      images: uint8 [n, h, w, c].

    Returns:
      float32 [n, g * g * c], each row with a Euclidean norm of at most 1.
    """
    n, height, width, channels = images.shape
    grid = max(1, min(height, width, int((ENTRIES // channels) ** 0.5)))
    down, right = (np.arange(grid) * side // grid for side in (height, width))
    sums = np.add.reduceat(np.add.reduceat(images, down, axis=1, dtype=np.int64), right, axis=2)
    pixels = np.outer(np.diff(down, append=height), np.diff(right, append=width))[:, :, None]
    scaled = (sums / 127.5 - pixels) / np.sqrt(pixels * float(height * width * channels))
    return scaled.reshape(n, -1).astype(np.float32)


def near_pairs(
    images: np.ndarray | Stream, signature: np.ndarray, rows: np.ndarray, columns: np.ndarray, limit: float
) -> Iterator[np.ndarray]:
    """Finds all pairs of a row and a column image whose RMSE is below the limit.

    Most pairs are ruled out in blocks by the distance of their signatures, a lower bound. The others are compared
    pixel by pixel in integers.

    Args:
      images: uint8 [n, h, w, c].
      signature: float32 [n, m], from signatures().
      rows: ids, int64 [r].
      columns: ids, int64 [k].
      limit: RMSE, with pixels in [-1, 1].

    Yields:
      Pairs of ids (row, column), int64 [p, 2] with p >= 0; never an image with itself.
    """
    # For vectors of norm 1 or less, the float32 squared distance is off by at most this (four rounding bounds of a sum
    # of m products), so rounding never rules out a pair below the limit.
    slack = 4 * (signature.shape[1] + 8) * 2.0**-24
    squares = np.square(signature).sum(-1)
    for i in range(0, len(rows), ROWS):
        row = rows[i : i + ROWS]
        for j in range(0, len(columns), COLUMNS):
            column = columns[j : j + COLUMNS]
            distances = squares[row][:, None] + squares[column] - 2 * signature[row] @ signature[column].T
            row_index, column_index = np.nonzero(distances < limit**2 + slack)
            pairs = np.stack([row[row_index], column[column_index]], axis=1)
            pairs = pairs[pairs[:, 0] != pairs[:, 1]]
            yield pairs[_rmse_below(images, pairs, limit)]


def _rmse_below(images: np.ndarray | Stream, pairs: np.ndarray, limit: float) -> np.ndarray:
    """Returns which pairs have an RMSE below the limit: bool [p]."""
    below = np.zeros(len(pairs), bool)
    largest_sum = (limit * 127.5) ** 2 * np.prod(images.shape[1:])
    for start in range(0, len(pairs), ROWS):
        ids, place = np.unique(pairs[start : start + ROWS], return_inverse=True)
        pixels = images[ids].reshape(len(ids), -1)
        for k, (a, b) in enumerate(place.reshape(-1, 2), start=start):
            below[k] = np.square(pixels[a].astype(np.int32) - pixels[b]).sum(dtype=np.int64) < largest_sum
    return below
