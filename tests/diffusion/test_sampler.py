"""Samplers on Gaussian data, where the denoiser and the law of every x_t are known exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.diffusion import sampler
from side_jax.diffusion.guidance import Guidance
from side_jax.diffusion.process import bcast
from side_jax.diffusion.schedule import make_schedule
from side_jax.diffusion.steps import step_table

MEAN, STD = 0.3, 0.5
SHAPE = (2, 2, 1)


def exact_denoiser(schedule, mean=MEAN, std=STD):
    """E[epsilon | x_t] for x_0 ~ N(mean, std^2 I), or E[x_0 | x_t] or E[v | x_t], as the schedule says."""
    alpha_bar = jnp.asarray(schedule.alpha_bar, jnp.float32)

    def denoise(x, t):
        a = bcast(alpha_bar[t], x)
        surprise = (x - jnp.sqrt(a) * mean) / (a * std**2 + 1 - a)
        epsilon, x0 = jnp.sqrt(1 - a) * surprise, mean + jnp.sqrt(a) * std**2 * surprise
        v = jnp.sqrt(a) * epsilon - jnp.sqrt(1 - a) * x0
        return {"epsilon": epsilon, "x0": x0, "v": v}[schedule.prediction_type]

    return denoise


def state(x):
    """That of a first step."""
    return sampler.State(x, jnp.zeros_like(x))


def draw(schedule, num_steps, n=8192, eta=0.0, seed=0, clip=False, spacing="trailing", solver="ddim"):
    table = step_table(schedule, num_steps, eta=eta, clip=clip, spacing=spacing, solver=solver)
    keys = sampler.sample_keys(jax.random.key(seed), jnp.arange(n, dtype=jnp.uint32))
    return np.asarray(sampler.sample(exact_denoiser(schedule), table, keys, SHAPE))


@pytest.mark.parametrize(
    ("eta", "prediction"), [(0.0, "epsilon"), (0.5, "epsilon"), (1.0, "epsilon"), (0.5, "x0"), (0.5, "v")]
)
def test_recovers_the_gaussian(eta, prediction):
    images = draw(make_schedule("linear", 1000, prediction_type=prediction), 1000, eta=eta)
    np.testing.assert_allclose(images.mean(), MEAN, atol=0.01)
    # The small variance of DDPM is a lower bound of the true one, so the standard deviation is a little low.
    np.testing.assert_allclose(images.std(), STD, rtol=0.015)


def flow(schedule, x_start, t):
    """What the probability-flow ODE makes of x_T at timestep t: here it is known in closed form."""
    a_start, a = schedule.alpha_bar[-1], schedule.alpha_bar[t]
    variance_start, variance = (b * STD**2 + 1 - b for b in (a_start, a))
    return a**0.5 * MEAN + (variance / variance_start) ** 0.5 * (x_start - a_start**0.5 * MEAN)


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_solvers_converge_at_their_orders(solver, order):
    """Before the last step, which goes to a log-SNR of infinity, twice the steps divide the error by 2^order."""
    schedule = make_schedule("linear", 20_000, 5e-6, 1e-3)
    keys = sampler.sample_keys(jax.random.key(3), jnp.arange(64, dtype=jnp.uint32))
    step = jax.jit(lambda at, now: sampler.sample_step(exact_denoiser(schedule), at, now, keys))
    errors = []
    for num_steps in (20, 40, 80, 160):
        table = step_table(schedule, num_steps, clip=False, spacing="log_snr", solver=solver)
        stop = num_steps - 1
        now = sampler.start(keys, SHAPE)
        for i in range(stop):
            now = step(table[i], now)
        exact = flow(schedule, np.asarray(sampler.initial_noise(keys, SHAPE)), table[stop].t)
        errors.append(np.abs(now.x - exact).max())
    orders = np.log2(np.asarray(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders[-2:], order, atol=0.25)


def test_the_second_order_solver_is_nearer_at_equal_steps():
    schedule = make_schedule("linear", 1000)
    keys = sampler.sample_keys(jax.random.key(3), jnp.arange(64, dtype=jnp.uint32))
    a = schedule.alpha_bar[-1]
    exact = MEAN + STD * (np.asarray(sampler.initial_noise(keys, SHAPE)) - a**0.5 * MEAN) / (a * STD**2 + 1 - a) ** 0.5
    error = {
        solver: np.abs(draw(schedule, 10, n=64, seed=3, spacing="log_snr", solver=solver) - exact).mean()
        for solver in ("ddim", "dpmpp_2m")
    }
    assert error["dpmpp_2m"] < 0.3 * error["ddim"]


def test_dpm_solver_with_clipping_is_algorithm_2():
    """Lu et al. 2022 ("DPM-Solver++"), algorithm 2 as printed, in float64, with each x0_hat clipped."""
    schedule = make_schedule("linear", 1000)
    keys = sampler.sample_keys(jax.random.key(3), jnp.arange(64, dtype=jnp.uint32))
    table = step_table(schedule, 14, solver="dpmpp_2m")
    got = sampler.sample(lambda x, t: jnp.float32(0.9) * jnp.tanh(x), table, keys, SHAPE)
    x, before, clipped = np.asarray(sampler.initial_noise(keys, SHAPE), np.float64), None, 0
    a, sigma = np.sqrt(schedule.alpha_bar[table.steps.t]), np.sqrt(1 - schedule.alpha_bar[table.steps.t])
    half_log_snr = np.log(a / sigma)
    for i in range(14):
        exact = (x - sigma[i] * 0.9 * np.tanh(x)) / a[i]
        x0 = np.clip(exact, -1, 1)
        clipped += (x0 != exact).mean() / 14
        if i == 13:
            x = x0
            break
        h = half_log_snr[i + 1] - half_log_snr[i]
        r = (half_log_snr[i] - half_log_snr[i - 1]) / h
        mixed = x0 if before is None else (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        x, before = sigma[i + 1] / sigma[i] * x - a[i + 1] * np.expm1(-h) * mixed, x0
    assert 0.1 < clipped < 0.9
    np.testing.assert_allclose(got, x, atol=2e-4)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_too_few_steps_for_a_second_order_are_ddim(num_steps):
    schedule = make_schedule("linear", 1000)
    images = [draw(schedule, num_steps, n=64, clip=True, solver=solver) for solver in ("ddim", "dpmpp_2m")]
    np.testing.assert_array_equal(*images)


def test_the_large_variance_is_beta_and_leaves_the_mean_alone():
    """Ho et al. 2020, section 3.2: on the full grid the noise has variance beta_t; the last step draws none."""
    schedule = make_schedule("linear", 50, 1e-3, 0.2)
    keys = sampler.sample_keys(jax.random.key(0), jnp.arange(4, dtype=jnp.uint32))
    x, denoise = jax.random.normal(jax.random.key(9), (4, *SHAPE)), exact_denoiser(schedule)
    for step in (0, 20, 48, 49):
        t = 49 - step
        small, large = (
            np.asarray(
                sampler.sample_step(denoise, step_table(schedule, 50, eta=1.0, variance=v)[step], state(x), keys).x
            )
            for v in ("small", "large")
        )
        before = schedule.alpha_bar[t - 1] if t > 0 else 1.0
        tilde = (1 - before) / (1 - schedule.alpha_bar[t]) * schedule.betas[t]
        z = np.stack(
            [jax.random.normal(jax.random.fold_in(key, jnp.uint32(step + 1)), SHAPE, jnp.float32) for key in keys]
        )
        wider = schedule.betas[t] ** 0.5 - tilde**0.5 if t > 0 else 0.0
        np.testing.assert_allclose(large - small, wider * z, atol=1e-5)


def test_eta_one_on_the_full_grid_is_ddpm():
    """Against Ho et al. 2020 eq. 7 and algorithm 2, written from the posterior's own formulas."""
    schedule = make_schedule("linear", 50, 1e-3, 0.2)
    table = step_table(schedule, 50, eta=1.0, clip=True)
    denoise = exact_denoiser(schedule)
    keys = sampler.sample_keys(jax.random.key(0), jnp.arange(4, dtype=jnp.uint32))
    x = 1.5 * jax.random.normal(jax.random.key(9), (4, *SHAPE))
    alpha_bar, betas = schedule.alpha_bar, schedule.betas
    for step in (0, 20, 48, 49):
        t = 49 - step
        before = alpha_bar[t - 1] if t > 0 else 1.0
        mean_x0 = before**0.5 * betas[t] / (1 - alpha_bar[t])
        mean_xt = (1 - betas[t]) ** 0.5 * (1 - before) / (1 - alpha_bar[t])
        variance = (1 - before) / (1 - alpha_bar[t]) * betas[t]
        epsilon = np.asarray(denoise(x, jnp.full((4,), t)))
        x0 = np.clip((np.asarray(x) - (1 - alpha_bar[t]) ** 0.5 * epsilon) / alpha_bar[t] ** 0.5, -1, 1)
        z = np.stack(
            [jax.random.normal(jax.random.fold_in(key, jnp.uint32(step + 1)), SHAPE, jnp.float32) for key in keys]
        )
        expected = mean_x0 * x0 + mean_xt * np.asarray(x) + variance**0.5 * z
        got = sampler.sample_step(denoise, table[step], state(x), keys).x
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_eta_zero_uses_no_noise_after_the_start():
    schedule = make_schedule("linear", 20)
    table = step_table(schedule, 10)
    x = jax.random.normal(jax.random.key(0), (4, *SHAPE))
    results = []
    for seed in (0, 1):
        keys = sampler.sample_keys(jax.random.key(seed), jnp.arange(4, dtype=jnp.uint32))
        results.append(np.asarray(sampler.sample_step(exact_denoiser(schedule), table[3], state(x), keys).x))
    np.testing.assert_array_equal(*results)


