"""Classifier guidance against laws that are known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.diffusion import guidance, sampler
from side_jax.diffusion.process import bcast, epsilon_and_x0
from side_jax.diffusion.schedule import PREDICTIONS, make_schedule
from side_jax.diffusion.steps import step_table

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


@functools.partial(jax.jit, static_argnames=("steps", "form", "eta", "solver"))
def sampled(scale, labels, steps, form, eta, solver):
    """Compiled once for all scales and labels; without guidance if form is None."""
    schedule = make_schedule("linear", 400, 2.5e-4, 0.05)
    denoise, log_prob = mixture(schedule)
    own = {"eta": eta} if solver == "ddim" else {}
    table = step_table(schedule, steps, clip=False, solver=solver, **own)
    keys = sampler.sample_keys(jax.random.key(0), jnp.arange(len(labels), dtype=jnp.uint32))
    guide = None
    if form:
        gradient = guidance.classifier_gradient(log_prob, labels)
        guide = guidance.Guidance(gradient_fn=gradient, scale=scale, form=form)
    return sampler.sample(denoise, table, keys, SHAPE, guide)


def draw(scale, label, form="score", steps=200, eta=0.0, solver="ddim"):
    """4,096 images, flat. scale None: without guidance."""
    if scale is None:
        scale, form = 0.0, None
    labels = np.full(4096, label, np.int32)
    return np.asarray(sampled(np.float32(scale), labels, steps, form, eta, solver)).ravel()


OF_FORM = {form: {"eta": 1.0, "steps": 400} for form in guidance.FORMS} | {"score": {"eta": 0.0, "steps": 200}}


@pytest.mark.parametrize("form", guidance.FORMS)
def test_scale_one_draws_from_the_class(form):
    """With the exact classifier, s + grad log p(c | x) is the class's own score, so the law is N(mu_c, std^2)."""
    for label in (0, 1):
        x = draw(1.0, label, form, **OF_FORM[form])
        np.testing.assert_allclose(x.mean(), MEANS[label], atol=0.02 if form == "score" else 0.03)
        np.testing.assert_allclose(x.std(), STD, rtol=0.04)


@pytest.mark.parametrize("options", [{"eta": 1.0, "steps": 400}, {"solver": "dpmpp_2m", "steps": 50}])
def test_scale_one_draws_from_the_class_by_every_solver(options):
    for label in (0, 1):
        x = draw(1.0, label, **options)
        np.testing.assert_allclose(x.mean(), MEANS[label], atol=0.03)
        np.testing.assert_allclose(x.std(), STD, rtol=0.04)


@functools.partial(jax.jit, static_argnames="n")
def started(n):
    """(keys, the state before the first step)."""
    keys = sampler.sample_keys(jax.random.key(0), jnp.arange(n, dtype=jnp.uint32))
    return keys, sampler.start(keys, SHAPE)


