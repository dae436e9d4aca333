"""Every classifier, on guidance's terms (no image influences another), and its parts against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from side_jax import builders
from side_jax.config import default_config, from_config
from side_jax.devices import placement
from side_jax.diffusion import pixel_range
from side_jax.diffusion.guidance import classifier_gradient
from side_jax.models.classifier import log_probs, train_log_probs
from side_jax.models.half_unet import AttentionPool
from side_jax.models.layers import BatchNorm
from side_jax.models.resnet import ResNet
from side_jax.settings import Fit
from side_jax.training import trainer

NETWORKS = [("resnet", "group"), ("resnet", "batch"), ("resnet_bottleneck", "group"), ("resnet_bottleneck", "batch")]
NETWORKS += [("half_unet", "group")]
infer = jax.jit(log_probs, static_argnums=0)
infer_in_training = jax.jit(train_log_probs, static_argnums=0)


def build(architecture, norm, *, time_dependent=True, size=8, channels=1, **changes):
    """(module, initial parameters) of a small classifier of five classes."""
    config = default_config()
    config.data.image_size, config.data.channels = size, channels
    config.classifier.update({"architecture": architecture, "norm": norm, "stage_sizes": (1, 1), "width": 8} | changes)
    settings = from_config(config)
    module = builders.build_classifier(settings, 5, time_dependent=time_dependent)
    return module, builders.init_fn(module, settings, 0)()


def randomised(tree):
    """Every leaf replaced by noise, so that no layer that starts at zero hides the others; variances stay positive."""
    paths, structure = jax.tree.flatten_with_path(tree)
    keys = jax.random.split(jax.random.key(0), len(paths))
    leaves = [0.2 * jax.random.normal(key, leaf.shape) for key, (_, leaf) in zip(keys, paths, strict=True)]
    variances = [path[-1].key == "var" for path, _ in paths]
    return jax.tree.unflatten(structure, [0.1 + abs(v) if of else v for v, of in zip(leaves, variances, strict=True)])


def inputs(n, size=8, channels=1):
    return jax.random.normal(jax.random.key(1), (n, size, size, channels)), jnp.arange(n) * 7


@pytest.mark.parametrize(
    ("architecture", "norm", "time_dependent"),
    [(*network, True) for network in NETWORKS] + [("resnet", "batch", False), ("half_unet", "group", False)],
)
def test_guidance_gradients_do_not_couple_the_batch(architecture, norm, time_dependent):
    """Shrinking or permuting the batch leaves each image's gradient as it was; BatchNorm in training would not."""
    module, tree = build(architecture, norm, time_dependent=time_dependent)
    tree, (x, t), labels = randomised(tree), inputs(6), jnp.asarray([0, 1, 2, 3, 4, 0])

    def gradient(rows, predict):
        return np.asarray(classifier_gradient(functools.partial(predict, module, tree), labels[rows])(x[rows], t[rows]))

    whole = gradient(jnp.arange(6), infer)
    assert np.abs(whole).max() > 1e-3
    order = jnp.asarray([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(gradient(order, infer), whole[order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient(jnp.asarray([2]), infer), whole[2:3], rtol=1e-4, atol=1e-5)

    if norm == "batch":
        coupled = [gradient(rows, lambda *args: infer_in_training(*args)[0]) for rows in jnp.arange(6).reshape(2, 3)]
        assert np.abs(np.concatenate(coupled) - whole).max() > 1e-3


@pytest.mark.parametrize(("channels", "size", "time_dependent"), [(1, 8, False), (3, 24, True)])
@pytest.mark.parametrize(("architecture", "norm"), NETWORKS)
def test_log_probabilities(architecture, norm, channels, size, time_dependent):
    """They are of each class, in float32; only those of a time-dependent classifier look at t."""
    options = {"stage_sizes": (1, 2, 1), "time_dependent": time_dependent, "size": size, "channels": channels}
    module, tree = build(architecture, norm, **options)
    tree, (x, t) = randomised(tree), inputs(3, size, channels)
    got = infer(module, tree, x, t)
    assert got.shape == (3, 5)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(np.exp(got).sum(1), 1, rtol=1e-5)
    assert (np.abs(got - infer(module, tree, x, t + 300)).max() > 1e-3) == time_dependent


@pytest.mark.parametrize(("architecture", "norm"), NETWORKS)
def test_training_carries_the_statistics_of_batch_norm_alone(architecture, norm):
    module, tree = build(architecture, norm, stage_sizes=(1,))
    x, t = inputs(4)
    got, carried = infer_in_training(module, tree, x, t)
    _, statistics = trainer.split_trainable(tree)
    assert bool(statistics) == (norm == "batch")
    assert jax.tree.map(jnp.shape, carried) == jax.tree.map(jnp.shape, statistics)
    same = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (carried, statistics)), strict=True)]
    assert not any(same)
    if norm == "group":
        np.testing.assert_array_equal(got, infer(module, tree, x, t))


