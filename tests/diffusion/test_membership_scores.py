"""Evidence of memorisation on Gaussian data, where each quantity is known in closed form, and on memorised images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.diffusion import membership_scores
from side_jax.diffusion.process import bcast
from side_jax.diffusion.schedule import PREDICTIONS, make_schedule

MEAN, STD = 0.3, 0.5
T = 100


def everything(denoise, schedule, x0, keys, t=20):
    """Every score of the images at one timestep, [b] each."""
    variance, distance = membership_scores.one_step_consistency(denoise, schedule, x0, keys, t, 3)
    return {
        "loss": membership_scores.denoising_loss_at(denoise, schedule, x0, keys, t, 3),
        "secmi": membership_scores.secmi_t_error(denoise, schedule, x0, t, 5),
        "pia": membership_scores.pia(denoise, schedule, x0, t),
        "pian": membership_scores.pia(denoise, schedule, x0, t, normalize=True),
        "score": membership_scores.score_norm(denoise, schedule, x0, t),
        "variance": variance,
        "distance": distance,
    }


@functools.cache
def short(prediction="epsilon"):
    """A schedule of T timesteps, from nearly clean to nearly noise."""
    return make_schedule("linear", T, 1e-3, 0.12, prediction)


def as_predicted(schedule, x, t, epsilon_of_x0):
    """What the schedule's network says where the exact one's x0_hat is given."""
    alpha_bar = jnp.asarray(schedule.alpha_bar, jnp.float32)[t]
    signal, sigma = bcast(jnp.sqrt(alpha_bar), x), bcast(jnp.sqrt(1 - alpha_bar), x)
    epsilon, x0 = epsilon_of_x0(signal, sigma)
    return {"epsilon": epsilon, "x0": x0, "v": signal * epsilon - sigma * x0}[schedule.prediction_type]


def gaussian(schedule):
    """The exact denoiser of x_0 ~ N(MEAN, STD^2 I)."""

    def denoise(x, t):
        def both(signal, sigma):
            surprise = (x - signal * MEAN) / (signal**2 * STD**2 + sigma**2)
            return sigma * surprise, MEAN + signal * STD**2 * surprise

        return as_predicted(schedule, x, t, both)

    return denoise


def mixture(schedule, members, std):
    """The exact denoiser of data that are the members, each blurred by N(0, std^2 I)."""
    members = jnp.asarray(members, jnp.float32)

    def denoise(x, t):
        def both(signal, sigma):
            variance = signal**2 * std**2 + sigma**2
            away = x[:, None] - signal[:, None] * members[None]
            log_weights = -0.5 * jnp.square(away).sum(axis=(2, 3, 4)) / variance[:, :, 0, 0]
            surprise = (jax.nn.softmax(log_weights, axis=1)[:, :, None, None, None] * away).sum(axis=1) / variance
            epsilon = sigma * surprise
            return epsilon, (x - sigma * epsilon) / signal

        return as_predicted(schedule, x, t, both)

    return denoise


def levels(t):
    """(a, sigma, variance of x_t for Gaussian data) in float64."""
    a = np.sqrt(short().alpha_bar[t])
    sigma = np.sqrt(1 - a**2)
    return a, sigma, a**2 * STD**2 + sigma**2


def exact_epsilon(x, t):
    a, sigma, variance = levels(t)
    return sigma * (x - a * MEAN) / variance


def images(n, size=4, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, size, size, 1)).astype(np.float32)


def keys(n, seed=0):
    """Their data, made without a program."""
    return np.random.default_rng(seed).integers(0, 2**32, (n, 2), np.uint32)


def square(x):
    return np.square(x.astype(np.float64)).mean(axis=(1, 2, 3))


def compiled(function, *static):
    """A score as a compiled function of images, data of keys and a timestep, of the exact Gaussian denoiser."""

    def of(x0, data, t):
        return function(gaussian(short()), short(), x0, jax.random.wrap_key_data(data), t, *static)

    return jax.jit(of)


@functools.partial(jax.jit, static_argnames="prediction")
def scores(x0, data, t, prediction="epsilon"):
    schedule = short(prediction)
    return everything(gaussian(schedule), schedule, x0, jax.random.wrap_key_data(data), t)


def test_loss_of_each_image():
    """epsilon's error is (a^2 s^2 e - sigma a (x_0 - mu)) / V, so its mean square is known for every x_0."""
    x0 = images(3, 16) * np.asarray([0.1, 1.0, 3.0], np.float32)[:, None, None, None]
    loss = compiled(membership_scores.denoising_loss_at, 400)
    for t in (5, 40):
        got = loss(x0, keys(3), t)
        a, sigma, variance = levels(t)
        expected = (a**4 * STD**4 + sigma**2 * a**2 * square(x0 - MEAN)) / variance**2
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=0.02)


