"""Features of images: what each extractor computes, that a batch has no part in it, the cache, and every bad input."""

import dataclasses
import functools
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from side_jax.config import default_config, from_config
from side_jax.diffusion import pixel_range
from side_jax.diffusion.process import q_sample
from side_jax.diffusion.schedule import make_schedule
from side_jax.errors import InputError
from side_jax.features import denoiser, pixels, preprocess, sscd_weights
from side_jax.features.extractors import Extractor, extract
from side_jax.features.onnx import OnnxModel
from side_jax.models import sscd_encoder
from side_jax.models.continuous import Edm
from side_jax.models.memory_unet import MemoryUNet
from side_jax.models.song_unet import SongUNet
from side_jax.models.sscd_encoder import SSCD, FrozenBatchNorm, gem
from side_jax.models.unet import UNet
from side_jax.models.unit_pixels import UnitPixels
from side_jax.pipeline import resolve
from side_jax.settings import Diffusion, Label
from side_jax.stages import stage_inputs
from side_jax.targets import parameters
from side_jax.targets.target_model import Target
from side_jax.workdir import files


def random_images(n, size=4, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), np.uint8)


def resolve_features(config, workdir):
    """The settings of a config, with the hashes of the files that it names."""
    return resolve.resolve_features(from_config(config), workdir)


def refused(fn, *words):
    with pytest.raises(InputError) as caught:
        fn()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def configured(**values):
    """A config for images of 8x8, with some of its values changed; a key has __ for its dots."""
    config = default_config()
    config.data.image_size = 8
    config.synthesize.num_images = 128
    for key, value in values.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return config


class Counting:
    """An extractor of three pixels, and the batches that it was asked for."""

    def __init__(self, change=lambda features: features, **options):
        self.batches = []

        def embed(images, index):
            self.batches.append(index.tolist())
            return change(images.reshape(len(images), -1)[:, :3].astype(np.float32))

        self.extractor = Extractor(**{"identity": {"name": "counting"}, "embed": embed, "batch_size": 4} | options)


def test_pixel_features_are_centred_and_of_unit_norm(tmp_path):
    images = random_images(5)
    images[3] = 77
    features = extract(pixels.extractor(batch_size=2), images, tmp_path)
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), [1, 1, 1, 0, 1], rtol=1e-5)
    np.testing.assert_allclose(features.mean(axis=1), 0, atol=1e-6)
    # A cosine of two features is the correlation of their pixels, whatever their brightness and contrast.
    expected = np.corrcoef(images[0].ravel(), images[1].ravel())[0, 1]
    np.testing.assert_allclose(features[0] @ features[1], expected, rtol=1e-4)


def test_a_flat_image_is_exactly_zero_however_large(tmp_path):
    images = random_images(2, size=300)
    images[0] = 255
    assert not extract(pixels.extractor(batch_size=2), images, tmp_path)[0].any()


def test_batches_have_one_shape_and_the_last_is_padded(tmp_path):
    counting, images = Counting(), random_images(6)
    features = extract(counting.extractor, images, tmp_path)
    assert counting.batches == [[0, 1, 2, 3], [4, 5, 5, 5]]
    raw = images.reshape(6, -1)[:, :3].astype(np.float32)
    np.testing.assert_allclose(features, raw / np.linalg.norm(raw, axis=1, keepdims=True), rtol=1e-6)


def test_centring_leaves_what_differs_from_the_mean(tmp_path):
    counting, images = Counting(centre=True, change=lambda rows: 1e-3 * rows + 100), random_images(6)
    raw = images.reshape(6, -1)[:, :3].astype(np.float32) * np.float32(1e-3) + 100
    expected = raw - raw.mean(axis=0, dtype=np.float64)[None]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(extract(counting.extractor, images, tmp_path), expected, atol=1e-5)


def test_the_cache_answers_for_the_same_images_and_identity_alone(tmp_path):
    images = random_images(6)
    first = extract(Counting().extractor, images, tmp_path)
    again = Counting()
    np.testing.assert_array_equal(extract(again.extractor, images, tmp_path), first)
    assert not again.batches
    for changed in (
        (Counting(identity={"name": "counting", "weights_sha256": "1"}), images),
        (Counting(), images[::-1]),
        (Counting(), images.reshape(6, 2, 8, 3)),
    ):
        extract(changed[0].extractor, changed[1], tmp_path)
        assert changed[0].batches
    assert len(list(tmp_path.glob("*.npz"))) == 4


