"""Mode seeking on densities whose modes, smoothed densities and denoisers are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax

from side_jax.diffusion import mode_seeking, sampler
from side_jax.diffusion.process import bcast
from side_jax.diffusion.schedule import make_schedule

SHAPE = (2, 3, 1)  # of an image; 6 numbers
RNG = np.random.default_rng(0)
MEANS = np.asarray([[0.6] * 6, [-0.5, 0.5] * 3, [0.0, -0.7, 0.2] * 2])
WEIGHTS, SPREADS = np.asarray([0.5, 0.3, 0.2]), np.asarray([0.1, 0.2, 0.15])


def log_density(y, sigma):
    """Log p_sigma of the mixture at y, float64 [n, 6]."""
    variance = SPREADS**2 + sigma**2
    squares = ((y[:, None] - MEANS) ** 2).sum(axis=2) / variance
    return logsumexp(np.log(WEIGHTS) - 0.5 * squares - 3 * np.log(2 * np.pi * variance), axis=1)


def posterior_mean(y, sigma):
    """E[x | x + sigma z = y] of the mixture, as an average over its parts: float64 [n, 6]."""
    variance = SPREADS**2 + sigma**2
    squares = ((y[:, None] - MEANS) ** 2).sum(axis=2) / variance
    weights = softmax(np.log(WEIGHTS) - 0.5 * squares - 3 * np.log(variance), axis=1)
    each = MEANS + (SPREADS**2 / variance)[:, None] * (y[:, None] - MEANS)
    return (weights[:, :, None] * each).sum(axis=1)


def mixture(x, sigma):
    """The same in JAX, as a Denoiser, by Tweedie's formula from the score of p_sigma."""

    def log_p(y, sigma):
        variance = jnp.asarray(SPREADS**2, jnp.float32) + sigma**2
        squares = jnp.square(y.ravel()[None] - jnp.asarray(MEANS, jnp.float32)).sum(axis=1) / variance
        return jax.nn.logsumexp(jnp.asarray(np.log(WEIGHTS), jnp.float32) - 0.5 * squares - 3 * jnp.log(variance))

    return x + bcast(sigma**2, x) * jax.vmap(jax.grad(log_p))(x, sigma)


def points_denoiser(points):
    """The exact denoiser of points float32 [m, 2, 3, 1], each as likely as another."""

    def denoiser(x, sigma):
        squares = jnp.square(x[:, None] - points[None]).sum(axis=(2, 3, 4))
        weights = jax.nn.softmax(-0.5 * squares / jnp.square(sigma)[:, None], axis=1)
        return jnp.einsum("bm,mhwc->bhwc", weights, points)

    return denoiser


def gaussian(mean, std):
    """The exact denoiser of N(mean, std^2 I)."""
    return lambda x, sigma: mean + bcast(std**2 / (std**2 + sigma**2), x) * (x - mean)


def images(n, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, *SHAPE)).astype(np.float32)


