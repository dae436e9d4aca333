"""The attention for CPU computes what jax.nn's does, in value and in all derivatives, and holds at extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.models import attention as module
from side_jax.models.attention import attention


def drawn(seed, *shape, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def tensors(heads, features):
    """(q, k, v), their tangents and the output's cotangent."""
    shapes = [(3, n, heads, features) for n in (9, 5, 5)]
    primals = tuple(drawn(seed, *shape, scale=2.0) for seed, shape in enumerate(shapes))
    return primals, tuple(drawn(3 + seed, *shape) for seed, shape in enumerate(shapes)), drawn(6, *shapes[0], scale=2.0)


@jax.jit
def both(primals, tangents, cotangent):
    """(value, gradients, value and its derivative in forward mode) of our attention and of jax.nn's."""

    def of(function):
        value, pull = jax.vjp(function, *primals)
        return value, pull(cotangent), jax.jvp(function, primals, tangents)

    return of(attention), of(jax.nn.dot_product_attention)


def close(ours, theirs, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), ours, theirs)


@pytest.mark.parametrize(("heads", "features"), [(1, 16), (4, 2)])
def test_values_and_gradients_are_those_of_jax(heads, features):
    own, theirs = both(*tensors(heads, features))
    close(own[0], theirs[0], atol=5e-6)
    close(own[1], theirs[1], atol=2e-5)


def test_forward_mode_is_that_of_jax():
    """The likelihood's trace is computed so."""
    own, theirs = both(*tensors(4, 2))
    close(own[2], theirs[2], atol=2e-5)


@jax.jit
def pulled(q, k, v, cotangent):
    """(value, gradients) of our attention."""
    value, pull = jax.vjp(attention, q, k, v)
    return value, pull(cotangent)


def test_gradients_are_those_of_float64():
    """An oracle without either implementation: the definition, differentiated numerically in float64."""
    q, k, v, gradient = (drawn(seed, 1, 4, 1, 3).astype(np.float64) for seed in range(4))

    def value(q, k, v):
        scores = q[0, :, 0] @ k[0, :, 0].T / np.sqrt(3)
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        return ((weights @ v[0, :, 0]) * gradient[0, :, 0]).sum()

    for which, ours in enumerate(map(np.asarray, pulled(q, k, v, gradient)[1])):
        for at in np.ndindex(ours.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [q.copy(), k.copy(), v.copy()]
                moved[which][at] += step
                ends.append(value(*moved))
            np.testing.assert_allclose(ours[at], (ends[0] - ends[1]) / 2e-5, atol=1e-5)


def test_queries_in_parts_have_the_same_values_and_derivatives(monkeypatch):
    """Of 9 queries of 5 keys: three parts of three."""
    expected, _ = both(*tensors(4, 2))
    monkeypatch.setattr(module, "_MOST_WEIGHTS", 22)
    assert module._parts(9, 5) == 3
    primals, tangents, cotangent = tensors(4, 2)

    @jax.jit  # anew, since the limit is read when it is traced
    def in_parts(primals, tangents, cotangent):
        value, pull = jax.vjp(attention, *primals)
        return value, pull(cotangent), jax.jvp(attention, primals, tangents)

    close(in_parts(primals, tangents, cotangent), expected, atol=5e-6)
    loop = str(jax.make_jaxpr(attention)(*primals))
    assert "scan" in loop or "while" in loop


@pytest.mark.parametrize(
    ("n", "m", "parts"), [(1024, 1024, 1), (2048, 2048, 1), (4096, 4096, 4), (16384, 16384, 64), (4489, 4489, 67)]
)
def test_parts_are_equal_and_hold_a_bounded_number_of_weights(n, m, parts):
    assert module._parts(n, m) == parts
    assert n % parts == 0


def test_huge_scores_choose_one_key():
    q = k = 1e4 * np.eye(4)[None, :, None]
    v = drawn(0, 1, 4, 1, 4)
    out, gradients = pulled(q, k, v, v)
    np.testing.assert_array_equal(out, v)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_half_precision_goes_to_jax():
    q = drawn(0, 2, 4, 2, 8).astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # jax.nn's own relies on it in bfloat16
        own, theirs = jax.jit(lambda q: (attention(q, q, q), jax.nn.dot_product_attention(q, q, q)))(q)
    np.testing.assert_array_equal(own, theirs)
