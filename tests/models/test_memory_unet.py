"""The U-Net with memory: its attention by definition, its norm, and how it is computed; parity is in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.models.memory_unet import MemoryAttention, MemoryUNet, RMSNorm, unshuffle

SMALL = MemoryUNet(
    out_channels=1,
    time_channels=4,
    stem_channels=6,
    block_out_channels=(4, 8),
    heads=(1, 2),
    head_channels=(4, 2),
    full_attention=(False, True),
)


def noise(module, *args):
    """Parameters of noise, with scales about 1."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        return np.asarray((path[-1].key == "scale") + 0.3 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(draw, jax.eval_shape(module.init, jax.random.key(0), *args)["params"])


def softmax(values, axis):
    values = np.exp(values - values.max(axis=axis, keepdims=True))
    return values / values.sum(axis=axis, keepdims=True)


def rms_norm(x, scale):
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True)) * scale


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("memory", [0, 3])
def test_attention_is_its_definition(full, memory):
    heads, width = 2, 4
    module = MemoryAttention(heads, width, memory, full, jnp.float32)
    x = np.random.default_rng(1).standard_normal((2, 3, 5, 6)).astype(np.float32)
    params = noise(module, x)
    found = jax.jit(module.apply)({"params": params}, x)

    flat = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    y = rms_norm(x.astype(np.float64), flat["norm"]["scale"]).reshape(2, 15, 6) @ flat["to_qkv"]["kernel"]
    q, k, v = (part.reshape(2, 15, heads, width) for part in np.split(y, 3, axis=-1))
    if memory:
        tables = (flat[name]["embedding"].reshape(1, memory, heads, width) for name in ("memory_keys", "memory_values"))
        k, v = (
            np.concatenate([table.repeat(2, axis=0), part], axis=1) for table, part in zip(tables, (k, v), strict=True)
        )
    if full:
        y = np.einsum("bhqk,bkhd->bqhd", softmax(np.einsum("bqhd,bkhd->bhqk", q, k) / 2, -1), v)
    else:
        y = np.einsum("bqhd,bkhd,bkhe->bqhe", softmax(q, -1) / 2, softmax(k, 1), v)
    y = y.reshape((*x.shape[:3], 8)) @ flat["to_out"]["kernel"] + flat["to_out"]["bias"]
    y = y if full else rms_norm(y, flat["out_norm"]["scale"])
    np.testing.assert_allclose(found, x + y, atol=2e-5)


def test_unshuffled_pixels_are_grouped_by_channel():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    found = np.asarray(unshuffle(jnp.asarray(x)))
    assert found.shape == (2, 2, 3, 12)
    for c in range(3):
        assert found[1, 1, 2, 4 * c : 4 * c + 4].tolist() == x[1, 2:4, 4:6, c].ravel().tolist()


def test_the_norm_of_zero_has_a_gradient():
    module, x = RMSNorm(jnp.float32), jnp.zeros((1, 2, 2, 4))
    params = {"scale": jnp.ones(4)}
    value, gradient = jax.jit(jax.value_and_grad(lambda x: module.apply({"params": params}, x).sum()))(x)
    assert value == 0
    assert np.isfinite(gradient).all()


def test_how_it_is_computed_changes_little():
    """In bfloat16, with a float32 output; and images of a batch do not influence each other."""
    rng = np.random.default_rng(1)
    x, t = rng.standard_normal((3, 4, 6, 1)).astype(np.float32), np.asarray([0.0, 12.5, 39.0], np.float32)
    params = noise(SMALL, x, t)
    apply = jax.jit(lambda x, t: SMALL.apply({"params": params}, x, t))
    whole = np.asarray(apply(x, t))
    assert whole.shape == x.shape
    assert np.abs(apply(x, t + 20) - whole).max(axis=(1, 2, 3)).min() > 1e-3
    others = np.concatenate([3 * x[1:2], x[1:2], x[:1]])
    np.testing.assert_allclose(apply(others, np.asarray([5.0, 12.5, 6.0], np.float32))[1], whole[1], atol=1e-5)
    with jax.numpy_dtype_promotion("standard"):  # jax.nn's attention relies on it in bfloat16
        half = jax.jit(SMALL.clone(dtype=jnp.bfloat16).apply)({"params": params}, x, t)
    assert half.dtype == jnp.float32
    assert 0 < np.abs(half - whole).max() < 0.1 * np.abs(whole).max()


def test_blocks_are_recomputed_if_asked():
    """Each of the 7 residual blocks and 3 attention layers of a single level, with the same parameters."""
    net = SMALL.clone(block_out_channels=(4,), heads=(1,), head_channels=(4,), full_attention=(False,))
    args = jax.random.key(0), np.ones((2, 3, 3, 1), np.float32), np.asarray([3, 30], np.int32)
    found = []
    for remat in (False, True):
        jaxpr, tree = jax.make_jaxpr(net.clone(remat=remat).init, return_shape=True)(*args)
        found.append((sum("remat" in str(step.primitive) for step in jaxpr.eqns), jax.tree.map(jnp.shape, tree)))
    assert [count for count, _ in found] == [0, 10]
    assert found[0][1] == found[1][1]
