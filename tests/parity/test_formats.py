"""Checkpoints of other training programs against these programs' networks, on random weights, and their samples."""

import dataclasses
import functools
import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity.programs import AdmUNet, DdpmUNet
from parity.theirs import apply, nchw, nhwc, random_numbers, relative_error, torch
from side_jax.diffusion.sampler import initial_noise, sample, sample_keys
from side_jax.diffusion.steps import step_table
from side_jax.errors import InputError
from side_jax.settings import Diffusion
from side_jax.settings import Target as Section
from side_jax.targets.formats import read_target
from side_jax.targets.target_model import Hints

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecation warnings of its dependencies, by version
    monai = pytest.importorskip("monai.networks.nets")
    from monai.networks import schedulers as monai_schedulers


def hints(diffusion=None, **options):
    return Hints(target=Section(**options), diffusion=Diffusion(**(diffusion or {})))


class Case:
    """A program's network of random weights, and what its checkpoint is read as."""

    def __init__(self, net, path, saved, options, channels=3, labels=0, size=16, calm=None):
        self.net, self.labels = random_numbers(net).eval(), labels
        if calm:  # a layer whose output is small, so that samples of random weights don't amplify every rounding
            with torch.no_grad():
                calm(self.net).weight.mul_(0.1)
        saved = saved(self.net.state_dict())
        torch.save(saved, path)
        self.target = read_target(path, options)
        self.params = self.target.origin.read_params()
        self.shape = (size, size, channels)

    def theirs(self, x, t, labels=None):
        with torch.no_grad():
            given = () if labels is None else (torch.from_numpy(labels).long(),)
            return nhwc(self.net(nchw(x), torch.from_numpy(np.asarray(t)), *given))[..., : self.shape[-1]]

    def ours(self, x, t, labels=None):
        return apply(self.target.network, self.params, x, t, labels)


class Monai(torch.nn.Module):
    """MONAI's network, called as the others are."""

    def __init__(self, **options):
        super().__init__()
        common = {"spatial_dims": 2, "num_res_blocks": 1, "channels": (32, 64), "attention_levels": (False, True)}
        self.net = monai.DiffusionModelUNet(**(common | options))

    def forward(self, x, t, labels=None):
        return self.net(x, t, class_labels=labels)


def ema(state):
    return {"net_model": {}, "ema_model": state, "step": 7, "x_T": torch.zeros(4, 3, 16, 16)}


def inner(state):
    return {name.removeprefix("net."): value for name, value in state.items()}


def generative_models(state):
    """As the older package GenerativeModels named its attention."""
    names = {name: name.replace(".attn.to_", ".to_").replace(".attn.out_proj.", ".proj_attn.") for name in inner(state)}
    return {names[name]: value for name, value in inner(state).items()}


class Flow(torch.nn.Module):
    """A velocity as a prediction of x_0 at the timesteps that it is read with; time 1 is data."""

    def __init__(self):
        super().__init__()
        self.net = AdmUNet(heads=-32, order="new")

    def forward(self, x, t):
        sigma = torch.exp(torch.lerp(*(torch.tensor(v).log() for v in (0.002, 500.0)), t / 999))[:, None, None, None]
        z = x * torch.sqrt(1 + sigma**2) / (1 + sigma)
        return z + sigma / (1 + sigma) * self.net(z, 1 / (1 + sigma[:, 0, 0, 0]))