def of_its_own_labels(schedule):
    """(denoise without a label, denoise with labels, log p(c | x_t)) of the mixture, exact, by the schedule's kind.

    The law of class c is N(mu_c, std^2), so that its noised score is -(x_t - a mu_c) / (a^2 std^2 + sigma^2).
    """
    marginal, log_prob = mixture(schedule)
    alpha_bar = jnp.asarray(schedule.alpha_bar, jnp.float32)

    def predicted(epsilon, x, t):
        a, sigma = (bcast(jnp.sqrt(part[t]), x) for part in (alpha_bar, 1 - alpha_bar))
        x0 = (x - sigma * epsilon) / a
        return {"epsilon": epsilon, "x0": x0, "v": a * epsilon - sigma * x0}[schedule.prediction_type]

    def conditional(x, t, labels):
        a = bcast(alpha_bar[t], x)
        mean = bcast(jnp.asarray(MEANS, jnp.float32)[labels], x)
        own = jnp.sqrt(1 - a) * (x - jnp.sqrt(a) * mean) / (a * STD**2 + 1 - a)
        return predicted(jnp.where(bcast(labels, x) < 0, marginal(x, t), own), x, t)

    return (lambda x, t: conditional(x, t, jnp.full(t.shape, -1))), conditional, log_prob


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_a_conditional_model_holds_the_gradient_of_its_labels(prediction_type):
    """The difference of its predictions is that of log p(c | x_t), which the closed form has without any network."""
    schedule = make_schedule("linear", 400, 2.5e-4, 0.05, prediction_type=prediction_type)
    _, conditional, log_prob = of_its_own_labels(schedule)
    x = np.linspace(-1.5, 1.5, 24, dtype=np.float32).reshape(24, 1, 1, 1)
    t, labels = np.asarray([20, 60, 150, 250] * 6, np.int32), np.asarray([0, 1] * 12, np.int32)

    @jax.jit
    def gradients(x, t, labels):
        got = guidance.implicit_gradient(conditional, labels, schedule)(x, t)
        return got, guidance.classifier_gradient(log_prob, labels)(x, t)

    got, expected = gradients(x, t, labels)
    assert np.abs(expected).max() > 3
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("prediction_type", "form"),  # the mean forms do not look at the prediction
    [("epsilon", "score"), ("x0", "score"), ("v", "score"), ("x0", "mean"), ("v", "mean_at_mean")],
)
def test_a_conditional_model_at_scale_zero_is_the_one_without_labels(prediction_type, form):
    """Bit for bit, step by step."""
    schedule = make_schedule("linear", 400, 2.5e-4, 0.05, prediction_type=prediction_type)
    table = step_table(schedule, 4, eta=0.0 if form == "score" else 1.0)
    keys, state = started(16)

    # Not compiled as a whole: the two sides could be rounded otherwise.
    def conditional(x, t, labels):
        shift = np.asarray(labels, np.float32).reshape(-1, 1, 1, 1)
        return np.tanh(np.asarray(x) + shift)

    gradient = guidance.implicit_gradient(conditional, np.arange(16) % 2, schedule)
    guide = guidance.Guidance(gradient_fn=gradient, scale=np.float32(0), form=form)
    plain = state
    for i in range(4):
        state = sampler.sample_step(lambda x, t: conditional(x, t, -np.ones(16)), table[i], state, keys, guide)
        plain = sampler.sample_step(lambda x, t: conditional(x, t, -np.ones(16)), table[i], plain, keys)
        np.testing.assert_array_equal(state.x, plain.x)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_a_conditional_model_at_scale_one_draws_what_it_draws_with_the_label(prediction_type):
    """In the score form the very images, from the same noise, but for rounding."""
    schedule = make_schedule("linear", 400, 2.5e-4, 0.05, prediction_type=prediction_type)
    denoise, conditional, _ = of_its_own_labels(schedule)
    table = step_table(schedule, 20, clip=False)

    @jax.jit
    def draws(labels, scale):
        keys = sampler.sample_keys(jax.random.key(0), jnp.arange(256, dtype=jnp.uint32))
        gradient = guidance.implicit_gradient(conditional, labels, schedule)
        guide = guidance.Guidance(gradient_fn=gradient, scale=scale)
        got = sampler.sample(denoise, table, keys, SHAPE, guide)
        direct = sampler.sample(lambda x, t: conditional(x, t, labels), table, keys, SHAPE)
        return got, direct, sampler.sample(denoise, table, keys, SHAPE)

    got, direct, without = draws(np.arange(256) % 2, np.float32(1.0))
    np.testing.assert_allclose(got, direct, atol=2e-4)
    assert np.abs(direct - without).max() > 0.5


