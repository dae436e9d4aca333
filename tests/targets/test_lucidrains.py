"""Checkpoints of denoising-diffusion-pytorch without PyTorch: what is inferred from a file, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from side_jax.diffusion.schedule import make_schedule
from side_jax.errors import InputError
from side_jax.models.memory_unet import MemoryUNet
from side_jax.settings import Diffusion
from side_jax.settings import Target as Section
from side_jax.targets import lucidrains, networks
from side_jax.targets.formats import read_target
from side_jax.targets.target_model import Hints

BETAS = make_schedule("cosine", 40).betas.astype(np.float32)
PATH = Path("model-3.pt")


def hints(**options):
    return Hints(target=Section(**options), diffusion=Diffusion())


def unet(*, dim=4, stem=6, mults=(1, 2), channels=1, out=1, heads=(1, 2), width=3, full=(False, True), memory=4):
    """Tensors of zeros with the library's names."""
    state, rng = {}, np.random.default_rng(0)

    def add(name, *shape):
        state[name] = rng.standard_normal(shape).astype(np.float32)

    def conv(name, after, before, side=1, bias=True):
        add(f"{name}.weight", after, before, side, side)
        if bias:
            add(f"{name}.bias", after)

    def block(name, before, after):
        add(f"{name}.mlp.1.weight", 2 * after, 4 * dim)
        add(f"{name}.mlp.1.bias", 2 * after)
        for part, inner in (("block1", before), ("block2", after)):
            conv(f"{name}.{part}.proj", after, inner, 3)
            add(f"{name}.{part}.norm.g", 1, after, 1, 1)
        if before != after:
            conv(f"{name}.res_conv", after, before)

    def attention(name, size, level, full):
        add(f"{name}.norm.g", 1, size, 1, 1)
        inner = heads[level] * width
        add(f"{name}.mem_kv", 2, heads[level], *((memory, width) if full else (width, memory)))
        conv(f"{name}.to_qkv", 3 * inner, size, bias=False)
        conv(f"{name}.to_out" if full else f"{name}.to_out.0", size, inner)
        if not full:
            add(f"{name}.to_out.1.g", 1, size, 1, 1)

    sizes = [stem, *(dim * mult for mult in mults)]
    last = len(mults) - 1
    conv("init_conv", stem, channels, 7)
    for name, shape in (("1", (4 * dim, dim)), ("3", (4 * dim, 4 * dim))):
        add(f"time_mlp.{name}.weight", *shape)
        add(f"time_mlp.{name}.bias", 4 * dim)
    for i in range(last + 1):
        before, after, up = sizes[i], sizes[i + 1], last - i
        for j in range(2):
            block(f"downs.{i}.{j}", before, before)
            block(f"ups.{up}.{j}", before + after, after)
        attention(f"downs.{i}.2", before, i, full[i])
        attention(f"ups.{up}.2", after, i, full[i])
        conv(*((f"downs.{i}.3", after, before, 3) if i == last else (f"downs.{i}.3.1", after, 4 * before)))
        conv(f"ups.{up}.3.1" if i else f"ups.{up}.3", before, after, 3)
    block("mid_block1", after, after)
    attention("mid_attn", after, last, True)
    block("mid_block2", after, after)
    block("final_res_block", 2 * stem, stem)
    conv("final_conv", out, stem)
    return state


def loss_weight(objective, gamma=np.inf):
    alpha_bar = np.cumprod(1 - BETAS.astype(np.float64))
    snr = alpha_bar / (1 - alpha_bar)
    clipped = np.minimum(snr, gamma)
    return {"epsilon": clipped / snr, "x0": clipped, "v": clipped / (snr + 1)}[objective].astype(np.float32)


def process(state=None, weight=None, **changes):
    """The state dict of a GaussianDiffusion; a change to None leaves a tensor out."""
    state = {f"model.{name}": value for name, value in (unet() if state is None else state).items()}
    state |= {"betas": BETAS, "loss_weight": loss_weight("v") if weight is None else weight} | changes
    return {name: value for name, value in state.items() if value is not None}


def trained(state):
    """What the Trainer saves, whose last weights are twice the averaged."""
    doubled = {name: 2 * value if name.startswith("model.") else value for name, value in state.items()}
    ema = {"initted": np.asarray(True), "step": np.asarray(9)}
    ema |= {f"online_model.{name}": value for name, value in doubled.items()}
    ema |= {f"ema_model.{name}": value for name, value in state.items()}
    return {"step": 9, "model": doubled, "opt": {}, "ema": ema, "scaler": None, "version": "2.3.4"}


def read(content, **options):
    assert lucidrains.matches(content)
    return lucidrains.read(PATH, content, hints(**options))


