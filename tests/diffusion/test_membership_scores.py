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
    return jax.random.split(jax.random.key(seed), n)


def square(x):
    return np.square(x.astype(np.float64)).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("t", [5, 40])
def test_loss_of_each_image(t):
    """epsilon's error is (a^2 s^2 e - sigma a (x_0 - mu)) / V, so its mean square is known for every x_0."""
    x0 = images(3, 16) * np.asarray([0.1, 1.0, 3.0], np.float32)[:, None, None, None]
    got = membership_scores.denoising_loss_at(gaussian(short()), short(), x0, keys(3), t, 400)
    a, sigma, variance = levels(t)
    expected = (a**4 * STD**4 + sigma**2 * a**2 * square(x0 - MEAN)) / variance**2
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, rtol=0.02)


@pytest.mark.parametrize("t", [5, 40])
def test_consistency_of_each_image(t):
    """x0_hat is mu + (a s^2 / V) (a (x_0 - mu) + sigma e): its variance and bias are known for every x_0."""
    x0, repeats = images(3, 16) * np.asarray([0.1, 1.0, 3.0], np.float32)[:, None, None, None], 400
    variance, distance = membership_scores.one_step_consistency(gaussian(short()), short(), x0, keys(3), t, repeats)
    a, sigma, total = levels(t)
    expected = (a * STD**2 * sigma / total) ** 2
    np.testing.assert_allclose(variance, expected, rtol=0.02)
    expected = (sigma**2 / total) ** 2 * square(x0 - MEAN) + expected / repeats
    np.testing.assert_allclose(distance, expected, rtol=0.03)


def test_consistency_of_two_draws_is_unbiased():
    n, t = 2000, 30
    x0 = images(n)
    variance, distance = membership_scores.one_step_consistency(gaussian(short()), short(), x0, keys(n), t, 2)
    a, sigma, total = levels(t)
    expected = (a * STD**2 * sigma / total) ** 2
    np.testing.assert_allclose(variance.mean(), expected, rtol=0.04)
    expected = (sigma**2 / total) ** 2 * square(x0 - MEAN).mean() + expected / 2
    np.testing.assert_allclose(distance.mean(), expected, rtol=0.04)


def test_tiny_variance_does_not_cancel():
    """x0_hat = 0.9 + 1e-4 x_t: squares of raw values would lose it."""
    x0 = images(2, 16)
    variance, _ = membership_scores.one_step_consistency(
        lambda x, t: 0.9 + 1e-4 * x, short("x0"), x0, keys(2), t=40, repeats=200
    )
    np.testing.assert_allclose(variance, 1e-8 * levels(40)[1] ** 2, rtol=0.03)


@pytest.mark.parametrize("t", [0, 20, 99])
@pytest.mark.parametrize("p", [2, 3, 4, 1.5])
def test_score_norm(t, p):
    x0 = images(4)
    expected = (np.abs(exact_epsilon(x0.astype(np.float64), t)) ** p).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(membership_scores.score_norm(gaussian(short()), short(), x0, t, p), expected, rtol=1e-4)