def test_a_damaged_cache_is_named(tmp_path):
    images = random_images(6)
    extract(Counting().extractor, images, tmp_path)
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:-40])
    refused(lambda: extract(Counting().extractor, images, tmp_path), str(path), "damaged", "delete it")


def test_features_that_are_no_use_are_refused(tmp_path):
    def broken(rows):
        rows[:2] = [[np.nan], [np.inf]]
        return rows

    images = random_images(6)
    for change, words in (
        (broken, ("counting features of 4 of 6 images are not finite", "check the weights")),
        (np.zeros_like, ("counting features of all 6 images are zero", "config.label.features")),
    ):
        refused(lambda change=change: extract(Counting(change).extractor, images, tmp_path), *words)
    same = np.repeat(images[:1], 6, axis=0)
    extractor = Counting(lambda rows: rows / 7, centre=True).extractor
    refused(lambda: extract(extractor, same, tmp_path), "all 6 images are zero")
    assert not list(tmp_path.glob("*.npz"))


# The target's own activations.


def random_parameters(network, side):
    x, t = jnp.zeros((1, side, side, 1)), jnp.zeros((1,), jnp.int32)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(network.init, jax.random.key(0), x, t)
    return jax.tree.map(lambda leaf: np.float32(0.2 * rng.standard_normal(leaf.shape)), shapes["params"])


@pytest.fixture(scope="module")
def unet():
    """(a U-Net of two levels, its parameters, with none that starts at zero)."""
    net = UNet(
        out_channels=1,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        remat=True,  # as large targets have it; it must not hide the activations
    )
    return net, random_parameters(net, 8)


@pytest.fixture(scope="module")
def activations(unet):
    """All that the network makes of 8 images at t = 30, with the noise that seed 3 gives the indices 0..7."""
    net, params = unet
    images = random_images(8, 8, 1)

    @jax.jit
    def apply(params, index):
        key = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(jax.random.key(3), i), 0))(index)
        noise = jax.vmap(lambda one: jax.random.normal(one, (8, 8, 1)))(key)
        t = jnp.full(8, 30, jnp.int32)
        x = q_sample(make_schedule("linear", 1000), pixel_range.to_float(images), t, noise)
        return net.clone(remat=False).apply({"params": params}, x, t, capture_intermediates=True)

    return apply(params, np.arange(8))[1]["intermediates"]


# Of each kind one: the first on the way down, whose skips differ from its output, and the last on the way up.
BLOCKS = {"mid_block": 8, "down_blocks_0": 4, "up_blocks_1": 4}


def of_denoiser(unet, schedule, *, seed=3, batch_size=8, **label):
    network, params = unet
    betas = {"num_timesteps": len(schedule.betas), "trained_betas": tuple(schedule.betas.tolist())}
    target = Target(network=network, diffusion=Diffusion(**betas), channels=1)
    label = Label(features="denoiser", **({"denoiser_timestep": 30} | label))
    return denoiser.extractor(target, params, label, seed=seed, batch_size=batch_size)


@pytest.fixture(scope="module")
def extractors(unet):
    """By block; tests share what each compiles."""
    schedule = make_schedule("linear", 1000)
    return {block: of_denoiser(unet, schedule, denoiser_block=block) for block in BLOCKS}


@pytest.mark.parametrize("block", BLOCKS)
def test_denoiser_features_are_the_means_of_its_activations(extractors, activations, tmp_path, block):
    images = random_images(8, 8, 1)
    got = extract(extractors[block], images, tmp_path)
    (out,) = activations[block]["__call__"]
    h = np.asarray(out[0] if block.startswith("down") else out, np.float64)
    h = h.mean(axis=(1, 2)) - h.mean(axis=(0, 1, 2))[None]
    assert got.shape == (8, BLOCKS[block])
    np.testing.assert_allclose(got, h / np.linalg.norm(h, axis=1, keepdims=True), atol=1e-4)
    assert (got @ got.T).min() < 0  # centred: unlike images are unlike