def gaussian(schedule, mean, std):
    """(the exact denoiser of N(mean, std^2), by the schedule's kind; its score at x_t)."""
    alpha_bar = jnp.asarray(schedule.alpha_bar, jnp.float32)

    def score(x, t):
        a = bcast(alpha_bar[t], x)
        return -(x - jnp.sqrt(a) * mean) / (a * std**2 + 1 - a)

    def denoise(x, t):
        a, sigma = (bcast(jnp.sqrt(part[t]), x) for part in (alpha_bar, 1 - alpha_bar))
        epsilon = -sigma * score(x, t)
        x0 = (x - sigma * epsilon) / a
        return {"epsilon": epsilon, "x0": x0, "v": a * epsilon - sigma * x0}[schedule.prediction_type]

    return denoise, score


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_direction_from_a_weaker_model_is_the_difference_of_scores(prediction_type):
    schedule = make_schedule("linear", 400, 2.5e-4, 0.05, prediction_type=prediction_type)
    (strong, score), (weak, weak_score) = gaussian(schedule, 0.3, 0.2), gaussian(schedule, -0.1, 0.5)
    x = np.linspace(-1.5, 1.5, 24, dtype=np.float32).reshape(24, 1, 1, 1)
    t = np.asarray([20, 60, 150, 250] * 6, np.int32)
    got = guidance.extrapolation_gradient(strong, weak, schedule)(x, t)
    expected = score(x, t) - weak_score(x, t)
    assert np.abs(expected).max() > 3
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-3)


def test_extrapolation_goes_beyond_the_target_away_from_the_weaker_model():
    """Of N(m, s^2) and N(n, s^2), p^(1 + lambda) / q^lambda is N(m + lambda (m - n), s^2), also when noised."""
    schedule = make_schedule("linear", 1000)
    (strong, _), (weak, _) = gaussian(schedule, 0.1, 0.2), gaussian(schedule, 0.0, 0.2)
    table, gradient = step_table(schedule, 200, clip=False), guidance.extrapolation_gradient(strong, weak, schedule)

    @jax.jit
    def draws(scale):
        keys = sampler.sample_keys(jax.random.key(1), jnp.arange(4096, dtype=jnp.uint32))
        return sampler.sample(strong, table, keys, SHAPE, guidance.Guidance(gradient_fn=gradient, scale=scale))

    for scale in (0.0, 1.0, 2.5):
        x = draws(np.float32(scale))
        np.testing.assert_allclose(x.mean(), 0.1 + 0.1 * scale, atol=0.01)
        np.testing.assert_allclose(x.std(), 0.2, rtol=0.06)


@pytest.mark.parametrize("form", guidance.FORMS)
def test_the_power_prior(form):
    """For x_0 ~ N(m, s^2) and p(c | x_0) proportional to exp(b x_0), p(c | x_t) is proportional to exp(b E[x_0 | x_t]),

    as the variance of x_0 given x_t does not depend on x_t. So p(x_0) p(c | x_0)^lambda = N(m + lambda b s^2, s^2), and
    the score of its noised law is the unguided one plus lambda grad log p(c | x_t), at every lambda.
    """
    # The mean forms are off by a term of the order of one step.
    schedule = make_schedule("linear", 1000) if form == "score" else make_schedule("linear", 2000, 5e-5, 1e-2)
    m, s, b = -0.2, 0.3, 2.0
    alpha_bar = jnp.asarray(schedule.alpha_bar, jnp.float32)

    def denoise(x, t):
        a = bcast(alpha_bar[t], x)
        return jnp.sqrt(1 - a) * (x - jnp.sqrt(a) * m) / (a * s**2 + 1 - a)

    def gradient(x, t):
        a = bcast(alpha_bar[t], x)
        return b * jnp.sqrt(a) * s**2 / (a * s**2 + 1 - a) * jnp.ones_like(x)

    table = step_table(schedule, schedule.num_timesteps, clip=False, eta=0.0 if form == "score" else 1.0)

    @jax.jit
    def draws(scale):
        keys = sampler.sample_keys(jax.random.key(1), jnp.arange(8192, dtype=jnp.uint32))
        guide = guidance.Guidance(gradient_fn=gradient, scale=scale, form=form)
        return sampler.sample(denoise, table, keys, SHAPE, guide)

    # The mean forms take longest; test_scale_one_draws_from_the_class has them at another scale.
    for scale in (0.5, 4.0) if form == "score" else (4.0,):
        x = np.asarray(draws(np.float32(scale)))
        np.testing.assert_allclose(x.mean(), m + scale * b * s**2, atol=0.012 if form == "score" else 0.025)
        np.testing.assert_allclose(x.std(), s, rtol=0.025)


