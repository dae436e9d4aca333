"""Labels and adapters of every class of networks: against biases set by hand, and against adapters applied apart."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import made_text
import numpy as np
import pytest
from flax import traverse_util

from side_jax.diffusion.schedule import make_schedule
from side_jax.models import adapters
from side_jax.models.autoencoders import Autoencoder
from side_jax.models.callback import Callback
from side_jax.models.condition_unet import ConditionUNet
from side_jax.models.continuous import Edm, EdmVp, ScoreVe
from side_jax.models.dhariwal_unet import DhariwalUNet
from side_jax.models.labelled import TIME_LAYERS, Labelled, innermost
from side_jax.models.latent import Latent
from side_jax.models.memory_unet import MemoryUNet
from side_jax.models.prompted import Prompted
from side_jax.models.score_unet import ScoreUNet
from side_jax.models.song_unet import SongUNet
from side_jax.models.unet import UNet
from side_jax.models.unit_pixels import UnitPixels
from side_jax.settings import Fit
from side_jax.targets.networks import NETWORKS
from side_jax.training import losses, trainer

GRID = {"sigma_min": 0.01, "sigma_max": 10.0, "num_timesteps": 100}
SKIP = {"down_block_types": ("SkipDownBlock2D",) * 2, "up_block_types": ("SkipUpBlock2D",) * 2}
PLAIN = {"down_block_types": ("AttnDownBlock2D",), "up_block_types": ("UpBlock2D",), "attention_head_dim": None}
ONE_LEVEL = {"img_resolution": 4, "out_channels": 1, "model_channels": 64, "channel_mult": (1,), "num_blocks": 1}
# Of each class the smallest one that has all kinds of its layers, in wrappers that targets have.
EVERY = {
    "UNet": UnitPixels(
        net=UNet(out_channels=1, block_out_channels=(4,), layers_per_block=1, norm_num_groups=2, num_labels=2, **PLAIN),
        betas=tuple(make_schedule("linear", 100).betas.tolist()),
    ),
    "ConditionUNet": Latent(
        net=Prompted(net=made_text.NET, num_labels=2, tokens=3, width=4), autoencoder=made_text.AUTOENCODER
    ),
    "ScoreUNet": ScoreVe(
        net=ScoreUNet(out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=None, **SKIP),
        **GRID,
    ),
    "MemoryUNet": MemoryUNet(
        out_channels=1,
        time_channels=4,
        stem_channels=6,
        block_out_channels=(4, 8),
        heads=(1, 2),
        head_channels=(4, 2),
        full_attention=(False, True),
    ),
    "SongUNet": Edm(
        net=SongUNet(
            img_resolution=4,
            out_channels=1,
            label_dim=2,
            model_channels=4,
            channel_mult=(1, 2),
            num_blocks=1,
            attn_resolutions=(2,),
            embedding_type="fourier",
            encoder_type="residual",
            decoder_type="skip",
        ),
        **GRID,
    ),
    "DhariwalUNet": EdmVp(net=DhariwalUNet(label_dim=2, attn_resolutions=(4,), **ONE_LEVEL), **GRID),
}
T, LABELS = jnp.asarray([3, 50, 99]), jnp.asarray([1, -1, 0])
ALPHA, RANK = 3.0, 3
HOW_MANY_IN_ATTENTION = {
    "UNet": 8,  # four layers each, on the way down and in the middle
    "ConditionUNet": 32,  # in each of four transformers, four layers over the pixels and four over the prompt
    "ScoreUNet": 4,  # in the middle alone
    "MemoryUNet": 10,  # two layers each, on two levels down and up, and in the middle
    "SongUNet": 6,  # two layers each, in a block of the way down, one of the middle and one of the way up
    "DhariwalUNet": 8,  # one more of the way up
}


@pytest.fixture(scope="module", params=EVERY)
def case(request):
    """(the network, its parameters of random numbers, images, its compiled prediction, that with two labels)."""
    network = EVERY[request.param]
    shape = (3, 4, 4, 2 if request.param == "ConditionUNet" else 1)
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    own = jax.eval_shape(network.init, jax.random.key(0), x, T)["params"]
    predict, labelled = jax.jit(network.apply), jax.jit(Labelled(network, 2).apply)

    def with_labels(params, labels=LABELS):
        return labelled({"params": params}, x, T, labels=labels)

    return network, filled(own), x, lambda params: predict({"params": params}, x, T), with_labels


def filled(tree, seed=0, scale=0.2):
    """A tree with every number drawn anew, about 1 in the norms."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        return jnp.asarray((path[-1].key == "scale") + scale * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree.map_with_path(draw, tree)


