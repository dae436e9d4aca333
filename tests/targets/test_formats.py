"""Files of ADM and MONAI without PyTorch, as safetensors: what is read, what is asked for, and what is refused."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from side_jax.errors import InputError
from side_jax.settings import Diffusion
from side_jax.settings import Target as Section
from side_jax.targets.formats import read_target
from side_jax.targets.target_model import Hints

ADM = {"num_heads": 4, "qkv_order": "legacy", "schedule": "linear"}
MONAI = {"head_channels": 8, "schedule": "cosine", "pixels": "signed"}
WIDTH, TIME = 32, 128
RNG = np.random.default_rng(0)


def layer(name, *shape):
    """A layer's weight and bias."""
    return {
        f"{name}.weight": RNG.standard_normal(shape).astype(np.float32),
        f"{name}.bias": RNG.standard_normal(shape[0]).astype(np.float32),
    }


def adm_block(name, before):
    made = layer(f"{name}.in_layers.0", before) | layer(f"{name}.in_layers.2", WIDTH, before, 3, 3)
    made |= layer(f"{name}.emb_layers.1", WIDTH, TIME) | layer(f"{name}.out_layers.0", WIDTH)
    made |= layer(f"{name}.out_layers.3", WIDTH, WIDTH, 3, 3)
    return made | (layer(f"{name}.skip_connection", WIDTH, before, 1, 1) if before != WIDTH else {})


def adm():
    """Of one level, with attention in the middle."""
    state = layer("time_embed.0", TIME, WIDTH) | layer("time_embed.2", TIME, TIME)
    state |= layer("input_blocks.0.0", WIDTH, 3, 3, 3) | layer("out.0", WIDTH) | layer("out.2", 3, WIDTH, 3, 3)
    for name in ("input_blocks.1.0", "middle_block.0", "middle_block.2"):
        state |= adm_block(name, WIDTH)
    for name in ("output_blocks.0.0", "output_blocks.1.0"):
        state |= adm_block(name, 2 * WIDTH)
    state |= layer("middle_block.1.norm", WIDTH) | layer("middle_block.1.qkv", 3 * WIDTH, WIDTH, 1)
    return state | layer("middle_block.1.proj_out", WIDTH, WIDTH, 1)


def monai_block(name, before):
    made = layer(f"{name}.norm1", before) | layer(f"{name}.conv1.conv", WIDTH, before, 3, 3)
    made |= layer(f"{name}.time_emb_proj", WIDTH, TIME) | layer(f"{name}.norm2", WIDTH)
    made |= layer(f"{name}.conv2.conv", WIDTH, WIDTH, 3, 3)
    return made | (layer(f"{name}.skip_connection.conv", WIDTH, before, 1, 1) if before != WIDTH else {})


def monai():
    """Likewise."""
    state = layer("time_embed.0", TIME, WIDTH) | layer("time_embed.2", TIME, TIME)
    state |= layer("conv_in.conv", WIDTH, 1, 3, 3) | layer("out.0", WIDTH) | layer("out.2.conv", 1, WIDTH, 3, 3)
    for name in ("down_blocks.0.resnets.0", "middle_block.resnet_1", "middle_block.resnet_2"):
        state |= monai_block(name, WIDTH)
    for name in ("up_blocks.0.resnets.0", "up_blocks.0.resnets.1"):
        state |= monai_block(name, 2 * WIDTH)
    state |= layer("middle_block.attention.norm", WIDTH)
    for part in ("to_q", "to_k", "to_v", "out_proj"):
        state |= layer(f"middle_block.attention.attn.{part}", WIDTH, WIDTH)
    return state


def hints(options, **diffusion):
    return Hints(target=Section(**options), diffusion=Diffusion(**diffusion))


