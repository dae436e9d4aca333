"""Classifier guidance against laws that are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.diffusion import guidance, sampler
from side_jax.diffusion.process import bcast, epsilon_and_x0
from side_jax.diffusion.schedule import PREDICTIONS, make_schedule

STD, MEANS = 0.3, np.asarray([-0.6, 0.6])
WEIGHTS = np.asarray([0.8, 0.2])
SHAPE = (1, 1, 1)


def mixture(schedule):
    """Exact (denoise, log p(c | x_t, t)) of a mixture of two Gaussians in one dimension."""
    alpha_bar = jnp.asarray(schedule.alpha_bar, jnp.float32)

    def joint(x, t):
        """log p(x_t, c) up to a constant that depends on t alone, [b, 2]."""
        a = alpha_bar[t][:, None]
        variance = a * STD**2 + 1 - a
        z = x.reshape(-1, 1) - jnp.sqrt(a) * jnp.asarray(MEANS, jnp.float32)[None, :]
        return jnp.log(jnp.asarray(WEIGHTS, jnp.float32))[None, :] - z**2 / (2 * variance)

    def denoise(x, t):
        score = jax.grad(lambda x: jax.nn.logsumexp(joint(x, t), axis=1).sum())(x)
        return -bcast(jnp.sqrt(1 - alpha_bar[t]), x) * score

    return denoise, lambda x, t: jax.nn.log_softmax(joint(x, t), axis=1)


def draw(scale, label, n=4096, steps=200):
    schedule = make_schedule("linear", 400, 2.5e-4, 0.05)
    denoise, log_prob = mixture(schedule)
    table = sampler.step_table(schedule, steps, clip=False)
    keys = sampler.sample_keys(jax.random.key(0), jnp.arange(n, dtype=jnp.uint32))
    gradient = None if scale is None else guidance.classifier_gradient(log_prob, jnp.full((n,), label))
    scale = None if scale is None else jnp.float32(scale)
    return np.asarray(sampler.sample(denoise, table, keys, SHAPE, gradient, scale)).ravel()


def test_scale_one_draws_from_the_class():
    """With the exact classifier, s + grad log p(c | x) is the class's own score, so the law is N(mu_c, std^2)."""
    for label in (0, 1):
        x = draw(1.0, label)
        np.testing.assert_allclose(x.mean(), MEANS[label], atol=0.02)
        np.testing.assert_allclose(x.std(), STD, rtol=0.04)


def test_unguided_keeps_the_mixture():
    x = draw(None, 0)
    np.testing.assert_allclose((x > 0).mean(), 0.2 * 0.977 + 0.8 * 0.023, atol=0.02)


def test_more_guidance_moves_further_from_the_other_class():
    means = [draw(scale, 1, n=512).mean() for scale in (1.0, 3.0, 10.0)]
    assert means[0] < means[1] < means[2]


def test_scale_zero_is_unguided_bit_for_bit():
    np.testing.assert_array_equal(draw(0.0, 1, n=64), draw(None, 1, n=64))


def test_gradient_is_of_the_target_class():
    schedule = make_schedule("linear", 100)
    _, log_prob = mixture(schedule)
    x, t = jnp.asarray([0.1, -0.2, 0.3]).reshape(3, 1, 1, 1), jnp.asarray([5, 50, 90])
    labels = jnp.asarray([0, 1, 1])
    got = guidance.classifier_gradient(log_prob, labels)(x, t)
    step = 1e-3
    for i, label in enumerate([0, 1, 1]):
        up, down = (log_prob(x + jnp.float32(d), t)[i, label] for d in (step, -step))
        np.testing.assert_allclose(got[i, 0, 0, 0], (up - down) / (2 * step), rtol=0.02, atol=1e-3)


def test_guide_is_the_score_form():
    """epsilon - lambda sigma grad; and the same guided epsilon follows from the guided x0 and v."""
    signal, sigma, scale = jnp.float32(0.8), jnp.float32(0.6), jnp.float32(3.0)
    x, epsilon, gradient = (jnp.full((1, 2), jnp.float32(value)) for value in (0.7, 0.5, 1.5))
    x0 = (x - sigma * epsilon) / signal
    outputs = {"epsilon": epsilon, "x0": x0, "v": signal * epsilon - sigma * x0}
    for name, output in outputs.items():
        guided = guidance.guide(name, output, gradient, scale, signal, sigma)
        got, clean = epsilon_and_x0(name, guided, x, signal, sigma)
        np.testing.assert_allclose(got, 0.5 - 3.0 * 0.6 * 1.5, rtol=1e-5)
        np.testing.assert_allclose(clean, (0.7 - 0.6 * (0.5 - 2.7)) / 0.8, rtol=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_guidance_on_the_predicted_clean_image(prediction_type):
    """The gradient of log p(c | x0_hat) = -(x0_hat - m_c)^2 / 2 goes through the denoiser.

    For x_0 ~ N(0, s^2), x0_hat = E[x_0 | x_t] = k x_t with k = a s^2 / (a^2 s^2 + sigma^2): it is -k (k x_t - m_c).
    """
    schedule = make_schedule("linear", 1000, prediction_type=prediction_type)
    s, means, t = 0.3, np.asarray([0.2, -0.4]), np.asarray([20, 300, 700])
    a, sigma = np.sqrt(schedule.alpha_bar[t]), np.sqrt(1 - schedule.alpha_bar[t])
    k = a * s**2 / (a**2 * s**2 + sigma**2)
    x = np.asarray([0.5, -0.3, 0.8])
    factor = {"epsilon": (1 - a * k) / sigma, "x0": k, "v": a * (1 - a * k) / sigma - sigma * k}[prediction_type]
    seen = []

    def log_prob(x0, t):
        seen.append(t)
        return -0.5 * jnp.square(x0.reshape(-1, 1) - jnp.asarray(means, jnp.float32)[None])

    def denoise(x, t):
        return jnp.asarray(factor, jnp.float32).reshape(x.shape) * x

    fn = guidance.at_predicted_x0(log_prob, denoise, schedule)
    gradient = guidance.classifier_gradient(fn, jnp.asarray([0, 1, 0]))
    got = gradient(jnp.asarray(x, jnp.float32).reshape(-1, 1, 1, 1), jnp.asarray(t))
    np.testing.assert_allclose(np.ravel(got), -k * (k * x - means[[0, 1, 0]]), rtol=2e-4)
    np.testing.assert_array_equal(seen[0], 0)


def test_pixels_beyond_the_range_are_seen_at_its_edge_and_can_still_be_pushed(schedule):
    """x0_hat = 3 is clipped to 1 for the classifier, whose slope there passes to x_t."""
    signal = np.sqrt(schedule.alpha_bar[0])

    def log_prob(x0, t):
        return -0.5 * jnp.square(x0.reshape(-1, 1) - jnp.float32(0.25))

    fn = guidance.at_predicted_x0(log_prob, lambda x, t: jnp.zeros_like(x), schedule)  # epsilon 0: x0_hat = x / a
    x = jnp.full((1, 1, 1, 1), 3 * signal, jnp.float32)
    got = guidance.classifier_gradient(fn, jnp.zeros(1, jnp.int32))(x, jnp.zeros(1, jnp.int32))
    np.testing.assert_allclose(np.ravel(got), -(1 - 0.25) / signal, rtol=1e-5)
