"""Low-rank adapters against layers that apply them apart, counts by hand, and the target that they begin as."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from side_jax.diffusion.schedule import make_schedule
from side_jax.models import adapters
from side_jax.models.continuous import Flow
from side_jax.models.labelled import Labelled
from side_jax.models.latent import Latent
from side_jax.models.unet import UNet
from side_jax.settings import Fit
from side_jax.training import losses, trainer

UNETS = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
UNET = UNet(out_channels=1, layers_per_block=1, norm_num_groups=4, **UNETS)
X, T = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 1)), jnp.float32), jnp.asarray([3, 50, 99])
KEY = jax.random.key(0)


def filled(tree, seed=0, scale=0.3):
    """A tree with every number drawn anew: B from zero would hide what is multiplied with it."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), jnp.float32), tree)


@pytest.fixture(scope="module")
def params():
    return filled(jax.eval_shape(UNET.init, KEY, X, T)["params"], 1)


@pytest.mark.parametrize("rank", [1, 2, 8])
def test_merging_is_applying_adapters_apart(rank):
    """Of a dense layer x W + s (x A) B; of a convolution, one by A into r channels, then one of single pixels by B."""
    rng, alpha = np.random.default_rng(rank), 3.0
    conv = nn.Conv(5, (3, 3), strides=2, padding=1)
    one = nn.Conv(rank, (3, 3), strides=2, padding=1, use_bias=False)
    for layer, apart, x in (
        (nn.Dense(5), nn.Dense(rank, use_bias=False), jnp.asarray(rng.normal(size=(7, 6)), jnp.float32)),
        (conv, one, jnp.asarray(rng.normal(size=(2, 8, 8, 6)), jnp.float32)),
    ):
        own_params = filled(jax.eval_shape(layer.init, KEY, x)["params"], rank)
        kernel = own_params["kernel"]
        size = kernel.size // 5
        own = min(rank, 5)
        a, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((size, own), (own, 5)))
        trained = {"kernels": {"layer": {"kernel": {"a": a, "b": b}}}, "labels": jnp.zeros((3, 32))}
        merged = adapters.merge(UNET, {"layer": own_params}, trained, alpha)["net"]["layer"]
        whole = layer.apply({"params": merged}, x)
        narrow = apart.clone(features=own).apply({"params": {"kernel": a.reshape(*kernel.shape[:-1], own)}}, x)
        expected = layer.apply({"params": own_params}, x) + alpha / own * narrow @ b
        np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 2])
def test_it_begins_as_the_target_whatever_the_label(params, rank):
    """Bit for bit: rank 0 has no adapter, and B and the table are zero."""
    trained = adapters.initial(UNET, params, 5, KEY, rank=rank)
    merged = adapters.merge(UNET, params, trained, 16.0)
    assert set(merged) == {"net", "label_embedding"}
    jax.tree.map(np.testing.assert_array_equal, merged["net"], params)
    network = Labelled(UNET, 5)
    target = UNET.apply({"params": params}, X, T)
    for labels in (None, jnp.asarray([-1, 0, 4])):
        np.testing.assert_array_equal(network.apply({"params": merged}, X, T, labels=labels), target)
    if not rank:
        assert trained["kernels"] == {}
    else:
        other = adapters.merge(UNET, params, filled(trained), 16.0)
        assert np.abs(network.apply({"params": other}, X, T) - target).max() > 0.1


@pytest.mark.parametrize("null_label", [True, False])
def test_the_labels_of_the_target_stay_beside_the_new_ones(null_label):
    """An image has none of them, whatever its new label, unless it is given one."""
    conditional = UNET.clone(num_labels=2, null_label=null_label)
    params = filled(jax.eval_shape(conditional.init, KEY, X, T)["params"], 2)
    merged = adapters.merge(conditional, params, adapters.initial(conditional, params, 4, KEY, rank=1), 1.0)
    network, labels = Labelled(conditional, 4), jnp.asarray([0, 3, -1])
    got = network.apply({"params": merged}, X, T, labels=labels)
    np.testing.assert_array_equal(got, conditional.apply({"params": params}, X, T))
    own = jnp.asarray([1, 0, 1])
    got = network.apply({"params": merged}, X, T, labels=labels, own=own)
    np.testing.assert_array_equal(got, conditional.apply({"params": params}, X, T, labels=own))