@pytest.mark.parametrize("prediction_type", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_network_of_any_kind_is_a_denoiser_at_and_between_its_timesteps(prediction_type, name):
    """Of x_t = a x + s e the network predicts e, x or v; the result is the posterior mean at sigma = s / a."""
    schedule = make_schedule(name, 200, prediction_type=prediction_type)
    levels = np.exp(-0.5 * schedule.log_snr)

    def network(x, t):
        sigma = jnp.exp(jnp.interp(t, jnp.arange(200, dtype=jnp.float32), jnp.asarray(np.log(levels), jnp.float32)))
        signal, noise = (bcast(v, x) for v in (1 / jnp.sqrt(1 + sigma**2), sigma / jnp.sqrt(1 + sigma**2)))
        x0 = mixture(x / signal, sigma)
        epsilon = (x - signal * x0) / noise
        return {"epsilon": epsilon, "x0": x0, "v": signal * epsilon - noise * x0}[prediction_type]

    y = images(5)
    for sigma in (levels[20], 0.5 * (levels[30] + levels[31]), levels[100]):
        got = mode_seeking.from_network(network, schedule, clip=False)(y, np.full(5, sigma, np.float32))
        np.testing.assert_allclose(got.reshape(5, 6), posterior_mean(y.reshape(5, 6), sigma), rtol=1e-3, atol=1e-4)
    clipped = mode_seeking.from_network(lambda x, t: 5 * jnp.ones_like(x), schedule)(y, np.full(5, 0.3, np.float32))
    assert float(np.abs(clipped).max()) == 1
    np.testing.assert_allclose(mode_seeking.noise_range(schedule), (levels[0], levels[-1]))


def test_a_round_of_points_is_the_textbook_mean_shift():
    points, x, sigma = images(12, 1), images(7, 2), 0.6
    state = mode_seeking.seek_round(points_denoiser(points), np.float32(sigma), mode_seeking.start(x))
    kernel = np.exp(-((x[:, None] - points) ** 2).sum(axis=(2, 3, 4)) / (2 * sigma**2))
    shifted = np.einsum("bm,mhwc->bhwc", kernel, points) / kernel.sum(axis=1)[:, None, None, None]
    np.testing.assert_allclose(state.x, shifted, atol=1e-5)
    np.testing.assert_allclose(state.moved, np.sqrt(((shifted - x) ** 2).mean(axis=(1, 2, 3))), rtol=1e-3)
    assert state.rounds.tolist() == [1] * 7


@pytest.mark.parametrize("sigma", [0.1, 0.4])
def test_fixed_points_are_modes_of_the_smoothed_density(sigma):
    """Found by an optimiser from the same starts."""
    x = images(20)
    found = np.asarray(mode_seeking.seek(mixture, mode_seeking.noise_levels(sigma, 300), x).x).reshape(20, 6)
    for start, mode in zip(x.reshape(20, 6), found, strict=True):
        top = minimize(lambda y: -log_density(y[None], sigma)[0], mode, tol=1e-10)
        np.testing.assert_allclose(mode, top.x, atol=2e-3)
        assert log_density(mode[None], sigma) > log_density(start[None].astype(float), sigma)
    assert len(np.unique(found.round(1), axis=0)) > 1


@pytest.mark.parametrize("sigma", [0.1, 0.4])
def test_the_smoothed_density_never_falls(sigma):
    state, before = mode_seeking.start(images(50)), -np.inf
    for _ in range(30):
        now = log_density(np.asarray(state.x, np.float64).reshape(50, 6), sigma)
        assert (now >= before - 1e-5).all()
        before, state = now, mode_seeking.seek_round(mixture, np.float32(sigma), state)


def test_every_start_reaches_a_member_of_a_model_that_has_memorised():
    """From noise and from blends of two members; the nearest member is not always the one that is reached."""
    members, blends = images(10, 3), np.random.default_rng(4).dirichlet(np.ones(2), 40).astype(np.float32)
    pairs = members[np.random.default_rng(5).integers(0, 10, (40, 2))]
    starts = np.concatenate([2 * images(40, 6), np.einsum("bk,bkhwc->bhwc", blends, pairs)])
    found = np.asarray(mode_seeking.seek(points_denoiser(members), mode_seeking.noise_levels(0.1, 40), starts).x)
    distance = np.abs(found[:, None] - members).max(axis=(2, 3, 4)).min(axis=1)
    assert distance.max() < 1e-4


@pytest.mark.parametrize(("relaxation", "rounds"), [(1.0, 7), (0.5, 7), (1.5, 7)])
def test_a_gaussian_is_approached_at_the_rate_of_equation_4(relaxation, rounds):
    mean, std, sigma, x = np.float32(0.3), np.float32(0.5), 0.25, images(4)
    levels = mode_seeking.noise_levels(sigma, rounds)
    state = mode_seeking.seek(gaussian(mean, std), levels, x, relaxation=relaxation)
    factor = 1 - relaxation * (1 - std**2 / (std**2 + sigma**2))
    np.testing.assert_allclose(state.x - mean, factor**rounds * (x - mean), rtol=2e-3, atol=1e-6)


def test_anderson_solves_a_linear_map_in_two_rounds_and_keeps_fixed_points():
    levels = mode_seeking.noise_levels(0.5, 2)
    state = mode_seeking.seek(gaussian(np.float32(0.3), np.float32(0.9)), levels, images(4), anderson=True)
    np.testing.assert_allclose(state.x, 0.3, atol=1e-4)
    x, many = images(20), mode_seeking.noise_levels(0.4, 300)
    slow, fast = (mode_seeking.seek(mixture, many, x, anderson=anderson).x for anderson in (False, True))
    again = mode_seeking.seek_round(mixture, np.float32(0.4), mode_seeking.start(fast))
    assert float(again.moved.max()) < 1e-4
    # Some starts between two basins may change sides.
    assert (np.abs(slow - fast).max(axis=(1, 2, 3)) < 1e-2).mean() > 0.7


def test_rounds_with_noise_have_the_stationary_variance_of_their_chain():
    """x' = m + k (x - m + sigma z), so the variance is k^2 sigma^2 / (1 - k^2)."""
    mean, std, sigma, n = np.float32(0.2), np.float32(0.4), 0.3, 4000
    keys = sampler.sample_keys(jax.random.key(0), jnp.arange(n, dtype=jnp.uint32))
    x = np.zeros((n, *SHAPE), np.float32)
    state = mode_seeking.seek(gaussian(mean, std), mode_seeking.noise_levels(sigma, 30), x, keys)
    k = std**2 / (std**2 + sigma**2)
    assert float(state.x.mean()) == pytest.approx(0.2, abs=0.005)
    assert float(state.x.std()) == pytest.approx(k * sigma / np.sqrt(1 - k**2), rel=0.02)


def test_an_image_depends_on_its_key_and_rounds_alone():
    keys = sampler.sample_keys(jax.random.key(1), jnp.arange(6, dtype=jnp.uint32))
    levels, x = mode_seeking.noise_levels(0.4, 5, 0.1), images(6)
    whole = mode_seeking.seek(mixture, levels, x, keys).x
    part = mode_seeking.seek(mixture, levels, x[3:5], keys[3:5]).x
    np.testing.assert_allclose(part, whole[3:5], atol=1e-5)
    other = mode_seeking.seek(mixture, levels, x, keys[::-1]).x
    assert np.abs(other - whole).max() > 1e-2


def test_an_image_that_no_longer_moves_stays_and_counts_no_more_rounds():
    mean, std, x = np.float32(0.3), np.float32(0.5), images(8)
    x[0] = 0.3
    levels = mode_seeking.noise_levels(0.5, 40)
    state = mode_seeking.seek(gaussian(mean, std), levels, x, tolerance=1e-2)
    rounds = np.asarray(state.rounds)
    assert rounds[0] == 1
    assert (rounds < 40).all()
    assert (np.asarray(state.moved) < 1e-2).all()
    # The change of round k is (1 - f) f^(k - 1) times the first distance: the first below the tolerance is the last.
    distance, f = np.sqrt(((x - mean) ** 2).mean(axis=(1, 2, 3))), 0.5
    expected = [next(k for k in range(1, 41) if (1 - f) * f ** (k - 1) * d < 1e-2) for d in distance]
    assert rounds.tolist() == expected


def test_noise_levels():
    assert mode_seeking.noise_levels(0.4, 3).tolist() == pytest.approx([0.4] * 3)
    assert mode_seeking.noise_levels(0.4, 3, 0.1).tolist() == pytest.approx([0.4, 0.2, 0.1])
    for first, rounds, last in ((0.0, 3, None), (0.1, 0, None), (0.1, 3, 0.2), (0.1, 3, 0.0)):
        with pytest.raises(ValueError, match="noise must fall"):
            mode_seeking.noise_levels(first, rounds, last)


def test_movement_is_what_a_round_changes():
    x = images(9)
    state = mode_seeking.seek_round(mixture, np.float32(0.3), mode_seeking.start(x))
    np.testing.assert_allclose(mode_seeking.movement(mixture, np.float32(0.3), x), state.moved, rtol=1e-5)


def test_spread_is_about_the_mean_image():
    """Not about the mean pixel: equal images have none, whatever they show."""
    images = RNG.normal(0, 1, (1, *SHAPE)) + 0.3 * RNG.normal(0, 1, (4000, *SHAPE))
    assert abs(mode_seeking.spread(images) - 0.3) < 0.01
    assert mode_seeking.spread(np.repeat(images[:1], 5, axis=0)) == 0


def test_posterior_variance_of_a_gaussian_and_of_points():
    """s^2 sigma^2 / (s^2 + sigma^2) everywhere; of points far apart, nothing where one is alone in its basin."""
    keys = sampler.sample_keys(jax.random.key(0), jnp.arange(10, dtype=jnp.uint32))
    flat = mode_seeking.posterior_variance(
        gaussian(np.float32(0.1), np.float32(0.5)), np.float32(0.3), images(10), keys
    )
    np.testing.assert_allclose(flat, 0.25 * 0.09 / (0.25 + 0.09), rtol=1e-4)
    points = images(10, 3)
    alone = mode_seeking.posterior_variance(points_denoiser(points), np.float32(0.05), points, keys)
    assert float(alone.max()) < 1e-6


def test_posterior_variance_is_the_spread_of_what_may_have_become_an_image():
    """Of points, the variance of the posterior over them, by its weights."""
    points, y, sigma = images(12, 1), images(1, 2), 0.7
    weights = np.exp(-((y - points) ** 2).sum(axis=(1, 2, 3)) / (2 * sigma**2)).astype(np.float64)
    weights /= weights.sum()
    mean = np.einsum("m,mhwc->hwc", weights, points)
    expected = np.einsum("m,mhwc->hwc", weights, (points - mean) ** 2).mean()
    keys = sampler.sample_keys(jax.random.key(0), jnp.arange(1, dtype=jnp.uint32))
    got = mode_seeking.posterior_variance(points_denoiser(points), np.float32(sigma), y, keys, probes=4000)
    assert float(got[0]) == pytest.approx(expected, rel=0.05)
