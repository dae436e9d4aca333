"""EDM's U-Nets: labels, dropout, precision, recomputation, resampling; no image of a batch influences another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.models.dhariwal_unet import DhariwalUNet
from side_jax.models.edm_blocks import double, halve
from side_jax.models.song_unet import SongUNet

SMALL = {"img_resolution": 8, "out_channels": 1, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}
NETWORKS = {
    "SongUNet": SongUNet(
        **SMALL, label_dim=3, attn_resolutions=(4,), embedding_type="fourier", encoder_type="residual"
    ),
    "DhariwalUNet": DhariwalUNet(**SMALL, label_dim=3, attn_resolutions=()),
}
X = np.random.default_rng(1).normal(size=(3, 8, 8, 1)).astype(np.float32)
NOISE = np.asarray([-1.0, 0.2, 1.0], np.float32)
LABELS = np.asarray([0, 2, -1], np.int32)


@functools.cache
def params_of(name):
    """Noise, so that no layer that starts at zero hides the others."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(NETWORKS[name].init, jax.random.key(0), X, NOISE)["params"]

    def draw(path, leaf):
        return ((path[-1].key == "scale") + 0.2 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)


@functools.partial(jax.jit, static_argnums=(0, 4))
def apply(network, params, x, labels, deterministic=True, key=None):
    rngs = {} if key is None else {"dropout": key}
    return network.apply({"params": params}, x, NOISE, deterministic, labels, rngs=rngs)


@pytest.mark.parametrize("name", NETWORKS)
def test_images_do_not_influence_each_other(name):
    params, network = params_of(name), NETWORKS[name]
    found = apply(network, params, X, LABELS)
    assert found.shape == X.shape
    changed = X.copy()
    changed[1] += 1
    again = np.asarray(apply(network, params, changed, LABELS))
    np.testing.assert_array_equal(again[[0, 2]], found[np.asarray([0, 2])])
    assert np.abs(again[1] - found[1]).max() > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_no_labels_are_labels_for_none(name):
    params, network = params_of(name), NETWORKS[name]
    none = apply(network, params, X, np.full(3, -1, np.int32))
    np.testing.assert_allclose(apply(network, params, X, None), none, rtol=1e-4, atol=1e-4)
    labelled = np.asarray(apply(network, params, X, LABELS))
    np.testing.assert_array_equal(labelled[2], none[2])
    assert np.abs(labelled[:2] - none[:2]).max(axis=(1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_is_of_training_alone(name):
    params, network = params_of(name), NETWORKS[name]
    found = [apply(network, params, X, LABELS, False, jax.random.key(seed)) for seed in (0, 1)]
    assert np.abs(found[0] - found[1]).max() > 1e-3
    without = apply(network.clone(dropout=0.0), params, X, LABELS, False, jax.random.key(0))
    np.testing.assert_allclose(without, apply(network, params, X, LABELS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_recomputation_and_precision_change_little(name):
    params, network = params_of(name), NETWORKS[name]
    exact = apply(network, params, X, LABELS)
    with jax.numpy_dtype_promotion("standard"):  # jax.nn's own attention relies on it in bfloat16
        half = apply(network.clone(dtype=jnp.bfloat16), params, X, LABELS)
    assert half.dtype == exact.dtype == jnp.float32
    assert 0 < np.abs(half - exact).max() < 0.1 * np.abs(exact).max()

    @functools.partial(jax.jit, static_argnums=0)
    def slope(network, x):
        return jax.grad(lambda x: jnp.square(network.apply({"params": params}, x, NOISE, True, LABELS)).sum())(x)

    np.testing.assert_allclose(slope(network.clone(remat=True), X), slope(network, X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 4, 4, 3, 1)])
def test_resampling_is_a_matrix_along_each_axis(taps):
    """Halving is one matrix on both sides, doubling twice its transpose."""
    n, pad = 6, (len(taps) - 1) // 2
    matrix = np.zeros((n, 2 * n))
    for i in range(n):
        for k, weight in enumerate(taps):
            if 0 <= 2 * i + k - pad < 2 * n:
                matrix[i, 2 * i + k - pad] = weight / sum(taps)
    x = np.random.default_rng(0).normal(size=(2, 2 * n, 2 * n, 3)).astype(np.float32)
    expected = np.einsum("ih,jw,bhwc->bijc", matrix, matrix, x)
    np.testing.assert_allclose(halve(x, taps), expected, rtol=1e-5, atol=1e-6)
    up = np.einsum("ih,jw,bijc->bhwc", 2 * matrix, 2 * matrix, expected)
    np.testing.assert_allclose(double(expected.astype(np.float32), taps), up, rtol=1e-5, atol=1e-6)
