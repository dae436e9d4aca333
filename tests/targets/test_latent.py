"""Models of latents without PyTorch: what is read of their files, and a sentence for each thing that is refused."""

import dataclasses
import json
import logging
import shutil

import foreign
import jax
import numpy as np
import pytest
import runs
from safetensors.numpy import load_file, save_file

from side_jax import builders
from side_jax.attacks.table import ATTACKS
from side_jax.config import from_config
from side_jax.diffusion.genetic import log_odds
from side_jax.diffusion.mode_seeking import spread
from side_jax.diffusion.pixel_range import to_float, to_uint8
from side_jax.diffusion.sampler import initial_noise, sample, sample_from, sample_keys
from side_jax.diffusion.schedule import make_schedule
from side_jax.errors import InputError
from side_jax.models.autoencoders import Autoencoder
from side_jax.models.classifier import log_probs
from side_jax.models.latent import Latent
from side_jax.models.unet import UNet
from side_jax.pipeline.saved_config import saved_config
from side_jax.sampling import shards
from side_jax.settings import Diffusion, random_streams
from side_jax.settings import Target as Section
from side_jax.stages import stage_inputs, stage_table
from side_jax.targets import monai_vae, networks, parameters
from side_jax.targets.diffusers_unet import to_diffusers
from side_jax.targets.formats import read_target
from side_jax.targets.latents import autoencoder_shapes
from side_jax.targets.target_model import Hints, Origin, Target

WEIGHTS = "diffusion_pytorch_model.safetensors"
NET = UNet(
    out_channels=2,
    block_out_channels=(4,),
    down_block_types=("DownBlock2D",),
    up_block_types=("UpBlock2D",),
    layers_per_block=1,
    attention_head_dim=None,
    norm_num_groups=2,
)
HALVES = {"encoder_layers": (1, 1), "decoder_layers": (2, 2), "encoder_attention": (False, False)}
HALVES |= {"decoder_attention": (False, True), "channels": 1, "block_out_channels": (4, 6), "norm_num_groups": 2}
KL = Autoencoder(latent_channels=2, encoded_channels=4, decoded_channels=2, **HALVES)
VQ = Autoencoder(latent_channels=2, encoded_channels=3, decoded_channels=3, codes=5, **HALVES)
CONFIG = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [4, 6],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"],
    "scaling_factor": 0.5,
}
OWN = {
    "vae": {"_class_name": "AutoencoderKL", "latent_channels": 2, "shift_factor": 0.25},
    "vqvae": {"_class_name": "VQModel", "latent_channels": 3, "vq_embed_dim": 2, "num_vq_embeddings": 5},
}


def hints(**options):
    return Hints(target=Section(**options), diffusion=Diffusion())


def random_params(module, place):
    rng = np.random.default_rng(0)
    shapes = autoencoder_shapes(module, place)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes)


def with_log_variances(params):
    """As a checkpoint has them, after the means."""
    last = params["quant_conv"]
    return params | {"quant_conv": {name: np.concatenate([leaf, 7 * leaf], axis=-1) for name, leaf in last.items()}}


def write_unet(folder, net):
    params = foreign.random_params(net, (8, 8, net.out_channels))
    to_diffusers(folder, net, params, make_schedule("cosine", 30), image_size=8)


def write(folder, name, net=NET):
    """A pipeline's folder with an autoencoder."""
    write_unet(folder, net)
    change(folder / "scheduler" / "scheduler_config.json", clip_sample=False)
    module = KL if name == "vae" else VQ
    params = random_params(module, folder)
    (folder / name).mkdir()
    (folder / name / "config.json").write_text(json.dumps(CONFIG | OWN[name]))
    save_file(
        parameters.to_state_dict(with_log_variances(params) if name == "vae" else params), folder / name / WEIGHTS
    )
    change(folder / "model_index.json", **{name: ["diffusers", OWN[name]["_class_name"]]})
    return params


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """name of the autoencoder's folder -> (a pipeline's folder, the autoencoder's parameters)."""
    folders = {name: tmp_path_factory.mktemp("whole") / name for name in OWN}
    return {name: (folder, write(folder, name)) for name, folder in folders.items()}