def test_the_network_is_inferred():
    target = read(trained(process()))
    assert target.network == MemoryUNet(
        out_channels=1,
        time_channels=4,
        stem_channels=6,
        block_out_channels=(4, 8),
        heads=(1, 2),
        head_channels=(3, 3),
        full_attention=(False, True),
    )
    assert (target.channels, target.size, target.num_labels) == (1, None, 0)
    assert networks.build(networks.describe(target.network)) == target.network
    assert any("version 2.3.4" in note for note in target.origin.notes)
    assert target.diffusion.num_timesteps == 40
    np.testing.assert_array_equal(target.schedule.betas, BETAS)


def test_every_tensor_is_taken_once():
    """Values of the file, in other shapes; those of the keys and the values too."""
    state = unet()
    params = read(process(state)).origin.read_params()
    total = sum(value.astype(np.float64).sum() for value in state.values())
    leaves = [leaf for group in params.values() for leaf in tree_leaves(group)]
    assert sum(leaf.size for leaf in leaves) == sum(value.size for value in state.values())
    assert sum(leaf.astype(np.float64).sum() for leaf in leaves) == pytest.approx(total, rel=1e-9)
    keys, values = state["downs.0.2.mem_kv"]  # linear: [heads, channels, memory]
    found = params["down_0_attention"]
    np.testing.assert_array_equal(found["memory_keys"]["embedding"].reshape(4, 1, 3), keys.transpose(2, 0, 1))
    np.testing.assert_array_equal(found["memory_values"]["embedding"].reshape(4, 1, 3), values.transpose(2, 0, 1))
    keys, _ = state["mid_attn.mem_kv"]  # [heads, memory, channels]
    found = params["middle_attention"]["memory_keys"]["embedding"].reshape(4, 2, 3)
    np.testing.assert_array_equal(found, keys.transpose(1, 0, 2))
    np.testing.assert_array_equal(
        params["up_1_block_0"]["conv1"]["kernel"], state["ups.0.0.block1.proj.weight"].transpose(2, 3, 1, 0)
    )


def tree_leaves(tree):
    return [leaf for part in tree.values() for leaf in tree_leaves(part)] if isinstance(tree, dict) else [tree]


