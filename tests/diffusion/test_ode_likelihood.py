"""The likelihood by the probability-flow ODE and the variational bound, on laws whose score and density are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from side_jax.diffusion import likelihood
from side_jax.diffusion.process import bcast
from side_jax.diffusion.schedule import make_schedule

SHAPE = (2, 2, 1)
D = 4
MEANS = np.asarray([[0.6, 0.2, -0.4, 0.1], [-0.5, -0.3, 0.5, 0.0], [0.1, -0.7, -0.2, 0.3]])
WEIGHTS = np.asarray([0.5, 0.3, 0.2])
SPREAD = np.asarray([0.3, 0.5, 0.2, 0.4])  # of each pixel
MIXTURE = (MEANS, WEIGHTS, SPREAD)

# One object for each schedule: compiled functions know it by its identity.
schedule_of = functools.cache(make_schedule)


def gaussian(mean, spread):
    """As a mixture of three that are alike: every law has the shapes of MIXTURE, so that one program serves them."""
    return np.tile(mean, (3, 1)), WEIGHTS, np.full(D, spread)


def mixture(schedule, means, weights, spread):
    """The exact denoiser of a mixture of Gaussians for each image [b, ...], at real timesteps too."""
    levels = 0.5 * (np.log1p(-schedule.alpha_bar) - np.log(schedule.alpha_bar))
    levels = jnp.asarray(levels, jnp.float32)

    def log_density(x, signal, sigma, means, weights, spread):
        variance = signal**2 * spread**2 + sigma**2
        away = x[None, :] - signal * means
        return jax.nn.logsumexp(jnp.log(weights) - 0.5 * (jnp.square(away) / variance[None, :]).sum(axis=1))

    def denoise(x, t):
        level = jnp.interp(t.astype(jnp.float32), jnp.arange(len(levels), dtype=jnp.float32), levels)
        signal, sigma = jnp.sqrt(jax.nn.sigmoid(-2.0 * level)), jnp.sqrt(jax.nn.sigmoid(2.0 * level))
        parts = x.reshape(len(x), -1), signal, sigma, means, weights, spread
        score = jax.vmap(jax.grad(log_density))(*parts).reshape(x.shape)
        signal, sigma = bcast(signal, x), bcast(sigma, x)
        epsilon = -sigma * score
        x0 = (x - sigma * epsilon) / signal
        return {"epsilon": epsilon, "x0": x0, "v": signal * epsilon - sigma * x0}[schedule.prediction_type]

    return denoise


def density(x, means=MEANS, weights=WEIGHTS, spread=SPREAD):
    """Log p of rows [n, D], float64."""
    each = norm.logpdf(x[:, None], means[None], spread).sum(axis=2)
    return logsumexp(each + np.log(weights), axis=1)


def drawn(n, seed=0, means=MEANS, weights=WEIGHTS, spread=SPREAD):
    rng = np.random.default_rng(seed)
    which = rng.choice(len(weights), n, p=weights)
    return means[which] + spread * rng.standard_normal((n, means.shape[1]))


def keys(n, seed=0):
    """Their data, made without a program."""
    return np.random.default_rng(seed).integers(0, 2**32, (n, 2), np.uint32)


def images(rows):
    return rows.reshape(len(rows), *SHAPE).astype(np.float32)


def stacked(laws):
    return tuple(np.stack(parts).astype(np.float32) for parts in zip(*laws, strict=True))


@functools.partial(jax.jit, static_argnames=("schedule", "probes"))
def _ode(x, keys, laws, labels, schedule, probes):
    denoise = mixture(schedule, *(part[labels] for part in laws))
    return likelihood.ode_log_likelihood(denoise, schedule, x, jax.random.wrap_key_data(keys), probes=probes)


def ode(rows, keys, laws, schedule, probes=1, labels=None):
    """By a compiled function that is given the laws, two, and which of them is each image's."""
    laws, labels = laws * (3 - len(laws)), np.zeros(len(rows), int) if labels is None else labels
    return jax.device_get(_ode(images(rows), keys, stacked(laws), labels, schedule, probes))


@functools.partial(jax.jit, static_argnames=("schedule", "options"))
def _bound(x, keys, law, schedule, options):
    denoise = mixture(schedule, *(jnp.broadcast_to(part, (len(x), *part.shape)) for part in law))
    options = {"clip": False} | dict(options)
    return likelihood.variational_bound(denoise, schedule, x, jax.random.wrap_key_data(keys), **options)