@pytest.fixture
def pipeline(wholes, tmp_path):
    """A good one with vae/, to be damaged."""
    return shutil.copytree(wholes["vae"][0], tmp_path / "model")


def refused(directory, *words, **options):
    """Reads, weights too, expects a refusal, and looks for words in its one sentence."""
    with pytest.raises(InputError) as caught:
        read_target(directory, hints(**options)).origin.read_params()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("name", OWN)
def test_a_pipeline_of_latents_is_read(wholes, name, caplog):
    folder, params = wholes[name]
    for path in (folder, folder / "unet"):
        target = read_target(path, hints())
        module, shift = (KL, 0.25) if name == "vae" else (VQ, 0.0)
        assert target.network == Latent(
            net=target.network.net, autoencoder=module, scaling_factor=0.5, shift_factor=shift
        )
        assert isinstance(target.network.net, UNet)
        assert (target.channels, target.size, target.shape((16, 16))) == (1, (16, 16), (8, 8, 2))
        assert target.origin.weights == (folder / "unet" / WEIGHTS, folder / name / WEIGHTS)
        assert target.origin.notes == ()
        read = target.origin.read_params()
        jax.tree.map(np.testing.assert_array_equal, read["autoencoder"], params)
        jax.tree.map(np.testing.assert_array_equal, read["net"], foreign.random_params(NET, (8, 8, 2)))
    assert not caplog.records  # latents need no clipping
    assert networks.build(networks.describe(target.network)) == target.network
    x, t = np.ones((2, 8, 8, 2), np.float32), np.asarray([0, 29], np.int32)
    images, predicted, z = jax.jit(
        lambda p: (target.decode(p, x), target.denoise(p, x, t), target.encode(p, x[..., :1]))
    )(read)
    assert (images.shape, predicted.shape, z.shape) == ((2, 16, 16, 1), (2, 8, 8, 2), (2, 4, 4, 2))
    assert np.isfinite(images).all()


def test_a_model_of_pixels_samples_images(tmp_path):
    write_unet(tmp_path, NET)
    target = read_target(tmp_path, hints())
    x = np.ones((1, 8, 8, 2), np.float32)
    assert target.shape((8, 6)) == (8, 6, 2)
    assert target.encode(None, x) is x
    assert target.decode(None, x) is x


def test_only_sizes_of_whole_latents_are_sampled(pipeline):
    target = read_target(pipeline, hints())
    with pytest.raises(InputError, match=r"15x16 pixels.*set config.data.image_size to a multiple of 2"):
        target.shape((15, 16))


def test_the_label_of_no_label_may_be_any(tmp_path):
    write(tmp_path, "vae", NET.clone(num_labels=3, null_label=False))
    plain, target = (read_target(tmp_path, hints(null_label=label)) for label in (-1, 0))
    assert (plain.num_labels, target.num_labels) == (3, 2)
    assert (target.network.net.num_labels, target.network.net.null_label) == (2, True)
    before, after = (one.origin.read_params()["net"]["class_embedding"]["embedding"] for one in (plain, target))
    np.testing.assert_array_equal(after, before[[1, 2, 0]])


@pytest.mark.parametrize(
    ("name", "said", "options", "scale", "notes"),
    [
        ("vqvae", 0.5, {"latent_scale": 2.0}, 2.0, ("multiplied by 2, as config.target.latent_scale says",)),
        ("vqvae", None, {}, 1.0, ("vqvae/config.json has no scaling_factor", "multiplied by 1,", "latent_scale")),
        ("vae", None, {}, 0.18215, ("vae/config.json has no scaling_factor", "multiplied by 0.18215,")),
    ],
)
def test_the_scale_of_latents_may_be_set(wholes, tmp_path, name, said, options, scale, notes):
    folder = shutil.copytree(wholes[name][0], tmp_path / "model")
    change(folder / name / "config.json", scaling_factor=said)
    target = read_target(folder, hints(**options))
    assert target.network.scaling_factor == scale
    (note,) = target.origin.notes
    for word in notes:
        assert word in note


