"""3x3 convolutions that are faster on CPU than XLA's: Winograd's at stride 1, over blocks of pixels at stride 2.

On other backends, and where they are not faster, they call lax.conv_general_dilated.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MIN_CHANNELS = 32  # with fewer channels, the transforms cost more than they save
_KERNEL = np.asarray([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_SAME = ((1, 1), (1, 1))  # padding by one pixel
_KERNELS = np.kron(_KERNEL, _KERNEL)  # [16, 9]: acts on a kernel's rows and columns


def conv3x3(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
    """Replaces lax.conv_general_dilated in flax.linen.Conv(conv_general_dilated=...) for 3x3 kernels.

    Args:
      x: [b, h, w, c].
      kernel: [3, 3, c, k].
      strides: (1, 1) or (2, 2).
      padding: rows and columns of zeros, ((top, bottom), (left, right)).
      options: further arguments of lax.conv_general_dilated, passed on by Flax.

    Returns:
      [b, h', w', k].
    """
    fits = x.dtype == jnp.float32 and min(kernel.shape[2:]) >= _MIN_CHANNELS and not (x.shape[1] % 2 or x.shape[2] % 2)
    if jax.default_backend() == "cpu" and fits:
        pads = tuple(map(tuple, padding))
        if tuple(strides) == (1, 1) and pads == _SAME:
            return _winograd(x, kernel)
        if tuple(strides) == (2, 2) and pads in (_SAME, ((0, 1), (0, 1))):
            return _strided(x, kernel, pads[0][0])
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)


def _plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), _SAME, dimension_numbers=numbers)


@jax.custom_vjp
def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """F(2x2, 3x3) of Lavin and Gray 2016: each 2x2 block of pixels takes 16 matrix products instead of 36."""
    b, h, w, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = _inputs(*(padded[:, i : i + h - 1 : 2] for i in range(4)))
    tiles = [tile for row in rows for tile in _inputs(*(row[:, :, i : i + w - 1 : 2] for i in range(4)))]
    patches = jnp.stack(tiles).reshape(16, -1, c)
    weights = (_KERNELS @ kernel.reshape(9, -1)).reshape(16, c, -1)
    products = jnp.einsum("tnc,tck->tnk", patches, weights).reshape(4, 4, b, h // 2, w // 2, -1)
    blocks = [_outputs(*row) for row in zip(*(_outputs(*products[i]) for i in range(4)), strict=True)]
    return jnp.stack([jnp.stack(row, axis=3) for row in zip(*blocks, strict=True)], axis=2).reshape(b, h, w, -1)


def _inputs(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:
    return a - c, b + c, c - b, b - d


def _outputs(a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array) -> tuple[jax.Array, ...]:
    return a + b + c, b - c - d


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _winograd(x, kernel), (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    (d_kernel,) = jax.linear_transpose(lambda kernel: _plain(x, kernel), kernel)(gradient)
    return _winograd(gradient, flipped), d_kernel


_winograd.defvjp(_forward, _backward)


def _strided(x: jax.Array, kernel: jax.Array, before: int) -> jax.Array:
    """Convolves 2x2 blocks of pixels at stride 1 with a 2x2 kernel; pads `before` rows and columns at the top left."""
    x = jnp.pad(x, ((0, 0), (before, 2 - before), (before, 2 - before), (0, 0)))
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)
    kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    kernel = kernel.reshape(2, 2, 2, 2, c, -1).transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * c, -1)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