SONG = SongUNet(img_resolution=8, out_channels=1, model_channels=8, channel_mult=(1, 2), num_blocks=1)
OTHERS = {
    "memory": (MemoryUNet(1, 8, 8, (8, 12), (2, 2), (4, 4), (False, False)), "middle_block_1", 12),
    "edm": (Edm(net=SONG, sigma_min=0.01, sigma_max=10.0, num_timesteps=50), "dec_4x4_in1", 16),
    "pixels in [0, 1]": (UnitPixels(net=SONG, betas=(0.1,) * 50), "dec_4x4_in1", 16),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_network_has_a_middle(name, tmp_path):
    """The output of the last module before the decoder, found through what is around the network."""
    network, middle, channels = OTHERS[name]
    params, images = random_parameters(network, 8), random_images(8, 8, 1)
    schedule = make_schedule("linear", 50)
    got = extract(of_denoiser((network, params), schedule), images, tmp_path)
    assert got.shape == (8, channels)
    key = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(jax.random.key(3), i), 0))(np.arange(8))
    noise = jax.vmap(lambda one: jax.random.normal(one, (8, 8, 1)))(key)
    t = jnp.full(8, 30, jnp.int32)
    x = q_sample(schedule, pixel_range.to_float(images), t, noise)
    _, state = network.apply({"params": params}, x, t, capture_intermediates=True)
    inside = state["intermediates"]
    (h,) = (inside if middle in inside else inside["net"])[middle]["__call__"]
    h = np.asarray(h, np.float64).mean(axis=(1, 2))
    h = h - h.mean(axis=0)
    np.testing.assert_allclose(got, h / np.linalg.norm(h, axis=1, keepdims=True), atol=1e-4)


def test_denoiser_features_do_not_depend_on_the_batch(unet, extractors, schedule):
    images, index = random_images(16, 8, 1), np.arange(16, dtype=np.uint32)
    whole = of_denoiser(unet, schedule, batch_size=16).embed(images, index)
    order = np.asarray([9, 2, 15, 0, 0, 1, 3, 7])
    embed = extractors["mid_block"].embed  # of batches of 8
    part = embed(images[order], index[order])
    np.testing.assert_allclose(part, whole[order], rtol=1e-5, atol=1e-5)
    assert np.abs(whole[1] - whole[2]).max() > 1e-3
    moved = embed(images[order], index[order] + 1)
    assert np.abs(moved - part).max() > 1e-3  # the noise is an index's own


def test_denoiser_identity_says_what_the_features_depend_on(unet, schedule):
    net, params = unet
    other = (net, jax.tree.map(lambda leaf: leaf + 1e-3, params))
    changed = [
        of_denoiser(unet, schedule),
        of_denoiser(other, schedule),
        of_denoiser(unet, schedule, seed=4),
        of_denoiser(unet, schedule, denoiser_block="up_blocks_0"),
        of_denoiser(unet, schedule, denoiser_timestep=1),
    ]
    assert len({files.digest(extractor.identity) for extractor in changed}) == 5
    assert files.digest(of_denoiser(unet, schedule, batch_size=16).identity) == files.digest(changed[0].identity)


def test_blocks_and_timesteps_that_the_target_has_not_are_refused():
    bad = {"label__features": "denoiser", "label__denoiser_block": "down_blocks_2"}
    choices = "mid_block, down_blocks_0, down_blocks_1, up_blocks_0, up_blocks_1"
    refused(lambda: from_config(configured(**bad)), "label.denoiser_block is 'down_blocks_2'", choices)
    bad = {"label__features": "denoiser", "label__denoiser_timestep": 1000}
    refused(lambda: from_config(configured(**bad)), "denoiser_timestep is 1000", "below diffusion.num_timesteps (1000)")
    from_config(configured(label__denoiser_block="down_blocks_2"))  # pixels don't need it


# Encoders' input.


def resized(images, size):
    return np.asarray(jax.jit(preprocess.resize, static_argnums=1)(images, size))


def prepared(images, label, channels=3):
    return np.asarray(jax.jit(lambda x: preprocess.prepare(x, label, channels))(images))


def test_resizing_a_flat_image_or_to_its_own_size_changes_nothing():
    images = random_images(2, 12)
    np.testing.assert_array_equal(resized(images, 12), images)
    images[:] = 201
    np.testing.assert_array_equal(resized(images, 31), np.full((2, 31, 31, 3), 201))


