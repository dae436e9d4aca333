"""The convolutions for CPU compute what XLA's do, in value and in both gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.models.convolution import conv3x3

NUMBERS = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
OWN, LAX = (functools.partial(conv, **NUMBERS) for conv in (conv3x3, jax.lax.conv_general_dilated))
WAYS = [((1, 1), ((1, 1), (1, 1))), ((2, 2), ((1, 1), (1, 1))), ((2, 2), ((0, 1), (0, 1)))]


def drawn(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape)


def convolutions(conv, shape, channels, strides, padding):
    """How many convolutions XLA is given, and of which kernels."""
    x, kernel = drawn(*shape), drawn(3, 3, shape[-1], channels)
    text = str(jax.make_jaxpr(lambda x, kernel: conv(x, kernel, strides, padding))(x, kernel))
    return text.count("conv_general_dilated"), "dot_general" in text


@pytest.mark.parametrize(("strides", "padding"), WAYS)
def test_values_and_gradients_are_those_of_lax(strides, padding):
    x, kernel = drawn(3, 8, 6, 32), drawn(3, 3, 32, 48)
    values, pullbacks = zip(
        *(jax.vjp(lambda *a, c=c: c(*a, strides, padding), x, kernel) for c in (OWN, LAX)), strict=True
    )
    assert values[0].shape == values[1].shape
    gradient = drawn(*values[0].shape)
    for own, lax in zip((values[0], *pullbacks[0](gradient)), (values[1], *pullbacks[1](gradient)), strict=True):
        np.testing.assert_allclose(own, lax, atol=3e-6 * float(jnp.abs(lax).max()), rtol=0)


def test_which_way_is_taken():
    (one, pad_one), (two, pad_two), _ = WAYS
    assert convolutions(OWN, (2, 8, 8, 32), 32, one, pad_one) == (0, True)
    assert convolutions(OWN, (2, 7, 8, 32), 32, one, pad_one) == (1, False)  # no whole number of 2x2 blocks
    assert convolutions(OWN, (2, 8, 8, 16), 32, one, pad_one) == (1, False)
    assert convolutions(OWN, (2, 8, 8, 32), 32, one, ((0, 1), (0, 1))) == (1, False)
    no_padding = ((0, 0), (0, 0))
    assert OWN(drawn(2, 8, 8, 32), drawn(3, 3, 32, 32), two, no_padding).shape == (2, 3, 3, 32)
    strided = jax.make_jaxpr(lambda x, k: OWN(x, k, two, pad_two))(drawn(2, 8, 8, 32), drawn(3, 3, 32, 32))
    assert "window_strides=(1, 1)" in str(strided)


def test_half_precision_goes_to_xla():
    x, kernel = (drawn(*shape).astype(jnp.bfloat16) for shape in ((2, 8, 8, 32), (3, 3, 32, 32)))
    assert OWN(x, kernel, *WAYS[0]).dtype == jnp.bfloat16


@pytest.mark.parametrize("strides", [1, 2])
def test_a_layer_of_flax_is_the_same_with_it(strides):
    x = drawn(2, 8, 8, 32)
    plain = nn.Conv(64, (3, 3), strides, padding=1)
    own = nn.Conv(64, (3, 3), strides, padding=1, conv_general_dilated=conv3x3)
    params = plain.init(jax.random.key(0), x)
    np.testing.assert_allclose(own.apply(params, x), plain.apply(params, x), atol=1e-5)
