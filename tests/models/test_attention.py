"""The attention for CPU computes what jax.nn's does, in value and in all derivatives, and holds at extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.models.attention import attention


def drawn(seed, *shape, scale=1.0):
    return scale * jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(("heads", "features"), [(1, 16), (4, 2)])
def test_values_and_gradients_are_those_of_jax(heads, features):
    q, gradient = (drawn(seed, 3, 9, heads, features, scale=2.0) for seed in (0, 3))
    k, v = (drawn(seed, 3, 5, heads, features, scale=2.0) for seed in (1, 2))
    (own, pull), (theirs, their_pull) = (jax.vjp(f, q, k, v) for f in (attention, jax.nn.dot_product_attention))
    np.testing.assert_allclose(own, theirs, atol=5e-6)
    for ours, expected in zip(pull(gradient), their_pull(gradient), strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_forward_mode_is_that_of_jax():
    """The likelihood's trace is computed so."""
    q, k, v = (drawn(seed, 2, 5, 2, 4, scale=2.0) for seed in range(3))
    tangents = tuple(drawn(seed, 2, 5, 2, 4) for seed in range(3, 6))
    own, theirs = (jax.jvp(f, (q, k, v), tangents) for f in (attention, jax.nn.dot_product_attention))
    for ours, expected in zip(own, theirs, strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_gradients_are_those_of_float64():
    """An oracle without either implementation: the definition, differentiated numerically in float64."""
    q, k, v, gradient = (np.asarray(drawn(seed, 1, 4, 1, 3), np.float64) for seed in range(4))

    def value(q, k, v):
        scores = q[0, :, 0] @ k[0, :, 0].T / np.sqrt(3)
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        return ((weights @ v[0, :, 0]) * gradient[0, :, 0]).sum()

    _, pull = jax.vjp(attention, *(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    for which, ours in enumerate(pull(jnp.asarray(gradient, jnp.float32))):
        for at in np.ndindex(ours.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [q.copy(), k.copy(), v.copy()]
                moved[which][at] += step
                ends.append(value(*moved))
            np.testing.assert_allclose(ours[at], (ends[0] - ends[1]) / 2e-5, atol=1e-5)


def test_huge_scores_choose_one_key():
    q = k = jnp.asarray(1e4 * np.eye(4), jnp.float32)[None, :, None]
    v = drawn(0, 1, 4, 1, 4)
    out, pull = jax.vjp(attention, q, k, v)
    np.testing.assert_array_equal(out, v)
    assert all(jnp.isfinite(gradient).all() for gradient in pull(out))


def test_half_precision_goes_to_jax():
    q = drawn(0, 2, 4, 2, 8).astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # jax.nn's own relies on it in bfloat16
        np.testing.assert_array_equal(attention(q, q, q), jax.nn.dot_product_attention(q, q, q))
