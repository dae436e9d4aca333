"""Conversion of diffusers' checkpoints without diffusers: the round trip, and a sentence for each thing it refuses."""

import functools
import json
import shutil

import foreign
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from side_jax.diffusion.schedule import make_schedule
from side_jax.errors import InputError
from side_jax.targets import parameters
from side_jax.targets.diffusers_unet import from_diffusers, to_diffusers
from side_jax.targets.schedules import read_schedule

WEIGHTS = "diffusion_pytorch_model.safetensors"
TINY = foreign.TINY
# Of one level: each reading traces the whole network.
SMALL = TINY.clone(block_out_channels=(4,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
random_params = functools.cache(foreign.random_params)


def write(directory, module):
    schedule = make_schedule("cosine", 30, prediction_type="v")
    to_diffusers(directory, module, random_params(module), schedule, image_size=8)
    return schedule


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    write(directory, SMALL)
    return directory


@pytest.fixture
def checkpoint(whole, tmp_path):
    """A good checkpoint, to be damaged."""
    return shutil.copytree(whole, tmp_path / "model")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(directory, *words):
    """Reads, expects a refusal, and looks for words in its one sentence."""
    with pytest.raises(InputError) as caught:
        from_diffusers(directory)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(directory.parent), *words):
        assert word in message, message


def test_the_round_trip_is_bit_exact(tmp_path):
    schedule = write(tmp_path, TINY)
    for directory in (tmp_path, tmp_path / "unet", str(tmp_path)):
        module, params, read = from_diffusers(directory)
        assert module == TINY
        assert jax.tree.structure(params) == jax.tree.structure(random_params(TINY))
        jax.tree.map(np.testing.assert_array_equal, params, random_params(TINY))
        np.testing.assert_array_equal(read.betas, schedule.betas)
        assert read.prediction_type == "v"
    to_diffusers(tmp_path / "again", module, params, read, image_size=8)
    for name in (f"unet/{WEIGHTS}", "unet/config.json", "scheduler/scheduler_config.json", "model_index.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_conditional_model_is_written_with_its_labels(tmp_path):
    """As PyTorch's Embedding, rows first; diffusers counts no label as one more class."""
    module = SMALL.clone(num_labels=2)
    write(tmp_path, module)
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["num_class_embeds"] == 3
    state, params = load_file(tmp_path / "unet" / WEIGHTS), random_params(module)
    np.testing.assert_array_equal(state["class_embedding.weight"], params["class_embedding"]["embedding"])
    jax.tree.map(np.testing.assert_array_equal, parameters.from_state_dict(state, params, "here"), params)
    refused(tmp_path / "unet", "num_class_embeds = 3", "class-conditional models are not read")


def test_what_is_read_predicts(checkpoint):
    module, params, _ = from_diffusers(checkpoint)
    out = jax.jit(module.apply)({"params": params}, np.ones((2, 8, 8, 1), np.float32), np.asarray([0, 29], np.int32))
    assert out.shape == (2, 8, 8, 1)
    assert np.isfinite(out).all()


def test_names_and_axes_follow_one_rule():
    """A tensor of each kind by hand: PyTorch has [out, in, h, w] and [out, in], and lists' numbers as parts."""
    params = random_params(TINY)
    state = parameters.to_state_dict(params)
    block = params["down_blocks_0"]["resnets_0"]
    np.testing.assert_array_equal(
        state["down_blocks.0.resnets.0.conv1.weight"][1, 2], block["conv1"]["kernel"][..., 2, 1]
    )
    np.testing.assert_array_equal(
        state["down_blocks.0.resnets.0.time_emb_proj.weight"], block["time_emb_proj"]["kernel"].T
    )
    np.testing.assert_array_equal(state["down_blocks.0.resnets.0.norm1.weight"], block["norm1"]["scale"])
    np.testing.assert_array_equal(
        state["mid_block.attentions.0.to_out.0.bias"], params["mid_block"]["attentions_0"]["to_out_0"]["bias"]
    )
    assert "time_embedding.linear_1.weight" in state
    assert "up_blocks.0.upsamplers.0.conv.weight" in state


def test_a_checkpoint_may_lie_flat_or_in_shards(checkpoint):
    folder = checkpoint / "unet"
    (checkpoint / "scheduler" / "scheduler_config.json").rename(folder / "scheduler_config.json")
    state = load_file(folder / WEIGHTS)
    names = sorted(state)
    save_file({name: state[name] for name in names[:9]}, folder / "a.safetensors")
    save_file({name: state[name] for name in names[9:]}, folder / "b.safetensors")
    (folder / WEIGHTS).unlink()
    index = {name: "a.safetensors" if i < 9 else "b.safetensors" for i, name in enumerate(names)}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": index}))
    jax.tree.map(np.testing.assert_array_equal, from_diffusers(folder)[1], random_params(SMALL))
    (folder / "b.safetensors").unlink()
    refused(folder, "b.safetensors is missing")
    (folder / f"{WEIGHTS}.index.json").write_text("{}")
    refused(folder, "has no weight_map", "replace it")


@pytest.mark.parametrize("name", ["nothing", "owner/name", "weights.safetensors"])
def test_only_a_local_folder_is_read(tmp_path, name):
    refused(tmp_path / "there" / name, f"{name} is not a folder", "download it first")


@pytest.mark.parametrize("name", ["model.ckpt", "pytorch_model.bin", "ema.pt", "model.pth", "model.pkl"])
def test_a_pickled_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"never read")
    words = ("pickle", "can run any code", "weights_only=True", "safetensors")
    refused(tmp_path / name, name, *words)
    refused(tmp_path, name, *words)  # as is its folder


def test_a_folder_of_something_else_is_refused(tmp_path):
    refused(tmp_path, "neither config.json nor unet/config.json", "give a pipeline or unet folder")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt"])
def test_missing_and_pickled_weights_are_refused(checkpoint, name):
    (checkpoint / "unet" / WEIGHTS).unlink()
    refused(checkpoint, f"{WEIGHTS} is missing", "put it there")
    (checkpoint / "unet" / name).write_bytes(b"never read")
    refused(checkpoint, "pickled", name, "weights_only=True", "safetensors.torch.save_file")


@pytest.mark.parametrize("cut", [slice(0, -4), slice(0, 100), slice(0, 0), slice(9, None)])
def test_damaged_weights_are_refused(checkpoint, cut):
    path = checkpoint / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[cut])
    refused(checkpoint, str(path), "can't be read as safetensors", "replace it")


