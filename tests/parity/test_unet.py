"""The U-Net and its conversion against diffusers' UNet2DModel, on random weights."""

import dataclasses
import itertools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity.theirs import (
    CONFIGS,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    UNet2DModel,
    apply,
    inputs,
    load_file,
    nchw,
    nhwc,
    predict,
    random_unet,
    relative_error,
    save,
    save_file,
    torch,
)
from side_jax.targets import parameters
from side_jax.targets.diffusers_unet import from_diffusers, to_diffusers

LAYOUTS = ("flat", "pipeline", "neighbours")
# Another value for each option that doesn't change the parameters, and a configuration where it counts.
OTHERS = [
    ("not_square", "flip_sin_to_cos", True),
    ("not_square", "freq_shift", 1.0),
    ("not_square", "downsample_padding", 1),
    ("scale_shift", "flip_sin_to_cos", False),
    ("scale_shift", "freq_shift", 1.0),
    ("scale_shift", "downsample_padding", 0),
    ("mid_scale", "norm_num_groups", 2),
    ("gray_single_level", "attention_head_dim", 8),
    ("no_middle_attention", "attention_head_dim", 8),
    ("attn_groups_of_the_middle", "attn_norm_num_groups", None),
    ("attn_groups_of_the_middle", "norm_eps", 1e-5),
    ("scale_shift_attn_groups", "attn_norm_num_groups", 8),
    ("mid_scale", "mid_block_scale_factor", 1.0),
    ("centered_time_dim", "center_input_sample", False),
    ("centered_time_dim", "freq_shift", 0.0),
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """name -> both sides of a configuration, made when first asked for."""
    made = {}

    def pair(name):
        if name not in made:
            theirs = random_unet(CONFIGS[name], seed=len(made))
            directory = tmp_path_factory.mktemp(name)
            folder = save(theirs, directory, LAYOUTS[list(CONFIGS).index(name) % 3])
            module, params, schedule = from_diffusers(folder)
            made[name] = types.SimpleNamespace(
                config=CONFIGS[name], theirs=theirs, module=module, params=params, schedule=schedule, folder=folder
            )
        return made[name]

    return pair


def leaves(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def plain(config):
    """The options of a config, without diffusers' notes on it."""
    options = {name: value for name, value in config.items() if not name.startswith("_")}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def assert_identical(a, b):
    a, b = leaves(a), leaves(b)
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype == np.float32
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def read(folder, tmp_path, state):
    """What from_diffusers makes of a checkpoint's config with other weights."""
    for name in ("config.json", "scheduler_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    return from_diffusers(tmp_path)[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_predictions_agree(pairs, name):
    pair = pairs(name)
    x, t = inputs(pair.config)
    theirs = predict(pair.theirs, x, t)
    # So that an error would show: neither all but zero nor blown up, and every timestep matters.
    assert 0.2 < theirs.std() < 2
    assert relative_error(predict(pair.theirs, x, t[::-1].copy()), theirs) > 1e-2
    ours = apply(pair.module, pair.params, x, t)
    assert ours.dtype == jnp.float32
    error = max(relative_error(ours[i], theirs[i]) for i in range(len(t)))
    assert error < 2e-5  # 1e-4 would do, but only the order of sums differs


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_theirs_and_the_round_trip_is_bit_exact(pairs, name, tmp_path):
    pair = pairs(name)
    count = sum(leaf.size for leaf in jax.tree.leaves(pair.params))
    assert count == sum(parameter.numel() for parameter in pair.theirs.parameters())
    size = pair.config["sample_size"]
    to_diffusers(tmp_path, pair.module, pair.params, pair.schedule, image_size=size)
    back = UNet2DModel.from_pretrained(tmp_path, subfolder="unet", use_safetensors=True)
    expected, got = pair.theirs.state_dict(), back.state_dict()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    expected, got = plain(pair.theirs.config), plain(back.config)
    assert got == expected | {"act_fn": "silu"}  # which swish is another name of
    module, params, schedule = from_diffusers(tmp_path)
    assert module == pair.module
    assert_identical(params, pair.params)
    np.testing.assert_array_equal(schedule.betas, pair.schedule.betas)
    assert schedule.prediction_type == pair.schedule.prediction_type


@pytest.mark.parametrize(("name", "option", "other"), OTHERS)
def test_every_option_counts(pairs, name, option, other):
    """The same parameters with one option changed no longer agree, so the comparison above can fail for each."""
    pair = pairs(name)
    assert getattr(pair.module, option) != other
    x, t = inputs(pair.config)
    ours = apply(pair.module.clone(**{option: other}), pair.params, x, t)
    assert relative_error(ours, predict(pair.theirs, x, t)) > 1e-3


def test_options_that_a_config_leaves_out_are_their_defaults(pairs, tmp_path):
    pair = pairs("all_defaults")
    config = {key: pair.config[key] for key in ("block_out_channels", "sample_size")}
    assert plain(UNet2DModel(**config).config) == plain(pair.theirs.config)
    folder = save(pair.theirs, tmp_path)
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    assert from_diffusers(folder)[0] == pair.module


@pytest.mark.parametrize("name", ["scale_shift", "dropout_and_swish"])
def test_gradients_agree(pairs, name):
    """In the images and in every parameter, so training here follows training there."""
    pair = pairs(name)
    x, t = inputs(pair.config)
    weight = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    images = nchw(x).requires_grad_()
    pair.theirs.zero_grad()
    (pair.theirs(images, torch.from_numpy(t)).sample * nchw(weight)).sum().backward()
    state = {key: value.grad.numpy() for key, value in pair.theirs.named_parameters()}

    @jax.jit
    def gradients(params, x):
        return jax.grad(lambda p, x: (pair.module.apply({"params": p}, x, t) * weight).sum(), argnums=(0, 1))(params, x)

    in_params, in_x = gradients(pair.params, x)
    assert relative_error(in_x, nhwc(images.grad)) < 1e-3
    theirs = leaves(parameters.from_state_dict(state, pair.params, "their gradients"))
    largest = max(np.abs(value).max() for value in theirs.values())
    for key, value in leaves(in_params).items():
        size = np.abs(theirs[key]).max()
        # A key's bias shifts every score of a query alike, and a channel's bias alone in its group is normalised away:
        # such gradients are zero but for rounding, on both sides.
        assert np.abs(value - theirs[key]).max() < 1e-3 * (size if size > 1e-4 * largest else largest), key


def test_dropout_is_off_unless_asked_for(pairs):
    pair = pairs("dropout_and_swish")
    x, t = inputs(pair.config)
    assert pair.module.dropout == 0.3

    @jax.jit
    def train(params, key):
        return pair.module.apply({"params": params}, x, t, False, rngs={"dropout": key})

    assert (
        relative_error(train(pair.params, jax.random.key(0)), np.asarray(apply(pair.module, pair.params, x, t))) > 0.01
    )


def test_norms_keep_their_digits_where_the_mean_outweighs_the_spread(tmp_path):
    """One channel a group, and time embeddings far larger than the features; their float32 is off by 1e-3 there."""
    config = CONFIGS["scale_shift"] | {"block_out_channels": (16, 16), "norm_num_groups": 16}
    config |= {"resnet_time_scale_shift": "default", "layers_per_block": 2}
    theirs = random_unet(config)
    for name, parameter in theirs.named_parameters():
        if name.endswith("time_emb_proj.bias"):
            parameter.data.mul_(300.0)
    module, params, _ = from_diffusers(save(theirs, tmp_path))
    x, t = inputs(config)
    exact = predict(theirs.double(), x.astype(np.float64), t)
    assert relative_error(apply(module, params, x, t), exact) < 1e-4


@pytest.mark.parametrize("convolutions", [False, True])
def test_attention_by_its_old_names_loads_the_same(pairs, tmp_path, convolutions):
    """As in checkpoints from before diffusers 0.17; the oldest have 1x1 convolutions."""
    pair = pairs("ddpm_celebahq_256")
    old = {}
    for name, value in pair.theirs.state_dict().items():
        parts = name.replace("to_out.0", "proj_attn").split(".")
        parts = [{"to_q": "query", "to_k": "key", "to_v": "value"}.get(part, part) for part in parts]
        if convolutions and "attentions" in parts and value.ndim == 2:
            value = value[:, :, None, None]
        old[".".join(parts)] = value.contiguous()
    assert sum("proj_attn" in name for name in old) == 2 * 6
    folder = save(pair.theirs, tmp_path / "new")
    assert_identical(read(folder, tmp_path, old), pair.params)


def test_shards_load(pairs, tmp_path):
    pair = pairs("ddpm_celebahq_256")
    folder = save(pair.theirs, tmp_path, max_shard_size="4MB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert_identical(from_diffusers(folder)[1], pair.params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loads_as_float32_of_the_same_values(pairs, tmp_path, dtype):
    pair = pairs("scale_shift")
    state = {name: value.to(dtype) for name, value in pair.theirs.state_dict().items()}
    folder = save(pair.theirs, tmp_path / "full")
    got = read(folder, tmp_path / "full", state)
    full = {name: value.float().numpy() for name, value in state.items()}
    assert_identical(got, parameters.from_state_dict(full, pair.params, "the state"))
    assert load_file(folder / "diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype == dtype


def test_what_is_written_is_a_pipeline_of_theirs(pairs, tmp_path):
    pair = pairs("scale_shift")
    to_diffusers(tmp_path, pair.module, pair.params, pair.schedule, image_size=16)
    pipeline = DDPMPipeline.from_pretrained(tmp_path, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(num_inference_steps=2, output_type="np", generator=torch.manual_seed(0)).images
    assert images.shape == (1, 16, 16, 3)
    for scheduler in (DDPMScheduler, DDIMScheduler):
        theirs = scheduler.from_pretrained(tmp_path, subfolder="scheduler")
        np.testing.assert_array_equal(theirs.betas.numpy(), pair.schedule.betas.astype(np.float32))


def test_predictions_agree_with_labels_and_without(tmp_path):
    """Ours, written for diffusers, with every label; its last embedding is ours without label."""
    config = CONFIGS["scale_shift"]
    free, _, schedule = from_diffusers(save(random_unet(config), tmp_path / "free"))
    module = dataclasses.replace(free, num_labels=2)
    x, t = inputs(config)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.asarray(x), jnp.asarray(t))["params"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (rng.standard_normal(leaf.shape) / np.sqrt(max(leaf.size // leaf.shape[-1], 1))).astype(
            np.float32
        ),
        shapes,
    )
    to_diffusers(tmp_path / "ours", module, params, schedule, image_size=config["sample_size"])
    theirs = UNet2DModel.from_pretrained(tmp_path / "ours", subfolder="unet", use_safetensors=True).eval()
    found = []
    for label, number in ((0, 0), (1, 1), (-1, 2)):
        with torch.no_grad():
            numbers = torch.full((len(t),), number)
            expected = nhwc(theirs(nchw(x), torch.from_numpy(t), class_labels=numbers).sample)
        labels = jnp.full(len(t), label, jnp.int32)
        ours = jax.jit(module.apply)({"params": params}, jnp.asarray(x), jnp.asarray(t), labels=labels)
        assert relative_error(ours, expected) < 2e-5
        found.append(expected)
    assert min(relative_error(a, b) for a, b in itertools.combinations(found, 2)) > 1e-3
