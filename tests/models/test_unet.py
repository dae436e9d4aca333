"""The U-Net: shapes, time, dropout, precision, and that no image of a batch influences another; pixel features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.models.layers import sinusoidal_embedding
from side_jax.models.unet import UNet


def randomised(params, seed=0):
    """Every leaf replaced by noise, so that no layer that starts at zero hides the others."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(
        tree, [0.2 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )


def initial(module, x, t):
    return jax.jit(module.init)(jax.random.key(0, impl="rbg"), x, t)["params"]


@functools.partial(jax.jit, static_argnums=(0, 4))
def apply(module, variables, x, t, deterministic=None, rngs=None):
    extra = {} if deterministic is None else {"deterministic": deterministic}
    return module.apply(variables, x, t, rngs=rngs, **extra)


def make_unet(**changes):
    options = {"out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    options |= {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return UNet(**(options | changes))


def inputs(n, size=8, channels=1):
    return jax.random.normal(jax.random.key(1), (n, size, size, channels)), jnp.arange(n) * 7


@pytest.mark.parametrize(("channels", "size", "levels"), [(1, 8, (8,)), (3, 16, (8, 16, 16))])
def test_unet_predicts_the_shape_it_is_given(channels, size, levels):
    n = len(levels)
    unet = make_unet(
        out_channels=channels,
        block_out_channels=levels,
        down_block_types=("DownBlock2D",) * n,
        up_block_types=("UpBlock2D",) * n,
    )
    x, t = inputs(2, size, channels)
    params = initial(unet, x, t)
    out = apply(unet, {"params": randomised(params)}, x, t)
    assert out.shape == x.shape
    assert out.dtype == jnp.float32


def test_unet_starts_at_zero_and_uses_the_timestep():
    unet = make_unet()
    x, t = inputs(3)
    params = initial(unet, x, t)
    np.testing.assert_array_equal(apply(unet, {"params": params}, x, t), 0)
    noisy = randomised(params)
    assert np.abs(apply(unet, {"params": noisy}, x, t) - apply(unet, {"params": noisy}, x, t + 100)).max() > 1e-3


def test_unet_treats_each_image_alone():
    unet = make_unet()
    x, t = inputs(6)
    params = randomised(initial(unet, x, t))
    whole = np.asarray(apply(unet, {"params": params}, x, t))
    part = np.asarray(apply(unet, {"params": params}, x[2:4], t[2:4]))
    np.testing.assert_allclose(part, whole[2:4], rtol=1e-4, atol=1e-4)


def test_dropout_acts_in_training_alone():
    unet = make_unet(dropout=0.5)
    x, t = inputs(2)
    params = randomised(initial(unet, x, t))

    def out(deterministic, seed):
        return apply(unet, {"params": params}, x, t, deterministic, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(out(True, 0), out(True, 1))
    assert np.abs(out(False, 0) - out(False, 1)).max() > 1e-3


def small_unet(**changes):
    one = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return make_unet(**one, add_attention=False, **changes)


def conditional(unet, params, x, t, labels):
    return np.asarray(jax.jit(unet.apply)({"params": params}, x, t, labels=labels))


def test_labels_add_one_table_and_leave_the_rest_as_it_was():
    """Its rows are the labels and, last, no label; the other parameters start as without it, from the same seed."""
    x, t = inputs(2)
    plain, own = (initial(small_unet(num_labels=count), x, t) for count in (0, 3))
    (table,) = jax.tree.leaves(own.pop("class_embedding"))
    assert table.shape == (4, 32)
    jax.tree.map(np.testing.assert_array_equal, own, plain)
    assert conditional(small_unet(), randomised(plain), x, t, jnp.asarray([0, 1])).tolist() == (
        conditional(small_unet(), randomised(plain), x, t, None).tolist()
    )


def test_a_label_is_a_shift_of_the_time_embedding():
    """The output depends on it, image by image; none at all, -1 and a table of zeros are the model without labels."""
    unet, (x, t) = small_unet(num_labels=3), inputs(4)
    params = randomised(initial(unet, x, t))
    labels = jnp.asarray([0, -1, 2, 0])
    none, some = conditional(unet, params, x, t, None), conditional(unet, params, x, t, labels)
    np.testing.assert_array_equal(conditional(unet, params, x, t, jnp.full(4, -1)), none)
    np.testing.assert_array_equal(conditional(unet, params, x, t.astype(jnp.float32), labels), some)
    changed = np.abs(some - none).max(axis=(1, 2, 3))
    assert changed[1] < 1e-5
    assert changed[[0, 2, 3]].min() > 1e-3
    assert np.abs(some - conditional(unet, params, x, t, jnp.asarray([1, -1, 1, 1])))[[0, 2, 3]].max() > 1e-3
    table = params.pop("class_embedding")
    zeros = conditional(unet, params | {"class_embedding": jax.tree.map(jnp.zeros_like, table)}, x, t, labels)
    np.testing.assert_allclose(zeros, conditional(small_unet(), params, x, t, None), rtol=1e-4, atol=1e-5)


def test_sinusoidal_embedding_by_hand():
    t = jnp.asarray([0, 3])
    got = np.asarray(sinusoidal_embedding(t, 4))
    np.testing.assert_allclose(got[0], [0, 0, 1, 1])
    np.testing.assert_allclose(got[1], [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)], rtol=1e-5)
    np.testing.assert_array_equal(sinusoidal_embedding(t, 4, flip_sin_to_cos=True)[1], got[1, [2, 3, 0, 1]])
    shifted = np.asarray(sinusoidal_embedding(t, 4, freq_shift=1.0))  # the original DDPM: the last is 1 / max_period
    np.testing.assert_allclose(shifted[1], [np.sin(3), np.sin(3e-4), np.cos(3), np.cos(3e-4)], rtol=1e-5)


def test_rematerialisation_changes_memory_alone():
    x, t = inputs(2)
    params = randomised(initial(make_unet(), x, t))

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(unet, params):
        return jax.grad(lambda p: jnp.square(unet.apply({"params": p}, x, t, False)).mean())(params)

    plain, remat = (gradient(make_unet(remat=remat), params) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, remat)
    assert "remat" in str(jax.make_jaxpr(lambda p: gradient(make_unet(remat=True), p))(params))
    assert "remat" not in str(jax.make_jaxpr(lambda p: gradient(make_unet(), p))(params))


def test_bfloat16_computes_in_half_and_keeps_its_parameters():
    """Close to float32, but not it; parameters and output stay float32."""
    x, t = inputs(4)
    params = randomised(initial(make_unet(), x, t))
    with jax.numpy_dtype_promotion("standard"):  # flax's own norms rely on it
        params_half = initial(make_unet(dtype=jnp.bfloat16), x, t)
        half = apply(make_unet(dtype=jnp.bfloat16), {"params": params}, x, t)
    full = np.asarray(apply(make_unet(), {"params": params}, x, t))
    assert {leaf.dtype for leaf in jax.tree.leaves(params_half)} == {jnp.dtype("float32")}
    assert half.dtype == jnp.float32
    error = np.abs(np.asarray(half) - full).max() / np.abs(full).max()
    assert 1e-5 < error < 0.05
