"""Snapshots of NVlabs' EDM, read without running them: predictions and samples on random weights."""

import jax
import numpy as np
import pytest

from parity.edm_programs import EDMPrecond, VEPrecond, VPPrecond, euler, rho_grid, save
from parity.theirs import nchw, nhwc, random_numbers, relative_error, torch
from side_jax.diffusion.sampler import State, sample_step
from side_jax.diffusion.solvers import DDIM, Step
from side_jax.errors import InputError
from side_jax.settings import Diffusion
from side_jax.settings import Target as Section
from side_jax.targets import networks
from side_jax.targets.formats import read_target
from side_jax.targets.target_model import Hints

SONG = {"model_type": "SongUNet", "img_resolution": 16, "img_channels": 3, "model_channels": 16, "num_blocks": 1}
NCSN = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}
ADM = {"model_type": "DhariwalUNet", "img_resolution": 16, "img_channels": 1, "num_blocks": 1}
CASES = {
    "DDPM++, augmented": (
        EDMPrecond,
        SONG
        | {"channel_mult": [1, 2, 2], "num_blocks": 2, "attn_resolutions": [8], "augment_dim": 9, "use_fp16": True},
    ),
    "DDPM++, labels": (
        EDMPrecond,
        SONG | {"channel_mult": [2, 1], "label_dim": 5, "label_dropout": 0.1, "sigma_data": 0.7, "dropout": 0.13},
    ),
    "NCSN++": (EDMPrecond, SONG | NCSN | {"channel_mult": [1, 2, 2], "attn_resolutions": [16, 4]}),
    "skip and skip": (
        EDMPrecond,
        SONG
        | {"channel_mult": [1, 2, 1], "encoder_type": "skip", "decoder_type": "skip", "resample_filter": [1, 3, 3, 1]},
    ),
    "a longer, uneven filter": (
        EDMPrecond,
        SONG | {"channel_mult": [1, 1], "resample_filter": [1, 2, 4, 4, 3, 1], "channel_mult_emb": 2},
    ),
    "ADM": (EDMPrecond, ADM | {"model_channels": 32, "channel_mult": [1, 2, 4], "attn_resolutions": [8, 4]}),
    "ADM, labels": (
        EDMPrecond,
        ADM | {"model_channels": 16, "channel_mult": [3, 5], "label_dim": 4, "num_blocks": 2, "augment_dim": 3},
    ),
    "VP": (VPPrecond, SONG | {"channel_mult": [1, 2]}),
    "VE": (VEPrecond, SONG | NCSN | {"channel_mult": [1, 2]}),
}
HINTS = Hints(target=Section(), diffusion=Diffusion())
TIMESTEPS = np.asarray([0, 120, 333, 620, 850, 999], np.int32)


class Case:
    def __init__(self, name, path):
        cls, options = CASES[name]
        self.net = random_numbers(cls(**options)).eval()
        save(self.net, path)
        self.target = read_target(path, HINTS)
        self.params = self.target.origin.read_params()
        self.labels = options.get("label_dim", 0)
        self.shape = (16, 16, options["img_channels"])
        self.sigmas = np.geomspace(self.target.network.sigma_min, self.target.network.sigma_max, 1000)
        self.denoise = jax.jit(self.target.denoise)

    def theirs(self, y, sigma, labels=None):
        """Their D(y; sigma), NHWC, in NumPy; labels of -1 are zeros."""
        if labels is not None:
            labels = torch.from_numpy(np.eye(self.labels + 1, dtype=np.float32)[labels, : self.labels])
        with torch.no_grad():
            return nhwc(self.net(nchw(y), torch.from_numpy(np.asarray(sigma, np.float32)), labels))

    def inner(self, x, c_noise, labels):
        if labels is not None:
            labels = torch.from_numpy(np.eye(self.labels + 1, dtype=np.float32)[labels, : self.labels])
        with torch.no_grad():
            return nhwc(self.net.model(nchw(x), torch.from_numpy(c_noise), labels))

    def ours(self, y, t, labels=None):
        a = ((1 + self.sigmas[t] ** 2) ** -0.5).astype(np.float32)
        labels = labels if self.labels else None
        return self.denoise(self.params, y * a[:, None, None, None], t, labels)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    made = {}

    def case(name):
        if name not in made:
            made[name] = Case(name, tmp_path_factory.mktemp("edm") / "network-snapshot-000000.pkl")
        return made[name]

    return case


