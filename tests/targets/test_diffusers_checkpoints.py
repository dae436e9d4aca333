"""Conversion of diffusers' checkpoints without diffusers: the round trip, and a sentence for each thing it refuses."""

import functools
import json
import logging
import pickle
import shutil
import struct
import sys
import types

import foreign
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from safetensors.numpy import load_file, save_file

from side_jax.diffusion.schedule import make_schedule
from side_jax.errors import InputError
from side_jax.targets import parameters
from side_jax.targets.diffusers_unet import from_diffusers, to_diffusers
from side_jax.targets.schedules import SCHEDULERS, read_noise

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
    read = from_diffusers(tmp_path)
    assert (read[0].num_labels, read[0].null_label) == (3, False)  # which of them is none, a setting says
    jax.tree.map(np.testing.assert_array_equal, read[1], params)


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
    for index in ({}, *({"weight_map": {"conv_in.bias": name}} for name in (1, "../a.safetensors", str(folder / "a")))):
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
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


def test_missing_and_pickled_weights_are_refused(checkpoint):
    (checkpoint / "unet" / WEIGHTS).unlink()
    refused(checkpoint, f"{WEIGHTS} is missing", "put it there")
    (checkpoint / "unet" / "model.ckpt").write_bytes(b"never read")
    refused(checkpoint, "pickled", "model.ckpt", "weights_only=True", "safetensors.torch.save_file")


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
    read_noise(checkpoint).make()
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
    read = read_noise(checkpoint).make()
    np.testing.assert_allclose(read.betas, np.linspace(*ends, 1000), rtol=1e-12)
    assert read.prediction_type == "v"
    rewrite(checkpoint, _class_name=name, beta_start=0.001, beta_end=0.003, num_train_timesteps=5)
    np.testing.assert_allclose(read_noise(checkpoint).make().betas, np.linspace(0.001, 0.003, 5), rtol=1e-12)


def test_a_config_without_a_class_is_read_as_ddpm(checkpoint, caplog):
    rewrite(checkpoint)
    np.testing.assert_allclose(read_noise(checkpoint).make().betas, np.linspace(1e-4, 0.02, 1000), rtol=1e-12)
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


def test_the_documentation_lists_the_schedulers():
    said = (runs.ROOT / "docs" / "your_model.md").read_text()
    for name in SCHEDULERS:
        assert f"`{name.removesuffix('Scheduler')}`" in said, name


@pytest.mark.parametrize(
    "others",
    [
        {"vqvae": ["diffusers", "VQModel"]},
        {"vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"]},
        {"mel": ["diffusers", "Mel"]},
    ],
)
def test_a_pipeline_of_more_than_pixels_is_refused(checkpoint, others):
    change(checkpoint / "model_index.json", _class_name="LDMPipeline", **others)
    for folder in (checkpoint, checkpoint / "unet"):
        refused(folder, f"{checkpoint} is a pipeline with {', '.join(sorted(others))} beside the U-Net", "only models")
    change(checkpoint / "model_index.json", **dict.fromkeys(others, (None, None)))  # parts that a pipeline may have
    from_diffusers(checkpoint)


def test_a_decoder_beside_the_unet_is_noticed_without_an_index(checkpoint):
    (checkpoint / "model_index.json").unlink()
    from_diffusers(checkpoint)
    (checkpoint / "vqvae").mkdir()
    for folder in (checkpoint, checkpoint / "unet"):
        refused(folder, "with vqvae beside the U-Net", "give one of these")


@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
@pytest.mark.parametrize("shards", [False, True])
def test_weights_may_be_a_variant(checkpoint, variant, shards):
    """By the names that diffusers gives them; the plain ones are preferred."""
    folder = checkpoint / "unet"
    state = load_file(folder / WEIGHTS)
    name, files = WEIGHTS.replace(".safetensors", f".{variant}.safetensors"), {}
    if shards:
        stem = WEIGHTS.replace(".safetensors", f".{variant}")
        files = {key: f"{stem}-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(state)}
        for file in set(files.values()):
            save_file({key: state[key] for key in state if files[key] == file}, folder / file)
        name = f"{WEIGHTS}.index.{variant}.json"
        (folder / name).write_text(json.dumps({"weight_map": files}))
    else:
        save_file(state, folder / name)
    save_file({key: 2 * value for key, value in state.items()}, folder / WEIGHTS)
    plain = from_diffusers(checkpoint)[1]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), plain, random_params(SMALL))
    (folder / WEIGHTS).unlink()
    jax.tree.map(np.testing.assert_array_equal, from_diffusers(checkpoint)[1], random_params(SMALL))
    other = WEIGHTS.replace(".safetensors", ".other.safetensors")
    save_file(state, folder / other)
    refused(checkpoint, f"{folder} has several weights", name, other, f"but no {WEIGHTS}", "leave only one of them")
    (folder / name).unlink()
    jax.tree.map(np.testing.assert_array_equal, from_diffusers(checkpoint)[1], random_params(SMALL))


