"""Noise schedules, time grids and 20 steps of sampling against diffusers' schedulers, with a small random U-Net."""

import functools
import inspect
import itertools
import json
import warnings

import jax
import numpy as np
import pytest

from parity.theirs import (
    CONFIGS,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    apply,
    diffusers,
    nchw,
    nhwc,
    random_unet,
    save,
    scheduling_ddpm,
    torch,
)
from side_jax.diffusion import sampler
from side_jax.diffusion.schedule import make_schedule, time_grid
from side_jax.diffusion.steps import step_table
from side_jax.errors import InputError
from side_jax.targets.diffusers_unet import from_diffusers
from side_jax.targets.schedules import SCHEDULERS, read_noise

STEPS = 20
BATCH = 2
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
# Each prediction type with each schedule would show nothing more than this Latin square.
KINDS = [("epsilon", "linear"), ("sample", "scaled_linear"), ("v_prediction", "squaredcos_cap_v2")]
KINDS += [("epsilon", "squaredcos_cap_v2"), ("v_prediction", "linear")]


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """(theirs, a folder to write schedulers into, ours as a denoiser) of a small U-Net."""
    theirs = random_unet(CONFIGS["scale_shift"] | {"sample_size": 8})
    folder = save(theirs, tmp_path_factory.mktemp("unet"))
    module, params, _ = from_diffusers(folder)
    return theirs, folder, functools.partial(apply, module, params)


def keys():
    return sampler.sample_keys(jax.random.key(3), np.arange(BATCH))


def noises():
    """x_T and each step's noise as our sampler draws them, NHWC."""
    shape = (8, 8, 3)
    start = np.asarray(sampler.initial_noise(keys(), shape))
    return start, [np.asarray(sampler._normal(keys(), np.uint32(step + 1), shape)) for step in range(STEPS)]


def our_trajectory(denoise_fn, table):
    """x after each step, float32 [STEPS, b, h, w, c]."""
    state, found = sampler.start(keys(), (8, 8, 3)), []
    for step in range(STEPS):
        state = sampler.sample_step(denoise_fn, table[step], state, keys())
        found.append(np.asarray(state.x))
    return np.stack(found)


def their_trajectory(net, scheduler, timesteps=None, **options):
    """As our_trajectory; options: of the scheduler's step, with each step's noise as `variance_noise`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it hands tensors to numpy in a way that numpy has deprecated
        scheduler.set_timesteps(**({"num_inference_steps": STEPS} if timesteps is None else {"timesteps": timesteps}))
    x, found = nchw(noises()[0]), []
    noise = [nchw(value) for value in noises()[1]]
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            prediction = net(x, t).sample
            if isinstance(scheduler, DDIMScheduler):
                options["variance_noise"] = noise[i]
            else:
                scheduler.noise = noise[i]
            x = scheduler.step(prediction, t, x, **options).prev_sample
            found.append(nhwc(x).copy())
    return np.stack(found)


def agree(ours, theirs):
    images = theirs[-1]
    assert (np.abs(images) < 0.98).mean() > 0.05  # not all clipped, where any two samplers would agree
    assert np.abs(ours[-1] - images).max() < 1e-3
    assert np.abs(ours - theirs).max() < 1e-3 * max(1.0, np.abs(theirs).max())


@pytest.mark.parametrize(("prediction", "kind"), KINDS)
@pytest.mark.parametrize(("eta", "recompute"), [(0.0, False), (0.0, True), (0.5, False), (0.5, True)])
def test_ddim_steps_agree(unet, prediction, kind, eta, recompute):
    net, directory, ours = unet
    scheduler = DDIMScheduler(beta_schedule=kind, prediction_type=prediction)
    scheduler.save_pretrained(directory)
    table = step_table(read_noise(directory).make(), STEPS, eta=eta, spacing="leading", clip=True, recompute=recompute)
    theirs = their_trajectory(net, scheduler, eta=eta, use_clipped_model_output=recompute)
    agree(our_trajectory(ours, table), theirs)


@pytest.mark.parametrize(("prediction", "kind"), KINDS)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_steps_agree(unet, prediction, kind, variance, monkeypatch):
    net, directory, ours = unet
    scheduler = DDPMScheduler(beta_schedule=kind, prediction_type=prediction, variance_type=f"fixed_{variance}")
    scheduler.save_pretrained(directory)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **options: scheduler.noise)
    table = step_table(read_noise(directory).make(), STEPS, eta=1.0, variance=variance, spacing="leading", clip=True)
    agree(our_trajectory(ours, table), their_trajectory(net, scheduler))


@pytest.mark.parametrize(("prediction", "kind"), KINDS[:3] + KINDS[4:])  # not where x_0 is x_T / 0.005
@pytest.mark.parametrize("spacing", ["trailing", "linspace", "log_snr"])
def test_dpm_solver_steps_agree(unet, prediction, kind, spacing):
    net, directory, ours = unet
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule=kind, prediction_type=prediction, timestep_spacing="trailing", final_sigmas_type="zero"
    )
    scheduler.save_pretrained(directory)
    schedule = read_noise(directory).make()
    table = step_table(schedule, STEPS, solver="dpmpp_2m", spacing=spacing, clip=False)
    assert table.steps.extrapolation.any()
    # What diffusers calls linspace here ends earlier, and its log-SNR grid has fractions: it is given ours.
    theirs = their_trajectory(net, scheduler, None if spacing == "trailing" else table.steps.t.tolist())
    ours = our_trajectory(ours, table)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
    ddim = our_trajectory(unet[2], step_table(schedule, STEPS, spacing=spacing, clip=False))
    assert np.abs(ddim - theirs).max() > 0.02 * np.abs(theirs).max()


@pytest.mark.parametrize("clip", [True, False])
def test_trailing_steps_agree(unet, clip):
    net, directory, ours = unet
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=clip, prediction_type="v_prediction")
    scheduler.save_pretrained(directory)
    table = step_table(read_noise(directory).make(), STEPS, spacing="trailing", clip=clip, recompute=False)
    agree(our_trajectory(ours, table), their_trajectory(net, scheduler))


def test_the_settings_of_a_sampler_make_a_difference(unet):
    """So that the comparisons above would notice a step of the wrong kind."""
    net, *_ = unet
    found = []
    for eta, recompute in itertools.product((0.0, 0.5), (False, True)):
        found.append(their_trajectory(net, DDIMScheduler(), eta=eta, use_clipped_model_output=recompute)[-1])
    for kind, prediction in (("squaredcos_cap_v2", "epsilon"), ("linear", "v_prediction"), ("linear", "sample")):
        found.append(their_trajectory(net, DDIMScheduler(beta_schedule=kind, prediction_type=prediction))[-1])
    for a, b in itertools.combinations(found, 2):
        assert np.abs(a - b).max() > 0.01


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
def test_grids_are_theirs(spacing, scheduler):
    """At every number of steps, but for linspace's single one: timestep 0 there, and T - 1 here, where the noise is."""
    theirs, schedule = scheduler(timestep_spacing=spacing), make_schedule("linear", 1000)
    for steps in range(2 if spacing == "linspace" else 1, 1001):
        theirs.set_timesteps(steps)
        grid = theirs.timesteps.numpy()
        # By rounding errors trailing has one step more at some numbers, at timestep -1.
        assert len(grid) == steps or (spacing, len(grid), grid[-1]) == ("trailing", steps + 1, -1)
        np.testing.assert_array_equal(time_grid(schedule, steps, spacing), grid[:steps])