def test_a_scheduler_that_clips_latents_is_named(pipeline, caplog):
    change(pipeline / "scheduler" / "scheduler_config.json", clip_sample=True, thresholding=True)
    read_target(pipeline, hints())
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "clip_sample = true, thresholding = true; latents are not clipped here regardless" in caplog.text


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("part", ["tokenizer", "vqvae"])
def test_other_parts_are_refused(pipeline, index, part):
    (pipeline / part).mkdir()
    change(pipeline / "model_index.json", **{part: ["diffusers", "VQModel"]})
    if not index:
        (pipeline / "model_index.json").unlink()
    listed = ", ".join(sorted(["vae", part]))
    for folder in (pipeline, pipeline / "unet"):
        refused(folder, f"{pipeline} is a pipeline with {listed} beside the U-Net", "at most one of vae and vqvae")


def test_without_an_index_the_folder_tells(pipeline):
    (pipeline / "model_index.json").unlink()
    assert isinstance(read_target(pipeline, hints()).network, Latent)
    shutil.rmtree(pipeline / "vae")
    assert isinstance(read_target(pipeline, hints()).network, UNet)


def test_missing_files_are_named(pipeline):
    (pipeline / "vae" / WEIGHTS).unlink()
    refused(pipeline, f"{pipeline / 'vae' / WEIGHTS} is missing", "put it there")
    (pipeline / "vae" / "config.json").unlink()
    refused(pipeline, f"{pipeline / 'vae' / 'config.json'} is missing", "autoencoder", "put it there")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"_class_name": "AutoencoderTiny"},
            ('_class_name = "AutoencoderTiny"', "AutoencoderKL and VQModel", "give a"),
        ),
        ({"_class_name": None}, ("_class_name = null", "AutoencoderKL and VQModel")),
        ({"_class_name": ["VQModel"]}, ('_class_name = ["VQModel"]', "AutoencoderKL and VQModel")),
        ({"_class_name": "VQModel", "norm_type": "spatial"}, ('norm_type = "spatial"', 'give a model with "group"')),
        ({"act_fn": "gelu"}, ('act_fn = "gelu"', '"silu", "swish"')),
        ({"latents_mean": [0.0, 0.0]}, ("latents_mean = [0.0, 0.0]", "not supported", "null")),
        ({"scaling_factor": "half"}, ('scaling_factor = "half"', "no scale of latents", "replace it")),
        ({"scaling_factor": 0}, ("scaling_factor = 0", "no scale of latents")),
        ({"shift_factor": [1]}, ("shift_factor = [1]", "no scale of latents")),
        ({"out_channels": 3}, ("in_channels = 1 and out_channels = 3", "decodes what it encodes")),
        ({"block_out_channels": [4]}, ("lists of one length", "block_out_channels", "replace it")),
        ({"block_out_channels": 4}, ("lists of one length", "replace it")),
        ({"block_out_channels": [4, "6"]}, ('"6"', "level", "replace it")),
        ({"layers_per_block": 0}, ("0 as layers_per_block", "replace it")),
        ({"latent_channels": None}, ("null as latent_channels", "replace it")),
        ({"norm_num_groups": 3}, ("describes no autoencoder that can be built", "replace it")),
        ({"up_block_types": ["UpBlock2D"] * 2}, ('"UpBlock2D" among its up_block_types', '"AttnUpDecoderBlock2D"')),
        ({"latent_channels": 4}, ("latents of 4 channels", "beside it is of 2", "same checkpoint")),
        ({"use_quant_conv": False}, ("the weights in", "hold 2 tensors", "quant_conv", "same checkpoint")),
        ({"mid_block_add_attention": False}, ("the weights in", "hold 20 tensors", "mid_block.attentions")),
    ],
)
def test_other_autoencoders_are_refused(pipeline, values, words):
    change(pipeline / "vae" / "config.json", **values)
    refused(pipeline, f"{pipeline / 'vae'}", *words)