def test_safe_weights_come_before_pickled_ones_and_plain_ones_before_variants(checkpoint, monkeypatch):
    """The second whether PyTorch is installed or not, so that the same folder never is two models."""
    monkeypatch.setitem(sys.modules, "torch", None)
    folder = checkpoint / "unet"
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"never read")
    jax.tree.map(np.testing.assert_array_equal, from_diffusers(checkpoint)[1], random_params(SMALL))
    (folder / WEIGHTS).rename(folder / WEIGHTS.replace(".safetensors", ".fp16.safetensors"))
    refused(checkpoint, "has pickled weights (diffusion_pytorch_model.bin)")


def test_the_moving_average_is_preferred(checkpoint, caplog):
    caplog.set_level(logging.INFO)
    shutil.copytree(checkpoint / "unet", checkpoint / "unet_ema")
    state = load_file(checkpoint / "unet" / WEIGHTS)
    save_file({name: 2 * value for name, value in state.items()}, checkpoint / "unet" / WEIGHTS)
    jax.tree.map(np.testing.assert_array_equal, from_diffusers(checkpoint)[1], random_params(SMALL))
    assert f"{checkpoint}: unet_ema is read, the moving average of the weights, and not unet" in caplog.text
    caplog.clear()
    theirs = from_diffusers(checkpoint / "unet")[1]  # who names it gets it
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), theirs, random_params(SMALL))
    assert not caplog.records


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_names_of_a_wrapped_module_are_understood(checkpoint, prefix):
    path = checkpoint / "unet" / WEIGHTS
    state = load_file(path)
    save_file({prefix + name: value for name, value in state.items()}, path)
    jax.tree.map(np.testing.assert_array_equal, from_diffusers(checkpoint)[1], random_params(SMALL))
    save_file({prefix * (name != "conv_in.bias") + name: value for name, value in state.items()}, path)
    refused(checkpoint, "tensors that it has", "same checkpoint")  # not of all, so it is no wrapper's


def test_weights_may_be_none(checkpoint):
    save_file({}, checkpoint / "unet" / WEIGHTS)
    refused(checkpoint, "lack", "conv_in.bias", "same checkpoint")


@pytest.mark.parametrize("name", [WEIGHTS, WEIGHTS.replace("safetensors", "fp16.safetensors"), "shard.safetensors"])
def test_a_pointer_of_git_lfs_is_named(checkpoint, name):
    folder = checkpoint / "unet"
    (folder / WEIGHTS).unlink()
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 454744640\n")
    if name.startswith("shard"):
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"conv_in.bias": name}}))
    refused(checkpoint, f"{folder / name} is a Git LFS pointer", "run `git lfs pull`")


@pytest.mark.parametrize("torch", [None, (2, 9, 1)], ids=["no PyTorch", "an unsafe PyTorch"])
def test_pickled_weights_need_a_safe_loader(checkpoint, tmp_path, monkeypatch, torch):
    """Without it nothing is unpickled, and the sentence says which one; tests/parity/test_pickled_weights.py has it."""
    monkeypatch.setitem(sys.modules, "torch", torch and types.SimpleNamespace(__version__=torch, load=pickle.load))
    made = tmp_path / "made"
    (checkpoint / "unet" / WEIGHTS).unlink()
    (checkpoint / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(foreign.Hostile(made)))
    words = ("diffusion_pytorch_model.bin", "can run any code", "pip install 'torch>=2.10'", "weights_only=True")
    refused(checkpoint, *words)
    assert not made.exists()


def write_raw(path, state, kind, width):
    """A safetensors file of tensors of one type, all zero; `width` bytes each number."""
    shapes, end = {}, 0
    for name, value in state.items():
        shapes[name] = {"dtype": kind, "shape": value.shape, "data_offsets": [end, end + width * value.size]}
        end += width * value.size
    header = json.dumps(shapes).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(end))