@pytest.mark.parametrize("options", [{}, {"beta_start": 0.00085, "beta_end": 0.012}, {"num_train_timesteps": 250}])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_betas_are_theirs(unet, kind, options):
    _, directory, _ = unet
    for scheduler in (DDIMScheduler, DDPMScheduler):
        theirs = scheduler(beta_schedule=kind, **options)
        theirs.save_pretrained(directory)
        ours = read_noise(directory).make()
        assert ours.num_timesteps == theirs.config.num_train_timesteps
        # float32's spacing at the largest value: torch.linspace adds up from both ends.
        atol = np.spacing(np.float32(ours.betas.max()))
        np.testing.assert_allclose(ours.betas, theirs.betas.numpy(), rtol=1e-6, atol=atol)
        np.testing.assert_allclose(ours.alpha_bar, theirs.alphas_cumprod.numpy(), rtol=3e-4)


def options(name):
    """The arguments of a scheduler's class, with its defaults; one that needs another package has none."""
    found = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: value.default for key, value in found.items()}


KNOWN = sorted(name for name in dir(diffusers) if name.endswith("Scheduler") and "num_train_timesteps" in options(name))


@pytest.mark.parametrize("name", KNOWN)
def test_a_class_is_read_by_its_own_defaults_or_refused(unet, caplog, name):
    """Read are those whose noise is given by betas, but not what was distilled or shifts the noise; all others not."""
    _, directory, _ = unet
    (directory / "scheduler_config.json").write_text(json.dumps({"_class_name": name}))
    theirs = options(name)
    other = ("CogVideoX", "LCM", "TCD", "UnCLIP", "IPNDM")
    if "trained_betas" not in theirs or name.startswith(other):
        with pytest.raises(InputError, match=f'_class_name = "{name}"'):
            read_noise(directory).make()
        return
    ours = read_noise(directory).make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy, about some of their constructors
        theirs = getattr(diffusers, name)()
    np.testing.assert_allclose(ours.betas, theirs.betas.numpy(), rtol=1e-5)
    assert theirs.config.get("prediction_type", "epsilon") == ours.prediction_type == "epsilon"
    assert SCHEDULERS[name][1] == theirs.config.get("clip_sample")
    assert bool(caplog.records) == (not theirs.config.get("clip_sample"))


def test_every_class_that_is_read_is_theirs():
    assert set(SCHEDULERS) - set(KNOWN) <= {"DPMSolverSDEScheduler"}  # which needs torchsde
    assert hasattr(diffusers, "DPMSolverSDEScheduler")


def test_trained_betas_are_theirs(unet):
    _, directory, _ = unet
    betas = np.random.default_rng(0).uniform(1e-4, 0.02, 40).tolist()
    theirs = DDPMScheduler(num_train_timesteps=40, trained_betas=betas, prediction_type="sample")
    theirs.save_pretrained(directory)
    ours = read_noise(directory).make()
    np.testing.assert_array_equal(ours.betas, betas)
    np.testing.assert_array_equal(ours.betas.astype(np.float32), theirs.betas.numpy())
    assert ours.prediction_type == "x0"