def trained(case, rank, **options):
    network, params, *_ = case
    return adapters.initial(network, params, 2, jax.random.key(1), rank=rank, **options)


def test_every_class_of_networks_has_a_place_for_labels():
    """A class that settings may name is a wrapper, no network of Flax parameters, or in the table and tested here."""
    wrappers = {cls for cls in NETWORKS.values() if "net" in {field.name for field in dataclasses.fields(cls)}}
    assert set(NETWORKS.values()) - wrappers == {*TIME_LAYERS, Callback, Autoencoder}
    assert {name: type(innermost(network)[0]).__name__ for name, network in EVERY.items()} == {
        cls.__name__: cls.__name__ for cls in TIME_LAYERS
    }


def test_all_of_the_time_passes_the_layer(case):
    """With a kernel of zeros there, nothing depends on the time, but for the score's division by its noise."""
    core, path = innermost(case[0])
    params, x = case[1], case[2][:1].repeat(2, axis=0)
    for name in path:
        params = params[name]
    flat = dict(traverse_util.flatten_dict(params))
    layer = *TIME_LAYERS[type(core)], "kernel"
    flat[layer] = jnp.zeros_like(flat[layer])
    given = (jnp.ones((2, 3, 4)),) if isinstance(core, ConditionUNet) else ()
    times = jnp.asarray([0.5, 9.0])
    silent, usual = (
        jax.jit(core.apply)({"params": one}, x, times, *given) for one in (traverse_util.unflatten_dict(flat), params)
    )
    if isinstance(core, ScoreUNet):
        silent, usual = (value * times[:, None, None, None] for value in (silent, usual))
    np.testing.assert_allclose(silent[0], silent[1], rtol=1e-4, atol=1e-5 * np.abs(silent).max())
    assert np.abs(usual[0] - usual[1]).max() > 1e-3 * np.abs(usual).max()


@pytest.mark.parametrize("name", ["UNet", "DhariwalUNet"])
def test_a_label_is_added_where_the_network_adds_its_own(name):
    """Of a table of its own as large as the new one: the same prediction, up to the order of sums."""
    network = EVERY[name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 1)), jnp.float32)
    params = filled(jax.eval_shape(network.init, jax.random.key(0), x, T)["params"])
    inner = params["net"]
    table = inner["class_embedding"]["embedding"] if name == "UNet" else inner["map_label"]["kernel"]
    own = jnp.asarray([1, 0, 1])
    expected = jax.jit(network.apply)({"params": params}, x, T, labels=own)
    silent = "class_embedding" if name == "UNet" else "map_label"
    params = params | {"net": inner | {silent: jax.tree.map(jnp.zeros_like, inner[silent])}}
    table = jnp.concatenate([table[:2], jnp.zeros_like(table[:1])])
    got = jax.jit(Labelled(network, 2).apply)({"params": {"net": params, "label_embedding": table}}, x, T, labels=own)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("rank", [0, RANK])
def test_it_begins_as_the_target_whatever_the_label(case, rank):
    """In every bit of its parameters, and of the prediction from label to label; two programs round differently."""
    network, params, _, predict, labelled = case
    merged = adapters.merge(network, params, trained(case, rank), ALPHA)
    jax.tree.map(np.testing.assert_array_equal, merged["net"], params)
    got, expected = labelled(merged), predict(params)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(got, labelled(merged, LABELS[::-1]))