def test_damaged_weights_are_refused(pipeline):
    path = pipeline / "vae" / WEIGHTS
    state = load_file(path)
    save_file({name: value for name, value in state.items() if "conv_out" not in name}, path)
    refused(pipeline, f"the weights in {pipeline / 'vae'}", "lack 4 tensors", "decoder.conv_out")
    path.write_bytes(path.read_bytes()[:-4])
    refused(pipeline, str(path), "can't be read as safetensors", "replace it")
    path.rename(path.with_name("model.ckpt"))
    refused(pipeline, "pickled weights (model.ckpt)", "weights_only=True")


MONAI = Autoencoder(
    channels=1,
    latent_channels=2,
    block_out_channels=(4, 6),
    encoder_layers=(1, 2),
    decoder_layers=(2, 1),
    encoder_attention=(False, True),
    decoder_attention=(True, False),
    encoded_channels=2,
    decoded_channels=2,
    final_silu=False,
    norm_num_groups=2,
)
# MONAI's blocks of either half, by their numbers, as diffusers names them.
_LOW = [f"1.{kind}.{i}" for i in (0, 1) for kind in ("resnets", "attentions")]
_MIDDLE = [f"mid_block.{block}" for block in ("resnets.0", "attentions.0", "resnets.1")]
_ENDS = ["conv_norm_out", "conv_out"]
BLOCKS = {
    "encoder": ["conv_in"]
    + [f"down_blocks.{block}" for block in ("0.resnets.0", "0.downsamplers.0", *_LOW)]
    + [*_MIDDLE, *_ENDS],
    "decoder": ["conv_in", *_MIDDLE]
    + [f"up_blocks.0{block[1:]}" for block in _LOW]
    + ["up_blocks.0.upsamplers.0", "up_blocks.1.resnets.0", *_ENDS],
}
LEAVES = {"conv1": "conv1.conv", "conv2": "conv2.conv", "conv_shortcut": "nin_shortcut.conv", "group_norm": "norm"}
LEAVES |= {"to_q": "attn.to_q", "to_k": "attn.to_k", "to_v": "attn.to_v", "to_out.0": "attn.out_proj"}


def monai_state(params):
    """A state dict of MONAI's."""
    state = {}
    for name, value in parameters.to_state_dict(params).items():
        half, _, rest = name.partition(".")
        if half not in BLOCKS:
            module, _, leaf = name.partition(".")
            state[f"{'quant_conv_mu' if module == 'quant_conv' else module}.conv.{leaf}"] = value
            continue
        (number,) = (i for i, block in enumerate(BLOCKS[half]) if rest.startswith(f"{block}."))
        block = BLOCKS[half][number]
        module, _, leaf = rest.removeprefix(f"{block}.").rpartition(".")
        if "samplers" in block:
            module = "conv.conv" if half == "encoder" else "postconv.conv"
        elif block in ("conv_in", "conv_out"):
            module = "conv"
        state[".".join(part for part in (half, "blocks", str(number), LEAVES.get(module, module), leaf) if part)] = (
            value
        )
    return state | {f"quant_conv_log_sigma.conv.{leaf}": np.zeros(1, np.float32) for leaf in ("weight", "bias")}


@pytest.fixture(scope="module")
def monai_params(tmp_path_factory):
    return random_params(MONAI, tmp_path_factory.mktemp("monai"))


def of_monai(path, **options):
    """A model with the autoencoder of a file."""
    origin = Origin(format="monai", weights=(path.with_name("model.pt"),), read_params=dict)
    target = Target(network=NET, diffusion=Diffusion(), channels=2, origin=origin)
    return monai_vae.with_autoencoder(target, path, hints(**options))


def refused_monai(path, *words, **options):
    with pytest.raises(InputError) as caught:
        of_monai(path, **({"latent_scale": 0.5, "latent_groups": 2} | options)).origin.read_params()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("name", ["autoencoder.safetensors", "model_autoencoder.safetensors"])
