"""Samplers on Gaussian data, where the denoiser and the law of every x_t are known exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.diffusion import sampler
from side_jax.diffusion.process import bcast
from side_jax.diffusion.schedule import make_schedule

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


def draw(schedule, num_steps, n=8192, eta=0.0, seed=0, clip=False, spacing="trailing"):
    table = sampler.step_table(schedule, num_steps, eta=eta, clip=clip, spacing=spacing)
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


def test_ddim_converges_at_first_order():
    """The probability-flow ODE maps x_T to mean + std * x_T here, so the error of S steps is known exactly."""
    schedule = make_schedule("linear", 1000)
    keys = sampler.sample_keys(jax.random.key(3), jnp.arange(64, dtype=jnp.uint32))
    a = schedule.alpha_bar[-1]
    x_start = np.asarray(sampler.initial_noise(keys, SHAPE))
    exact = MEAN + STD * (x_start - a**0.5 * MEAN) / (a * STD**2 + 1 - a) ** 0.5
    errors = [np.abs(draw(schedule, s, n=64, seed=3) - exact).max() for s in (25, 50, 100)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.15)


def test_eta_one_on_the_full_grid_is_ddpm():
    """Against Ho et al. 2020 eq. 7 and algorithm 2, written from the posterior's own formulas."""
    schedule = make_schedule("linear", 50, 1e-3, 0.2)
    table = sampler.step_table(schedule, 50, eta=1.0, clip=True)
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
        got = sampler.sample_step(denoise, table, jnp.int32(step), x, keys)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_eta_zero_uses_no_noise_after_the_start():
    schedule = make_schedule("linear", 20)
    table = sampler.step_table(schedule, 10)
    x = jax.random.normal(jax.random.key(0), (4, *SHAPE))
    results = []
    for seed in (0, 1):
        keys = sampler.sample_keys(jax.random.key(seed), jnp.arange(4, dtype=jnp.uint32))
        results.append(np.asarray(sampler.sample_step(exact_denoiser(schedule), table, jnp.int32(3), x, keys)))
    np.testing.assert_array_equal(*results)


def test_a_sample_depends_on_its_index_alone():
    schedule = make_schedule("linear", 20)
    table = sampler.step_table(schedule, 10, eta=1.0)
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


def test_refuses_an_impossible_eta():
    with pytest.raises(ValueError, match="eta must be between 0"):
        sampler.step_table(make_schedule("linear", 10), 5, eta=1.5)


def test_the_large_variance_is_an_upper_bound():
    """Ho et al. 2020, section 3.2: right for x_0 ~ N(0, I), too wide for anything narrower."""
    schedule = make_schedule("linear", 1000)
    std = {}
    for variance in ("small", "large"):
        table = sampler.step_table(schedule, 50, eta=1.0, variance=variance, clip=False)
        keys = sampler.sample_keys(jax.random.key(0), jnp.arange(8192, dtype=jnp.uint32))
        for wide in (1.0, STD):
            images = sampler.sample(exact_denoiser(schedule, 0.0, wide), table, keys, SHAPE)
            std[variance, wide] = float(images.std())
    assert std["large", 1.0] == pytest.approx(1.0, rel=0.01)
    assert std["small", 1.0] < 0.98
    assert std["small", STD] < std["large", STD]
    with pytest.raises(ValueError, match="unknown variance 'huge'"):
        sampler.step_table(schedule, 5, variance="huge")


def test_guidance_acts_on_every_prediction_type_alike():
    """One guided step from the same x_t is the same, whichever way the exact denoiser puts its prediction."""
    results = []
    for prediction in ("epsilon", "x0", "v"):
        schedule = make_schedule("linear", 100, prediction_type=prediction)
        table = sampler.step_table(schedule, 10, clip=False)
        x = jax.random.normal(jax.random.key(0), (4, *SHAPE))
        keys = sampler.sample_keys(jax.random.key(1), jnp.arange(4, dtype=jnp.uint32))
        step = functools.partial(sampler.sample_step, exact_denoiser(schedule), table, jnp.int32(4), x, keys)
        results.append(np.asarray(step(lambda x, t: -x, jnp.float32(3.0))))
        assert np.abs(results[-1] - np.asarray(step())).max() > 0.1
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(results[2], results[0], rtol=1e-4, atol=1e-5)