def test_the_two_mean_forms_by_hand():
    """mu + lambda std^2 g, with g = -t x: at x_t and t (openai/guided-diffusion's code), or at mu and t'."""

    def gradient(x, t):
        return -bcast(t.astype(np.float32), x) * x

    # Of NumPy's arrays, whose arithmetic compiles nothing.
    x, mean, std = np.full((2, 1), 0.5, np.float32), np.full((2, 1), 0.25, np.float32), np.float32(0.4)
    t, next_t = np.asarray([3, 3]), np.asarray([1, 1])
    for form, at in (("mean", 3 * 0.5), ("mean_at_mean", 1 * 0.25)):
        guide = guidance.Guidance(gradient_fn=gradient, scale=np.float32(2.0), form=form)
        np.testing.assert_allclose(guide.guide_mean(mean, std, x, t, next_t), 0.25 - 2 * 0.16 * at, rtol=1e-6)
        np.testing.assert_array_equal(guide.guide_prediction("epsilon", x, x, t, std, std), x)
    guide = guidance.Guidance(gradient_fn=lambda x, t: -3.0 * x, scale=np.float32(2.0))
    np.testing.assert_array_equal(guide.guide_mean(mean, std, x, t, next_t), mean)


def test_the_sampler_tells_the_mean_forms_where_to_look():
    """On a grid of 666, 333, 0: x_t with t, or mu with the next timestep."""
    table = step_table(make_schedule("linear", 1000), 3, spacing="leading", eta=1.0)

    @functools.partial(jax.jit, static_argnames="form")
    def trajectory(form):
        """What the gradient was asked, and x before each step."""
        keys = sampler.sample_keys(jax.random.key(0), jnp.arange(2, dtype=jnp.uint32))
        state, asked, before = sampler.start(keys, SHAPE), [], []

        def gradient(x, t):
            asked.append((x, t[0]))
            return x

        guide = guidance.Guidance(gradient_fn=gradient, scale=jnp.float32(1.0), form=form)
        for i in range(3):
            before.append(state.x)
            state = sampler.sample_step(lambda x, t: 0.1 * x, table[i], state, keys, guide)
        return asked, before

    for form, timesteps in (("mean", [666, 333, 0]), ("mean_at_mean", [333, 0, 0])):
        asked, before = trajectory(form)
        assert [int(t) for _, t in asked] == timesteps
        assert [np.array_equal(x, was) for (x, _), was in zip(asked, before, strict=True)] == [form == "mean"] * 3


def test_normalized_gradients_have_a_root_mean_square_of_one():
    gradients = np.random.default_rng(0).standard_normal((4, 3, 3, 2)).astype(np.float32)
    scale = np.asarray([1.0, 1e-30, 1e30, 0.0], np.float32).reshape(-1, 1, 1, 1)  # float32 can't hold their squares
    got = np.asarray(jax.jit(guidance.normalize(lambda x, t: x))(gradients * scale, np.zeros(4, np.int32)))
    expected = gradients / np.sqrt(np.square(gradients).mean(axis=(1, 2, 3), keepdims=True))
    np.testing.assert_allclose(got[:3], expected[:3], rtol=1e-5)
    np.testing.assert_array_equal(got[3], 0)


def test_unguided_keeps_the_mixture():
    x = draw(None, 0)
    np.testing.assert_allclose((x > 0).mean(), 0.2 * 0.977 + 0.8 * 0.023, atol=0.02)


