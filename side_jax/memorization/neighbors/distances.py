"""Computes exact distances of images in float64 on the host, and prepares points for bounds on the device.

Three measures of two images x and y with d numbers each:

    rmse        sqrt(mean (x - y)^2)                                                               (1)
    tiled_l2    max over the tiles of a grid of the rmse within a tile                             (2)
    cosine      x.y / (|x| |y|), 0 if either is zero; larger is nearer                             (3)

((2): Carlini et al. 2023, "Extracting Training Data from Diffusion Models", section 5.1, with 4 x 4 tiles.) The points
x' of bounds.py are, with a centre m and a scale s that is a power of two,

    x' = s x - m,   |x' - y'| = s sqrt(w) rmse(x, y) for images or tiles of w numbers              (4)
    x' = x / |x|,   |x' - y'| = sqrt(2 - 2 cosine(x, y))                                           (5)

The centre is about the references' mean, since bounds are tighter for shorter points; s keeps squares within float32.
Only the device uses centred and scaled values; exact distances use the original ones.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.memorization.neighbors import bounds

MEASURES = ("rmse", "tiled_l2", "cosine")
RESIDENT_BYTES = 2**31  # of points that may stay on the device; beyond it they are sent for each block of images

_BLOCK_NUMBERS = 2**25  # largest size of a block, so that large images come in smaller blocks
_THREADS = 8  # NumPy releases the GIL
_EXACT_NUMBERS = 2**18  # numbers compared at a time on the host, to fit its cache


class Images:
    """Images that are read in blocks.

    Attributes:
      array: the array, or anything with slices.
      shape: of one image.
      size: images per block.
      starts: the first image of each block.
    """

    def __init__(self, array: Any, block: int) -> None:
        """Takes an array, or anything whose slices are arrays, and the largest number of images to read at a time."""
        if block < 1:
            raise ValueError(f"a block must have 1 image or more, got {block}")
        self.array = np.asarray(array) if isinstance(array, jax.Array) else array
        self.shape = self.read(0, 1).shape[1:]
        limit = max(1, min(block, _BLOCK_NUMBERS // max(1, math.prod(self.shape))))
        self.size = max(1, -(-len(array) // max(1, -(-len(array) // limit))))
        self.starts = range(0, len(array), self.size)
        self._resident: dict[Any, list[tuple[int, bounds.Points]]] = {}

    def __len__(self) -> int:
        return len(self.array)

    def padded_size(self, multiple: int = 1) -> int:
        """Returns the size of a block on the device: a multiple of this and of 8, to compile fewer sizes."""
        multiple = math.lcm(multiple, 8)
        return -(-self.size // multiple) * multiple

    def read(self, start: int, size: int = 0) -> np.ndarray:
        """Reads the block that begins at `start`, or `size` images."""
        block = np.asarray(self.array[start : start + (size or self.size)])
        if block.dtype != np.uint8 and not jnp.issubdtype(block.dtype, jnp.floating):
            raise ValueError(f"images must be floating-point or uint8, got {block.dtype}")
        return block

    def points(self, measure: "Measure", size: int, dtype: Any) -> Iterable[tuple[int, bounds.Points]]:
        """Yields (start, points) of each block, padded to `size`. Points stay on the device if they fit."""
        blocks = ((start, measure.points(self.read(start), size, dtype)) for start in self.starts)
        if not self.fits_device(dtype):
            return blocks
        if dtype not in self._resident:
            self._resident.clear()  # drops the points of the other dtype
            self._resident[dtype] = list(blocks)
        return self._resident[dtype]

    def fits_device(self, dtype: Any) -> bool:
        """Returns whether all points may stay on the device."""
        return len(self) * math.prod(self.shape) * np.dtype(dtype).itemsize <= RESIDENT_BYTES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure. Its keys are distances, or negative similarities, so that smaller is nearer.

    Attributes:
      cosine: whether it is equation (3); otherwise (1) or (2).
      shape: of an image.
      grid: tiles along each side; 1 for equation (1).
      centre: m of equation (4), float32, with the shape of an image.
      scale: s of equation (4).
    """

    cosine: bool
    shape: tuple[int, ...]
    grid: int
    centre: np.ndarray
    scale: float

    def points(self, block: np.ndarray, size: int, dtype: Any) -> bounds.Points:
        """Converts a block to points on the device, padded to `size` images."""
        count, centre, scale = len(block), self.centre, self.scale
        if self.cosine:
            block = _float64(block).reshape(count, -1)
            norm = np.sqrt(np.square(block).sum(axis=1, keepdims=True))
            block = (block / np.where(norm > 0, norm, 1.0)).astype(np.float32)
        elif block.dtype not in (np.uint8, np.float32):
            block = (block.astype(np.float64) * scale - centre).astype(np.float32)
            centre, scale = np.zeros_like(centre), 1.0
        if count < size:
            block = np.pad(block, ((0, size - count),) + ((0, 0),) * (block.ndim - 1))
        options = {"grid": self.grid, "unit": self.cosine, "dtype": dtype}
        return bounds.points(block, np.int32(count), centre, np.float32(scale), **options)

    def slices(self, pairs: int) -> Iterator[slice]:
        """Splits a number of pairs into slices of a size that suits `keys`."""
        step = max(1, _EXACT_NUMBERS // max(1, math.prod(self.shape)))
        return (slice(start, start + step) for start in range(0, pairs, step))

    def keys(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Computes the exact key of each pair of images [p, ...]: float64 [p]."""
        a, b = _float64(a), _float64(b)
        if self.cosine:
            a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
            norms = np.sqrt(np.square(a).sum(axis=1)) * np.sqrt(np.square(b).sum(axis=1))
            return -np.divide((a * b).sum(axis=1), norms, out=np.zeros_like(norms), where=norms > 0)
        squares = np.square(np.subtract(a, b, out=a), out=a)
        if self.grid > 1:
            n, height, width, channels = squares.shape
            squares = squares.reshape(n, self.grid, height // self.grid, self.grid, width // self.grid, channels)
            squares = squares.transpose(0, 1, 3, 2, 4, 5)
        return np.sqrt(squares.reshape(len(a), self.grid**2, -1).mean(axis=2).max(axis=1))

    def values(self, keys: np.ndarray) -> np.ndarray:
        """Converts keys to distances or similarities, float64, or back."""
        return -keys if self.cosine else keys

    def upper_distances(self, keys: np.ndarray) -> np.ndarray:
        """Converts keys to distances of points, float32, rounded up by more than the rounding errors."""
        keys = np.clip(keys, -1e99, 1e99)
        keys = keys + 2.0**-40 * (1.0 if self.cosine else np.abs(keys))
        width = math.prod(self.shape) / self.grid**2
        distance = np.sqrt(np.maximum(2 + 2 * keys, 0)) if self.cosine else keys * math.sqrt(width) * self.scale
        return np.clip(distance * (1 + 2.0**-22), -bounds.FAR, bounds.FAR).astype(np.float32)


@functools.cache
def _threads() -> futures.ThreadPoolExecutor:
    return futures.ThreadPoolExecutor(_THREADS)


def in_threads(function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """Yields function(*job) for each job in order; runs at most one job more than there are threads ahead."""
    waiting: collections.deque[futures.Future[Any]] = collections.deque()
    for job in jobs:
        waiting.append(_threads().submit(function, *job))
        if len(waiting) > _THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _float64(block: np.ndarray) -> np.ndarray:
    return (bounds.LEVELS[block] if block.dtype == np.uint8 else block).astype(np.float64)


def prepare(name: str, grid: int, x: Images, y: Images) -> Measure:
    """Checks images and references, in one pass, and prepares their measure.

    Args:
      name: one of MEASURES.
      grid: tiles along each side, for tiled_l2.
      x: images.
      y: references.

    Raises:
      ValueError: if the name is unknown, the shapes differ or don't fit the grid, or a number is not finite.
    """
    if name not in MEASURES:
        raise ValueError(f"measure must be one of {', '.join(MEASURES)}, got {name!r}")
    if x.shape != y.shape:
        raise ValueError(f"images {x.shape} and references {y.shape} differ in shape")
    grid = grid if name == "tiled_l2" else 1
    if grid < 1 or (grid > 1 and (len(x.shape) != 3 or x.shape[0] % grid or x.shape[1] % grid)):
        raise ValueError(f"a grid of {grid} x {grid} tiles must divide images [height, width, channels], got {x.shape}")
    peak, total = 0.0, np.zeros(x.shape)
    for side in (x, y):
        for highest, mean, size in in_threads(_statistics, ((side.read(start),) for start in side.starts)):
            peak, total = max(peak, highest), total + size * mean * (side is y)
    if name == "cosine":
        return Measure(cosine=True, shape=x.shape, grid=1, centre=np.zeros(1, np.float32), scale=1.0)
    # |x'| <= 2 s peak sqrt(d) must be below 2^59; the largest such s has the least underflow.
    power = (116 - math.ceil(math.log2(max(1, total.size)))) // 2 - math.frexp(peak)[1]
    scale = 2.0 ** min(power, 100) if peak > 0 else 1.0
    centre = np.asarray(total / max(1, len(y)) * scale, np.float32)
    return Measure(cosine=False, shape=x.shape, grid=grid, centre=centre, scale=scale)


def _statistics(block: np.ndarray) -> tuple[float, np.ndarray, int]:
    """Returns the largest magnitude, the approximate mean, and the number of images."""
    with np.errstate(invalid="ignore"):
        low, high = (0.0, 1.0) if block.dtype == np.uint8 else (float(block.min()), float(block.max()))
    if not max(-low, high) <= float(np.finfo(np.float32).max):  # this form catches NaN too
        raise ValueError(f"images must be finite and within float32's range, got numbers from {low:g} to {high:g}")
    return max(-low, high), _float64(block[::8]).mean(axis=0), len(block)