@pytest.mark.parametrize("content", ["{", "", "[1]", "\udcff"])
@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_a_damaged_config_is_refused(checkpoint, name, content):
    (checkpoint / name).write_bytes(content.encode(errors="surrogateescape"))
    refused(checkpoint, str(checkpoint / name), "JSON", "replace it")


def rewrite(directory, **values):
    """Leaves nothing but these in the config of the scheduler."""
    (directory / "scheduler" / "scheduler_config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("DDPMScheduler", {}, ""),
        ("DDIMScheduler", {"clip_sample": True}, ""),
        ("DDPMScheduler", {"clip_sample": False, "thresholding": True}, "clip_sample = false, thresholding = true;"),
        ("DDIMScheduler", {"clip_sample_range": 2.0}, "clip_sample_range = 2.0;"),
        ("HeunDiscreteScheduler", {}, "clip_sample = false;"),
        ("HeunDiscreteScheduler", {"clip_sample": True}, ""),
        ("PNDMScheduler", {}, '_class_name = "PNDMScheduler", which does not clip;'),
        ("PNDMScheduler", {"clip_sample": True}, '_class_name = "PNDMScheduler", which does not clip;'),
        ("UniPCMultistepScheduler", {"thresholding": True, "clip_sample": False}, "json has thresholding = true;"),
    ],
)
def test_a_scheduler_that_samples_otherwise_is_named(checkpoint, caplog, name, values, said):
    """Where the class really does so: a key that it does not know says nothing."""
    rewrite(checkpoint, _class_name=name, **values)
    read_schedule(checkpoint)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * bool(said)
    assert said in caplog.text
    assert ("images are clipped to [-1, 1] at each step here regardless" in caplog.text) == bool(said)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("DDPMScheduler", (1e-4, 0.02)),
        ("DDIMScheduler", (1e-4, 0.02)),
        ("PNDMScheduler", (1e-4, 0.02)),
        ("DPMSolverMultistepScheduler", (1e-4, 0.02)),
        ("UniPCMultistepScheduler", (1e-4, 0.02)),
        ("EulerDiscreteScheduler", (1e-4, 0.02)),
        ("EulerAncestralDiscreteScheduler", (1e-4, 0.02)),
        ("LMSDiscreteScheduler", (1e-4, 0.02)),
        ("DEISMultistepScheduler", (1e-4, 0.02)),
        ("HeunDiscreteScheduler", (0.00085, 0.012)),
        ("KDPM2DiscreteScheduler", (0.00085, 0.012)),
    ],
)
def test_the_noise_of_ddpm_is_read_by_every_name(checkpoint, name, ends):
    """With the betas of the class where the config leaves them out."""
    rewrite(checkpoint, _class_name=name, prediction_type="v_prediction")
    read = read_schedule(checkpoint)
    np.testing.assert_allclose(read.betas, np.linspace(*ends, 1000), rtol=1e-12)
    assert read.prediction_type == "v"
    rewrite(checkpoint, _class_name=name, beta_start=0.001, beta_end=0.003, num_train_timesteps=5)
    np.testing.assert_allclose(read_schedule(checkpoint).betas, np.linspace(0.001, 0.003, 5), rtol=1e-12)


