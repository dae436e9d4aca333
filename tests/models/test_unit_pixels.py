"""Models of pixels in [0, 1]: of a Gaussian law with the exact denoiser, the wrapped network is that of 2 u - 1."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.diffusion.schedule import make_schedule
from side_jax.models.continuous import grid_betas
from side_jax.models.unit_pixels import UnitPixels
from side_jax.settings import Diffusion
from side_jax.targets.target_model import Origin, Target
from side_jax.targets.unit_range import is_unit, with_unit_pixels

SCHEDULE = make_schedule("linear", 50, 1e-3, 0.2)
# log sigma of every timestep, and between them linear in t.
LEVELS = 0.5 * (np.log1p(-SCHEDULE.alpha_bar) - np.log(SCHEDULE.alpha_bar))
TIMES = np.asarray([0.0, 7.0, 20.25, 33.7, 49.0], np.float32)


def sigma_of(t):
    return jnp.exp(jnp.interp(t, jnp.arange(50, dtype=jnp.float32), jnp.asarray(LEVELS, jnp.float32)))


def exact(x, sigma, mean, variance, prediction):
    """The best prediction for x = a x_0 + s e at noise sigma = s / a, of x_0 ~ N(mean, variance), pixel by pixel."""
    a = (1 / jnp.sqrt(1 + sigma**2))[:, None, None, None]
    s = sigma[:, None, None, None] * a
    x0 = mean + a * variance / (a**2 * variance + s**2) * (x - a * mean)
    epsilon = (x - a * x0) / s
    return {"x0": x0, "epsilon": epsilon, "v": a * epsilon - s * x0}[prediction]


class Exact(nn.Module):
    """The exact denoiser of u ~ N(0.7, 0.04)."""

    prediction: str
    scale: float = 1.0

    @nn.compact
    def __call__(self, x, t, deterministic=True, labels=None):
        value = exact(x, sigma_of(t.astype(jnp.float32)), 0.7, 0.04, self.prediction)
        return value * self.param("scale", nn.initializers.ones, ())


def target(prediction):
    return Target(
        network=Exact(prediction),
        diffusion=Diffusion(num_timesteps=50, trained_betas=tuple(SCHEDULE.betas.tolist()), prediction_type=prediction),
        channels=1,
        origin=Origin(format="monai", weights=(), read_params=lambda: {"scale": np.ones((), np.float32)}),
    )


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_the_wrapped_denoiser_is_exact(prediction):
    """x = 2 u - 1 ~ N(0.4, 0.16), under twice the noise, at timesteps and between them."""
    wrapped = with_unit_pixels(target(prediction))
    assert is_unit(wrapped)
    assert not is_unit(target(prediction))
    x = np.random.default_rng(0).standard_normal((5, 3, 4, 1)).astype(np.float32)
    ours = wrapped.denoise(wrapped.origin.read_params(), x, jnp.asarray(TIMES))
    sigma = 2 * sigma_of(jnp.asarray(TIMES))
    np.testing.assert_allclose(ours, exact(x, sigma, 0.4, 0.16, prediction), rtol=1e-4, atol=1e-4)
    whole = TIMES.astype(np.int32)
    ours = wrapped.denoise(wrapped.origin.read_params(), x, jnp.asarray(whole))
    sigma = 2 * sigma_of(jnp.asarray(whole, jnp.float32))
    np.testing.assert_allclose(ours, exact(x, sigma, 0.4, 0.16, prediction), rtol=1e-4, atol=1e-4)


def test_the_schedule_has_twice_the_noise():
    schedule = with_unit_pixels(target("v")).schedule
    assert schedule.prediction_type == "v"
    ratio = np.sqrt((1 - schedule.alpha_bar) / schedule.alpha_bar)
    np.testing.assert_allclose(ratio, 2 * np.exp(LEVELS), rtol=1e-9)
    np.testing.assert_allclose(schedule.betas, grid_betas(2 * np.exp(LEVELS)), rtol=1e-9)


def test_the_network_sees_what_it_was_trained_on():
    """x_t of images x becomes z_t of u = (x + 1) / 2 with the same noise."""

    class Seen(nn.Module):
        @nn.compact
        def __call__(self, x, t, deterministic=True, labels=None):
            return x

    wrapped = UnitPixels(net=Seen(), betas=tuple(SCHEDULE.betas.tolist()))
    rng, t = np.random.default_rng(0), np.asarray([0, 24, 49])
    u, noise = rng.uniform(size=(3, 2, 2, 1)), rng.standard_normal((3, 2, 2, 1))
    a, outer = (
        np.sqrt(alpha_bar[t])[:, None, None, None]
        for alpha_bar in (SCHEDULE.alpha_bar, 1 / (1 + wrapped.noise_levels**2))
    )
    x = outer * (2 * u - 1) + np.sqrt(1 - outer**2) * noise
    seen = wrapped.apply({}, jnp.asarray(x, jnp.float32), jnp.asarray(t, jnp.int32))
    np.testing.assert_allclose(seen, a * u + np.sqrt(1 - a**2) * noise, rtol=1e-5, atol=1e-5)


def test_gradients_flow():
    wrapped = with_unit_pixels(target("epsilon"))
    params = wrapped.origin.read_params()
    grad = jax.grad(lambda x: wrapped.denoise(params, x, jnp.asarray([3])).sum())(jnp.ones((1, 2, 2, 1)))
    # Of the exact epsilon: s / (a^2 variance + s^2), of x_t under twice the noise.
    sigma = 2 * float(np.exp(LEVELS[3]))
    a = 1 / np.sqrt(1 + sigma**2)
    np.testing.assert_allclose(grad, sigma * a / (a**2 * 0.16 + (sigma * a) ** 2), rtol=1e-4)
