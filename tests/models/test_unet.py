"""The U-Net: shapes, time, dropout, precision, and that no image of a batch influences another; pixel features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.models.layers import sinusoidal_embedding
from side_jax.models.unet import UNet


def noise(module, *args):
    """Parameters of noise, with scales about 1, so that no layer that starts at zero hides the others.

    From NumPy: to compile the initial parameters takes as long as to compile the network.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        return np.asarray((path[-1].key == "scale") + 0.2 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(draw, jax.eval_shape(module.init, jax.random.key(0), *args)["params"])


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
    x = np.random.default_rng(1).normal(size=(n, size, size, channels))
    return x.astype(np.float32), 7 * np.arange(n, dtype=np.int32)


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
    out, _ = jax.eval_shape(unet.init_with_output, jax.random.key(0), x, t)
    assert out.shape == x.shape
    assert out.dtype == jnp.float32


def test_unet_starts_at_zero_and_uses_the_timestep():
    unet, (x, t) = make_unet(), inputs(6)
    np.testing.assert_array_equal(apply(unet, {"params": initial(unet, x, t)}, x, t), 0)
    params = {"params": noise(unet, x, t)}
    moved = np.abs(np.asarray(apply(unet, params, x, t)) - apply(unet, params, x, t + 100))
    assert moved.max(axis=(1, 2, 3)).min() > 1e-3


def test_unet_treats_each_image_alone():
    """Other neighbours, at other timesteps, change nothing."""
    unet, (x, t) = make_unet(), inputs(6)
    params = {"params": noise(unet, x, t)}
    whole = np.asarray(apply(unet, params, x, t))
    others, later = x.copy(), t + 50
    others[[0, 1, 4, 5]] = 3 * x[[5, 4, 1, 0]]
    later[2:4] = t[2:4]
    np.testing.assert_allclose(apply(unet, params, others, later)[2:4], whole[2:4], rtol=1e-4, atol=1e-6)


def test_dropout_acts_in_training_alone():
    unet, (x, t) = small_unet(dropout=0.5), inputs(2)
    params = noise(unet, x, t)

    def out(deterministic, seed):
        return apply(unet, {"params": params}, x, t, deterministic, rngs={"dropout": jax.random.key(seed)})

    np.testing.assert_array_equal(out(True, 0), out(True, 1))
    assert np.abs(np.asarray(out(False, 0)) - out(False, 1)).max() > 1e-3


def small_unet(**changes):
    one = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return make_unet(**one, add_attention=False, **changes)


@functools.partial(jax.jit, static_argnums=0)
def with_labels(unet, params, x, t, labels):
    return unet.apply({"params": params}, x, t, labels=labels)


def conditional(*args):
    return np.asarray(with_labels(*args))


def test_labels_add_one_table_and_leave_the_rest_as_it_was():
    """Its rows are the labels and, last, no label; the other parameters start as without it, from the same seed."""
    x, t = inputs(2)
    plain, own = (initial(small_unet(num_labels=count), x, t) for count in (0, 3))
    (table,) = jax.tree.leaves(own.pop("class_embedding"))
    assert table.shape == (4, 32)
    jax.tree.map(np.testing.assert_array_equal, own, plain)
    labelled, without = (with_labels.lower(small_unet(), plain, x, t, labels) for labels in (np.asarray([0, 1]), None))
    assert labelled.as_text() == without.as_text()


def test_a_label_is_a_shift_of_the_time_embedding():
    """The output depends on it, image by image; none at all, -1 and a table of zeros are the model without labels."""
    unet, (x, t) = small_unet(num_labels=3), inputs(4)
    params = noise(unet, x, t)
    labels = np.asarray([0, -1, 2, 0], np.int32)
    none, some = conditional(unet, params, x, t, None), conditional(unet, params, x, t, labels)
    np.testing.assert_array_equal(conditional(unet, params, x, t, np.full(4, -1, np.int32)), none)
    np.testing.assert_array_equal(conditional(unet, params, x, t.astype(np.float32), labels), some)
    changed = np.abs(some - none).max(axis=(1, 2, 3))
    assert changed[1] < 1e-5
    assert changed[[0, 2, 3]].min() > 1e-3
    assert np.abs(some - conditional(unet, params, x, t, np.asarray([1, -1, 1, 1], np.int32)))[[0, 2, 3]].max() > 1e-3
    table = params.pop("class_embedding")
    zeros = conditional(unet, params | {"class_embedding": jax.tree.map(np.zeros_like, table)}, x, t, labels)
    np.testing.assert_allclose(zeros, conditional(small_unet(), params, x, t, None), rtol=1e-4, atol=1e-5)


def test_sinusoidal_embedding_by_hand():
    @jax.jit
    def embeddings(t):
        variants = ({}, {"flip_sin_to_cos": True}, {"freq_shift": 1.0})
        return [sinusoidal_embedding(t, 4, **variant) for variant in variants]

    got, flipped, shifted = map(np.asarray, embeddings(np.asarray([0, 3])))
    np.testing.assert_allclose(got[0], [0, 0, 1, 1])
    np.testing.assert_allclose(got[1], [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)], rtol=1e-5)
    np.testing.assert_array_equal(flipped[1], got[1, [2, 3, 0, 1]])
    # As in the original DDPM: the last is 1 / max_period.
    np.testing.assert_allclose(shifted[1], [np.sin(3), np.sin(3e-4), np.cos(3), np.cos(3e-4)], rtol=1e-5)


def test_rematerialisation_changes_memory_alone():
    one_level = {"block_out_channels": (8,), "down_block_types": ("AttnDownBlock2D",), "add_attention": False}
    one_level["up_block_types"] = ("AttnUpBlock2D",)
    unets, (x, t) = [make_unet(**one_level, remat=remat) for remat in (False, True)], inputs(2)
    params = noise(unets[0], x, t)

    @functools.partial(jax.jit, static_argnums=0)
    def gradient(unet, params):
        return jax.grad(lambda p: jnp.square(unet.apply({"params": p}, x, t, False)).mean())(params)

    plain, remat = (gradient(unet, params) for unet in unets)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, remat)
    forward = [str(jax.make_jaxpr(unet.apply)({"params": params}, x, t)) for unet in unets]
    assert [program.count("remat") for program in forward] == [0, 5 + 3]  # residual blocks and attention layers


def test_bfloat16_computes_in_half_and_keeps_its_parameters():
    """Close to float32, but not it; parameters and output stay float32."""
    x, t = inputs(6)
    unet, half_unet = make_unet(), make_unet(dtype=jnp.bfloat16)
    params = noise(unet, x, t)
    with jax.numpy_dtype_promotion("standard"):  # flax's own norms rely on it
        params_half = jax.eval_shape(half_unet.init, jax.random.key(0), x, t)["params"]
        half = apply(half_unet, {"params": params}, x, t)
    full = np.asarray(apply(unet, {"params": params}, x, t))
    assert {leaf.dtype for leaf in jax.tree.leaves(params_half)} == {jnp.dtype("float32")}
    assert half.dtype == jnp.float32
    error = np.abs(np.asarray(half) - full).max() / np.abs(full).max()
    assert 1e-5 < error < 0.05
