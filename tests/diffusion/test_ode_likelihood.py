"""The likelihood by the probability-flow ODE and the variational bound, on laws whose score and density are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from side_jax.diffusion import likelihood
from side_jax.diffusion.process import bcast
from side_jax.diffusion.schedule import PREDICTIONS, make_schedule

SHAPE = (2, 2, 1)
D = 4
MEANS = np.asarray([[0.6, 0.2, -0.4, 0.1], [-0.5, -0.3, 0.5, 0.0], [0.1, -0.7, -0.2, 0.3]])
WEIGHTS = np.asarray([0.5, 0.3, 0.2])
SPREAD = np.asarray([0.3, 0.5, 0.2, 0.4])  # of each pixel


def mixture(schedule, means=MEANS, weights=WEIGHTS, spread=SPREAD):
    """The exact denoiser of a mixture of Gaussians, at real timesteps too."""
    levels = 0.5 * (np.log1p(-schedule.alpha_bar) - np.log(schedule.alpha_bar))
    levels = jnp.asarray(levels, jnp.float32)
    means, spread = jnp.asarray(means, jnp.float32), jnp.asarray(spread, jnp.float32)
    log_weights = jnp.log(jnp.asarray(weights, jnp.float32))

    def log_density(x, signal, sigma):
        variance = signal**2 * spread**2 + sigma**2
        away = x[None, :] - signal * means
        return jax.nn.logsumexp(log_weights - 0.5 * (jnp.square(away) / variance[None, :]).sum(axis=1))

    def denoise(x, t):
        level = jnp.interp(t.astype(jnp.float32), jnp.arange(len(levels), dtype=jnp.float32), levels)
        signal, sigma = jnp.sqrt(jax.nn.sigmoid(-2.0 * level)), jnp.sqrt(jax.nn.sigmoid(2.0 * level))
        score = jax.vmap(jax.grad(log_density))(x.reshape(len(x), -1), signal, sigma).reshape(x.shape)
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


def images(rows):
    return jnp.asarray(rows.reshape(len(rows), *SHAPE), jnp.float32)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_exact_score_gives_the_exact_likelihood_of_a_mixture(prediction):
    schedule = make_schedule("linear", 1000, prediction_type=prediction)
    rows = drawn(200)
    found = likelihood.ode_log_likelihood(mixture(schedule), schedule, images(rows), keys(200), probes=0)
    exact = density(rows)
    np.testing.assert_allclose(found.log_prob, exact, atol=0.03)
    entropy = -exact.mean()
    assert abs(-np.mean(found.log_prob) - entropy) < 0.01 * abs(entropy)


def test_gaussian_of_unequal_spreads():
    """Its entropy has a closed form, and its Jacobian is diagonal: a single probe gives the exact trace."""
    schedule = make_schedule("linear", 1000)
    law = {"means": MEANS[:1], "weights": WEIGHTS[:1] * 0 + 1, "spread": SPREAD * 3}
    rows = drawn(4000, **law)
    entropy = 0.5 * np.log(2 * np.pi * np.e * law["spread"] ** 2).sum()
    found = likelihood.ode_log_likelihood(mixture(schedule, **law), schedule, images(rows[:500]), keys(500))
    np.testing.assert_allclose(found.log_prob, density(rows[:500], **law), atol=0.03)
    assert abs(-np.mean(density(rows, **law)) - entropy) < 0.01 * entropy + 3 * np.sqrt(D / 2 / 4000)


def test_the_law_is_that_of_data_with_the_least_noise():
    """Of a point mass, the density at the end of the ODE is a Gaussian of standard deviation e^(l_0)."""
    schedule = make_schedule("linear", 1000, beta_start=0.01, beta_end=0.03)
    law = {"means": MEANS[:1], "weights": np.ones(1), "spread": np.full(4, 1e-6)}
    std = np.sqrt((1 - schedule.alpha_bar[0]) / schedule.alpha_bar[0])
    rows = MEANS[:1] + std * np.random.default_rng(0).standard_normal((50, D))
    found = likelihood.ode_log_likelihood(mixture(schedule, **law), schedule, images(rows), keys(50), probes=0)
    np.testing.assert_allclose(found.log_prob, norm.logpdf(rows, MEANS[:1], std).sum(axis=1), atol=0.03)


def test_hutchinsons_estimate_is_unbiased_and_sharpens_with_probes():
    schedule = make_schedule("linear", 1000)
    x = images(np.repeat(drawn(1, seed=3), 400, axis=0))
    errors = {}
    for probes in (1, 8):
        found = likelihood.ode_log_likelihood(mixture(schedule), schedule, x, keys(400, seed=5), probes=probes)
        errors[probes] = np.asarray(found.log_prob) - density(drawn(1, seed=3))[0]
    assert abs(errors[8].mean()) < 4 * errors[8].std() / 20 + 0.03
    assert errors[8].std() < errors[1].std() / 2


def test_batch_and_order_do_not_matter():
    schedule = make_schedule("linear", 1000)
    x, k = images(drawn(12)), keys(12)

    def run(x, k):
        return likelihood.ode_log_likelihood(mixture(schedule), schedule, x, k)

    whole = run(x, k)
    parts = [run(x[i : i + 4], k[i : i + 4]) for i in (0, 4, 8)]
    np.testing.assert_allclose(whole.log_prob, np.concatenate([p.log_prob for p in parts]), rtol=1e-4, atol=1e-4)
    turned = run(x[::-1], k[::-1])
    np.testing.assert_allclose(whole.log_prob[::-1], turned.log_prob, rtol=1e-4, atol=1e-4)
    assert len(set(np.asarray(whole.evaluations).tolist())) > 1  # each image has steps of its own


def test_what_can_not_be_solved_is_not_a_number(monkeypatch):
    monkeypatch.setattr(likelihood, "MAX_STEPS", 3)
    schedule = make_schedule("linear", 1000)
    found = likelihood.ode_log_likelihood(mixture(schedule), schedule, images(drawn(2)), keys(2))
    assert np.isnan(found.log_prob).all()


@pytest.mark.parametrize("variance", likelihood.VARIANCES)
def test_the_bound_is_above_the_entropy_and_near_it(variance):
    schedule = make_schedule("linear", 1000)
    rows = drawn(3000)
    bound = likelihood.variational_bound(
        mixture(schedule), schedule, images(rows), keys(3000), variance=variance, decoder="density", clip=False
    ).sum(axis=0)
    gap = np.asarray(bound) + density(rows)
    error = gap.std() / np.sqrt(len(gap))
    assert gap.mean() > 3 * error
    ode = likelihood.ode_log_likelihood(mixture(schedule), schedule, images(rows[:300]), keys(300), probes=0)
    assert np.mean(bound) > -np.mean(ode.log_prob) - 3 * density(rows).std() / np.sqrt(300)


def test_terms_of_a_gaussian_in_closed_form():
    """For a standard normal, q's posterior mean is off by c (x_0 - a x_t): each L_t has a closed expectation."""
    schedule = make_schedule("linear", 50, beta_start=1e-3, beta_end=0.3)
    law = {"means": np.zeros((1, D)), "weights": np.ones(1), "spread": np.ones(D)}
    rows = drawn(20_000, **law)
    terms = likelihood.variational_bound(
        mixture(schedule, **law), schedule, images(rows), keys(20_000), variance="large", decoder="density", clip=False
    )
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
    levels = jnp.linspace(-1.0, 1.0, 256)
    for mean in (-1.2, -0.4, 0.0, 0.77, 1.0):
        for std in (0.005, 0.3):
            log_p = likelihood._decoder("levels", levels, jnp.full(256, mean), std)
            np.testing.assert_allclose(np.exp(np.asarray(log_p, np.float64)).sum(), 1, rtol=1e-4)