def test_an_autoencoder_of_monai_is_read(monai_params, tmp_path, name):
    path = tmp_path / name
    save_file(monai_state(monai_params), path)
    assert monai_vae.beside(tmp_path / "model.pt") == path
    target = of_monai(path, latent_scale=0.5, norm_groups=2, pixels="signed")
    assert target.network == Latent(net=NET, autoencoder=MONAI, scaling_factor=0.5)
    assert (target.channels, target.size, target.origin.notes) == (1, None, ())
    assert target.origin.weights == (tmp_path / "model.pt", path)
    jax.tree.map(np.testing.assert_array_equal, target.origin.read_params()["autoencoder"], monai_params)
    default = of_monai(path, latent_scale=0.5, latent_groups=2)
    assert default.network.unit_pixels
    (note,) = default.origin.notes
    assert "pixels in [0, 1], as in MONAI's bundles; config.target.pixels sets it" in note


def test_what_monai_does_not_say_is_asked_for(monai_params, tmp_path):
    path = tmp_path / "autoencoder.safetensors"
    save_file(monai_state(monai_params), path)
    refused_monai(path, str(path), "set config.target.latent_scale to the scale_factor", latent_scale=0.0)
    refused_monai(
        path, str(path), "32 does not divide its channels, 4, 6", "config.target.latent_groups", latent_groups=0
    )


def without(part):
    return lambda state: {name: value for name, value in state.items() if part not in name}


def renamed(old, new):
    return lambda state: {name.replace(old, new): value for name, value in state.items()}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda state: {"weight": np.zeros(3, np.float32)}, ("holds no AutoencoderKL of MONAI", "2-D AutoencoderKL")),
        (
            lambda state: state | {"encoder.blocks.0.conv.weight": np.zeros((4, 1, 3, 3, 3), np.float32)},
            ("an autoencoder of volumes", "2-D"),
        ),
        (renamed("postconv.conv", "deconv"), ("transposed convolutions", "2-D AutoencoderKL")),
        (without("post_quant_conv"), ("they lack", "post_quant_conv.weight")),
        (without("blocks.1.norm2"), ("lack 4 tensors", "2-D AutoencoderKL")),
        (without("encoder.blocks.4."), ("whose encoder has, in level 1, neither residual blocks alone nor attention",)),
        (
            lambda state: {n: v for n, v in state.items() if "decoder" not in n or "s.0." in n},
            ("decoder has, in level 0",),
        ),
    ],
)
def test_other_files_beside_a_model_of_monai_are_refused(monai_params, tmp_path, damage, words):
    path = tmp_path / "autoencoder.safetensors"
    save_file(damage(monai_state(monai_params)), path)
    refused_monai(path, str(path), *words)