def test_resizing_by_hand():
    """Halved: a triangle four pixels wide (weights 1, 3, 3, 1), cut at the borders (3, 3, 1)."""
    row = np.asarray([0, 70, 140, 7, 0, 0], np.uint8)
    image = np.broadcast_to(row[None, None, :, None], (1, 6, 6, 1))
    expected = [(3 * 70 + 140) / 7, (70 + 3 * 140 + 3 * 7) / 8, 7 / 7]
    got = resized(image, 3)
    np.testing.assert_array_equal(got[0, 1, :, 0], np.floor(np.asarray(expected) + 0.5))


def test_encoders_get_normalised_rgb():
    label = Label(encoder_size=4, encoder_mean=(0.1, 0.2, 0.3), encoder_std=(1.0, 0.5, 0.25))
    mean, std = np.asarray(label.encoder_mean), np.asarray(label.encoder_std)
    for channels in (1, 3):
        images = random_images(2, 4, channels)
        expected = (np.broadcast_to(images, (2, 4, 4, 3)) / 255 - mean[None, None, None]) / std[None, None, None]
        np.testing.assert_allclose(prepared(images, label), expected, atol=1e-6)
    grey = prepared(random_images(2, 4, 1), label, channels=1)
    np.testing.assert_allclose(grey, random_images(2, 4, 1) / 255 - 0.1, atol=1e-6)


# SSCD.