def test_consistency_of_each_image():
    """x0_hat is mu + (a s^2 / V) (a (x_0 - mu) + sigma e): its variance and bias are known for every x_0."""
    x0, repeats = images(3, 16) * np.asarray([0.1, 1.0, 3.0], np.float32)[:, None, None, None], 400
    consistency = compiled(membership_scores.one_step_consistency, repeats)
    for t in (5, 40):
        variance, distance = consistency(x0, keys(3), t)
        a, sigma, total = levels(t)
        expected = (a * STD**2 * sigma / total) ** 2
        np.testing.assert_allclose(variance, expected, rtol=0.02)
        expected = (sigma**2 / total) ** 2 * square(x0 - MEAN) + expected / repeats
        np.testing.assert_allclose(distance, expected, rtol=0.03)


def test_consistency_of_two_draws_is_unbiased():
    n, t = 2000, 30
    x0 = images(n)
    variance, distance = map(np.asarray, compiled(membership_scores.one_step_consistency, 2)(x0, keys(n), t))
    a, sigma, total = levels(t)
    expected = (a * STD**2 * sigma / total) ** 2
    np.testing.assert_allclose(variance.mean(), expected, rtol=0.04)
    expected = (sigma**2 / total) ** 2 * square(x0 - MEAN).mean() + expected / 2
    np.testing.assert_allclose(distance.mean(), expected, rtol=0.04)


def test_tiny_variance_does_not_cancel():
    """x0_hat = 0.9 + 1e-4 x_t: squares of raw values would lose it."""

    @jax.jit
    def variance_of(x0, data):
        k = jax.random.wrap_key_data(data)
        return membership_scores.one_step_consistency(lambda x, t: 0.9 + 1e-4 * x, short("x0"), x0, k, 40, 200)[0]

    variance = variance_of(images(2, 16), keys(2))
    np.testing.assert_allclose(variance, 1e-8 * levels(40)[1] ** 2, rtol=0.03)


def test_score_norm():
    x0, powers = images(4), (2, 3, 4, 1.5)

    @jax.jit
    def norms(t):
        return [membership_scores.score_norm(gaussian(short()), short(), x0, t, p) for p in powers]

    for t in (0, 20, 99):
        for p, got in zip(powers, norms(t), strict=True):
            expected = (np.abs(exact_epsilon(x0.astype(np.float64), t)) ** p).sum(axis=(1, 2, 3))
            np.testing.assert_allclose(got, expected, rtol=1e-4, err_msg=f"t {t}, p {p}")


def test_score_norm_is_the_scores():
    """For p = 2, sigma^2 times the squared gradient of log p_t at x_0, here by automatic differentiation."""
    x0, t = images(4), 20
    a, sigma, variance = levels(t)
    mean, std = float(a * MEAN), float(variance**0.5)

    @jax.jit
    def both(x0):
        gradient = jax.grad(lambda x: jax.scipy.stats.norm.logpdf(x, mean, std).sum())(x0)
        return gradient, membership_scores.score_norm(gaussian(short()), short(), x0, t, 2)

    gradient, got = both(x0)
    np.testing.assert_allclose(got, sigma**2 * np.square(gradient).sum(axis=(1, 2, 3)), rtol=1e-4)


