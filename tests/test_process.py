"""The forward process and the loss against their moments and against an exact denoiser."""

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.diffusion.process import bcast, denoising_loss, diffuse, q_sample


def test_q_sample_has_the_closed_form_moments(schedule):
    n, t = 20_000, 300
    x0 = jnp.full((n, 2, 2, 1), 0.7)
    noise = jax.random.normal(jax.random.key(0), x0.shape)
    xt = np.asarray(q_sample(schedule, x0, jnp.full((n,), t), noise))
    alpha_bar = schedule.alpha_bar[t]
    np.testing.assert_allclose(xt.mean(0), 0.7 * alpha_bar**0.5, atol=5 / n**0.5)
    np.testing.assert_allclose(xt.var(0), 1 - alpha_bar, rtol=0.05)


def test_one_step_at_a_time_equals_the_jump(schedule):
    """x_t by t + 1 single steps of Ho et al. 2020 eq. 2 has the moments of the jump, eq. 4."""
    mean, variance = 1.0, 0.0
    for beta in schedule.betas[:401]:
        mean, variance = mean * (1 - beta) ** 0.5, variance * (1 - beta) + beta
    zero, one = jnp.zeros((1, 1)), jnp.ones((1, 1))
    t = jnp.full((1,), 400)
    np.testing.assert_allclose(q_sample(schedule, one, t, zero)[0, 0], mean, rtol=1e-5)
    np.testing.assert_allclose(q_sample(schedule, zero, t, one)[0, 0], variance**0.5, rtol=1e-5)


def test_loss_of_the_exact_denoiser_is_the_irreducible_one(schedule):
    """For x0 ~ N(0, s^2 I), E || eps - E[eps | x_t] ||^2 = mean_t of abar s^2 / (abar s^2 + 1 - abar)."""
    s = 0.5
    alpha_bar = jnp.asarray(schedule.alpha_bar, jnp.float32)

    def exact(x, t):
        a = bcast(alpha_bar[t], x)
        return jnp.sqrt(1 - a) * x / (a * s**2 + 1 - a)

    x0 = s * jax.random.normal(jax.random.key(1), (8192, 4, 4, 1))
    loss = denoising_loss(exact, schedule, x0, jax.random.key(2))
    a = schedule.alpha_bar
    assert loss.shape == (8192,)
    np.testing.assert_allclose(loss.mean(), (a * s**2 / (a * s**2 + 1 - a)).mean(), rtol=0.03)


def test_timesteps_are_uniform_over_the_whole_range(schedule):
    _, t, _ = diffuse(schedule, jnp.zeros((50_000, 1)), jax.random.key(0))
    counts = np.bincount(np.asarray(t) // 100, minlength=10)
    assert counts.shape == (10,)
    np.testing.assert_allclose(counts, 5000, rtol=0.06)
    assert t.min() == 0
    assert t.max() == 999