def test_a_config_without_a_class_is_read_as_ddpm(checkpoint, caplog):
    rewrite(checkpoint)
    np.testing.assert_allclose(read_schedule(checkpoint).betas, np.linspace(1e-4, 0.02, 1000), rtol=1e-12)
    (record,) = caplog.records
    assert "scheduler_config.json has no _class_name; it is read as that of a DDPMScheduler" in record.message


@pytest.mark.parametrize(
    "name",
    [
        "EDMEulerScheduler",
        "EDMDPMSolverMultistepScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "CMStochasticIterativeScheduler",
        "LCMScheduler",
        "TCDScheduler",
        "ScoreSdeVeScheduler",
        "ScoreSdeVpScheduler",
        "KarrasVeScheduler",
        "VQDiffusionScheduler",
        "UnCLIPScheduler",
        "IPNDMScheduler",
        "MyScheduler",
        "",
        ["DDPMScheduler"],
    ],
)
def test_other_noise_is_refused(checkpoint, name):
    """Though the config has betas and a prediction type that could be read."""
    change(checkpoint / "scheduler" / "scheduler_config.json", _class_name=name)
    words = ("scheduler_config.json has _class_name = " + json.dumps(name), "only models trained with that are read")
    refused(checkpoint, *words, "DDPMScheduler, DDIMScheduler")


