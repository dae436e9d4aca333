"""A target's checkpoint and the settings: what it decides, what must agree, and sentences that can be followed."""

import json
import logging
import re

import foreign
import pytest
from safetensors.numpy import load_file, save_file

from side_jax.config import default_config, from_config
from side_jax.errors import InputError
from side_jax.pipeline.resolve import resolve_target

CONFIG, WEIGHTS = "unet/config.json", "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tmp_path):
    """A checkpoint whose images are 8x8 and grey, and whose U-Net halves them once."""
    foreign.write(tmp_path / "model")
    return tmp_path / "model"


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def resolve(model, **data):
    """The config with what the checkpoint decides, after the checks of its settings."""
    config = default_config()
    config.target.path = str(model)
    config.data.update({"name": "npz", "path": "seen.npz", "heldout_from": "unseen.npz"} | data)
    config.diffusion.num_timesteps = 1000
    config.sampler.num_steps = 20
    resolved = resolve_target(config)
    from_config(resolved)
    return resolved


def refused(*words, model, **data):
    with pytest.raises(InputError) as caught:
        resolve(model, **data)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def test_what_the_settings_must_be_is_said_and_works(model):
    for height, width in ((16, 16), (16, 24)):
        change(model / CONFIG, sample_size=[height, width])
        message = refused(f"{height}x{width} pixels and 1 channels", model=model, image_size=8, channels=3)
        advice = dict(re.findall(r"config\.data\.(\w+) = (\d+)", message))
        resolved = resolve(model, **{name: int(value) for name, value in advice.items()})
        assert (resolved.model.block_out_channels, resolved.diffusion.prediction_type) == ((4, 8), "v")
        assert from_config(resolved).data.shape == (height, width, 1)


@pytest.mark.parametrize("size", [8, 12])
def test_without_its_size_the_settings_decide(model, caplog, size):
    change(model / CONFIG, sample_size=None)
    resolve(model, image_size=size, channels=1)
    assert f"does not say the size of its images; that of config.data, {size}x{size}, is taken" in caplog.text
    refused("data.image_size is 9", "divisible by 2", model=model, image_size=9, channels=1)
    refused("config.data.channels = 1", model=model, image_size=size, channels=3)


def test_a_size_that_the_network_cannot_have_is_corrected_in_its_config(model):
    """What is written there is then what the settings must be."""
    change(model / CONFIG, sample_size=27)
    refused("config.target.path", "sample_size = 27", "multiples of 2", model=model, image_size=27, channels=1)
    change(model / CONFIG, sample_size=28)
    refused("set config.data.image_size = 28", model=model, image_size=27, channels=1)
    resolve(model, image_size=28, channels=1)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, ("EDMEulerScheduler",)),
        ("model_index.json", {"text_encoder": ["transformers", "CLIPTextModel"]}, ("pipeline with a text_encoder",)),
    ],
)
def test_another_kind_of_model_is_refused_whatever_else_it_lacks(model, name, values, words):
    """So that nobody repairs what is refused then."""
    change(model / name, **values)
    (model / WEIGHTS).unlink()
    refused("config.target.path", *words, model=model, image_size=9, channels=3)


def test_weights_are_read_before_anything_starts(model):
    state = load_file(model / WEIGHTS)
    save_file({name: value.astype("int8") for name, value in state.items()}, model / WEIGHTS)
    refused("config.target.path", "as int8", model=model, image_size=8, channels=1)


def test_the_digest_is_that_of_the_weights_that_are_read(model, caplog):
    caplog.set_level(logging.INFO)
    plain = resolve(model, image_size=8, channels=1).target.sha256
    (model / "unet").rename(model / "unet_ema")
    assert resolve(model, image_size=8, channels=1).target.sha256 == plain
    foreign.write(model)
    state = load_file(model / WEIGHTS)
    save_file({name: 2 * value for name, value in state.items()}, model / WEIGHTS)
    assert resolve(model, image_size=8, channels=1).target.sha256 == plain
    assert resolve(model / "unet", image_size=8, channels=1).target.sha256 != plain


def test_home_is_understood(model, monkeypatch):
    monkeypatch.setenv("HOME", str(model.parent))
    resolved = resolve("~/model", image_size=8, channels=1)
    assert resolved.target.path == "~/model"  # as given
    assert from_config(resolved).target.path == str(model)