@pytest.mark.parametrize(("kind", "width"), [("F8_E4M3", 1), ("F8_E5M2", 1), ("I8", 1), ("I64", 8), ("BOOL", 1)])
def test_numbers_that_are_no_weights_are_refused(checkpoint, kind, width):
    path = checkpoint / "unet" / WEIGHTS
    write_raw(path, load_file(path), kind, width)
    name = {"I8": "int8", "I64": "int64", "BOOL": "bool"}.get(kind, kind)
    refused(checkpoint, f" as {name}, which can't be read", "float32, float16 or bfloat16")


@pytest.mark.parametrize("kind", [jnp.bfloat16, np.float16, np.float64])
def test_other_floats_are_read_as_float32_of_the_same_values(checkpoint, kind):
    path = checkpoint / "unet" / WEIGHTS
    save_file({name: value.astype(kind) for name, value in load_file(path).items()}, path)
    expected = jax.tree.map(lambda value: value.astype(kind).astype(np.float32), random_params(SMALL))
    jax.tree.map(np.testing.assert_array_equal, from_diffusers(checkpoint)[1], expected)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (27, ("sample_size = 27", "can only process multiples of 2 pixels", "trained on")),
        ([8, 27], ("sample_size = [8, 27]", "multiples of 2")),
        ("8", ('sample_size = "8"', "a number of pixels, [height, width] or null")),
        (0, ("sample_size = 0", "a number of pixels")),
        ([8], ("sample_size = [8]", "a number of pixels")),
        (True, ("sample_size = true", "a number of pixels")),
    ],
)
def test_sizes_that_can_not_be_are_refused(tmp_path, size, words):
    write(tmp_path / "model", TINY)  # of two levels
    change(tmp_path / "model" / "unet" / "config.json", sample_size=size)
    refused(tmp_path / "model", "config.json has ", *words)


def test_home_is_understood_in_every_path(checkpoint, monkeypatch):
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    for given in ("~/model", "~/model/unet"):
        module, params, schedule = from_diffusers(given)
        assert module == SMALL
    to_diffusers("~/copy", module, params, schedule, image_size=8)
    assert (checkpoint.parent / "copy" / "unet" / WEIGHTS).read_bytes() == (checkpoint / "unet" / WEIGHTS).read_bytes()


def test_a_missing_scheduler_config_is_refused(checkpoint):
    (checkpoint / "scheduler" / "scheduler_config.json").unlink()
    refused(checkpoint, "no scheduler_config.json", "put there the one of its training")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"_class_name": "UNet2DConditionModel"},
            ("UNet2DConditionModel", "the whole pipeline", "config.target.prompts"),
        ),
        ({"num_class_embeds": 10}, ("lack 1 tensors", "class_embedding.weight")),
        ({"num_class_embeds": "ten"}, ('num_class_embeds = "ten"', "no number of labels")),
        ({"class_embed_type": "timestep"}, ('class_embed_type = "timestep"', "class-conditional")),
        ({"time_embedding_type": "learned"}, ('time_embedding_type = "learned"', '"positional"')),
        ({"mid_block_type": None}, ("mid_block_type = null", "not supported", '"UNetMidBlock2D"')),
        ({"downsample_type": "bilinear"}, ('downsample_type = "bilinear"', '"conv", "resnet"')),
        ({"act_fn": "gelu"}, ('act_fn = "gelu"', '"silu"')),
        ({"resnet_time_scale_shift": "spatial"}, ('"spatial"', '"default", "scale_shift"')),
        ({"downsample_padding": 2}, ("downsample_padding = 2", "0, 1")),
        ({"down_block_types": ["SkipDownBlock2D"]}, ("SkipDownBlock2D", '"AttnDownBlock2D"')),
        ({"up_block_types": ["SimpleCrossAttnUpBlock2D"]}, ("SimpleCrossAttnUpBlock2D", '"AttnUpBlock2D"')),
        ({"out_channels": 3}, ("in_channels = 1 and out_channels = 3", "give a model whose output is one image")),
        ({"out_channels": 2}, ("the weights in", "conv_out", "shape (1,")),
        ({"block_out_channels": [4, 8]}, ("lists of one length", "block_out_channels", "replace it")),
        ({"block_out_channels": 4}, ("lists of one length", "block_out_channels", "replace it")),
        (
            {"block_out_channels": [], "down_block_types": [], "up_block_types": []},
            ("lists of one length", "replace it"),
        ),
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