def test_a_sample_depends_on_its_index_alone():
    schedule = make_schedule("linear", 20)
    table = step_table(schedule, 10, eta=1.0)
    base = jax.random.key(5)

    def make(index):
        keys = sampler.sample_keys(base, jnp.asarray(index, jnp.uint32))
        return np.asarray(sampler.sample(exact_denoiser(schedule), table, keys, SHAPE))

    together, alone = make(range(16)), make([11])
    np.testing.assert_allclose(together[11], alone[0], rtol=1e-6, atol=1e-6)
    assert len({image.tobytes() for image in together}) == 16


def test_clipping_keeps_images_in_range():
    images = draw(make_schedule("linear", 100), 20, n=256, clip=True)
    assert np.abs(images).max() <= 1.0
    assert np.abs(draw(make_schedule("linear", 100), 20, n=256, clip=False)).max() > 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.5}, "eta must be between 0"),
        ({"solver": "heun"}, "unknown solver 'heun'"),
        ({"solver": "dpmpp_2m", "eta": 0.5}, "dpmpp_2m draws no noise"),
        ({"solver": "dpmpp_2m", "recompute": False}, "recompute true"),
        ({"variance": "learned_range"}, "unknown variance 'learned_range'"),
        ({"interval": (5, 2)}, r"got \(5, 2\)"),
        ({"interval": (5,)}, r"got \(5,\)"),
    ],
)
def test_refuses_what_no_solver_can_do(options, message):
    with pytest.raises(ValueError, match=message):
        step_table(make_schedule("linear", 10), 5, **options)