def test_gem_by_hand():
    x = np.random.default_rng(0).random((2, 3, 5, 4)).astype(np.float32)
    mean, cubes, negative, flat = jax.jit(lambda x: (gem(x, p=1.0), gem(x), gem(-x), gem(jnp.full_like(x, 7))))(x)
    np.testing.assert_allclose(mean, x.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(cubes, (x.astype(np.float64) ** 3).mean(axis=(1, 2)) ** (1 / 3), rtol=1e-5)
    np.testing.assert_allclose(negative, 1e-6, rtol=1e-4)  # what is not positive counts as 1e-6
    np.testing.assert_allclose(flat, 7.0, rtol=1e-5)


def test_frozen_batch_norm_by_hand():
    values = {name: np.float32([value]) for name, value in {"mean": 2, "var": 4, "scale": 3, "bias": 1}.items()}
    got = jax.jit(FrozenBatchNorm().apply)({"params": values}, np.full((1, 1, 1, 1), 6, np.float32))
    np.testing.assert_allclose(got, (6 - 2) / (4 + 1e-5) ** 0.5 * 3 + 1, rtol=1e-6)


def sscd_shapes():
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(SSCD().init, jax.random.key(0), x)["params"]


def test_sscd_is_a_resnet_50():
    """Torchvision counts 25,557,032 parameters, its 1000 classes among them; norms have two statistics by channel."""
    expected = 25_557_032 - (2048 + 1) * 1000 + 2 * 26_560 + (2048 + 1) * 512
    assert sum(leaf.size for leaf in jax.tree.leaves(sscd_shapes())) == expected


FEW_BLOCKS = (1, 2, 1, 1)


@pytest.fixture
def shallow(monkeypatch):
    """SSCD with fewer blocks, one of them with a plain shortcut; what reads and runs it does not count them."""
    monkeypatch.setattr(sscd_encoder, "STAGES", FEW_BLOCKS)


@pytest.fixture(scope="module")
def sscd_state():
    """Of the shallow network, torchvision's names with random numbers in each tensor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sscd_encoder, "STAGES", FEW_BLOCKS)
        shapes = sscd_shapes()
    rng = np.random.default_rng(0)

    def random(shape):
        fan_in = shape[0] * shape[1] * shape[2] if len(shape) == 4 else shape[0]
        size = (2 / fan_in) ** 0.5 if len(shape) > 1 else 1
        values = size * rng.standard_normal(shape, np.float32)
        return values if len(shape) > 1 else np.abs(values) + 0.1

    params = jax.tree.map(lambda leaf: random(leaf.shape), shapes)
    ours = {"conv_shortcut": "downsample.0", "norm_shortcut": "downsample.1", "norm": "bn"}
    return {
        f"backbone.{functools.reduce(lambda name, one: name.replace(*one), ours.items(), name)}": value
        for name, value in parameters.to_state_dict(params).items()
    }


@pytest.fixture(scope="module")
def sscd_path(sscd_state, tmp_path_factory):
    path = tmp_path_factory.mktemp("sscd") / "weights.safetensors"
    save_file(sscd_state | {"backbone.bn1.num_batches_tracked": np.asarray(7)}, path)
    return path


@pytest.mark.usefixtures("shallow")
def test_sscd_runs_from_a_file_once_and_from_the_workdir_then(sscd_path, tmp_path):
    config = configured(label__features="sscd", label__weights=str(sscd_path), label__encoder_size=40)
    settings = resolve_features(config, tmp_path)
    assert settings.label.weights_sha256 == files.file_digest(sscd_path)
    assert not list(tmp_path.iterdir())  # before the workdir is held, nothing is written to it
    extractor = stage_inputs.build_extractor(settings, tmp_path)
    assert extractor.identity == {
        "name": "sscd",
        "weights_sha256": settings.label.weights_sha256,
        "resize": "PIL bilinear, to a square",
        "size": 40,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    gone = dataclasses.replace(settings, label=dataclasses.replace(settings.label, weights="gone.pt"))
    again = stage_inputs.build_extractor(gone, tmp_path)
    assert again.identity == extractor.identity
    images = random_images(8, 8, 1)
    features = extract(dataclasses.replace(again, batch_size=8), images, tmp_path / "features")
    assert features.shape == (8, 512)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    assert np.abs(features[0] - features[1]).max() > 1e-3
    (kept,) = (tmp_path / "features").glob("sscd_*.safetensors")
    kept.write_bytes(b"damaged")
    refused(lambda: stage_inputs.build_extractor(gone, tmp_path), "config.label.weights", "gone.pt is not a file")
    stage_inputs.build_extractor(settings, tmp_path)


@pytest.mark.usefixtures("shallow")
def test_sscd_by_classy_visions_names_is_the_same(sscd_state, sscd_path, tmp_path):
    inside = {"conv1": "0", "bn1": "1", "conv2": "3", "bn2": "4", "conv3": "6"}
    state = {}
    for name, value in sscd_state.items():
        _, *parts = name.split(".")
        if parts[0] == "fc":
            parts = ["embeddings", "1", *parts[1:]]
        elif parts[0].startswith("layer"):
            stage, block, part = int(parts[0][-1]) - 1, *parts[1:3]
            part = ["bn"] if part == "bn3" else ["convolutional_block", inside[part]] if part in inside else [part]
            parts = ["backbone", "blocks", str(stage), f"block{stage}-{block}", *part, *parts[3:]]
        else:
            parts = ["backbone", "initial_block", "_module", inside[parts[0]], *parts[1:]]
        state[".".join(parts)] = value
    save_file(state, tmp_path / "classy.safetensors")
    assert "backbone.blocks.0.block0-0.downsample.1.running_var" in state
    got, expected = sscd_weights.from_sscd(tmp_path / "classy.safetensors"), sscd_weights.from_sscd(sscd_path)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.usefixtures("shallow")
def test_other_weights_are_refused(sscd_state, tmp_path):
    path, what = tmp_path / "other.safetensors", "not those of SSCD's ResNet-50"
    for state, words in (
        ({name: v for name, v in sscd_state.items() if "fc" not in name}, ("lack 2 tensors", "fc.bias, fc.weight")),
        (
            sscd_state | {"backbone.layer3.1.bn1.bias": np.zeros(3, np.float32)},
            ("hold 1 tensors", "layer3.1.norm1.bias"),
        ),
        (
            sscd_state | {"backbone.fc.weight": np.zeros((1024, 2048), np.float32)},
            ("fc.weight has shape (1024, 2048)", "(512, 2048)"),
        ),
    ):
        save_file(state, path)
        refused(lambda: sscd_weights.from_sscd(path), str(path), what, "sscd_disc_mixup", *words)
    for content, words in (
        (b"\x80\x02pickle", ("pickled", "can run any code", "weights_only=True")),
        (b"PK\3\4 and no archive", ("can't be read as TorchScript", "replace it")),
        (b"", ("can't be read as safetensors", "replace it")),
        (b"no weights at all", ("can't be read as safetensors", "replace it")),
    ):
        path.write_bytes(content)
        refused(lambda: sscd_weights.from_sscd(path), str(path), *words)
    refused(lambda: sscd_weights.from_sscd(tmp_path), "is not a file", "sscd_disc_mixup")


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed")
def test_torchscript_without_torch_says_what_to_install(tmp_path):
    torchscript(tmp_path / "sscd.pt")
    refused(lambda: sscd_weights.from_sscd(tmp_path / "sscd.pt"), "is TorchScript", "pip install 'side_jax[sscd]'")


def torchscript(path):
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sscd/constants.pkl", b"")


# ONNX.

WEIGHTS = np.random.default_rng(5).standard_normal((3, 5)).astype(np.float32)


def encoder(path, shape=("n", 3, "h", "w"), kind=TensorProto.FLOAT, *, flat=True, more=(), inputs=1, name="y"):
    """Writes a model: the means of the channels, times as many rows of WEIGHTS."""
    weights = np.resize(WEIGHTS, (shape[1], 5))
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["f"], ["m"], axes=[2, 3], keepdims=0) if len(shape) == 4 else None,
        helper.make_node("MatMul", ["m" if len(shape) == 4 else "f", "w"], ["y"]),
        helper.make_node("Identity", ["f"], ["map"]),
        helper.make_node("Identity", ["y"], ["z"]),
    ]
    outputs = [helper.make_tensor_value_info(out, TensorProto.FLOAT, None) for out in (name, *more)]
    given = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "x2")[:inputs]]
    graph = helper.make_graph(
        [node for node in nodes if node], "g", given, outputs, [numpy_helper.from_array(weights, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save_model(model, path)
    return path


@pytest.mark.parametrize("batch", ["n", 1, 3])
def test_onnx_models_compute_what_they_say(tmp_path, batch):
    model = OnnxModel(encoder(tmp_path / "e.onnx", (batch, 3, 6, "w"), more=("map",)))
    assert (model.batch, model.channels, model.size) == (None if batch == "n" else batch, 3, 6)
    images = np.random.default_rng(0).standard_normal((7, 3, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(model(images), images.mean(axis=(2, 3)) @ WEIGHTS, atol=1e-6)


@pytest.mark.parametrize(("channels", "takes"), [(3, 3), (1, 3), (1, 1)])
def test_onnx_features_are_those_of_the_prepared_images(tmp_path, channels, takes):
    path = encoder(tmp_path / "e.onnx", ("n", takes, 6, 6))
    options = {"label__features": "onnx", "label__weights": str(path), "label__encoder_size": 6}
    settings = resolve_features(configured(**options, data__channels=channels), tmp_path / "run")
    assert settings.label.weights_sha256 == files.file_digest(path)
    extractor = stage_inputs.build_extractor(settings, tmp_path / "run")
    assert extractor.identity["name"] == "onnx"
    assert extractor.identity["weights_sha256"] == settings.label.weights_sha256
    images = random_images(10, 6, channels)
    x = prepared(images, settings.label, takes)
    expected = x.mean(axis=(1, 2)) @ WEIGHTS[:takes]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(extract(extractor, images, tmp_path / "run" / "features"), expected, atol=1e-5)


def test_onnx_models_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "e.onnx"
    takes, gives = "takes square images alone", "exactly one output of tensor(float) [batch, d]"
    for options, words in (
        ({"shape": ("n", 6, 6, 3)}, ("x tensor(float) ['n', 6, 6, 3]", takes)),
        ({"shape": ("n", 3, 6, 8)}, ("[", "6, 8]", takes)),
        ({"shape": ("n", 3)}, ("x tensor(float) ['n', 3]", takes)),
        ({"kind": TensorProto.UINT8}, ("x tensor(uint8)", takes)),
        ({"inputs": 2}, ("x tensor(float)", "x2 tensor(float)", takes)),
        ({"name": "map"}, ("map tensor(float)", gives)),
        ({"more": ("z",)}, ("y tensor(float)", "z tensor(float)", gives)),
    ):
        encoder(path, **options)
        refused(lambda: OnnxModel(path), str(path), *words)
    for content in (b"", b"no model"):
        path.write_bytes(content)
        refused(lambda: OnnxModel(path), str(path), "can't be read as ONNX", "one whole file")
    refused(lambda: OnnxModel(tmp_path / "none.onnx"), "none.onnx", "can't be read as ONNX")


def test_onnx_weights_beside_the_file_are_not_read(tmp_path, monkeypatch):
    """They would not be in its hash."""
    model = onnx.load(encoder(tmp_path / "e.onnx"))
    external = {"save_as_external_data": True, "location": "e.bin", "size_threshold": 0}
    onnx.save_model(model, tmp_path / "e.onnx", **external)
    monkeypatch.chdir(tmp_path)
    refused(lambda: OnnxModel("e.onnx"), "can't be read as ONNX", "with the weights in it")


def test_onnx_without_onnxruntime_says_what_to_install(tmp_path, monkeypatch):
    path = encoder(tmp_path / "e.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(lambda: OnnxModel(path), "pip install 'side_jax[onnx]'")


# What a run checks before anything heavy.


def test_files_are_hashed_and_must_stay_the_same(tmp_path):
    path = encoder(tmp_path / "e.onnx", ("n", 3, 6, 6))
    options = {"label__features": "onnx", "label__weights": str(path), "label__encoder_size": 6}
    options |= {"surrogate__objective": "tdkd", "surrogate__teacher_path": str(path), "surrogate__num_steps": 3000}
    settings = resolve_features(configured(**options), tmp_path)
    digest = files.file_digest(path)
    assert (settings.label.weights_sha256, settings.surrogate.teacher_sha256) == (digest, digest)
    assert resolve.resolve_features(settings, tmp_path) == settings
    encoder(path, ("n", 3, 6, "w"))
    for key, name in (("label__weights_sha256", "label.weights"), ("surrogate__teacher_sha256", "teacher_path")):
        bad = configured(**options | {key: digest})
        refused(lambda bad=bad: resolve_features(bad, tmp_path), f"{name}) has the SHA-256", "new --workdir")
    path.unlink()
    assert resolve.resolve_features(settings, tmp_path) == settings  # what is recorded may be gone
    refused(
        lambda: resolve_features(configured(**options), tmp_path), "config.label.weights is", "not a file", "download"
    )
    options["label__features"] = "pixels"
    refused(lambda: resolve_features(configured(**options), tmp_path), "config.surrogate.teacher_path is", "not a file")


def test_files_that_no_stage_reads_are_let_be(tmp_path):
    options = {"label__features": "onnx", "label__weights": "nowhere", "extract__attacks": ("unconditional",)}
    options |= {"evaluate__distribution": False}
    for config in (configured(**options), configured(label__weights="nowhere", surrogate__teacher_path="nowhere")):
        assert resolve_features(config, tmp_path) == from_config(config)
    # Laws and cosines are compared in that space, whatever the attacks.
    for needs in ({"evaluate__distribution": True}, {"evaluate__metrics": ("cosine",)}):
        config = configured(**(options | needs))
        refused(lambda config=config: resolve_features(config, tmp_path), "config.label.weights is", "not a file")


def test_encoders_that_do_not_fit_the_images_are_refused(tmp_path):
    path = encoder(tmp_path / "e.onnx", ("n", 3, 6, 6))
    options = {"label__features": "onnx", "label__weights": str(path)}
    refused(
        lambda: resolve_features(configured(**options), tmp_path),
        "6x6 pixels",
        "config.label.encoder_size = 6 (now 288)",
    )
    encoder(path, ("n", 1, "h", "w"))
    bad = configured(**options, data__channels=3)
    refused(lambda: resolve_features(bad, tmp_path), "takes grey images", "config.data.channels is 3")
    path.write_bytes(b"no model")
    refused(lambda: resolve_features(configured(**options), tmp_path), "can't be read as ONNX")
    refused(
        lambda: resolve_features(configured(**options | {"label__features": "sscd"}), tmp_path),
        "config.label.weights: ",
    )
    teacher = {"surrogate__objective": "tdkd", "surrogate__teacher_path": str(path), "surrogate__num_steps": 3000}
    refused(lambda: resolve_features(configured(**teacher), tmp_path), "can't be read as ONNX")