# torchvision's of 1000 classes, with its 7x7 stem where ours is 3x3; and the channels of all blocks' first norms.
PUBLISHED = [
    ((2, 2, 2, 2), False, 11_689_512, 2 * (64 + 128 + 256 + 512)),
    ((3, 4, 6, 3), False, 21_797_672, 3 * 64 + 4 * 128 + 6 * 256 + 3 * 512),
    ((3, 4, 6, 3), True, 25_557_032, 3 * 64 + 4 * 128 + 6 * 256 + 3 * 512),
]


@pytest.mark.parametrize(("stage_sizes", "bottleneck", "count", "conditioned"), PUBLISHED)
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_resnets_have_the_published_parameters(stage_sizes, bottleneck, count, conditioned, norm):
    """Time adds two layers, of 128 and then 256 inputs, and to each block a scale and a shift of its first norm."""
    x, t = inputs(1, 16, 3)
    expected = count - 7 * 7 * 3 * 64 + 3 * 3 * 3 * 64
    for time_dependent, more in ((False, 0), (True, 129 * 256 + 257 * 256 + 257 * 2 * conditioned)):
        module = ResNet(1000, stage_sizes, 64, time_dependent, bottleneck=bottleneck, norm=norm)
        shapes = jax.eval_shape(module.init, jax.random.key(0), x, t)["params"]
        assert builders.size(shapes) == expected + more


def test_half_unet_has_the_blocks_it_is_asked_for():
    tree = jax.eval_shape(lambda: build("half_unet", "group", stage_sizes=(2, 1, 3), width=4)[1])
    blocks = [sorted(tree[f"down_blocks_{i}"]) for i in range(3)]
    assert blocks[:2] == [["downsamplers_0", "resnets_0", "resnets_1"], ["downsamplers_0", "resnets_0"]]
    assert blocks[2] == [f"{kind}_{i}" for kind in ("attentions", "resnets") for i in range(3)]
    assert sorted(tree["mid_block"]) == ["attentions_0", "resnets_0", "resnets_1"]
    assert tree["mid_block"]["resnets_0"]["conv1"]["kernel"].shape == (3, 3, 16, 16)
    assert tree["mid_block"]["resnets_0"]["time_emb_proj"]["kernel"].shape == (16, 2 * 16)


def test_attention_pool_is_the_first_token_of_full_attention():
    """All 1 + 6 tokens attend to each other in two heads; by hand."""
    x = jax.random.normal(jax.random.key(0), (2, 2, 3, 8))
    pool = AttentionPool(features=5, head_dim=4)
    params = randomised(pool.init(jax.random.key(0), x)["params"])
    got = pool.apply({"params": params}, x)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    pixels = np.asarray(x, np.float64).reshape(2, 6, 8)
    tokens = np.concatenate([pixels.mean(1, keepdims=True), pixels], axis=1) + params["positions"]
    q, k, v = (tokens @ params[n]["kernel"] + params[n]["bias"] for n in ("to_q", "to_k", "to_v"))
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        weights = np.exp(q[..., part] @ k[..., part].swapaxes(1, 2) / np.sqrt(4))
        heads.append(weights / weights.sum(axis=2, keepdims=True) @ v[..., part])
    first = np.concatenate(heads, axis=2)[:, 0]
    np.testing.assert_allclose(got, first @ params["to_out"]["kernel"] + params["to_out"]["bias"], rtol=1e-4, atol=1e-6)