def test_score_norm_is_the_scores():
    """For p = 2, sigma^2 times the squared gradient of log p_t at x_0, here by automatic differentiation."""
    x0, t = images(4), 20
    a, sigma, variance = levels(t)
    mean, std = float(a * MEAN), float(variance**0.5)
    gradient = jax.grad(lambda x: jax.scipy.stats.norm.logpdf(x, mean, std).sum())(jnp.asarray(x0))
    got = membership_scores.score_norm(gaussian(short()), short(), x0, t, 2)
    np.testing.assert_allclose(got, sigma**2 * jnp.square(gradient).sum(axis=(1, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("t", "p"), [(1, 2), (20, 4), (90, 5)])
def test_pia(t, p, normalize):
    x0 = images(4)
    first = exact_epsilon(x0.astype(np.float64), 0)
    if normalize:
        first *= np.sqrt(2 / np.pi) / np.abs(first).mean(axis=(1, 2, 3), keepdims=True)
    a, sigma, _ = levels(t)
    expected = (np.abs(first - exact_epsilon(a * x0 + sigma * first, t)) ** p).sum(axis=(1, 2, 3))
    got = membership_scores.pia(gaussian(short()), short(), x0, t, p, normalize)
    np.testing.assert_allclose(got, expected, rtol=2e-4)


def test_pian_does_not_depend_on_the_scale_of_epsilon():
    """The scale makes Gaussian values standard: PIAN's epsilon_0 is N(0, I)'s, and zero stays zero."""
    x0 = 5 * jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    seen = []
    for scale in (1.0, 7.0):

        def denoise(x, t, scale=scale):
            seen.append(x)
            return jnp.where(bcast(t, x) == 0, scale * x0, jnp.zeros_like(x))

        membership_scores.pia(denoise, short(), x0, 99, normalize=True)
    a, sigma, _ = levels(99)
    np.testing.assert_allclose(seen[1], seen[3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose((seen[1] - np.float32(a) * x0).std() / sigma, 1, rtol=0.05)
    assert membership_scores.pia(lambda x, t: jnp.zeros_like(x), short(), x0, 20, normalize=True).tolist() == [0, 0]


@pytest.mark.parametrize(("t_sec", "stride"), [(0, 10), (20, 5), (60, 30), (90, 9)])
def test_secmi(t_sec, stride):
    """A DDIM step of Gaussian data scales x - a mu by r(t, t') = (a a' s^2 + sigma sigma') / V_t."""

    def ratio(t, to):
        (a, sigma, variance), (a_to, sigma_to, _) = levels(t), levels(to)
        return (a * a_to * STD**2 + sigma * sigma_to) / variance

    x0 = images(4)
    u = x0.astype(np.float64) - levels(0)[0] * MEAN
    for t in range(0, t_sec, stride):
        u = u * ratio(t, t + stride)
    expected = np.square((ratio(t_sec, t_sec + stride) * ratio(t_sec + stride, t_sec) - 1) * u).sum(axis=(1, 2, 3))
    got = membership_scores.secmi_t_error(gaussian(short()), short(), x0, t_sec, stride)
    np.testing.assert_allclose(got, expected, rtol=2e-3)


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
    denoise = mixture(short(), members, 0.05)
    scores = jax.jit(functools.partial(everything, denoise, short()))(np.concatenate([members, others]), keys(16))
    for name, score in scores.items():
        assert score[:8].max() < score[8:].min(), name


def test_an_image_scores_the_same_in_any_batch_compiled_or_not():
    x0, denoise = images(6), gaussian(short())
    whole = everything(denoise, short(), x0, keys(6))
    compiled = jax.jit(functools.partial(everything, denoise, short()))
    for part in ([4, 0], [5, 1], [3, 3]):
        part = np.asarray(part)
        for name, got in compiled(x0[part], keys(6)[part]).items():
            np.testing.assert_allclose(got, whole[name][part], rtol=2e-3, err_msg=name)
    for name, score in whole.items():
        assert score.shape == (6,), name
        assert score.dtype == jnp.float32, name
        assert len(np.unique(score)) == 6, name


def test_every_prediction_type_gives_the_same():
    def of(prediction):
        schedule = short(prediction)
        return jax.jit(functools.partial(everything, gaussian(schedule), schedule))(images(4), keys(4))

    expected = of("epsilon")
    for prediction in PREDICTIONS[1:]:
        for name, got in of(prediction).items():
            np.testing.assert_allclose(got, expected[name], rtol=5e-3, err_msg=f"{name}, {prediction}")


def test_timesteps_may_be_traced():
    of = functools.partial(everything, gaussian(short()), short(), images(2), keys(2))
    traced, static = jax.jit(of), jax.jit(lambda: of(60))()
    other = traced(10)
    for name, score in traced(60).items():
        np.testing.assert_allclose(score, static[name], rtol=2e-3, err_msg=name)
        assert not np.isclose(score, other[name], rtol=0.05).all(), name


def test_noise_is_the_keys_and_the_same_at_every_timestep():
    """A network that predicts zero leaves the noise itself: the mean square of its draws."""

    @functools.partial(jax.jit, static_argnames="repeats")
    def loss(keys, t, repeats):
        return membership_scores.denoising_loss_at(lambda x, t: jnp.zeros_like(x), short(), images(3), keys, t, repeats)

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
            function(gaussian(schedule), schedule, x0, keys(2), 100, 2)
    with bad(match="repeats must be at least 1, got 0"):
        membership_scores.denoising_loss_at(gaussian(schedule), schedule, x0, keys(2), 5, 0)
    with bad(match="repeats must be at least 2, got 1"):
        membership_scores.one_step_consistency(gaussian(schedule), schedule, x0, keys(2), 5, 1)
    for function in (membership_scores.pia, membership_scores.score_norm):
        with bad(match="t must be between 0 and 99, got -1"):
            function(gaussian(schedule), schedule, x0, -1)
        with bad(match=r"p must be at least 1, got 0\.5"):
            function(gaussian(schedule), schedule, x0, 5, 0.5)
    for t_sec, stride, message in (
        (20, 0, "stride must be at least 1, got 0"),
        (-10, 10, "t_sec must be between 0 and 99, got -10"),
        (90, 10, r"t_sec \+ stride must be between 0 and 99, got 100"),
        (25, 10, "t_sec must be a multiple of the stride 10, got 25"),
    ):
        with bad(match=message):
            membership_scores.secmi_t_error(gaussian(schedule), schedule, x0, t_sec, stride)