def test_the_whole_audit_runs_in_latents(wholes, tmp_path):
    """Sampling, guidance, mode seeking and likelihood are of latents; what is stored and compared are images."""
    rng = np.random.default_rng(0)
    for name in ("seen", "unseen"):
        np.savez(tmp_path / f"{name}.npz", images=rng.integers(0, 256, (64, 16, 16, 1), np.uint8))
    argv = runs.arguments(
        tmp_path / "run",
        target__path=str(wholes["vae"][0]),
        data__name="npz",
        data__path=str(tmp_path / "seen.npz"),
        data__heldout_from=str(tmp_path / "unseen.npz"),
        data__image_size=16,
        extract__attacks="('unconditional','side','modes','black_box_modes')",
        extract__guidance_scales="(1.0,)",
        black_box_modes__rounds="(1,)",
        modes__rounds="(1,)",
        modes__starts="('noise',)",
        modes__noise_levels="(1.0,)",
        evaluate__membership=True,
        evaluate__divergence=True,
        label__cohesion_threshold=0.0,
        label__features="denoiser",
        label__denoiser_timestep=10,
    )
    assert runs.run(argv) == 0
    workdir = tmp_path / "run"
    settings = from_config(saved_config(workdir))
    assert builders.sampled_shape(settings) == (8, 8, 2)
    target, params = builders.build_target(settings), stage_inputs.load_target(settings, workdir).trees["ema"]
    table = builders.build_step_table(settings, settings.sampler)
    assert not table.steps.solver.clip
    keys = sample_keys(random_streams.stream_key(settings, "extract"), np.arange(32, dtype=np.uint32))
    with jax.numpy_dtype_promotion("standard"):
        z = sample(lambda x, t: target.network.apply({"params": params}, x, t), table, keys, (8, 8, 2))
        expected = to_uint8(target.network.apply({"params": params}, z, method="decode"))
    units = {run.name: unit for run, unit in stage_table.extraction_units(settings, workdir)}
    drawn = shards.read(stage_table.extracted_shards(settings, units["unconditional"]))["images"]
    assert drawn.shape == (64, 16, 16, 1)
    assert np.abs(drawn[:32].astype(int) - np.asarray(expected)).max() <= 1
    assert len(np.unique(drawn)) > 20
    # A request takes the image: it encodes it, adds noise, samples by the last two of three steps, and decodes.
    key = jax.random.fold_in(random_streams.stream_key(settings, "requests"), 0)
    keys = sample_keys(key, np.arange(32, dtype=np.uint32))
    with jax.numpy_dtype_promotion("standard"):
        noised = table[1].signal * target.encode(params, to_float(drawn[:32]))
        noised = noised + table[1].sigma * initial_noise(keys, (8, 8, 2))
        z = sample_from(lambda x, t: target.network.apply({"params": params}, x, t), table.last(2), noised, keys)
        expected = to_uint8(target.network.apply({"params": params}, z, method="decode"))
    asked = shards.read(stage_table.extracted_shards(settings, units["black_box_modes_2x1_from_unconditional"]))
    assert np.abs(asked["images"][:32].astype(int) - np.asarray(expected)).max() <= 1
    assert np.abs(asked["images"].astype(int) - drawn).mean() > 1
    _, guide = stage_inputs.load_classifier(settings, workdir, ATTACKS["side"].classifier)
    assert 2 in {leaf.shape[2] for leaf in jax.tree.leaves(guide["classifier"]) if leaf.ndim == 4}  # latent channels
    members = stage_inputs.load_split(settings, workdir)[0]
    latents = target.encode(params, to_float(members.images))
    assert stage_inputs.training_spread(settings, workdir) == pytest.approx(spread(latents), rel=1e-5)
    results = json.loads((workdir / "evaluate" / "results.json").read_text())
    assert results["divergence"]["members"] is not None
    assert results["dataset"]["image_shape"] == [16, 16, 1]
    assert results["target"]["latent"]
    page = (workdir / "report" / "index.html").read_text()
    assert "memorisation divergence of latents" in page
    assert "The model scores latents of the images." in page
    # A search draws images by the noise of latents, and its classifier looks at the latents of what is drawn.
    extract = dataclasses.replace(settings.extract, attacks=("unconditional", "black_box"))
    few = dataclasses.replace(settings.black_box, searches=1)
    module = builders.build_classifier(settings, 3, time_dependent=False)
    tree, index, t = builders.init_fn(module, settings, 0)(), np.arange(32, dtype=np.uint32), np.zeros(32, np.int32)
    with jax.numpy_dtype_promotion("standard"):
        program = builders.build_search_program(dataclasses.replace(settings, extract=extract, black_box=few), module)
        base, whole = random_streams.stream_key(settings, "extract"), {"dpm": params, "classifier": tree}
        images = program.draw((whole, base), index, program.first(base, index))
        fitness = program.fitness(whole, images, t)
        expected = log_odds(log_probs(module, tree, target.encode(params, to_float(images)), t), t)
    assert np.abs(images.astype(int) - drawn[:32]).max() <= 1
    np.testing.assert_allclose(fitness, expected, rtol=1e-3, atol=1e-4)
