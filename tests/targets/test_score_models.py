"""NCSN++ checkpoints without diffusers: what is read, and a sentence for each thing that is refused."""

import json
import logging
import shutil

import foreign
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from side_jax.errors import InputError
from side_jax.models.score_unet import ScoreUNet
from side_jax.settings import Diffusion, Target
from side_jax.targets import parameters
from side_jax.targets.diffusers_unet import from_diffusers, to_diffusers
from side_jax.targets.formats import read_target
from side_jax.targets.target_model import Hints

OPTIONS = {
    "block_out_channels": (8, 16),
    "down_block_types": ("SkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "SkipUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": None,
    "attention_head_dim": None,
}
NET = ScoreUNet(out_channels=1, **OPTIONS)
CONFIG = OPTIONS | {"in_channels": 1, "out_channels": 1, "sample_size": 8, "time_embedding_type": "fourier"}
SCHEDULER = {"_class_name": "ScoreSdeVeScheduler", "sigma_max": 30.0, "num_train_timesteps": 25}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    params = foreign.random_params(NET)
    save_file(parameters.to_state_dict(params), folder / "diffusion_pytorch_model.safetensors")
    for name, content in (("config", CONFIG), ("scheduler_config", SCHEDULER)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder, params


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "model")


def test_the_score_is_read_as_a_denoiser_of_pixels_in_0_to_1(whole, caplog):
    caplog.set_level(logging.WARNING)
    folder, params = whole
    target = read_target(folder, Hints(target=Target(), diffusion=Diffusion()))
    assert target.network.net.net == NET
    jax.tree.map(np.testing.assert_array_equal, target.origin.read_params(), {"net": {"net": params}})
    np.testing.assert_allclose(target.network.noise_levels, 2 * np.geomspace(0.01, 30.0, 25), rtol=1e-9)
    assert (target.size, target.channels, target.schedule.prediction_type) == ((8, 8), 1, "x0")
    (note,) = target.origin.notes
    assert "pixels are taken to be in [0, 1]" in note
    image = target.denoise({"net": {"net": params}}, np.zeros((1, 8, 8, 1), np.float32), np.asarray([0], np.int32))
    assert np.isfinite(image).all()


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("config", {"down_block_types": ["DownBlock2D"] * 2}, ("DownBlock2D", "fourier", '"AttnSkipDownBlock2D"')),
        ("config", {"time_embedding_type": "positional"}, ("SkipDownBlock2D", '"AttnDownBlock2D"')),
        ("config", {"num_class_embeds": 3}, ("skip blocks and class labels", "give one of images alone")),
        ("config", {"out_channels": 2}, ("skip blocks and 2 channels as output", "give one of images alone")),
        ("config", {"layers_per_block": 2}, ("lack", "down_blocks.0.resnets.1")),
        ("scheduler_config", {"_class_name": "DDPMScheduler"}, ('"DDPMScheduler"', "ScoreSdeVeScheduler alone")),
        ("scheduler_config", {"sigma_max": "big"}, ('sigma_max = "big"', "no noise")),
        ("scheduler_config", {"sigma_max": 0.001}, ("no noise between 0.01 and 0.001",)),
        ("scheduler_config", {"num_train_timesteps": 1}, ("in 1 steps",)),
        ("scheduler_config", {"num_train_timesteps": 2.5}, ("in 2.5 steps",)),
    ],
)
def test_what_is_no_such_model_is_refused(folder, name, values, words):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(InputError) as caught:
        from_diffusers(folder)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(folder), *words):
        assert word in message, message


def test_it_is_not_written(whole, tmp_path):
    with pytest.raises(InputError, match=r"UnitPixels can't be written as a diffusers pipeline; give a UNet"):
        to_diffusers(tmp_path / "copy", *from_diffusers(whole[0]), image_size=8)
    assert not (tmp_path / "copy").exists()
