"""lucidrains' denoising-diffusion-pytorch: predictions and samples of its Unet in its GaussianDiffusion, as saved."""

import functools
import warnings

import foreign
import jax
import numpy as np
import pytest

from parity.lucidrains_package import module, package
from parity.theirs import apply, nchw, nhwc, random_numbers, relative_error, torch
from side_jax.diffusion import sampler
from side_jax.diffusion.steps import step_table
from side_jax.errors import InputError
from side_jax.settings import Diffusion
from side_jax.settings import Target as Section
from side_jax.targets.formats import read_target
from side_jax.targets.target_model import Hints

STEPS, BATCH = 20, 2


def random_unet(seed, **options):
    """A Unet with random numbers in every parameter, of the sizes that training begins with."""
    net = random_numbers(package.Unet(**options), seed).eval()
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, module.RMSNorm):
                layer.g.copy_(1 + 0.2 * layer.g * layer.g.numel() ** 0.5)
            if isinstance(layer, module.Attention | module.LinearAttention):
                layer.mem_kv.mul_(layer.mem_kv[0].numel() ** 0.5)
    return net


def with_group_norm(net, groups=8):
    """As versions before 2.0.0 were, whose residual blocks had this norm."""
    for block in net.modules():
        if isinstance(block, module.Block):
            block.norm = random_numbers(torch.nn.GroupNorm(groups, block.proj.out_channels))
    return net


def without_memory(net):
    """As versions before 1.9.0 were."""
    for layer in net.modules():
        if isinstance(layer, module.Attention):
            layer.mem_kv = torch.nn.Parameter(layer.mem_kv[:, :, :0])
        if isinstance(layer, module.LinearAttention):
            layer.mem_kv = torch.nn.Parameter(layer.mem_kv[..., :0])
    return net


class Case:
    """A process of random weights, saved as the Trainer saves it, and what that is read as."""

    def __init__(self, make, path, expected, process=package.GaussianDiffusion, given=None, **options):
        self.nets = [make(seed) for seed in range(2)]
        options = {"image_size": 16, "sampling_timesteps": STEPS} | options
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            last, self.process = (process(net, **options).eval() for net in self.nets)
        states = [
            {name: value for name, value in part.state_dict().items() if value.numel()} for part in (last, self.process)
        ]
        ema = {"initted": torch.tensor(True), "step": torch.tensor(7)}
        for prefix, state in zip(("online_model", "ema_model"), states, strict=True):
            ema |= {f"{prefix}.{name}": value for name, value in state.items()}
        saved = {"step": 7, "model": states[0], "opt": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "ema": ema}
        torch.save(saved | {"scaler": None, "version": package.denoising_diffusion_pytorch.__version__}, path)
        self.target = read_target(path, Hints(target=Section(**(given or {})), diffusion=Diffusion()))
        self.params = self.target.origin.read_params()
        self.shape = (16, 16, self.process.channels)
        self.expected = expected

    def theirs(self, x, t, net=1):
        with torch.no_grad():
            found = self.nets[net](nchw(x), torch.from_numpy(np.asarray(t)))
        return nhwc(found)[..., : self.shape[-1]]

    def ours(self, x, t):
        return apply(self.target.network, self.params, x, t)


def few(seed, **options):
    return random_unet(seed, dim=16, dim_mults=(1, 2), channels=1, **options)