@pytest.mark.parametrize("objective", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("gamma", [np.inf, 5, 0.3])
def test_the_objective_is_inferred(objective, gamma):
    assert read(process(weight=loss_weight(objective, gamma))).diffusion.prediction_type == objective


@pytest.mark.parametrize("objective", ["epsilon", "v"])
def test_a_learned_variance_is_left_out_and_means_noise(objective):
    state = unet(channels=3, out=6)
    target = read(process(state, loss_weight(objective)))
    assert (target.channels, target.diffusion.prediction_type) == (3, "epsilon")
    assert any("variance" in note for note in target.origin.notes)
    params = target.origin.read_params()
    np.testing.assert_array_equal(params["conv_out"]["kernel"], state["final_conv.weight"][:3, :, 0, 0].T)
    np.testing.assert_array_equal(params["conv_out"]["bias"], state["final_conv.bias"][:3])


def test_the_average_is_taken_and_its_absence_noted(tmp_path):
    state = process()
    bias = state["model.init_conv.bias"]
    content = trained(state)
    without = {name: value for name, value in content.items() if name != "ema"}
    save_file(state, tmp_path / "model.safetensors")  # the process alone
    alone = read_target(tmp_path / "model.safetensors", hints())
    for target, factor in ((read(content), 1), (read(without), 2), (alone, 1)):
        np.testing.assert_array_equal(target.origin.read_params()["conv_in"]["bias"], factor * bias)
        noted = any("moving average" in note for note in target.origin.notes)
        assert noted == (target.origin.notes != read(content).origin.notes)
    assert alone.origin.format == "lucidrains"
    assert "does not say which version" in alone.origin.notes[0]


@pytest.mark.parametrize("version", [None, 2, "2.3.4\nINFO all is well", "9" * 41])
def test_a_version_that_is_none_is_not_repeated(version):
    notes = read(trained(process()) | {"version": version}).origin.notes
    assert "does not say which version" in notes[0]


def test_models_of_version_1_say_fewer():
    """Without memory the heads are asked for; group normalisations have the default number of groups, or another."""
    state = unet(dim=8, stem=8, heads=(2, 2))
    norms = {f"{name[:-1]}{leaf}": value.ravel() for name, value in state.items() for leaf in ("weight", "bias")}
    norms = {name: value for name, value in norms.items() if ".block" in name and ".norm." in name}
    assert len(norms) == 2 * 22
    kept = {name: value for name, value in state.items() if not (".block" in name and ".norm." in name)}
    target = read(process(kept | norms))
    assert (target.network.norm_groups, target.network.num_memory) == (8, 4)
    assert any("8 groups" in note for note in target.origin.notes)
    target.origin.read_params()
    bare = {name: value for name, value in kept.items() if not name.endswith("mem_kv")} | norms
    for given in ({"num_heads": 2}, {"head_channels": 3}):
        target = read(process(bare), norm_groups=4, **given)
        assert (target.network.norm_groups, target.network.num_memory) == (4, 0)
        assert (target.network.heads, target.network.head_channels) == ((2, 2), (3, 3))
        assert not any("groups" in note for note in target.origin.notes)
        target.origin.read_params()
    refused(process(bare), "set config.target.num_heads or config.target.head_channels")
    refused(process(bare), "num_heads is 4", "6 channels", num_heads=4)
    refused(process(kept | norms), "3 groups do not divide", "config.target.norm_groups", norm_groups=3)


def refused(content, *words, **options):
    """Reads, expects a refusal, and looks for words in its one sentence."""
    with pytest.raises(InputError) as caught:
        read(content, **options).origin.read_params()
    message = str(caught.value)
    assert "\n" not in message
    for word in ("model-3.pt", *words):
        assert word in message, message


def renamed(old, new):
    return {name.replace(old, new): value for name, value in process().items()}


def with_network(**tensors):
    return process(unet() | tensors)


REFUSED = {
    "an old version": (lambda: renamed(".2.to_qkv", ".2.fn.fn.to_qkv"), ("before 1.8.0",)),
    "an old objective": (lambda: process(p2_loss_weight=np.ones(40, np.float32)), ("before 1.8.0",)),
    "another process": (lambda: renamed("model.", "net."), ("model, betas and loss_weight together", "Trainer")),
    "the network alone": (lambda: unet(), ("model, betas and loss_weight together",)),
    "no betas": (lambda: process(betas=None), ("model, betas and loss_weight together",)),
    "random frequencies": (
        lambda: with_network(**{"time_mlp.0.weights": np.ones(8, np.float32)}),
        ("random or learned frequencies",),
    ),
    "sequences": (
        lambda: with_network(**{"init_conv.weight": np.ones((6, 1, 7), np.float32)}),
        ("sequences or volumes",),
    ),
    "self-conditioning": (lambda: process(unet(channels=2)), ("self-conditioning", "self_condition")),
    "another output": (lambda: process(unet(channels=3, out=8)), ("3 channels that predicts 8",)),
    "a lost tensor": (
        lambda: process(**{"model.mid_block1.block1.proj.bias": None}),
        ("lack 1 tensors", "middle_block_0.conv1.bias"),
    ),
    "no levels": (
        lambda: {name: value for name, value in process().items() if ".downs." not in name},
        ("lack 'down_0_attention.to_qkv.weight'", "1.8.0"),
    ),
    "a tensor more": (lambda: with_network(extra=np.ones(2, np.float32)), ("hold 1 tensors", "extra")),
    "another shape": (
        lambda: with_network(**{"mid_attn.to_out.bias": np.ones(9, np.float32)}),
        ("middle_attention.to_out.bias", "(9,)", "(8,)"),
    ),
    "a scalar": (lambda: with_network(**{"final_conv.weight": np.ones((), np.float32)}), ("have other shapes",)),
    "no memory of two": (
        lambda: with_network(**{"downs.1.2.mem_kv": np.ones((3, 2, 4, 3), np.float32)}),
        ("downs.1.2.mem_kv", "(3, 2, 4, 3)"),
    ),
    "an empty memory": (
        lambda: with_network(**{"downs.0.2.mem_kv": np.ones((2, 0, 3, 4), np.float32)}),
        ("downs.0.2.mem_kv", "(2, 0, 3, 4)"),
    ),
    "integers": (lambda: with_network(**{"init_conv.bias": np.ones(6, np.int8)}), ("init_conv.bias", "int8")),
    "text": (lambda: process(**{"model.init_conv.bias": "six"}), ("is no tensor",)),
    "betas of text": (lambda: process(betas="linear"), ("is no tensor",)),
    "betas that are none": (lambda: process(betas=2 * BETAS), ("betas that are no noise schedule", "between 0 and 1")),
    "weights of none": (lambda: process(weight=np.sqrt(loss_weight("v"))), ("pred_noise, pred_x0 and pred_v",)),
    "weights that are NaN": (lambda: process(weight=np.nan * BETAS), ("pred_noise, pred_x0 and pred_v",)),
    "fewer weights": (lambda: process(weight=loss_weight("v")[1:]), ("pred_noise, pred_x0 and pred_v",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_in_one_sentence(name):
    content, words = REFUSED[name]
    refused(content(), *words)


def test_what_is_not_of_the_format():
    for content in (None, [], {}, {"model": 3, "ema": None}, {1: 2}, {"ema_model": {"head.weight": 0}}):
        assert not lucidrains.matches(content)
    only_online = {f"online_model.{name}": value for name, value in process().items()}
    refused({"ema": only_online}, "neither averaged nor last weights")