def test_pia():
    x0, powers = images(4), (2, 4, 5)

    @jax.jit
    def pias(t):
        of = functools.partial(membership_scores.pia, gaussian(short()), short(), x0, t)
        return {(p, normalize): of(p, normalize) for p in powers for normalize in (False, True)}

    for t in (1, 20, 90):
        for (p, normalize), got in pias(t).items():
            first = exact_epsilon(x0.astype(np.float64), 0)
            if normalize:
                first *= np.sqrt(2 / np.pi) / np.abs(first).mean(axis=(1, 2, 3), keepdims=True)
            a, sigma, _ = levels(t)
            expected = (np.abs(first - exact_epsilon(a * x0 + sigma * first, t)) ** p).sum(axis=(1, 2, 3))
            np.testing.assert_allclose(got, expected, rtol=2e-4, err_msg=f"t {t}, p {p}, normalize {normalize}")


def test_pian_does_not_depend_on_the_scale_of_epsilon():
    """The scale makes Gaussian values standard: PIAN's epsilon_0 is N(0, I)'s, and zero stays zero."""
    x0 = 5 * np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)

    @jax.jit
    def second(scale):
        """What the network is asked after x_0, and the score."""
        seen = []

        def denoise(x, t):
            seen.append(x)
            return jnp.where(bcast(t, x) == 0, scale * x0, jnp.zeros_like(x))

        score = membership_scores.pia(denoise, short(), jnp.asarray(x0), 99, normalize=True)
        return seen[1], score

    (small, score), (large, _), (_, nothing) = map(second, (1.0, 7.0, 0.0))
    a, sigma, _ = levels(99)
    np.testing.assert_allclose(small, large, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.std(small - np.float32(a) * x0) / sigma, 1, rtol=0.05)
    assert np.min(score) > 0
    assert nothing.tolist() == [0, 0]


def test_secmi():
    """A DDIM step of Gaussian data scales x - a mu by r(t, t') = (a a' s^2 + sigma sigma') / V_t."""

    def ratio(t, to):
        (a, sigma, variance), (a_to, sigma_to, _) = levels(t), levels(to)
        return (a * a_to * STD**2 + sigma * sigma_to) / variance

    x0 = images(4)
    errors = jax.jit(functools.partial(membership_scores.secmi_t_error, gaussian(short()), short()))
    for t_sec, stride in ((0, 10), (20, 5), (60, 30), (90, 9)):
        u = x0.astype(np.float64) - levels(0)[0] * MEAN
        for t in range(0, t_sec, stride):
            u = u * ratio(t, t + stride)
        there_and_back = ratio(t_sec, t_sec + stride) * ratio(t_sec + stride, t_sec)
        expected = np.square((there_and_back - 1) * u).sum(axis=(1, 2, 3))
        np.testing.assert_allclose(errors(x0, t_sec, stride), expected, rtol=2e-3, err_msg=f"{t_sec}, {stride}")


def test_secmi_calls_the_network_at_the_timesteps_that_it_says(schedule):
    """The paper's x at t = 100; the published code's at t = 90."""

    def timesteps(**options):
        asked = []

        def denoise(x, t):
            asked.append(sorted(set(t.tolist())))
            return x

        with jax.disable_jit():
            membership_scores.secmi_t_error(denoise, schedule, jnp.ones((2, 1, 1, 1)), **options)
        assert all(len(t) == 1 for t in asked)
        return [t for (t,) in asked]

    assert timesteps() == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110]
    assert timesteps(t_sec=90) == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    assert timesteps(t_sec=6, stride=3) == [0, 3, 6, 9]