def test_more_guidance_moves_further_from_the_other_class():
    means = [draw(scale, 1).mean() for scale in (1.0, 3.0, 10.0)]
    assert means[0] < means[1] < means[2]


@pytest.mark.parametrize("form", guidance.FORMS)
def test_scale_zero_is_unguided(form):
    """But for rounding: they are two programs."""
    np.testing.assert_allclose(draw(0.0, 1, form, **OF_FORM[form]), draw(None, 1, **OF_FORM[form]), atol=1e-5)


def test_gradient_is_of_the_target_class():
    schedule = make_schedule("linear", 100)
    log_prob = jax.jit(mixture(schedule)[1])
    x, t = np.asarray([0.1, -0.2, 0.3], np.float32).reshape(3, 1, 1, 1), np.asarray([5, 50, 90], np.int32)
    labels = np.asarray([0, 1, 1], np.int32)
    got = jax.jit(lambda x, t, labels: guidance.classifier_gradient(log_prob, labels)(x, t))(x, t, labels)
    step = np.float32(1e-3)
    up, down = (np.asarray(log_prob(x + d, t))[np.arange(3), labels] for d in (step, -step))
    np.testing.assert_allclose(np.ravel(got), (up - down) / (2 * step), rtol=0.02, atol=1e-3)


def test_guide_is_the_score_form():
    """epsilon - lambda sigma grad; and the same guided epsilon follows from the guided x0 and v."""
    signal, sigma, scale = np.float32(0.8), np.float32(0.6), np.float32(3.0)
    x, epsilon, gradient = (np.full((1, 2), value, np.float32) for value in (0.7, 0.5, 1.5))
    x0 = (x - sigma * epsilon) / signal
    outputs = {"epsilon": epsilon, "x0": x0, "v": signal * epsilon - sigma * x0}
    for name, output in outputs.items():
        guide = guidance.Guidance(gradient_fn=lambda x, t: gradient, scale=scale)
        guided = guide.guide_prediction(name, output, x, np.zeros(1, np.int32), signal, sigma)
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

    @jax.jit
    def gradient(x, t, labels):
        """And the timesteps that the classifier is asked at."""
        seen = []

        def log_prob(x0, t):
            seen.append(t)
            return -0.5 * jnp.square(x0.reshape(-1, 1) - jnp.asarray(means, jnp.float32)[None])

        def denoise(x, t):
            return jnp.asarray(factor, jnp.float32).reshape(x.shape) * x

        fn = guidance.at_predicted_x0(log_prob, denoise, schedule)
        return guidance.classifier_gradient(fn, labels)(x, t), seen[0]

    got, seen = gradient(x.astype(np.float32).reshape(-1, 1, 1, 1), t.astype(np.int32), np.asarray([0, 1, 0]))
    np.testing.assert_allclose(np.ravel(got), -k * (k * x - means[[0, 1, 0]]), rtol=2e-4)
    np.testing.assert_array_equal(seen, 0)


def test_pixels_beyond_the_range_are_seen_at_its_edge_and_can_still_be_pushed(schedule):
    """x0_hat = 3 is clipped to 1 for the classifier, whose slope there passes to x_t."""
    signal = np.sqrt(schedule.alpha_bar[0])

    def log_prob(x0, t):
        return -0.5 * jnp.square(x0.reshape(-1, 1) - jnp.float32(0.25))

    fn = guidance.at_predicted_x0(log_prob, lambda x, t: jnp.zeros_like(x), schedule)  # epsilon 0: x0_hat = x / a
    x, zero = np.full((1, 1, 1, 1), 3 * signal, np.float32), np.zeros(1, np.int32)
    got = jax.jit(lambda x, t: guidance.classifier_gradient(fn, jnp.asarray(zero))(x, t))(x, zero)
    np.testing.assert_allclose(np.ravel(got), -(1 - 0.25) / signal, rtol=1e-5)
