"""Every classifier, on guidance's terms (no image influences another), and its parts against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax import builders
from side_jax.config import default_config, from_config
from side_jax.diffusion import pixel_range
from side_jax.diffusion.guidance import classifier_gradient
from side_jax.models.classifier import log_probs, train_log_probs
from side_jax.models.half_unet import AttentionPool
from side_jax.models.layers import BatchNorm
from side_jax.models.resnet import ResNet
from side_jax.settings import Fit
from side_jax.training import trainer

infer = jax.jit(log_probs, static_argnums=0)
infer_in_training = jax.jit(train_log_probs, static_argnums=0)


def build(architecture, norm, *, time_dependent=True, size=8, channels=1, **changes):
    """(module, shapes of its parameters) of a small classifier of five classes."""
    config = default_config()
    config.data.image_size, config.data.channels = size, channels
    config.classifier.update({"architecture": architecture, "norm": norm, "stage_sizes": (1,), "width": 8} | changes)
    settings = from_config(config)
    module = builders.build_classifier(settings, 5, time_dependent=time_dependent)
    return module, jax.eval_shape(builders.init_fn(module, settings, 0))


def randomised(shapes):
    """Noise of these shapes, so that no layer that starts at zero hides the others.

    Scales are about 1 and variances positive, lest the gradients become too small for any difference to show. From
    NumPy: to compile a network's initial parameters takes as long as to compile the network.
    """
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = 0.3 * rng.normal(size=leaf.shape)
        values = {"var": 0.1 + abs(noise), "scale": 1 + noise}.get(path[-1].key, noise)
        return np.asarray(values, leaf.dtype)

    return jax.tree.map_with_path(draw, shapes)


def inputs(n, size=8, channels=1):
    x = np.random.default_rng(1).normal(size=(n, size, size, channels))
    return x.astype(np.float32), 7 * np.arange(n, dtype=np.int32)


def first_of_training(*args):
    return train_log_probs(*args)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradient(predict, module, tree, x, t, labels):
    return classifier_gradient(functools.partial(predict, module, tree), labels)(x, t)


# Every block, norm and way to look at t; the second stage halves the image, which also gives basic blocks a shortcut.
@pytest.mark.parametrize(
    ("architecture", "norm", "time_dependent", "stage_sizes"),
    [
        ("resnet", "group", True, (1, 1)),
        ("resnet", "batch", False, (1,)),
        ("resnet_bottleneck", "batch", True, (1,)),
        ("half_unet", "group", True, (1,)),
    ],
)
def test_guidance_gradients_do_not_couple_the_batch(architecture, norm, time_dependent, stage_sizes):
    """New neighbours or another order leave an image's gradient as it was; BatchNorm in training would not.

    Nor does the size of the batch count. No network looks at it, so one is enough to show that the gradient does not.
    """
    module, shapes = build(architecture, norm, time_dependent=time_dependent, stage_sizes=stage_sizes)
    tree, (x, t), labels = randomised(shapes), inputs(6), np.asarray([0, 1, 2, 3, 4, 0], np.int32)
    whole = np.asarray(gradient(log_probs, module, tree, x, t, labels))
    assert np.abs(whole).max(axis=(1, 2, 3)).min() > 1e-3
    order = np.asarray([3, 0, 5, 1, 4, 2])
    permuted = gradient(log_probs, module, tree, x[order], t[order], labels[order])
    np.testing.assert_allclose(permuted, whole[order], rtol=1e-4, atol=1e-6)

    others = x.copy()
    others[[0, 1, 3, 5]] = 3 * x[[5, 3, 0, 1]]
    replaced = np.asarray(gradient(log_probs, module, tree, others, t + 5 * (np.arange(6) == 0), labels))
    np.testing.assert_allclose(replaced[[2, 4]], whole[[2, 4]], rtol=1e-4, atol=1e-6)
    if (architecture, norm) == ("resnet", "batch"):
        alone = gradient(log_probs, module, tree, x[2:3], t[2:3], labels[2:3])
        np.testing.assert_allclose(alone, whole[2:3], rtol=1e-4, atol=1e-5)
        coupled = [gradient(first_of_training, module, tree, images, t, labels) for images in (x, others)]
        assert np.abs(coupled[0] - coupled[1])[[2, 4]].max() > 1e-3


@pytest.mark.parametrize(
    ("architecture", "norm", "time_dependent", "channels", "size"),
    [
        ("resnet", "group", False, 1, 8),
        ("resnet", "batch", True, 3, 12),
        ("resnet_bottleneck", "group", True, 1, 8),
        ("half_unet", "group", False, 1, 8),
        ("half_unet", "group", True, 3, 12),
    ],
)
def test_log_probabilities(architecture, norm, time_dependent, channels, size):
    """They are of each class, in float32; only those of a time-dependent classifier look at t."""
    options = {"stage_sizes": (1, 2), "time_dependent": time_dependent, "size": size, "channels": channels}
    module, shapes = build(architecture, norm, **options)
    tree, (x, t) = randomised(shapes), inputs(3, size, channels)
    got = infer(module, tree, x, t)
    assert got.shape == (3, 5)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(np.exp(got).sum(1), 1, rtol=1e-5)
    assert (np.abs(np.asarray(got) - infer(module, tree, x, t + 300)).max() > 1e-3) == time_dependent


@pytest.mark.parametrize("architecture", ["resnet", "resnet_bottleneck", "half_unet"])
def test_with_group_norm_training_is_inference(architecture):
    """It carries nothing, and both are the same program: so no image influences another in training, either."""
    module, shapes = build(architecture, "group")
    assert trainer.split_trainable(shapes)[1] == {}
    assert jax.eval_shape(functools.partial(train_log_probs, module), shapes, *inputs(4))[1] == {}

    def program(function):
        return jax.jit(lambda *args: function(module, *args)).lower(shapes, *inputs(4)).as_text()

    assert program(first_of_training) == program(log_probs)


@pytest.mark.parametrize("architecture", ["resnet", "resnet_bottleneck"])
def test_training_carries_the_statistics_of_batch_norm_alone(architecture):
    """All of them change; they are those that no gradient trains."""
    module, shapes = build(architecture, "batch")
    _, carried = infer_in_training(module, tree := randomised(shapes), *inputs(4))
    _, statistics = trainer.split_trainable(tree)
    assert statistics
    assert jax.tree.map(jnp.shape, carried) == jax.tree.map(jnp.shape, statistics)
    same = [np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (carried, statistics)), strict=True)]
    assert not any(same)


# torchvision's of 1000 classes, with its 7x7 stem where ours is 3x3; and the channels of all blocks' first norms.
PUBLISHED = [
    ((2, 2, 2, 2), False, "batch", 11_689_512, 2 * (64 + 128 + 256 + 512)),
    ((3, 4, 6, 3), False, "group", 21_797_672, 3 * 64 + 4 * 128 + 6 * 256 + 3 * 512),
    ((3, 4, 6, 3), True, "batch", 25_557_032, 3 * 64 + 4 * 128 + 6 * 256 + 3 * 512),
]


@pytest.mark.parametrize(("stage_sizes", "bottleneck", "norm", "count", "conditioned"), PUBLISHED)
def test_resnets_have_the_published_parameters(stage_sizes, bottleneck, norm, count, conditioned):
    """Time adds two layers, of 128 and then 256 inputs, and to each block a scale and a shift of its first norm."""
    expected = count - 7 * 7 * 3 * 64 + 3 * 3 * 3 * 64
    for time_dependent, more in ((False, 0), (True, 129 * 256 + 257 * 256 + 257 * 2 * conditioned)):
        module = ResNet(1000, stage_sizes, 64, time_dependent, bottleneck=bottleneck, norm=norm)
        init = functools.partial(module.init, jax.random.key(0))
        assert builders.size(jax.eval_shape(init, *inputs(1, 16, 3))["params"]) == expected + more


def test_half_unet_has_the_blocks_it_is_asked_for():
    _, tree = build("half_unet", "group", stage_sizes=(2, 1, 3), width=4)
    blocks = [sorted(tree[f"down_blocks_{i}"]) for i in range(3)]
    assert blocks[:2] == [["downsamplers_0", "resnets_0", "resnets_1"], ["downsamplers_0", "resnets_0"]]
    assert blocks[2] == [f"{kind}_{i}" for kind in ("attentions", "resnets") for i in range(3)]
    assert sorted(tree["mid_block"]) == ["attentions_0", "resnets_0", "resnets_1"]
    assert tree["mid_block"]["resnets_0"]["conv1"]["kernel"].shape == (3, 3, 16, 16)
    assert tree["mid_block"]["resnets_0"]["time_emb_proj"]["kernel"].shape == (16, 2 * 16)


def test_attention_pool_is_the_first_token_of_full_attention():
    """All 1 + 6 tokens attend to each other in two heads; by hand."""
    x = np.random.default_rng(1).normal(size=(2, 2, 3, 8)).astype(np.float32)
    pool = AttentionPool(features=5, head_dim=4)
    params = randomised(jax.eval_shape(pool.init, jax.random.key(0), x)["params"])
    got = jax.jit(pool.apply)({"params": params}, x)
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

    @jax.jit
    def all_ways(variables, x):
        ways = [BatchNorm(train=train).apply(variables, x, mutable=["batch_stats"]) for train in (True, False)]
        return (*ways, BatchNorm(train=False).init(jax.random.key(0), x))

    (got, carried), (frozen, kept), initial = all_ways(variables, x)
    flat = x.reshape(30, 4).astype(np.float64)
    expected = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5) * scale + bias
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(carried["batch_stats"]["mean"], 0.9 * mean + 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(carried["batch_stats"]["var"], 0.9 * var + 0.1 * flat.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(frozen, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, kept["batch_stats"], variables["batch_stats"])
    starts = jax.tree.map(lambda leaf: set(leaf.tolist()), initial)
    assert starts == {"params": {"scale": {1}, "bias": {0}}, "batch_stats": {"mean": {0}, "var": {1}}}


def test_one_step_moves_the_running_statistics_over_all_devices():
    """Those of the stem, from its convolution of the whole batch, whatever the weight decay; the EMA follows."""
    images, labels = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1), np.uint8), np.arange(32) % 5
    module = ResNet(5, (), 8, time_dependent=False, norm="batch")  # the stem and the head alone
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs(1))
    before = randomised(shapes["params"] | {"batch_stats": shapes["batch_stats"]})

    def loss_fn(params, batch, keys, key):
        got, carried = train_log_probs(module, params, pixel_range.to_float(batch[0]), jnp.zeros_like(batch[1]))
        losses = -jnp.take_along_axis(got, batch[1][:, None], axis=1)
        return losses.mean(), ({"loss": (losses.sum(), jnp.float32(losses.size))}, carried)

    data = (images, labels.astype(np.int32))
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam relies on it (decay ** count)
        example = tuple(array[:1] for array in data)
        stepper = trainer.Stepper(loss_fn, lambda: before, Fit(batch_size=32, weight_decay=0.5), example)
        state, ema = stepper.initial()
        parts = stepper.load(lambda ids: tuple(array[ids] for array in data), np.arange(32))
        state, ema = stepper(state, ema, parts, stepper.key(0))

    @jax.jit
    def convolved(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    values = convolved(pixel_range.to_float(images), before["conv_in"]["kernel"])
    values = np.asarray(values, np.float64).reshape(-1, 8)
    old, now, averaged = (tree["batch_stats"]["norm_in"] for tree in (before, state["params"], ema))
    np.testing.assert_allclose(now["mean"], 0.9 * old["mean"] + 0.1 * values.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(now["var"], 0.9 * old["var"] + 0.1 * values.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(averaged["var"], 0.1 * old["var"] + 0.9 * np.asarray(now["var"]), rtol=1e-5)