@pytest.fixture
def write(tmp_path):
    def write(state):
        save_file(state, tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    return write


def refused(path, told, *words):
    """Reads, weights too, expects a refusal, and looks for words in its one sentence."""
    with pytest.raises(InputError) as caught:
        read_target(path, told).origin.read_params()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(("state", "options"), [(adm, ADM), (monai, MONAI)])
def test_every_number_of_a_file_is_a_parameter(write, state, options):
    state = state()
    target = read_target(write(state), hints(options))
    params = target.origin.read_params()
    leaves = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    numbers = np.concatenate([np.ravel(value) for value in state.values()])
    np.testing.assert_array_equal(np.sort(leaves), np.sort(numbers))
    x, t = np.ones((2, 8, 8, target.channels), np.float32), np.asarray([3, 700], np.int32)
    assert np.isfinite(jax.jit(target.denoise)(params, x, t)).all()
    assert target.diffusion.schedule == options["schedule"]
    assert target.size is None


def test_without_attention_nobody_asks_for_heads(write):
    target = read_target(write(without(monai(), "middle_block.attention")), hints(MONAI | {"head_channels": 0}))
    assert not target.network.add_attention


ASKED = [
    (adm, ADM | {"num_heads": 0}, "config.target.num_heads or config.target.head_channels"),
    (adm, ADM | {"qkv_order": ""}, "set config.target.qkv_order to new"),
    (adm, ADM | {"schedule": ""}, "set config.target.schedule to linear, scaled_linear or cosine"),
    (adm, ADM | {"num_heads": 5}, "config.target.num_heads is 5", "32 channels"),
    (monai, MONAI | {"head_channels": 0}, "config.target.num_heads or config.target.head_channels"),
    (monai, MONAI | {"head_channels": 12}, "config.target.head_channels is 12", "32 channels"),
    (monai, MONAI | {"schedule": ""}, "set config.target.schedule"),
    (monai, MONAI | {"pixels": ""}, "set config.target.pixels to unit ([0, 1]", "or signed ([-1, 1])"),
]


@pytest.mark.parametrize(("state", "options", "words"), [(row[0], row[1], row[2:]) for row in ASKED])
def test_what_a_file_does_not_say_is_asked_for(write, state, options, words):
    refused(write(state()), hints(options), *words)


@pytest.mark.parametrize(("state", "options"), [(adm, ADM), (monai, MONAI)])
def test_pixels_in_0_to_1_are_a_setting_of_every_model(write, state, options):
    """The same parameters, one level deeper, and noise that is twice as large."""
    path = write(state())
    signed, unit = (read_target(path, hints(options | {"pixels": pixels})) for pixels in ("signed", "unit"))
    assert unit.network.net == signed.network
    params = unit.origin.read_params()
    jax.tree.map(np.testing.assert_array_equal, params["net"], signed.origin.read_params())
    snr = signed.schedule.log_snr
    np.testing.assert_allclose(unit.schedule.log_snr, snr - np.log(4), rtol=1e-9, atol=1e-9)
    # What is read again by a run that continues, whose settings hold the noise that was derived.
    again = read_target(path, Hints(target=Section(**(options | {"pixels": "unit"})), diffusion=unit.diffusion))
    assert again.diffusion == unit.diffusion
    assert again.network == unit.network


def test_timesteps_that_are_not_a_thousand_are_asked_for_and_scale_the_betas_once(write):
    path = write(adm())
    refused(path, hints(ADM, num_timesteps=250), "its 250 timesteps", "set config.target.timesteps")
    told = hints(ADM | {"timesteps": "rescaled"}, num_timesteps=250)
    target = read_target(path, told)
    assert target.network.timestep_scale == 4
    np.testing.assert_allclose(target.schedule.betas, 4 * np.linspace(1e-4, 0.02, 250))
    again = read_target(path, Hints(target=told.target, diffusion=target.diffusion))  # as a run continues
    assert again.diffusion == target.diffusion
    assert read_target(path, hints(ADM | {"timesteps": "plain"}, num_timesteps=250)).network.timestep_scale == 1


def without(state, name):
    return {key: value for key, value in state.items() if not key.startswith(name)}


REFUSED = {
    "a missing tensor": (without(adm(), "input_blocks.1.0.in_layers.0.bias"), ADM, "lack 1 tensors", "norm1.bias"),
    "one too many": (adm() | layer("more", 3), ADM, "hold 2 tensors", "more."),
    "no end of an attention": (without(adm(), "middle_block.1.proj_out"), ADM, "is damaged, or no adm model"),
    "another shape": (adm() | layer("out.0", 16), ADM, "conv_norm_out.bias has shape (16,)"),
    "integers": (adm() | {"out.0.bias": np.zeros(32, np.int8)}, ADM, "out.0.bias as int8"),
    "a condition": (adm() | layer("middle_block.1.encoder_kv", 3), ADM, "another attention"),
    "volumes": (monai() | layer("conv_in.conv", WIDTH, 1, 3, 3, 3), MONAI, "a model of volumes"),
    "cross-attention": (
        monai() | layer("down_blocks.0.attentions.0.transformer_blocks.0.norm1", 3),
        MONAI,
        "condition",
    ),
    "groups": (
        {name: value[:24] if name.endswith("norm1.weight") else value for name, value in monai().items()},
        MONAI,
        "set config.target.norm_groups",
    ),
    "nothing known": (layer("fc", 3, 3), {}, "holds no model of a known format", "docs/your_model.md"),
    "another format": (monai(), MONAI | {"format": "adm"}, "is not of the format adm"),
    "a label": (adm(), ADM | {"null_label": 3}, "null_label is 3", "0 labels", "set it to -1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_model_is_refused(write, case):
    state, options, *words = REFUSED[case]
    refused(write(state), hints(options), *words)


def test_a_damaged_file_is_refused(write, tmp_path):
    path = write(adm())
    path.write_bytes(path.read_bytes()[:-100])
    refused(path, hints(ADM), "can't be read as safetensors", "replace it")
    (tmp_path / "text.safetensors").write_text("weights")
    refused(tmp_path / "text.safetensors", hints(ADM), "can't be read as safetensors")
    refused(tmp_path, hints({"format": "monai"} | MONAI), "is a folder, but config.target.format = monai is of a file")