LINEAR, SIGNED = {"schedule": "linear"}, {"pixels": "signed"}
CASES = {
    "pytorch_ddpm": lambda path: Case(DdpmUNet(), path, ema, hints()),
    "pytorch_ddpm, deeper": lambda path: Case(
        DdpmUNet(multiples=(1, 2, 2), attend=(0, 2), blocks=2), path, ema, hints()
    ),
    "adm": lambda path: Case(AdmUNet(), path, dict, hints(**LINEAR, num_heads=2, qkv_order="legacy")),
    "adm, new order and a head's channels": lambda path: Case(
        AdmUNet(multiples=(1, 2, 3), attend=(1, 2), blocks=2, heads=-16, order="new", shift=True, out_channels=6),
        path,
        dict,
        hints(schedule="cosine", head_channels=16, qkv_order="new"),
    ),
    "adm, residual resizing, labels and rescaled timesteps": lambda path: Case(
        AdmUNet(attend=(), residual_resize=True, shift=True, labels=5, scale=0.25, out_channels=6),
        path,
        dict,
        hints({"num_timesteps": 4000}, **LINEAR, num_heads=2, qkv_order="legacy", timesteps="rescaled"),
        labels=5,
    ),
    "monai": lambda path: Case(
        Monai(in_channels=1, out_channels=1, num_head_channels=16),
        path,
        inner,
        hints(**LINEAR, head_channels=16, **SIGNED),
        channels=1,
    ),
    "monai, residual resizing, labels and groups": lambda path: Case(
        Monai(
            in_channels=3,
            out_channels=3,
            channels=(8, 24, 24),
            attention_levels=(False, True, True),
            num_res_blocks=2,
            num_head_channels=(0, 8, 8),
            norm_num_groups=4,
            resblock_updown=True,
            num_class_embeds=4,
        ),
        path,
        inner,
        hints(schedule="scaled_linear", head_channels=8, norm_groups=4, **SIGNED),
        labels=4,
    ),
    "monai, one layer for the three and none at the end": lambda path: Case(
        Monai(in_channels=1, out_channels=2, num_head_channels=8, include_fc=False, use_combined_linear=True),
        path,
        inner,
        hints(**LINEAR, head_channels=8, **SIGNED),
        channels=1,
    ),
    "monai, of GenerativeModels": lambda path: Case(
        Monai(in_channels=1, out_channels=1, num_head_channels=32),
        path,
        generative_models,
        hints(**LINEAR, num_heads=2, **SIGNED),
        channels=1,
    ),
    "torchcfm": lambda path: Case(
        Flow(), path, lambda state: {"ema_model": inner(state)}, hints(head_channels=32, qkv_order="new")
    ),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """name -> a case, made when first asked for."""
    return functools.cache(lambda name: CASES[name](tmp_path_factory.mktemp("case") / "model.pt"))


@pytest.mark.parametrize("name", CASES)
def test_predictions_agree(cases, name):
    case = cases(name)
    x = np.random.default_rng(0).standard_normal((3, *case.shape)).astype(np.float32)
    t = np.asarray([0, 417, 999], np.int32)
    labels = np.asarray([0, case.labels - 1, 1], np.int32) if case.labels else None
    theirs = case.theirs(x, t, labels)
    assert 0.1 < theirs.std() < 10
    assert relative_error(case.theirs(x, t[::-1].copy(), labels), theirs) > 1e-2  # every timestep matters
    if case.labels:
        assert relative_error(case.theirs(x, t, labels[::-1].copy()), theirs) > 1e-2
    assert relative_error(case.ours(x, t, labels), theirs) < 2e-5


KEYS = sample_keys(jax.random.key(3), jnp.arange(4, dtype=jnp.uint32))


def drawn(case, steps=20, change=lambda table: table, **options):
    """Our samples of 20 steps, the noise that they start from, and the table of the steps."""
    table = change(step_table(case.target.schedule, steps, **options))
    images = jax.jit(
        lambda params: sample(lambda x, t: case.target.network.apply({"params": params}, x, t), table, KEYS, case.shape)
    )(case.params)
    return np.asarray(images), np.array(initial_noise(KEYS, case.shape)), table


def test_monai_samples_agree(tmp_path):
    """By MONAI's DDIM, which keeps the network's noise where it clips the image.

    It goes from each of its timesteps, 999 to 0, to the noise of 50 timesteps earlier, though the next is 52 or 53 off.
    """

    def theirs(table):
        t = table.steps.t
        alpha_bar = np.where(t < 50, 1.0, case.target.schedule.alpha_bar[t - 50])
        steps = {"next_signal": np.sqrt(alpha_bar), "next_sigma": np.sqrt(1 - alpha_bar)}
        steps = {name: value.astype(np.float32) for name, value in steps.items()}
        return dataclasses.replace(table, steps=dataclasses.replace(table.steps, **steps))

    net, told = Monai(in_channels=1, out_channels=1, num_head_channels=16), hints(**LINEAR, **SIGNED, head_channels=16)
    case = Case(net, tmp_path / "model.pt", inner, told, channels=1, calm=lambda net: net.net.out[2].conv)
    ours, x, table = drawn(case, change=theirs, spacing="linspace", recompute=False)
    scheduler = monai_schedulers.DDIMScheduler(1000, schedule="linear_beta", beta_start=1e-4, beta_end=0.02)
    scheduler.set_timesteps(20)
    np.testing.assert_array_equal(table.steps.t, scheduler.timesteps)
    for t in scheduler.timesteps:
        prediction = case.theirs(x, np.full(len(x), int(t)))
        x = nhwc(scheduler.step(nchw(prediction), int(t), nchw(x))[0])
    assert relative_error(ours, x) < 1e-3


def test_monai_samples_of_pixels_in_0_to_1_agree(tmp_path):
    """Its DDIM again, which clips to [0, 1], at 20 timesteps of which each is 50 from the next."""
    net, told = (
        Monai(in_channels=1, out_channels=1, num_head_channels=16),
        hints(**LINEAR, head_channels=16, pixels="unit"),
    )
    case = Case(net, tmp_path / "model.pt", inner, told, channels=1, calm=lambda net: net.net.out[2].conv)
    ours, x, _ = drawn(case, spacing="leading", recompute=False)
    scheduler = monai_schedulers.DDIMScheduler(
        1000, schedule="linear_beta", beta_start=1e-4, beta_end=0.02, clip_sample_min=0, clip_sample_max=1
    )
    scheduler.set_timesteps(20)
    signal = float(scheduler.alphas_cumprod[950]) ** 0.5
    z = x * np.float32(np.sqrt(1 - 0.75 * signal**2)) + np.float32(signal / 2)  # of u = (x + 1) / 2
    for t in range(950, -1, -50):
        prediction = case.theirs(z, np.full(len(z), t))
        z = nhwc(scheduler.step(nchw(prediction), t, nchw(z))[0])
    assert ((z > 0.02) & (z < 0.98)).mean() > 0.2
    assert relative_error(ours, 2 * z - 1) < 1e-3


def test_adm_samples_agree(cases):
    """By its DDIM (Song et al. 2021, eq. 12), which computes the noise anew from the clipped image."""
    case = cases("adm")
    ours, x, _ = drawn(case, spacing="leading")
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for t in range(950, -1, -50):
        now, then = alpha_bar[t], alpha_bar[t - 50] if t else 1.0
        epsilon = case.theirs(x.astype(np.float32), np.full(len(x), t))
        clean = np.clip((x - (1 - now) ** 0.5 * epsilon) / now**0.5, -1, 1)
        epsilon = (x - now**0.5 * clean) / (1 - now) ** 0.5
        x = then**0.5 * clean + (1 - then) ** 0.5 * epsilon
    assert relative_error(ours, x) < 1e-3


def test_pytorch_ddpm_samples_agree(tmp_path):
    """By its ancestral sampler with the large variance, over all 20 timesteps of a model, on the same noise."""
    case = Case(DdpmUNet(timesteps=20), tmp_path / "ckpt.pt", ema, hints())
    ours, x, _ = drawn(case, eta=1.0, variance="large")
    betas = np.linspace(1e-4, 0.02, 20)
    alpha_bar = np.cumprod(1 - betas)
    for number, t in enumerate(range(19, -1, -1)):
        now, before = alpha_bar[t], alpha_bar[t - 1] if t else 1.0
        epsilon = case.theirs(x.astype(np.float32), np.full(len(x), t))
        clean = np.clip((x - (1 - now) ** 0.5 * epsilon) / now**0.5, -1, 1)
        x = (before**0.5 * betas[t] * clean + (1 - betas[t]) ** 0.5 * (1 - before) * x) / (1 - now)
        if t:
            folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(KEYS, jnp.uint32(number + 1))
            noise = jax.vmap(lambda key: jax.random.normal(key, case.shape, jnp.float32))(folded)
            x = x + betas[t] ** 0.5 * np.asarray(noise)
    assert relative_error(ours, x) < 1e-3


def test_torchcfm_samples_agree(cases):
    """By Euler's steps of the velocity, at the times of our grid; DDIM takes the same steps."""
    case = cases("torchcfm")
    ours, x, table = drawn(case, spacing="log_snr", clip=False)
    sigma = np.asarray(table.steps.sigma / table.steps.signal, np.float64)
    times = 1 / (1 + np.append(sigma, 0))
    z = x * times[0] * np.sqrt(1 + sigma[0] ** 2)
    for now, then in itertools.pairwise(times):
        with torch.no_grad():
            velocity = nhwc(case.net.net(nchw(z.astype(np.float32)), torch.full((len(z),), now, dtype=torch.float32)))
        z = z + (then - now) * velocity
    assert relative_error(ours, z) < 1e-3


def test_a_label_can_stand_for_none(tmp_path):
    case = CASES["adm, residual resizing, labels and rescaled timesteps"](tmp_path / "model.pt")
    options = {"num_heads": 2, "qkv_order": "legacy", "timesteps": "rescaled"}
    told = hints({"num_timesteps": 4000}, **LINEAR, **options, null_label=2)
    target = read_target(tmp_path / "model.pt", told)
    assert (target.num_labels, target.null_label) == (4, True)
    params, x = target.origin.read_params(), np.ones((3, 16, 16, 3), np.float32)
    t = np.asarray([10, 20, 30], np.int32)
    theirs = case.theirs(x, t, np.asarray([2, 3, 0]))
    for labels in (np.asarray([-1, 2, 0], np.int32), np.asarray([4, 2, 0], np.int32)):
        assert relative_error(apply(target.network, params, x, t, labels), theirs) < 2e-5
    without = target.denoise(params, x, t)
    assert relative_error(without, case.theirs(x, t, np.full(3, 2))) < 2e-5
    told = hints({"num_timesteps": 4000}, **LINEAR, **options, null_label=5)
    with pytest.raises(InputError, match=r"null_label is 5, but .* has 5 labels, 0 to 4"):
        read_target(tmp_path / "model.pt", told)