def test_batch_norm_by_hand():
    """PyTorch's rule: n normalises, n - 1 counts for the running variance; frozen, it uses and keeps the latter."""
    x = np.random.default_rng(0).normal(3.0, 2.0, (3, 2, 5, 4)).astype(np.float32)
    scale, bias, mean, var = np.random.default_rng(1).uniform(0.5, 1.5, (4, 4)).astype(np.float32)
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
    got, carried = BatchNorm(train=True).apply(variables, x, mutable=["batch_stats"])
    flat = x.reshape(30, 4).astype(np.float64)
    expected = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5) * scale + bias
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(carried["batch_stats"]["mean"], 0.9 * mean + 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(carried["batch_stats"]["var"], 0.9 * var + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    frozen, kept = BatchNorm(train=False).apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(frozen, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], variables["batch_stats"])


IMAGES = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8)
LABELS = np.arange(32, dtype=np.int32) % 5


def train(architecture, norm, **changes):
    """(initial parameters, state, ema) around one step on all of IMAGES."""
    module, tree = build(architecture, norm, stage_sizes=(1,))

    def loss_fn(params, batch, keys, key):
        got, carried = train_log_probs(module, params, pixel_range.to_float(batch[0]), jnp.zeros_like(batch[1]))
        losses = -jnp.take_along_axis(got, batch[1][:, None], axis=1)
        return losses.mean(), ({"loss": (losses.sum(), jnp.float32(losses.size))}, carried)

    fit = Fit(batch_size=32, **changes)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam relies on it (decay ** count)
        stepper = trainer.Stepper(loss_fn, lambda: tree, fit, (IMAGES[:1], LABELS[:1]))
        state, ema = stepper.initial()
        parts = stepper.load(lambda ids: (IMAGES[ids], LABELS[ids]), np.arange(32))
        state, ema = stepper(state, ema, parts, stepper.key(0))
    return jax.device_get((tree, state, ema))


def test_one_step_moves_the_running_statistics_over_all_devices():
    """Those of the stem, from its convolution of the whole batch, whatever the weight decay; the EMA follows."""
    before, state, ema = train("resnet", "batch", weight_decay=0.5)
    x = pixel_range.to_float(jnp.asarray(IMAGES))
    conv = functools.partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    values = np.asarray(conv(x, before["conv_in"]["kernel"], (1, 1), "SAME"), np.float64).reshape(-1, 8)
    now, averaged = (tree["batch_stats"]["norm_in"] for tree in (state["params"], ema))
    np.testing.assert_allclose(now["mean"], 0.1 * values.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(now["var"], 0.9 + 0.1 * values.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(averaged["var"], 0.1 + 0.9 * now["var"], rtol=1e-5)


@pytest.mark.parametrize("architecture", ["resnet", "half_unet"])
def test_accumulating_gradients_changes_nothing_but_rounding(architecture, monkeypatch):
    """With GroupNorm; BatchNorm normalises each part by its own statistics. On one device, which compiles faster.

    Adam's first moments are compared: its steps would amplify the rounding of gradients that are zero.
    """
    monkeypatch.setattr(placement, "training_mesh", lambda: Mesh(np.asarray(jax.devices()[:1]), ("batch",)))
    (_, whole, _), (_, parts, _) = (train(architecture, "group", accumulate=n) for n in (1, 2))
    moments = (optax.tree.get(state["opt_state"], "mu") for state in (whole, parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), *moments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), whole["totals"], parts["totals"])