@pytest.mark.parametrize("name", CASES)
def test_denoised_images_agree(cases, name):
    case = cases(name)
    sigma = case.sigmas[TIMESTEPS]
    noise = np.random.default_rng(0).standard_normal((len(sigma), *case.shape)).astype(np.float32)
    y = (sigma**2 + 0.25)[:, None, None, None].astype(np.float32) ** 0.5 * noise
    labels = np.asarray([0, case.labels - 1, 1, -1, 2, 0], np.int32) if case.labels else None
    theirs, ours = case.theirs(y, sigma, labels), np.asarray(case.ours(y, TIMESTEPS, labels))
    errors = [relative_error(*pair) for pair in zip(ours, theirs, strict=True)]
    assert max(errors) < 1e-4, dict(zip(sigma, errors, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_networks_agree_without_their_preconditioning(cases, name):
    """Which hides them at small noises."""
    case = cases(name)
    x = np.random.default_rng(1).standard_normal((4, *case.shape)).astype(np.float32)
    c_noise = np.asarray([0, 120, 430, 999] if name == "VP" else [-1.5, -0.4, 0.3, 1.1], np.float32)
    labels = np.asarray([0, case.labels - 1, -1, 1], np.int32) if case.labels else None
    theirs = case.inner(x, c_noise, labels)
    assert 0.05 < theirs.std() < 10
    others = [case.inner(x, c_noise[::-1].copy(), labels)]  # every noise matters, and every label
    if case.labels:
        others.append(case.inner(x, c_noise, np.roll(labels, 1)))
    for other in others:
        assert min(relative_error(*pair) for pair in zip(other, theirs, strict=True)) > 1e-3
    ours = jax.jit(case.target.network.net.apply)({"params": case.params["net"]}, x, c_noise, labels=labels)
    assert relative_error(ours, theirs) < 5e-6


@pytest.mark.parametrize("name", ["DDPM++, augmented", "NCSN++", "ADM, labels"])
def test_our_ddim_is_their_euler(cases, name):
    """At their own noises, which lie between our timesteps; the images have the scale of data, not of the noise."""
    case = cases(name)
    low, high = case.sigmas[[0, -1]]
    sigmas = rho_grid(20, low, high)
    y = high * np.random.default_rng(2).standard_normal((3, *case.shape)).astype(np.float32)
    labels = np.asarray([0, 1, -1], np.int32) if case.labels else None
    theirs = euler(lambda y, sigma: case.theirs(y, sigma, labels), y.astype(np.float32), sigmas)

    a, following = (1 + sigmas**2) ** -0.5, np.append(sigmas[1:], 0.0)
    next_a = (1 + following**2) ** -0.5
    values = {
        "t": 999 * np.log(sigmas / low) / np.log(high / low),
        "signal": a,
        "sigma": sigmas * a,
        "next_signal": next_a,
        "next_sigma": following * next_a,
        "std": np.zeros(20),
        "extrapolation": np.zeros(20),
    }
    places = {"number": np.arange(20, dtype=np.int32), "next_t": np.zeros(20, np.int32)}
    values = {key: value.astype(np.float32) for key, value in values.items()} | places

    @jax.jit
    def step(state, values):
        step = Step(prediction_type="x0", solver=DDIM(clip=False), **values)
        return sample_step(lambda x, t: case.target.denoise(case.params, x, t, labels), step, state, None)

    x = (y * a[0]).astype(np.float32)
    state = State(x, np.zeros_like(x))
    for i in range(20):
        state = step(state, {key: value[i] for key, value in values.items()})
    assert theirs.std() < 5
    assert relative_error(state.x, theirs) < 1e-5


def test_what_a_snapshot_says_becomes_the_target(cases):
    """Its sizes and labels, and its noise; without dropped labels it always needs one, as its program samples it."""
    target = cases("DDPM++, labels").target
    assert (target.channels, target.size, target.num_labels, target.null_label) == (3, (16, 16), 5, True)
    assert target.network.sigma_data == 0.7
    assert target.network.net.dropout == 0.13
    assert (target.origin.format, target.diffusion.prediction_type) == ("edm", "x0")
    bar = target.schedule.alpha_bar
    np.testing.assert_allclose(((1 - bar) / bar)[[0, -1]] ** 0.5, (0.002, 80), rtol=1e-9)
    target = cases("ADM, labels").target
    assert (target.channels, target.num_labels, target.null_label) == (1, 4, False)
    np.testing.assert_array_equal(target.default_labels(np.arange(6)), [0, 1, 2, 3, 0, 1])
    target = cases("VE").target
    assert (target.network.sigma_min, target.network.sigma_max) == (0.02, 80.0)  # the model's own range is smaller


@pytest.mark.parametrize("name", ["NCSN++", "ADM, labels", "VP"])
def test_the_settings_hold_the_network(cases, name):
    network = cases(name).target.network
    assert networks.build(networks.describe(network)) == network


@pytest.mark.parametrize(
    ("part", "attribute", "value"),
    [
        ("model.enc.16x16_block0", "skip_scale", 1.0),
        ("model.enc.8x8_block0", "adaptive_scale", True),
        ("model.dec.8x8_in0", "num_heads", 4),
        ("model.dec.16x16_aux_norm", "eps", 1e-3),
        ("model.map_noise", "endpoint", False),
        ("model.enc.8x8_down.conv0", "resample_filter", torch.ones(1, 1, 2, 2)),
    ],
)
def test_a_changed_program_is_refused(tmp_path, part, attribute, value):
    """Its source text, which may say anything, is never read; attributes tell."""
    net = random_numbers(EDMPrecond(**SONG, channel_mult=[1, 2]))
    setattr(net.get_submodule(part), attribute, value)
    save(net, tmp_path / "model.pkl")
    with pytest.raises(InputError, match=rf"model\.pkl has .*{attribute}.*NVlabs' own program"):
        read_target(tmp_path / "model.pkl", HINTS)


def test_what_torch_saves_is_another_file(cases, tmp_path):
    """Also in its old format, which is a pickle too."""
    path = tmp_path / "model.pkl"
    for zipped in (True, False):
        torch.save({"net": torch.zeros(3)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match="holds no model of a known format"):
            read_target(path, HINTS)
