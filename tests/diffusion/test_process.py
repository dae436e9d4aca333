"""The forward process and the loss against their moments and against an exact denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.diffusion.process import bcast, denoising_loss, diffuse, epsilon_and_x0, importance, q_sample
from side_jax.diffusion.schedule import PREDICTIONS, make_schedule


def test_q_sample_has_the_closed_form_moments(schedule):
    n, t = 20_000, 300

    @jax.jit
    def noised():
        x0 = jnp.full((n, 2, 2, 1), 0.7)
        return q_sample(schedule, x0, jnp.full((n,), t), jax.random.normal(jax.random.key(0), x0.shape))

    xt = np.asarray(noised())
    alpha_bar = schedule.alpha_bar[t]
    np.testing.assert_allclose(xt.mean(0), 0.7 * alpha_bar**0.5, atol=5 / n**0.5)
    np.testing.assert_allclose(xt.var(0), 1 - alpha_bar, rtol=0.05)


def test_one_step_at_a_time_equals_the_jump(schedule):
    """x_t by t + 1 single steps of Ho et al. 2020 eq. 2 has the moments of the jump, eq. 4."""
    mean, variance = 1.0, 0.0
    for beta in schedule.betas[:401]:
        mean, variance = mean * (1 - beta) ** 0.5, variance * (1 - beta) + beta
    zero, one = np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)
    jump = jax.jit(lambda x0, noise: q_sample(schedule, x0, jnp.full((1,), 400), noise))
    np.testing.assert_allclose(jump(one, zero)[0], [mean], rtol=1e-5)
    np.testing.assert_allclose(jump(zero, one)[0], [variance**0.5], rtol=1e-5)


def test_loss_of_the_exact_denoiser_is_the_irreducible_one(schedule):
    """For x0 ~ N(0, s^2 I), E || eps - E[eps | x_t] ||^2 = mean_t of abar s^2 / (abar s^2 + 1 - abar)."""
    s = 0.5
    alpha_bar = jnp.asarray(schedule.alpha_bar, jnp.float32)

    def exact(x, t):
        a = bcast(alpha_bar[t], x)
        return jnp.sqrt(1 - a) * x / (a * s**2 + 1 - a)

    @jax.jit
    def losses():
        x0 = s * jax.random.normal(jax.random.key(1), (8192, 4, 4, 1))
        return denoising_loss(exact, schedule, x0, jax.random.split(jax.random.key(2), 8192))

    loss, t = map(np.asarray, losses())
    a = schedule.alpha_bar
    assert loss.shape == t.shape == (8192,)
    np.testing.assert_allclose(loss.mean(), (a * s**2 / (a * s**2 + 1 - a)).mean(), rtol=0.03)


def timesteps(schedule, proposal=None):
    """50,000 of them."""

    def draw():
        return diffuse(schedule, jnp.zeros((50_000, 1)), jax.random.split(jax.random.key(0), 50_000), proposal)[1]

    return np.asarray(jax.jit(draw)())


def test_timesteps_are_uniform_over_the_whole_range(schedule):
    t = timesteps(schedule)
    counts = np.bincount(t // 100, minlength=10)
    assert counts.shape == (10,)
    np.testing.assert_allclose(counts, 5000, rtol=0.06)
    assert t.min() == 0
    assert t.max() == 999


def test_importance_keeps_the_expected_loss(schedule):
    """sum_t p_t w_t L_t is the uniform mean for any L, and the draws follow p."""
    p = importance(schedule)
    np.testing.assert_allclose(p.sum(), 1)
    weights = 1 / (len(p) * p)
    assert weights.max() < 2
    losses = np.random.default_rng(0).normal(size=len(p))
    np.testing.assert_allclose((p * weights * losses).sum(), losses.mean())
    assert (np.diff(p) > 0).all()  # the noisier, the more often
    drawn = np.bincount(timesteps(schedule, p) // 100, minlength=10) / 50_000
    np.testing.assert_allclose(drawn, p.reshape(10, 100).sum(axis=1), rtol=0.06)


def test_an_images_noise_depends_on_its_key_alone(schedule):
    x0, keys = np.ones((6, 2, 2, 1), np.float32), np.random.default_rng(0).integers(0, 2**32, (6, 2), np.uint32)
    noised = jax.jit(lambda x0, keys: diffuse(schedule, x0, jax.random.wrap_key_data(keys)))
    whole, part = noised(x0, keys), noised(x0[2:4], keys[2:4])
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(np.asarray(a)[2:4], b)


def truth(name, signal, sigma):
    """(x_0, epsilon, x_t, what a perfect network of that kind predicts)."""
    rng = np.random.default_rng(0)
    x0, epsilon = rng.uniform(-1, 1, (4, 2, 2, 1)).astype(np.float32), rng.normal(size=(4, 2, 2, 1)).astype(np.float32)
    x = signal * x0 + sigma * epsilon
    return x0, epsilon, x, {"epsilon": epsilon, "x0": x0, "v": signal * epsilon - sigma * x0}[name]


@pytest.mark.parametrize("name", PREDICTIONS)
def test_every_prediction_type_gives_back_epsilon_and_x0(name):
    for t in (0, 300, 900):
        alpha_bar = make_schedule("cosine", 1000).alpha_bar[t]
        signal, sigma = np.float32(alpha_bar**0.5), np.float32((1 - alpha_bar) ** 0.5)
        x0, epsilon, x, output = truth(name, signal, sigma)
        got = epsilon_and_x0(name, output, x, signal, sigma)
        np.testing.assert_allclose(got[0], epsilon, atol=1e-4)
        np.testing.assert_allclose(got[1], x0, atol=1e-4)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_the_loss_vanishes_for_the_network_that_knows_the_image(name):
    """With one image in the world, all three targets follow from x_t."""
    image = 0.4
    schedule = make_schedule("linear", 1000, prediction_type=name)
    alpha_bar = jnp.asarray(schedule.alpha_bar, jnp.float32)

    def knows(x, t):
        signal, sigma = bcast(jnp.sqrt(alpha_bar[t]), x), bcast(jnp.sqrt(1 - alpha_bar[t]), x)
        epsilon = (x - signal * image) / sigma
        return {"epsilon": epsilon, "x0": jnp.full_like(x, image), "v": signal * epsilon - sigma * image}[name]

    @jax.jit
    def losses():
        x0, keys = jnp.full((512, 2, 2, 1), image), jax.random.split(jax.random.key(0), 512)
        return [denoising_loss(network, schedule, x0, keys)[0] for network in (knows, lambda x, t: jnp.zeros_like(x))]

    loss, blind = losses()
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    assert np.mean(blind) > 0.1
