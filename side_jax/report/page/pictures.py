"""Makes the gallery's pictures: tiles side by side, blurred if private, and small enough for a thousand on one page.

Difference of two images a, b over their channels c, each level in 0..255:

    shown = min(255, gain * max_c |a_c - b_c|)                                                     (1)

Black is equal; with gain 4 a difference of 64 levels or more is white. The scale is the same for every pair.

Blurring keeps the means of at most 4 x 4 blocks, rounded to whole levels, and draws a smooth surface through them:
at most 16 numbers of 8 bits for each channel survive, whatever the size of the image.
"""

import base64
import io

import numpy as np
from PIL import Image

from side_jax.report.page.model import Picture

BLOCKS = 4  # per side, kept by blurring
GAIN = 4  # of equation (1)
PICTURE_BYTES = 6_500  # a thousand of them, in base64, are 8.7 MB
GAP = 2  # white pixels between tiles
_QUALITIES = (95, 90, 80, 65, 45)  # of lossy WebP, the best that fits is taken


def _checked(images: np.ndarray, name: str) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"{name} must be uint8 [n, h, w, c] and not empty, got {images.dtype} {images.shape}")
    return images


def difference(first: np.ndarray, second: np.ndarray, gain: int = GAIN) -> np.ndarray:
    """Equation (1), in grey.

    Args:
      first: uint8 [n, h, w, c].
      second: uint8, of the same shape.
      gain: from 1.

    Returns:
      uint8 [n, h, w, c], the same in every channel.

    Raises:
      ValueError: if the images have another dtype, or their shapes differ.
    """
    first, second = _checked(first, "first"), _checked(second, "second")
    if first.shape != second.shape or gain < 1:
        raise ValueError(f"difference needs one shape and a gain from 1, got {first.shape}, {second.shape} and {gain}")
    apart = np.abs(first.astype(np.int32) - second).max(axis=-1, keepdims=True)
    return np.broadcast_to(np.minimum(255, gain * apart).astype(np.uint8), first.shape).copy()


def block_means(images: np.ndarray) -> np.ndarray:
    """What blurring keeps: uint8 [n, h, w, c] -> uint8 [n, up to 4, up to 4, c], means rounded to whole levels."""
    images = _checked(images, "images")
    rows, columns = (np.linspace(0, side, min(BLOCKS, side) + 1).astype(int) for side in images.shape[1:3])
    # In integers: the rounding of a floating-point mean would depend on the order of the pixels.
    sums = np.add.reduceat(images.astype(np.int64), rows[:-1], axis=1)
    sums = np.add.reduceat(sums, columns[:-1], axis=2)
    counts = np.outer(np.diff(rows), np.diff(columns))[None, :, :, None]
    return ((2 * sums + counts) // (2 * counts)).astype(np.uint8)


def blurred(images: np.ndarray) -> np.ndarray:
    """Images without detail, drawn from `block_means` alone.

    Args:
      images: uint8 [n, h, w, c], c 1 or 3.

    Returns:
      uint8 [n, h, w, c].

    Raises:
      ValueError: if they have another dtype or shape.
    """
    size = images.shape[2], images.shape[1]
    smooth = [
        [
            np.asarray(Image.fromarray(mean[..., c]).resize(size, Image.Resampling.BICUBIC))
            for c in range(mean.shape[-1])
        ]
        for mean in block_means(images)
    ]
    return np.moveaxis(np.asarray(smooth, np.uint8), 1, -1)


def _webp(picture: Image.Image, **settings: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", **settings)
    return buffer.getvalue()


def _encoded(picture: Image.Image, limit: int) -> bytes:
    """Lossless where that fits, else the best lossy quality that does, else at half the size, and so on."""
    data = _webp(picture, lossless=True, method=1, quality=20)  # an eighth of the default's time, 6% more bytes
    while len(data) > limit:
        for quality in _QUALITIES:
            data = _webp(picture, quality=quality)
            if len(data) <= limit:
                return data
        if min(picture.size) == 1:
            raise ValueError(f"limit must be larger: not even a picture of {picture.size} fits {limit} bytes")
        picture = picture.reduce(2)
    return data


def strip(tiles: np.ndarray, *, private: bool, limit: int = PICTURE_BYTES) -> Picture:
    """Puts images side by side in one picture, blurred first if private.

    Args:
      tiles: uint8 [n, h, w, c], c 1 or 3, such as generated, nearest member, nearest held-out and their difference.
      private: whether to blur every tile.
      limit: largest size of the picture in bytes; its base64 in the page is a third larger.

    Raises:
      ValueError: if the tiles have another dtype or shape, or no quality fits the limit.
    """
    tiles = _checked(tiles, "tiles")
    if private:
        tiles = blurred(tiles)
    n, h, w, c = tiles.shape
    canvas = np.full((h, n * (w + GAP) - GAP, c), 255, np.uint8)
    for i, tile in enumerate(tiles):
        canvas[:, i * (w + GAP) : i * (w + GAP) + w] = tile
    data = _encoded(Image.fromarray(canvas.squeeze(-1) if c == 1 else canvas), limit)
    return Picture(uri="data:image/webp;base64," + base64.b64encode(data).decode(), reveals=not private)