def bound(rows, law, schedule, **options):
    law = tuple(np.asarray(part, np.float32) for part in law)
    return np.asarray(_bound(images(rows), keys(len(rows)), law, schedule, tuple(options.items())))


# The third prediction has its turn where the noise is least, below.
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_exact_score_gives_the_exact_likelihood_of_a_mixture(prediction):
    rows = drawn(200)
    found = ode(rows, keys(200), [MIXTURE], schedule_of("linear", 1000, prediction_type=prediction), probes=0)
    exact = density(rows)
    np.testing.assert_allclose(found.log_prob, exact, atol=0.03)
    entropy = -exact.mean()
    assert abs(-np.mean(found.log_prob) - entropy) < 0.01 * abs(entropy)


def test_gaussian_of_unequal_spreads():
    """Its entropy has a closed form, and its Jacobian is diagonal: a single probe gives the exact trace."""
    law = gaussian(MEANS[0], SPREAD * 3)
    rows = drawn(4000, 0, *law)
    entropy = 0.5 * np.log(2 * np.pi * np.e * law[2] ** 2).sum()
    found = ode(rows[:400], keys(400), [law], schedule_of("linear", 1000))
    np.testing.assert_allclose(found.log_prob, density(rows[:400], *law), atol=0.03)
    assert abs(-np.mean(density(rows, *law)) - entropy) < 0.01 * entropy + 3 * np.sqrt(D / 2 / 4000)


def test_the_law_is_that_of_data_with_the_least_noise():
    """Of a point mass, the density at the end of the ODE is a Gaussian of standard deviation e^(l_0)."""
    schedule = schedule_of("linear", 1000, beta_start=0.01, beta_end=0.03, prediction_type="x0")
    std = np.sqrt((1 - schedule.alpha_bar[0]) / schedule.alpha_bar[0])
    rows = MEANS[:1] + std * np.random.default_rng(0).standard_normal((50, D))
    found = ode(rows, keys(50), [gaussian(MEANS[0], 1e-6)], schedule, probes=0)
    np.testing.assert_allclose(found.log_prob, norm.logpdf(rows, MEANS[:1], std).sum(axis=1), atol=0.03)


def test_hutchinsons_estimate_is_unbiased_and_sharpens_with_probes():
    rows = np.repeat(drawn(1, seed=3), 400, axis=0)
    errors = {}
    for probes in (1, 8):
        found = ode(rows, keys(400, seed=5), [MIXTURE], schedule_of("linear", 1000), probes)
        errors[probes] = np.asarray(found.log_prob) - density(drawn(1, seed=3))[0]
    assert abs(errors[8].mean()) < 4 * errors[8].std() / 20 + 0.03
    assert errors[8].std() < errors[1].std() / 2


def test_neither_the_rest_of_the_batch_nor_the_order_matters():
    schedule, rows, k = schedule_of("linear", 1000), drawn(600), keys(600)
    whole = ode(rows[:400], k[:400], [MIXTURE], schedule)
    chosen = np.random.default_rng(1).permutation(600)[:400]
    other = ode(rows[chosen], k[chosen], [MIXTURE], schedule)
    both = chosen < 400
    np.testing.assert_allclose(other.log_prob[both], whole.log_prob[chosen[both]], rtol=1e-4, atol=1e-4)
    assert len(np.unique(whole.evaluations)) > 1  # each image has steps of its own


def test_what_can_not_be_solved_is_not_a_number(monkeypatch):
    monkeypatch.setattr(likelihood, "MAX_STEPS", 3)

    @jax.jit
    def found(x, k):
        schedule = schedule_of("linear", 1000)
        return likelihood.ode_log_likelihood(lambda x, t: x, schedule, x, jax.random.wrap_key_data(k)).log_prob

    assert np.isnan(found(images(drawn(2)), keys(2))).all()


@pytest.mark.parametrize("variance", likelihood.VARIANCES)
def test_the_bound_is_above_the_entropy_and_near_it(variance):
    schedule = schedule_of("linear", 1000)
    rows = drawn(600)
    found = bound(rows, MIXTURE, schedule, variance=variance, decoder="density").sum(axis=0)
    gap = found + density(rows)
    error = gap.std() / np.sqrt(len(gap))
    assert gap.mean() > 3 * error
    by_ode = ode(rows[:200], keys(200), [MIXTURE], schedule, probes=0)
    assert np.mean(found) > -np.mean(by_ode.log_prob) - 3 * density(rows).std() / np.sqrt(200)