def test_the_large_variance_is_an_upper_bound():
    """Ho et al. 2020, section 3.2: right for x_0 ~ N(0, I), too wide for anything narrower."""
    schedule = make_schedule("linear", 1000)
    std = {}
    for variance in ("small", "large"):
        table = step_table(schedule, 50, eta=1.0, variance=variance, clip=False)
        keys = sampler.sample_keys(jax.random.key(0), jnp.arange(8192, dtype=jnp.uint32))
        for wide in (1.0, STD):
            images = sampler.sample(exact_denoiser(schedule, 0.0, wide), table, keys, SHAPE)
            std[variance, wide] = float(images.std())
    assert std["large", 1.0] == pytest.approx(1.0, rel=0.01)
    assert std["small", 1.0] < 0.98
    assert std["small", STD] < std["large", STD]
    with pytest.raises(ValueError, match="unknown variance 'huge'"):
        step_table(schedule, 5, variance="huge")


def test_guidance_acts_on_every_prediction_type_alike():
    """One guided step from the same x_t is the same, whichever way the exact denoiser puts its prediction."""
    results = []
    by = Guidance(gradient_fn=lambda x, t: -x, scale=jnp.float32(3.0))
    for prediction in ("epsilon", "x0", "v"):
        schedule = make_schedule("linear", 100, prediction_type=prediction)
        table = step_table(schedule, 10, clip=False)
        x = jax.random.normal(jax.random.key(0), (4, *SHAPE))
        keys = sampler.sample_keys(jax.random.key(1), jnp.arange(4, dtype=jnp.uint32))
        step = functools.partial(sampler.sample_step, exact_denoiser(schedule), table[4], state(x), keys)
        results.append(np.asarray(step(by).x))
        assert np.abs(results[-1] - np.asarray(step().x)).max() > 0.1
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(results[2], results[0], rtol=1e-4, atol=1e-5)


def test_guidance_acts_in_its_interval_alone():
    """Outside of it the gradient is not even computed: here it would be NaN."""
    schedule = make_schedule("linear", 100)

    def gradient(x, t):
        inside = bcast((t >= 30) & (t <= 69), x)
        return jnp.where(inside, 1.0, jnp.nan) * jnp.ones_like(x)

    by = Guidance(gradient_fn=gradient, scale=jnp.float32(2.0))
    keys = sampler.sample_keys(jax.random.key(0), jnp.arange(8, dtype=jnp.uint32))
    table = step_table(schedule, 10, interval=(30, 69), clip=False)
    assert table.steps.t[table.guided].tolist() == [69, 59, 49, 39]
    assert list(table.segments(True)) == [(0, 3, False), (3, 7, True), (7, 10, False)]
    assert list(table.segments(False)) == [(0, 10, False)]
    denoise = exact_denoiser(schedule)
    guided = sampler.sample(denoise, table, keys, SHAPE, by)
    assert np.isfinite(guided).all()
    now = sampler.start(keys, SHAPE)
    for i in range(10):
        now = sampler.sample_step(denoise, table[i], now, keys, by if 3 <= i < 7 else None)
    np.testing.assert_allclose(guided, now.x, rtol=1e-5, atol=1e-6)
    everywhere = step_table(schedule, 10, clip=False)
    assert list(everywhere.segments(True)) == [(0, 10, True)]
    assert np.isnan(sampler.sample(denoise, everywhere, keys, SHAPE, by)).all()