CASES = {
    "grey, all defaults": lambda path: Case(few, path, "v"),
    "grey, noise, clipped weights": lambda path: Case(
        few, path, "epsilon", objective="pred_noise", beta_schedule="cosine", min_snr_loss_weight=True
    ),
    "colour, a single level, image": lambda path: Case(
        lambda seed: random_unet(seed, dim=16, dim_mults=(2,), flash_attn=True), path, "x0", objective="pred_x0"
    ),
    "colour, a learned variance, levels that differ": lambda path: Case(
        lambda seed: random_unet(
            seed,
            dim=8,
            init_dim=12,
            dim_mults=(1, 2, 3),
            learned_variance=True,
            attn_heads=(1, 2, 3),
            attn_dim_head=(8, 16, 4),
            full_attn=(True, False, False),
        ),
        path,
        "epsilon",
        package.LearnedGaussianDiffusion,
        beta_schedule="linear",
    ),
    "clipped weights of an image": lambda path: Case(
        few, path, "x0", objective="pred_x0", min_snr_loss_weight=True, timesteps=1000, beta_schedule="linear"
    ),
    "clipped weights of v": lambda path: Case(few, path, "v", min_snr_loss_weight=True, min_snr_gamma=3),
    "before 2.0.0": lambda path: Case(
        lambda seed: with_group_norm(few(seed), 4), path, "epsilon", objective="pred_noise", given={"norm_groups": 4}
    ),
    "before 1.9.0": lambda path: Case(
        lambda seed: without_memory(with_group_norm(few(seed, attn_dim_head=(8, 16), attn_heads=2))),
        path,
        "v",
        given={"num_heads": 2},
    ),
}
SAMPLED = ("grey, all defaults", "grey, noise, clipped weights", "colour, a single level, image")


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """name -> a case, made when first asked for."""
    return functools.cache(lambda name: CASES[name](tmp_path_factory.mktemp("case") / "model-1.pt"))


@pytest.mark.parametrize("name", CASES)
def test_predictions_agree(cases, name):
    case = cases(name)
    x = np.random.default_rng(0).standard_normal((3, *case.shape)).astype(np.float32)
    t = np.asarray([0, 417, 999], np.int32)
    theirs = case.theirs(x, t)
    assert 0.1 < theirs.std() < 10
    assert relative_error(case.theirs(x, t[::-1].copy()), theirs) > 1e-2  # every timestep matters
    assert relative_error(case.theirs(x, t, net=0), theirs) > 1e-1  # and which weights are taken
    assert relative_error(case.ours(x, t), theirs) < 2e-5


@pytest.mark.parametrize("name", CASES)
def test_the_noise_and_the_objective_are_found(cases, name):
    """Their own tables are float32, and so is what they are read from."""
    case = cases(name)
    schedule = case.target.schedule
    assert schedule.prediction_type == case.expected
    alpha_bar = case.process.alphas_cumprod.numpy()
    np.testing.assert_allclose(schedule.alpha_bar, alpha_bar, rtol=1e-4)
    np.testing.assert_allclose(1 - schedule.alpha_bar, 1 - alpha_bar.astype(np.float64), rtol=1e-3)
    assert any("2.3.4" in note for note in case.target.origin.notes)


@pytest.mark.parametrize("name", SAMPLED)
def test_samples_agree(cases, name, monkeypatch):
    case = cases(name)
    keys = sampler.sample_keys(jax.random.key(3), np.arange(BATCH))
    noise = nchw(np.array(sampler.initial_noise(keys, case.shape)))
    monkeypatch.setattr(torch, "randn", lambda *args, **options: noise)
    theirs = 2 * nhwc(case.process.ddim_sample(noise.shape)) - 1
    table = step_table(case.target.schedule, STEPS, spacing="trailing")
    ours = sampler.sample(case.ours, table, keys, case.shape)
    assert (np.abs(theirs) < 0.98).mean() > 0.05  # not all clipped
    assert np.abs(ours - theirs).max() < 1e-3


def test_what_is_damaged_or_more_than_weights_is_refused(cases, tmp_path):
    """By the loader of all pickled weights: a file that was cut, and one that would run code."""
    path = cases("grey, all defaults").target.origin.weights[0]
    whole = path.read_bytes()
    (tmp_path / "model-2.pt").write_bytes(whole[: len(whole) // 2])
    saved = torch.load(path, weights_only=True)
    torch.save(saved | {"opt": foreign.Hostile(tmp_path / "ran")}, tmp_path / "model-3.pt")
    for name in ("model-2.pt", "model-3.pt"):
        with pytest.raises(InputError, match=f"{name} is not a pickled dict of tensors, or is damaged"):
            read_target(tmp_path / name, Hints(target=Section(), diffusion=Diffusion()))
    assert not (tmp_path / "ran").exists()
