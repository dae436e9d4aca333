"""Computes rigorous lower bounds of distances on the device, by matrix products, for any order of summation.

A point x' stands for an image or a tile of one, w numbers (see distances.py); the distance of two images is the largest
of their tiles. Points are rounded to q, in bfloat16 or float32. With e_x = |x' - q_x|, which is known, the triangle
inequality gives

    | |x' - y'| - |q_x - q_y| | <= e_x + e_y                                                       (1)

A sum in float32 of products of two bfloat16 numbers, in any order, is off by at most w u sum |a_i b_i| to first order,
with u = 2^-24; for two float32 numbers by (w + 1) u sum |a_i b_i| (Higham 2002, "Accuracy and Stability of Numerical
Algorithms", section 3.1). Long points are cut into c chunks of w numbers, whose products are summed in turn. With
|q_x|^2, |q_y|^2 and q_x.q_y computed in this way, and D = |q_x|^2 + |q_y|^2 - 2 q_x.q_y,

    |D - |q_x - q_y|^2| <= (w + c + 4) u (|q_x| + |q_y|)^2 <= 2 eps (|q_x|^2 + |q_y|^2)            (2)

eps = (w + c + 16) u would be enough; four times that allows for devices that truncate instead of rounding. Hence

    L = max over tiles of sqrt(max(0, D - 2 eps (|q_x|^2 + |q_y|^2))) - (e_x + e_y)                (3)

is a lower bound of the distance. In (3), e includes a further 8 u |q| for rounding x', the root and its difference, and
L allows for underflow.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FAR = 2.0**61  # larger than any distance, smaller than that of padding
LEVELS = np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1.0)  # of uint8, as pixel_range.to_float

_PADDING = 2.0**125  # |q|^2 of padding
_CHUNK = {jnp.bfloat16: 2048, jnp.float32: 512}


class Points(NamedTuple):
    """Points of b images: q [tiles, c, b, w], bfloat16 or float32; |q|^2 and e of equation (1), float32 [tiles, b]."""

    rows: jax.Array
    square: jax.Array
    error: jax.Array


class Candidates(NamedTuple):
    """Candidates of b images: L float32 [b, k], ascending, and references int32 [b, k].

    No dropped reference has an L below the floor, float32 [b], or below the last L, after both go through
    `least_merged`.
    """

    lower: jax.Array | np.ndarray
    index: jax.Array | np.ndarray  # type: ignore[assignment]  # a tuple has a method of that name
    floor: jax.Array | np.ndarray


def no_candidates(images: int, count: int) -> Candidates:
    """Returns the state before the first merge: padding only."""
    far = np.full((images, count), 4 * FAR, np.float32)
    return Candidates(far, np.zeros((images, count), np.int32), far[:, 0])


def least_merged(lower: np.ndarray) -> np.ndarray:
    """Returns the least L that `merge` can turn into this value, float64."""
    return np.asarray(lower, np.float64) * (1 - 2.0**-17) - 2.0**-99


@functools.partial(jax.jit, static_argnames=("grid", "unit", "dtype"))
def points(block: Any, count: Any, centre: Any, scale: Any, *, grid: int, unit: bool, dtype: Any) -> Points:
    """Converts images to points, block * scale - centre.

    Args:
      block: float32, or uint8 as indices of LEVELS, [b, ...]; [b, h, w, c] if there are tiles.
      count: number of images; the rest of the block is padding.
      centre: float32 [...].
      scale: float32, a power of two.
      grid: tiles along each side.
      unit: whether images are unit vectors; zero images then get a dimension of their own.
      dtype: jnp.bfloat16 or jnp.float32.
    """
    x = jnp.asarray(LEVELS)[block] if block.dtype == jnp.uint8 else block
    x = x * scale - centre[None]
    if grid > 1:
        b, height, width, channels = x.shape
        x = x.reshape(b, grid, height // grid, grid, width // grid, channels).transpose(1, 3, 0, 2, 4, 5)
    x = x.reshape(grid * grid, len(block), -1)
    chunks = -(-x.shape[2] // _CHUNK[dtype])
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % chunks))).reshape(*x.shape[:2], chunks, -1).transpose(0, 2, 1, 3)
    # XLA may remove a cast and its reverse, so the rounding is explicit.
    q = x if dtype == jnp.float32 else jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    square, rest = (jnp.sum(jnp.square(v), axis=(1, 3)) for v in (q, x - q))
    underflow = math.sqrt(x.shape[1] * x.shape[3]) * (2.0**-62 + 2.0**-126 * jnp.maximum(scale, 1.0))
    error = (1 + _eps(x)) * jnp.sqrt(rest) + 2.0**-21 * jnp.sqrt(square) + underflow
    if unit:
        square = jnp.where(square == 0, 1.0, square)
    square = jnp.where(jnp.arange(len(block))[None] < count, square, _PADDING)
    return Points(q.astype(dtype), square, error)


def _eps(rows: jax.Array) -> float:
    return 4 * (rows.shape[3] + rows.shape[1] + 16) * 2.0**-24


def _lower_bounds(x: Points, y: Points) -> jax.Array:
    """Computes L of equation (3) for all pairs, float32 [b, m]."""
    eps, underflow = _eps(x.rows), x.rows.shape[1] * x.rows.shape[3] * 2.0**-120

    def chunk(total: jax.Array, rows: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        contract = (((1,), (1,)), ((), ()))
        return total + jax.lax.dot_general(rows[0], rows[1], contract, "highest", jnp.float32), None

    def tile(best: jax.Array, pair: tuple[Points, Points]) -> tuple[jax.Array, None]:
        product, _ = jax.lax.scan(chunk, jnp.zeros_like(best), tuple(side.rows for side in pair))
        a, b = ((1 - 2 * eps) * side.square - underflow for side in pair)
        distance = jnp.sqrt(jnp.maximum(a[:, None] + b[None] - 2 * product, 0.0))
        return jnp.maximum(best, distance - pair[0].error[:, None] - pair[1].error[None]), None

    start = jnp.full((x.square.shape[1], y.square.shape[1]), -jnp.inf)
    return jax.lax.scan(tile, start, (x, y))[0]


@functools.partial(jax.jit, static_argnames="group")
def merge(state: Candidates, x: Points, y: Points, start: Any, *, group: int) -> Candidates:
    """Adds a block of references to the candidates, at most the three nearest of each group of references.

    With `width` groups, group j has the references j, j + width, ..., so the least of each group is one minimum of
    whole vectors. A reference's place in its group is stored in the low bits of its L, so the minimum finds both.

    Args:
      state: the candidates so far.
      x: images.
      y: references, a multiple of `group`.
      start: the first reference's index.
      group: size of a group, from 1 to 32.
    """
    lower, count = _lower_bounds(x, y), state.lower.shape[1]
    lower = jnp.maximum(lower, 2.0**-100)  # positive normal numbers have the order of their bits
    width, low_bits = lower.shape[1] // group, (1 << (group - 1).bit_length()) - 1
    first = second = third = jnp.full((len(lower), width), 4 * FAR)
    for place in range(group):
        bits = jax.lax.bitcast_convert_type(lower[:, place * width : (place + 1) * width], jnp.int32)
        value = jax.lax.bitcast_convert_type(bits & ~low_bits | place, jnp.float32)
        first, value = jnp.minimum(first, value), jnp.maximum(first, value)
        second, value = jnp.minimum(second, value), jnp.maximum(second, value)
        third = jnp.minimum(third, value)
    negative, position = jax.lax.top_k(-jnp.concatenate([state.lower, first, second, third], axis=1), count)
    value, column = -negative, (position - count) % width
    new = start + (jax.lax.bitcast_convert_type(value, jnp.int32) & low_bits) * width + column
    old = jnp.take_along_axis(state.index, jnp.minimum(position, count - 1), axis=1)
    # If the third of a group is a candidate, a dropped fourth may be as near.
    floor = jnp.min(jnp.where(position >= count + 2 * width, value, 4 * FAR), axis=1)
    return Candidates(value, jnp.where(position < count, old, new), jnp.minimum(state.floor, floor))


@jax.jit
def within(x: Points, y: Points, limit: Any) -> jax.Array:
    """Returns which pairs may be within their image's limit, L <= limit: bool [b, m].

    Args:
      x: images.
      y: references.
      limit: float32 [b], distances of points.
    """
    return _lower_bounds(x, y) <= limit[:, None]