def test_terms_of_a_gaussian_in_closed_form():
    """For a standard normal, q's posterior mean is off by c (x_0 - a x_t): each L_t has a closed expectation."""
    schedule = schedule_of("linear", 50, beta_start=1e-3, beta_end=0.3)
    law = gaussian(np.zeros(D), 1.0)
    terms = bound(drawn(20_000, 0, *law), law, schedule, variance="large", decoder="density")
    beta, bar = schedule.betas, schedule.alpha_bar
    before = np.append(1.0, bar[:-1])
    tilde = beta * (1 - before) / (1 - bar)
    wide = np.append(tilde[1], beta[1:])
    ratio = tilde / wide
    # x_0 - E[x_0 | x_t] has variance 1 - abar_t in each pixel.
    means = before * (beta / (1 - bar)) ** 2 * (1 - bar) / (2 * wide)
    with np.errstate(divide="ignore"):
        expected = D * (0.5 * (ratio - 1 - np.log(ratio)) + means)
    expected[0] = D * 0.5 * (np.log(2 * np.pi * tilde[1]) + (1 - bar[0]) / tilde[1])
    np.testing.assert_allclose(np.mean(terms[:-1], axis=1), expected, rtol=0.03, atol=0.01)
    last = D * 0.5 * (bar[-1] + (1 - bar[-1]) - 1 - np.log1p(-bar[-1]))
    np.testing.assert_allclose(np.mean(terms[-1]), last, atol=1e-3)


def test_the_probabilities_of_all_levels_are_one():
    levels = np.linspace(-1.0, 1.0, 256, dtype=np.float32)
    log_prob = jax.jit(lambda mean, std: likelihood._decoder("levels", levels, jnp.full(256, mean), std))
    for mean in (-1.2, -0.4, 0.0, 0.77, 1.0):
        for std in (0.005, 0.3):
            log_p = log_prob(np.float32(mean), np.float32(std))
            np.testing.assert_allclose(np.exp(np.asarray(log_p, np.float64)).sum(), 1, rtol=1e-4)


def test_levels_and_density_agree_where_the_density_is_flat_over_a_level():
    schedule = schedule_of("linear", 100, beta_start=0.01, beta_end=0.1)
    rows = np.round((drawn(500).clip(-0.9, 0.9) + 1) * 127.5) / 127.5 - 1
    both = {decoder: bound(rows, MIXTURE, schedule, decoder=decoder).sum(axis=0) for decoder in likelihood.DECODERS}
    as_bits = {
        decoder: likelihood.bits_per_dimension(np.mean(bound), D, density=decoder == "density")
        for decoder, bound in both.items()
    }
    np.testing.assert_allclose(as_bits["levels"], as_bits["density"], atol=1e-3)


def test_bits_of_a_uniform_law():
    """Uniform over [-1, 1]: log p = -log 2 for each value; its 255 steps have log2(255) bits."""
    np.testing.assert_allclose(likelihood.bits_per_dimension(7 * np.log(2), 7, density=True), np.log2(255))
    np.testing.assert_allclose(likelihood.bits_per_dimension(7 * np.log(256), 7, density=False), 8)


@pytest.mark.parametrize("options", [{"probes": -1}, {"rtol": 0.0}, {"atol": -1.0}])
def test_bad_options_of_the_ode(options):
    with pytest.raises(ValueError, match="got"):
        likelihood.ode_log_likelihood(None, schedule_of("linear", 10), images(drawn(1)), None, **options)


@pytest.mark.parametrize("options", [{"variance": "huge"}, {"decoder": "none"}])
def test_bad_options_of_the_bound(options):
    with pytest.raises(ValueError, match="unknown"):
        likelihood.variational_bound(None, schedule_of("linear", 10), images(drawn(1)), None, **options)


def test_each_image_may_have_a_law_of_its_own():
    """As by labels, which a compiled function is given together with the parameters."""
    laws, labels = [MIXTURE, gaussian([0.3, -0.2, 0.0, 0.5], SPREAD[::-1])], np.arange(200) % 2
    rows = np.where(labels[:, None], drawn(200, 0, *laws[1]), drawn(200))
    schedule = schedule_of("linear", 1000, prediction_type="v")
    found = ode(rows, keys(200), laws, schedule, probes=0, labels=labels)
    exact = np.where(labels, density(rows, *laws[1]), density(rows))
    np.testing.assert_allclose(found.log_prob, exact, atol=0.03)