def test_members_look_more_memorised():
    """Of a model that has memorised eight images, each of them scores lower than every other image of their law."""
    members, others = images(8), images(8, seed=1)

    @jax.jit
    def of(x0):
        denoise = mixture(short(), members, 0.05)
        return everything(denoise, short(), x0, jax.random.split(jax.random.key(0), 16))

    for name, score in of(np.concatenate([members, others])).items():
        assert score[:8].max() < score[8:].min(), name


def test_an_image_scores_the_same_in_any_batch():
    x0, data = images(6), keys(6)
    whole = scores(x0, data, 20)
    for part in ([4, 0], [5, 1], [3, 3]):
        part = np.asarray(part)
        for name, got in scores(x0[part], data[part], 20).items():
            np.testing.assert_allclose(got, whole[name][part], rtol=2e-3, err_msg=name)
    for name, score in whole.items():
        assert score.shape == (6,), name
        assert score.dtype == jnp.float32, name
        assert len(np.unique(score)) == 6, name


def test_every_prediction_type_gives_the_same():
    expected = scores(images(6), keys(6), 20)
    for prediction in PREDICTIONS[1:]:
        for name, got in scores(images(6), keys(6), 20, prediction).items():
            np.testing.assert_allclose(got, expected[name], rtol=5e-3, err_msg=f"{name}, {prediction}")


def test_timesteps_may_be_traced():
    of = functools.partial(scores, images(6), keys(6))
    static = jax.jit(functools.partial(scores.__wrapped__, t=60))(images(6), keys(6))
    other = of(10)
    for name, score in of(60).items():
        np.testing.assert_allclose(score, static[name], rtol=2e-3, err_msg=name)
        assert not np.isclose(score, other[name], rtol=0.05).all(), name


def test_noise_is_the_keys_and_the_same_at_every_timestep():
    """A network that predicts zero leaves the noise itself: the mean square of its draws."""

    @functools.partial(jax.jit, static_argnames="repeats")
    def loss(data, t, repeats):
        k = jax.random.wrap_key_data(data)
        return membership_scores.denoising_loss_at(lambda x, t: jnp.zeros_like(x), short(), images(3), k, t, repeats)

    of = loss(keys(3), 3, 2)
    np.testing.assert_array_equal(of, loss(keys(3), 70, 2))
    assert not np.isclose(of, loss(keys(3, seed=1), 3, 2)).any()
    assert not np.isclose(of, loss(keys(3), 3, 1)).any()
    assert len(np.unique(of)) == 3


def test_refuses_what_makes_no_sense():
    x0, schedule = images(2), short()
    bad = functools.partial(pytest.raises, ValueError)
    for function in (membership_scores.denoising_loss_at, membership_scores.one_step_consistency):
        with bad(match="t must be between 0 and 99, got 100"):
            function(None, schedule, x0, None, 100, 2)
    with bad(match="repeats must be at least 1, got 0"):
        membership_scores.denoising_loss_at(None, schedule, x0, None, 5, 0)
    with bad(match="repeats must be at least 2, got 1"):
        membership_scores.one_step_consistency(None, schedule, x0, None, 5, 1)
    for function in (membership_scores.pia, membership_scores.score_norm):
        with bad(match="t must be between 0 and 99, got -1"):
            function(None, schedule, x0, -1)
        with bad(match=r"p must be at least 1, got 0\.5"):
            function(None, schedule, x0, 5, 0.5)
    for t_sec, stride, message in (
        (20, 0, "stride must be at least 1, got 0"),
        (-10, 10, "t_sec must be between 0 and 99, got -10"),
        (90, 10, r"t_sec \+ stride must be between 0 and 99, got 100"),
        (25, 10, "t_sec must be a multiple of the stride 10, got 25"),
    ):
        with bad(match=message):
            membership_scores.secmi_t_error(None, schedule, x0, t_sec, stride)
