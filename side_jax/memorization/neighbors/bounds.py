"""Bounds of distances on the device, by matrix products: rigorous, whatever order the products are added up in.

A point x' stands for an image or for a tile of one, w numbers (distances.py says how); a distance of images is the
largest one of their tiles' points. Points are rounded to q, in bfloat16 or float32. By the triangle inequality, with
e_x = |x' - q_x|, which is known,

    | |x' - y'| - |q_x - q_y| | <= e_x + e_y                                                       (1)

A product of two numbers of bfloat16, added to others in float32 in any order, costs w u sum |a_i b_i| at most, to first
order, with u = 2^-24; of two of float32, (w + 1) u (Higham 2002, "Accuracy and Stability of Numerical Algorithms",
section 3.1). Long points are cut into c chunks of w numbers, whose products are added up in turn. With |q_x|^2, |q_y|^2
and q_x.q_y found so, and D = |q_x|^2 + |q_y|^2 - 2 q_x.q_y,

    |D - |q_x - q_y|^2| <= (w + c + 4) u (|q_x| + |q_y|)^2 <= 2 eps (|q_x|^2 + |q_y|^2)            (2)

where eps = (w + c + 16) u would do. It is four times that, for devices that cut digits off instead of rounding. Hence

    L, U = max over tiles of sqrt(max(0, D -+ 2 eps (|q_x|^2 + |q_y|^2))) -+ (e_x + e_y)           (3)

bound the distance from below and above. In (3), e has a further 8 u |q|, for rounding x', the root and its difference,
and both have what underflow can cost.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FAR = 2.0**61  # more than any distance, less than that of padding
LEVELS = np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1.0)  # of uint8, as sampling.to_float has it

_PADDING = 2.0**125  # |q|^2 of an image that is not there
_CHUNK = {jnp.bfloat16: 2048, jnp.float32: 512}


class Points(NamedTuple):
    """b images: q [tiles, c, b, w], bfloat16 or float32; |q|^2 and e of equation (1), float32 [tiles, b]."""

    rows: jax.Array
    square: jax.Array
    error: jax.Array


class Kept(NamedTuple):
    """Candidates of b images: L float32 [b, kept], ascending, and references int32 [b, kept].

    No reference that was dropped has an L below the floor, float32 [b], or below the last L. Both are what `least`
    makes of them.
    """

    lower: jax.Array | np.ndarray
    index: jax.Array | np.ndarray  # type: ignore[assignment]  # a tuple has a method of that name
    floor: jax.Array | np.ndarray


def nothing(images: int, kept: int) -> Kept:
    """What to begin with: padding only."""
    far = np.full((images, kept), 4 * FAR, np.float32)
    return Kept(far, np.zeros((images, kept), np.int32), far[:, 0])


def least(lower: np.ndarray) -> np.ndarray:
    """The least L that `merge` may have turned into this: float64."""
    return np.asarray(lower, np.float64) * (1 - 2.0**-17) - 2.0**-99


@functools.partial(jax.jit, static_argnames=("grid", "unit", "dtype"))
def points(block: Any, count: Any, centre: Any, scale: Any, *, grid: int, unit: bool, dtype: Any) -> Points:
    """Images as points, block * scale - centre.

    Args:
      block: float32, or uint8 for LEVELS of it, [b, ...]; [b, h, w, c] where there are tiles.
      count: how many are images; those after them are padding.
      centre: float32 [...].
      scale: float32, a power of two.
      grid: tiles along each side.
      unit: whether images are unit vectors; those that are zero then stand for one of a dimension that no other has.
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
    # Not by a cast and its reverse, which XLA may leave out.
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


def _bounds(x: Points, y: Points, signs: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Equation (3) of all pairs, float32 [b, m]: L for the sign -1, U for 1."""
    eps, underflow = _eps(x.rows), x.rows.shape[1] * x.rows.shape[3] * 2.0**-120

    def chunk(total: jax.Array, rows: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        contract = (((1,), (1,)), ((), ()))
        return total + jax.lax.dot_general(rows[0], rows[1], contract, "highest", jnp.float32), None

    def tile(best: tuple[jax.Array, ...], both: tuple[Points, Points]) -> tuple[tuple[jax.Array, ...], None]:
        product, _ = jax.lax.scan(chunk, jnp.zeros_like(best[0]), tuple(side.rows for side in both))
        made = []
        for sign, before in zip(signs, best, strict=True):
            a, b = ((1 + 2 * sign * eps) * side.square + sign * underflow for side in both)
            distance = jnp.sqrt(jnp.maximum(a[:, None] + b[None] - 2 * product, 0.0))
            made.append(jnp.maximum(before, distance + sign * both[0].error[:, None] + sign * both[1].error[None]))
        return tuple(made), None

    start = jnp.full((x.square.shape[1], y.square.shape[1]), -jnp.inf)
    return jax.lax.scan(tile, (start,) * len(signs), (x, y))[0]


@functools.partial(jax.jit, static_argnames="group")
def merge(state: Kept, x: Points, y: Points, start: Any, *, group: int) -> Kept:
    """Adds a block of references to the candidates: of each group of so many references no more than the three nearest.

    With `width` groups, group j has the references j, j + width, ...: the least of each group is one minimum of whole
    vectors. A reference's place in its group takes the low bits of its L, so that the minimum finds both.

    Args:
      state: the candidates so far.
      x: images.
      y: references, a multiple of `group`.
      start: the first reference's index.
      group: from 1 to 32.
    """
    (lower,), kept = _bounds(x, y, (-1,)), state.lower.shape[1]
    lower = jnp.maximum(lower, 2.0**-100)  # normal numbers above 0 are in the order of their bits
    width, low_bits = lower.shape[1] // group, (1 << (group - 1).bit_length()) - 1
    first = second = third = jnp.full((len(lower), width), 4 * FAR)
    for place in range(group):
        bits = jax.lax.bitcast_convert_type(lower[:, place * width : (place + 1) * width], jnp.int32)
        value = jax.lax.bitcast_convert_type(bits & ~low_bits | place, jnp.float32)
        first, value = jnp.minimum(first, value), jnp.maximum(first, value)
        second, value = jnp.minimum(second, value), jnp.maximum(second, value)
        third = jnp.minimum(third, value)
    negative, position = jax.lax.top_k(-jnp.concatenate([state.lower, first, second, third], axis=1), kept)
    value, column = -negative, (position - kept) % width
    new = start + (jax.lax.bitcast_convert_type(value, jnp.int32) & low_bits) * width + column
    old = jnp.take_along_axis(state.index, jnp.minimum(position, kept - 1), axis=1)
    # Behind the third of a group may be a fourth that is as near.
    floor = jnp.min(jnp.where(position >= kept + 2 * width, value, 4 * FAR), axis=1)
    return Kept(value, jnp.where(position < kept, old, new), jnp.minimum(state.floor, floor))


@jax.jit
def classify(x: Points, y: Points, limits: Any) -> tuple[jax.Array, jax.Array]:
    """Compares the distances of all pairs with a range for each image.

    Args:
      x: images.
      y: references.
      limits: float32 [4, b]: a little below and above the low end, a little below and above the high end.

    Returns:
      (the pairs that the bounds leave in doubt, bool [b, m]; how many images surely are in range, int32 [m]).
    """
    lower, upper = _bounds(x, y, (-1, 1))
    sure = (lower > limits[1][:, None]) & (upper < limits[2][:, None])
    possible = (upper >= limits[0][:, None]) & (lower <= limits[3][:, None])
    return possible & ~sure, jnp.sum(sure, axis=0, dtype=jnp.int32)