def test_a_label_is_a_part_of_the_bias_of_its_image(case):
    """One image at a time, in the target itself."""
    network, params, _, predict, labelled = case
    own = trained(case, 0)
    own["labels"] = jnp.asarray(np.random.default_rng(1).normal(size=own["labels"].shape), jnp.float32)
    got, plain = labelled(adapters.merge(network, params, own, ALPHA)), predict(params)
    core, path = innermost(network)
    bias = *path, *TIME_LAYERS[type(core)], "bias"
    for i, label in enumerate(LABELS):
        flat = dict(traverse_util.flatten_dict(params))
        flat[bias] = flat[bias] + own["labels"][label]  # the last row is of no label
        expected = predict(traverse_util.unflatten_dict(flat))[i]
        np.testing.assert_allclose(got[i], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        assert np.abs(got[i] - plain[i]).max() > 1e-3 * np.abs(plain[i]).max()


def test_merging_is_applying_adapters_apart(case):
    """To what each adapted layer returns, alpha / r of a layer with the kernel A, times B, is added."""
    network, params, x, predict, labelled = case
    own = filled(trained(case, RANK), 2)
    own["labels"] = jnp.zeros_like(own["labels"])
    pairs, (_, inside) = traverse_util.flatten_dict(own["kernels"]), innermost(network)

    def apart(call, args, kwargs, context):
        layer, out = context.module, call(*args, **kwargs)
        name = *layer.path[len(inside) :], "kernel"
        if layer.path[: len(inside)] != inside or (*name, "a") not in pairs:
            return out
        a, b = pairs[*name, "a"], pairs[*name, "b"]
        kernel = layer.variables["params"]["kernel"]
        options = {"use_bias": False, "features": a.shape[1]}
        if isinstance(layer, nn.Dense):
            narrow = nn.Dense(**options)
        else:
            narrow = nn.Conv(**options, kernel_size=layer.kernel_size, strides=layer.strides, padding=layer.padding)
        given = {"params": {"kernel": a.reshape(*kernel.shape[:-1], -1)}}
        return out + ALPHA / a.shape[1] * narrow.apply(given, *args) @ b

    def summed(params):
        with nn.intercept_methods(apart):
            return network.apply({"params": params}, x, T)

    expected = jax.jit(summed)(params)
    got = labelled(adapters.merge(network, params, own, ALPHA))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert np.abs(got - predict(params)).max() > 1e-2 * np.abs(expected).max()


def test_ranks_are_capped_and_kernels_chosen(case, request):
    network, params, *_ = case
    flat = traverse_util.flatten_dict(adapters._core(network, params))
    found = {kind: adapters.ranks(network, params, 512, kind) for kind in adapters.KERNELS}
    every = [path for path in flat if path[-1] == "kernel" and "map_label" not in path]
    assert [*found["all"]] == sorted(every)
    for path, rank in found["all"].items():
        *before, after = flat[path].shape
        assert rank == min(np.prod(before), after) < 512
    assert {*found["convolution"], *found["dense"]} == {*every}
    assert len(found["attention"]) == HOW_MANY_IN_ATTENTION[request.node.callspec.params["case"]]
    assert adapters.ranks(network, params, 0) == {}


def test_all_adapters_and_labels_learn_and_nothing_else(case):
    """One step of Adam moves whatever has a gradient; the network's own labels have none, and are left out."""
    network, params, x, *_ = case
    own = filled(trained(case, RANK), 3)
    schedule = make_schedule("linear", 100, prediction_type="x0")
    loss_fn = losses.adapter_loss(Labelled(network, 2), schedule, ALPHA, 0.2)
    images = np.random.default_rng(5).normal(size=(8, *x.shape[1:])).astype(np.float32)
    labels = np.arange(8, dtype=np.int32) % 2
    fit = Fit(num_steps=1, batch_size=8, log_every=1)
    with jax.numpy_dtype_promotion("standard"):
        stepper = trainer.Stepper(loss_fn, lambda: own | {adapters.FROZEN: params}, fit, (images, labels))
        state, ema = stepper.initial()
        parts = stepper.load(lambda rows: (images[rows], labels[rows]), np.arange(8))
        state, _ = stepper(state, ema, parts, stepper.key(0))
    after = jax.device_get(state["params"])
    jax.tree.map(np.testing.assert_array_equal, after.pop(adapters.FROZEN), params)
    before, after = traverse_util.flatten_dict(own), traverse_util.flatten_dict(after)
    assert [path for path, leaf in before.items() if (leaf == after[path]).all()] == []