def test_a_missing_scheduler_config_is_refused(checkpoint):
    (checkpoint / "scheduler" / "scheduler_config.json").unlink()
    refused(checkpoint, "no scheduler_config.json", "put there the one of its training")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"_class_name": "UNet2DConditionModel"}, ("UNet2DConditionModel", "unconditional UNet2DModel")),
        ({"num_class_embeds": 10}, ("num_class_embeds = 10", "class-conditional models are not read")),
        ({"class_embed_type": "timestep"}, ('class_embed_type = "timestep"', "class-conditional")),
        ({"time_embedding_type": "fourier"}, ('time_embedding_type = "fourier"', '"positional"')),
        ({"mid_block_type": None}, ("mid_block_type = null", "not supported", '"UNetMidBlock2D"')),
        ({"downsample_type": "resnet"}, ('downsample_type = "resnet"', '"conv"')),
        ({"act_fn": "gelu"}, ('act_fn = "gelu"', '"silu"')),
        ({"resnet_time_scale_shift": "spatial"}, ('"spatial"', '"default", "scale_shift"')),
        ({"downsample_padding": 2}, ("downsample_padding = 2", "0, 1")),
        ({"down_block_types": ["SkipDownBlock2D"]}, ("SkipDownBlock2D", '"AttnDownBlock2D"')),
        ({"up_block_types": ["ResnetUpsampleBlock2D"]}, ("ResnetUpsampleBlock2D", '"AttnUpBlock2D"')),
        ({"out_channels": 2}, ("in_channels = 1 and out_channels = 2", "give a model whose output is one image")),
        ({"block_out_channels": [4, 8]}, ("lists of one length", "block_out_channels", "replace it")),
        ({"block_out_channels": 4}, ("lists of one length", "block_out_channels", "replace it")),
        ({"norm_num_groups": 3}, ("describes no network that can be built", "replace it")),
        ({"attention_head_dim": 3}, ("describes no network that can be built", "replace it")),
    ],
)
def test_other_models_are_refused(checkpoint, values, words):
    change(checkpoint / "unet" / "config.json", **values)
    refused(checkpoint, "config.json", *words)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"trained_betas": None, "beta_schedule": "sigmoid"}, ('beta_schedule = "sigmoid"', "linear", "trained_betas")),
        ({"rescale_betas_zero_snr": True}, ("rescale_betas_zero_snr = true", "trained without it")),
        ({"prediction_type": "flow_prediction"}, ('prediction_type = "flow_prediction"', '"v_prediction"')),
        ({"prediction_type": ["epsilon"]}, ('prediction_type = ["epsilon"]', '"v_prediction"')),
        ({"trained_betas": None, "beta_schedule": []}, ("beta_schedule = []", "linear", "trained_betas")),
        ({"use_flow_sigmas": True}, ("use_flow_sigmas = true", "only models trained with that are read")),
        ({"timestep_type": "continuous"}, ('timestep_type = "continuous"', "only models trained with that are read")),
        ({"trained_betas": [0.1, 1.0]}, ("describes no noise schedule", "between 0 and 1", "replace it")),
        ({"trained_betas": "many"}, ("describes no noise schedule", "replace it")),
        ({"trained_betas": None, "beta_end": 2.0}, ("describes no noise schedule", "between 0 and 1", "replace it")),
        ({"trained_betas": None, "num_train_timesteps": 0}, ("describes no noise schedule", "replace it")),
    ],
)
def test_other_schedules_are_refused(checkpoint, values, words):
    change(checkpoint / "scheduler" / "scheduler_config.json", **values)
    refused(checkpoint, "scheduler_config.json", *words)


def test_weights_of_another_model_are_refused(checkpoint):
    path = checkpoint / "unet" / WEIGHTS
    state = load_file(path)
    full = dict(state)
    del state["conv_in.bias"], state["mid_block.resnets.1.norm2.weight"]
    save_file(state, path)
    refused(checkpoint, "lack 2 tensors", "conv_in.bias, mid_block.resnets.1.norm2.weight", "same checkpoint")
    save_file(full | {"class_embedding.weight": np.zeros((3, 6), np.float32)}, path)
    refused(checkpoint, "hold 1 tensors", "class_embedding.weight", "same checkpoint")
    for name, shape, asked in (
        ("conv_in.weight", (8, 1, 3, 3), (4, 1, 3, 3)),
        ("conv_in.weight", (4, 9), (4, 1, 3, 3)),
        ("time_embedding.linear_1.weight", (6, 4, 1), (6, 4)),
        ("conv_in.bias", (1,), (4,)),
    ):
        save_file(full | {name: np.zeros(shape, np.float32)}, path)
        refused(checkpoint, f"{name} has shape {shape}", f"it should be {asked}", "same checkpoint")
