"""diffusers' NCSN++, UNet2DModel of skip blocks with ScoreSdeVeScheduler: predictions, parameters and samples agree."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity.theirs import UNet2DModel, apply, diffusers, load_file, nchw, nhwc, random_unet, relative_error, save, torch
from side_jax import from_diffusers
from side_jax.diffusion.sampler import initial_noise, sample, sample_keys
from side_jax.diffusion.steps import step_table
from side_jax.models.unit_pixels import UnitPixels
from side_jax.settings import Diffusion, Target
from side_jax.targets import networks, parameters
from side_jax.targets.formats import read_target
from side_jax.targets.target_model import Hints

NAMES = {"D": "SkipDownBlock2D", "A": "AttnSkipDownBlock2D"}, {"U": "SkipUpBlock2D", "A": "AttnSkipUpBlock2D"}


def config(channels, down, up, **options):
    return {
        "sample_size": 16,
        "block_out_channels": channels,
        "down_block_types": tuple(NAMES[0][letter] for letter in down),
        "up_block_types": tuple(NAMES[1][letter] for letter in up),
        "time_embedding_type": "fourier",
        "mid_block_scale_factor": math.sqrt(2),
        "norm_eps": 1e-6,
        "norm_num_groups": None,
        "attention_head_dim": None,
    } | options


CONFIGS = {
    # google/ncsnpp-celebahq-256, -church-256 and -ffhq-256: a quarter of their channels, and of their levels.
    "ncsnpp": config((32, 32, 64, 64), "DDAD", "UAUU"),
    "heads": config(
        (32, 64), "AD", "UA", attention_head_dim=8, norm_num_groups=8, layers_per_block=1, attn_norm_num_groups=4
    ),
    "scale_shift": config(
        (16, 24),
        "DD",
        "UU",
        resnet_time_scale_shift="scale_shift",
        add_attention=False,
        time_embedding_dim=20,
        center_input_sample=True,
        sample_size=(8, 24),
        layers_per_block=3,
    ),
}
SCHEDULER = {"sigma_min": 0.02, "sigma_max": 50.0, "num_train_timesteps": 40}


class Case:
    """Their network and scheduler, saved and read."""

    def __init__(self, name, folder, pixels=""):
        self.net = random_unet(CONFIGS[name])
        self.scheduler = diffusers.ScoreSdeVeScheduler(**SCHEDULER)
        self.folder = save(self.net, folder, "neighbours", self.scheduler)
        hints = Hints(target=Target(pixels=pixels), diffusion=Diffusion())
        self.target = read_target(self.folder, hints)
        self.params = self.target.origin.read_params()
        size = CONFIGS[name]["sample_size"]
        self.shape = (*(size if isinstance(size, tuple) else (size, size)), 3)

    def theirs(self, y, sigma):
        """Their score at y in [0, 1]."""
        with torch.no_grad():
            return nhwc(self.net(nchw(np.asarray(y, np.float32)), torch.from_numpy(np.asarray(sigma, np.float32)))[0])


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return functools.cache(lambda name: Case(name, tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_agree(cases, name):
    """The network itself: at noises from the smallest to the largest, and at labels of the noise, not the timestep."""
    case = cases(name)
    net, params = case.target.network.net.net, case.params["net"]["net"]
    y = np.random.default_rng(0).standard_normal((3, *case.shape)).astype(np.float32)
    sigma = np.asarray([0.02, 1.0, 50.0], np.float32)
    theirs = case.theirs(y, sigma) * sigma[:, None, None, None]
    assert 0.1 < theirs.std() < 10
    assert relative_error(case.theirs(y, sigma[::-1].copy()) * sigma[::-1, None, None, None], theirs) > 1e-2
    ours = np.asarray(apply(net, params, y, sigma)) * sigma[:, None, None, None]
    assert relative_error(ours, theirs) < 2e-5
    assert networks.build(networks.describe(case.target.network)) == case.target.network


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_theirs(cases, name):
    case = cases(name)
    state = load_file(case.folder / "diffusion_pytorch_model.safetensors")
    ours = parameters.to_state_dict(case.params["net"]["net"])
    assert ours.keys() == state.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value.reshape(state[key].shape), state[key].numpy(), err_msg=key)


@pytest.mark.parametrize("pixels", ["", "signed"])
def test_the_image_is_the_scores(tmp_path, pixels):
    """x_0 = y + sigma^2 score, of y in [0, 1] unless the setting says [-1, 1]; timestep t has their noise."""
    case = Case("heads", tmp_path, pixels)
    unit = not pixels
    assert isinstance(case.target.network, UnitPixels) == unit
    sigmas = case.scheduler.discrete_sigmas.numpy()
    alpha_bar = case.target.schedule.alpha_bar
    ratio = np.sqrt((1 - alpha_bar) / alpha_bar) / (2.0 if unit else 1.0)
    np.testing.assert_allclose(ratio, sigmas, rtol=1e-5)
    t = np.asarray([0, 17, 39], np.int32)
    y = np.random.default_rng(1).uniform(0, 1, (3, *case.shape)) + 0.1
    x = (2 * y - 1 if unit else y) * np.sqrt(alpha_bar[t])[:, None, None, None]
    image = y + np.square(sigmas[t])[:, None, None, None] * case.theirs(y, sigmas[t])
    ours = apply(case.target.network, case.params, x.astype(np.float32), t)
    np.testing.assert_allclose(ours, 2 * image - 1 if unit else image, rtol=2e-4, atol=2e-3)


KEYS = sample_keys(jax.random.key(3), jnp.arange(4, dtype=jnp.uint32))


def test_samples_agree(tmp_path):
    """Of the probability flow by Euler's steps in sigma, 20 of them, on their score; DDIM takes the same steps."""
    case = Case("ncsnpp", tmp_path)
    with torch.no_grad():
        case.net.conv_out.weight.mul_(0.1)
    case.folder = save(case.net, tmp_path / "calm", "neighbours", case.scheduler)
    case.target = read_target(case.folder, Hints(target=Target(), diffusion=Diffusion()))
    case.params = case.target.origin.read_params()
    table = step_table(case.target.schedule, 20, spacing="log_snr", clip=False)
    network = case.target.network
    ours = jax.jit(lambda p: sample(lambda x, t: network.apply({"params": p}, x, t), table, KEYS, case.shape))(
        case.params
    )
    sigma = np.asarray(table.steps.sigma / table.steps.signal, np.float64) / 2
    y = np.asarray(initial_noise(KEYS, case.shape), np.float64) * np.sqrt(1 + 4 * sigma[0] ** 2) / 2 + 0.5
    for now, then in itertools.pairwise(np.append(sigma, 0)):
        score = case.theirs(y, np.full(len(y), now))
        y = y - (then - now) * now * score
    assert np.abs(y).max() < 1e3
    assert relative_error(np.asarray(ours), 2 * y - 1) < 1e-3