def test_levels_and_density_agree_where_the_density_is_flat_over_a_level():
    schedule = make_schedule("linear", 100, beta_start=0.01, beta_end=0.1)
    rows = np.round((drawn(500).clip(-0.9, 0.9) + 1) * 127.5) / 127.5 - 1
    both = {
        decoder: likelihood.variational_bound(
            mixture(schedule), schedule, images(rows), keys(500), decoder=decoder, clip=False
        ).sum(axis=0)
        for decoder in likelihood.DECODERS
    }
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
    schedule = make_schedule("linear", 10)
    with pytest.raises(ValueError, match="got"):
        likelihood.ode_log_likelihood(mixture(schedule), schedule, images(drawn(1)), keys(1), **options)


@pytest.mark.parametrize("options", [{"variance": "huge"}, {"decoder": "none"}])
def test_bad_options_of_the_bound(options):
    schedule = make_schedule("linear", 10)
    with pytest.raises(ValueError, match="unknown"):
        likelihood.variational_bound(mixture(schedule), schedule, images(drawn(1)), keys(1), **options)


def test_parameters_may_be_traced():
    """The same from inside of a compiled function that is given the denoiser's parameters, and each image's label."""
    schedule = make_schedule("linear", 100)

    def found(shifts, labels, x, k):
        def denoise(x, t):
            return mixture(schedule)(x + shifts[labels][:, None, None, None], t)

        return likelihood.ode_log_likelihood(denoise, schedule, x, k).log_prob

    args = jnp.asarray([0.1, -0.2]), jnp.asarray([0, 1, 1]), images(drawn(3)), keys(3)
    np.testing.assert_allclose(jax.jit(found)(*args), found(*args), rtol=1e-4, atol=1e-4)