def test_only_adapters_and_the_table_learn(params):
    """The step of training leaves the target as it was, in every bit, and averages it nowhere."""
    trained = filled(adapters.initial(UNET, params, 2, KEY, rank=2), 4, 0.1)
    loss_fn = losses.adapter_loss(Labelled(UNET, 2), make_schedule("linear", 100), 4.0, 0.2)
    images, labels = (
        np.random.default_rng(5).integers(0, 256, (8, 4, 4, 1)).astype(np.uint8),
        np.arange(8, dtype=np.int32) % 2,
    )
    fit = Fit(num_steps=2, batch_size=8, log_every=1, ema_decay=0.5)
    with jax.numpy_dtype_promotion("standard"):
        stepper = trainer.Stepper(loss_fn, lambda: trained | {adapters.FROZEN: params}, fit, (images, labels))
        state, ema = stepper.initial()
        for _ in range(2):
            parts = stepper.load(lambda rows: (images[rows], labels[rows]), np.arange(8))
            state, ema = stepper(state, ema, parts, stepper.key(0))
    assert set(ema) == set(trained) == set(state["params"]) - {adapters.FROZEN}
    after = jax.device_get(state["params"])
    jax.tree.map(np.testing.assert_array_equal, after[adapters.FROZEN], params)
    moved = jax.tree.map(lambda new, old: bool((new != old).any()), {name: after[name] for name in trained}, trained)
    assert all(jax.tree.leaves(moved))
    assert (after["labels"] != trained["labels"]).any(axis=1).all()  # the last row, of none, by images without theirs
    moments = [leaf.size for leaf in jax.tree.leaves(state["opt_state"]) if leaf.ndim]
    assert sum(moments) == 2 * sum(leaf.size for leaf in jax.tree.leaves(trained))


def test_the_number_of_trained_parameters_by_hand(params):
    """Of each kernel r (k + out), with r at most min(k, out); and of the table (C + 1) e."""
    trained = adapters.initial(UNET, params, 5, KEY, rank=4)
    # (k, out) by hand, of 8 channels, 1 of the image, and 32 of the time embedding.
    time = [(8, 32), (32, 32)]
    block = [(72, 8), (32, 8), (72, 8)]
    wide = [(144, 8), (32, 8), (72, 8), (16, 8)]  # over a skip connection, with a shortcut
    attention = 4 * [(8, 8)]
    kernels = [(9, 8), *time, *block, *block, *attention, *block, *wide, *wide, (72, 1)]
    expected = sum(min(4, k, out) * (k + out) for k, out in kernels)
    assert sum(leaf.size for leaf in jax.tree.leaves(trained["kernels"])) == expected
    assert trained["labels"].shape == (6, 32)
    found = adapters.ranks(UNET, params, 4)
    assert len(found) == len(kernels)
    assert {path: rank for path, rank in found.items() if rank < 4} == {("conv_out", "kernel"): 1}


def test_each_kernels_matrix_is_drawn_anew_with_the_variance_of_the_docstring(params):
    """All numbers times sqrt(k) are standard normal, and those of kernels of one shape have nothing in common."""
    trained = adapters.initial(UNET, params, 2, KEY, rank=8)
    drawn = [leaf for path, leaf in jax.tree.leaves_with_path(trained["kernels"]) if path[-1].key == "a"]
    numbers = np.concatenate([np.ravel(a) * np.sqrt(len(a)) for a in drawn])
    assert stats.kstest(numbers, "norm").pvalue > 0.001
    assert len(np.unique(numbers)) > 0.999 * len(numbers)


def test_ranks_are_capped_and_kernels_chosen(params):
    capped = adapters.ranks(UNET, params, 512)
    assert set(capped.values()) == {1, 8, 32}
    count = {kind: len(adapters.ranks(UNET, params, 1, kind)) for kind in adapters.KERNELS}
    assert count == {"all": len(capped), "convolution": 14, "dense": 11, "attention": 4}
    assert count["convolution"] + count["dense"] == count["all"]
    assert adapters.ranks(UNET, params, 0) == {}


@pytest.mark.parametrize(
    "outer", [Flow(net=UNET, sigma_min=0.01, sigma_max=10.0, num_timesteps=100), Latent(net=UNET, autoencoder=None)]
)
def test_a_wrapped_network_is_adapted_inside(params, outer):
    """What stands beside the U-Net's parameters, such as an autoencoder's, stays."""
    own = {"net": params, "autoencoder": {"kernel": X}}
    trained = filled(adapters.initial(outer, own, 2, KEY, rank=2), 6)
    merged = adapters.merge(outer, own, trained, 2.0)
    inside = adapters.merge(UNET, params, trained, 2.0)
    jax.tree.map(np.testing.assert_array_equal, merged, inside | {"net": own | {"net": inside["net"]}})
    got = Labelled(outer, 2).apply({"params": merged}, X, T, labels=jnp.asarray([0, 1, -1]))
    plain = outer.apply({"params": own}, X, T)
    assert np.isfinite(got).all()
    assert np.abs(got - plain).max() > 1e-3