def test_their_scheduler_samples_the_same_by_our_score(tmp_path):
    """Predictor and corrector, 20 steps on the same noise."""
    case = Case("heads", tmp_path)
    net, params = case.target.network.net.net, case.params["net"]["net"]

    def drawn(score):
        generator = torch.Generator().manual_seed(4)
        scheduler = diffusers.ScoreSdeVeScheduler(**SCHEDULER)
        y = torch.randn((2, 3, *case.shape[:2]), generator=generator) * scheduler.init_noise_sigma
        scheduler.set_timesteps(20)
        scheduler.set_sigmas(20)
        for i, t in enumerate(scheduler.timesteps):
            sigma = np.full(2, float(scheduler.sigmas[i]), np.float32)
            y = scheduler.step_correct(nchw(score(nhwc(y), sigma)), y, generator=generator)[0]
            y = scheduler.step_pred(nchw(score(nhwc(y), sigma)), t, y, generator=generator)[0]
        return nhwc(y)

    theirs = drawn(case.theirs)
    assert np.isfinite(theirs).all()
    assert relative_error(drawn(lambda y, sigma: apply(net, params, y, sigma)), theirs) < 1e-3


def test_the_public_function_reads_it(cases):
    case = cases("heads")
    module, params, schedule = from_diffusers(case.folder)
    assert module == case.target.network
    np.testing.assert_array_equal(schedule.betas, case.target.schedule.betas)
    jax.tree.map(np.testing.assert_array_equal, params, case.params)


def test_every_option_counts(cases):
    """An option that our module ignored would not be noticed where the configurations happen to agree with it."""
    case = cases("heads")
    y, sigma = np.random.default_rng(0).standard_normal((2, *case.shape)).astype(np.float32), np.ones(2, np.float32)
    net, params = case.target.network.net.net, case.params["net"]["net"]
    ours = apply(net, params, y, sigma)
    others = {"attention_head_dim": 16, "norm_num_groups": 4, "attn_norm_num_groups": 8, "norm_eps": 1e-2}
    for name, value in (others | {"mid_block_scale_factor": 1.0, "center_input_sample": True}).items():
        changed = UNet2DModel(**(CONFIGS["heads"] | {name: value})).eval()
        changed.load_state_dict(case.net.state_dict())
        with torch.no_grad():
            theirs = nhwc(changed(nchw(y), torch.from_numpy(sigma))[0])
        assert relative_error(ours, theirs) > 1e-4, name
        assert relative_error(apply(dataclasses.replace(net, **{name: value}), params, y, sigma), theirs) < 2e-5, name
