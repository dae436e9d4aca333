"""The memorisation divergence against closed forms, scipy's mixture, itself on shared draws, and by neighbours.

Draws are compiled for each number of them and of features, so tests share both where they can: 4,000 and 3.
"""

import math
import re

import jax
import numpy as np
import pytest
from scipy import stats

from side_jax.memorization.theory import divergence
from side_jax.memorization.theory.divergence import (
    divergence_difference,
    draw,
    knn_divergence,
    knn_log_prob,
    log_q,
    memorization_divergence,
)


def gaussian(mean=0.0, deviation=1.0):
    """Log of N(mean, deviation^2 I) at x [m, ...], in float64."""
    return lambda x: stats.norm.logpdf(np.asarray(x, np.float64), mean, deviation).reshape(len(x), -1).sum(axis=1)


def kl(centre, epsilon, deviation):
    """KL(N(centre, epsilon^2 I) || N(0, deviation^2 I)) in closed form."""
    d, ratio = centre.size, (epsilon / deviation) ** 2
    return 0.5 * (d * (ratio - 1 - math.log(ratio)) + np.square(centre).sum() / deviation**2)


def near(found, expected, errors=4.0):
    assert abs(found.estimate - expected) < errors * found.standard_error + 1e-9, (found, expected)


@pytest.mark.parametrize("shape", [(3,), (2, 4, 1)])
@pytest.mark.parametrize("epsilon", [1.0, 0.05])
def test_one_member_has_a_closed_form(shape, epsilon):
    member = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
    found = memorization_divergence(gaussian(0, 2.0), member, epsilon, jax.random.key(0), 4000)
    near(found, kl(member, epsilon, 2.0))
    assert 0 < found.standard_error < 0.1


def test_separated_members_have_the_entropy_of_their_number():
    """E_q log q = -log n - (d / 2) log(2 pi e eps^2), and E_q log p is a mean over members."""
    members = 3 * np.eye(3, dtype=np.float32)
    found = memorization_divergence(gaussian(), members, 0.1, jax.random.key(1), 4000)
    near(found, np.mean([kl(member, 0.1, 1.0) for member in members]) - math.log(3))


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 20.0])
def test_a_model_that_is_q_has_memorised_all(epsilon):
    """Whether members overlap or not; p in another way than log_q."""
    members = np.random.default_rng(2).normal(size=(6, 3)).astype(np.float32)

    def mixture(x):
        each = [gaussian(member.astype(np.float64), epsilon)(x) for member in members]
        return np.logaddexp.reduce(each) - math.log(6)

    found = memorization_divergence(mixture, members, epsilon, jax.random.key(2), 4000)
    assert abs(found.estimate) < 1e-10
    assert found.standard_error < 1e-10


def test_the_standard_error_covers():
    """About 95% of 200 estimates are within 1.96 of it: between 180 and 199 with probability 0.998."""
    members = np.random.default_rng(3).normal(size=(4, 2)).astype(np.float32)
    p = gaussian(0.3, 1.5)
    truth = memorization_divergence(p, members, 0.5, jax.random.key(200), 200_000).estimate
    found = [memorization_divergence(p, members, 0.5, jax.random.key(seed), 300) for seed in range(200)]
    inside = sum(abs(one.estimate - truth) < 1.96 * one.standard_error for one in found)
    assert 180 <= inside <= 199
    np.testing.assert_allclose(
        np.std([one.estimate for one in found]), np.mean([one.standard_error for one in found]), rtol=0.2
    )


def test_log_q_is_scipys_mixture_whatever_the_blocks(monkeypatch):
    monkeypatch.setattr(divergence, "BLOCK", 4)
    rng = np.random.default_rng(4)
    x, members = (rng.normal(size=(n, 3)).astype(np.float32) for n in (11, 9))
    density = np.mean([stats.multivariate_normal(member, 0.3**2).pdf(x) for member in members], axis=0)
    np.testing.assert_allclose(log_q(x, members, 0.3), np.log(density), rtol=1e-10)
    images = log_q(x.reshape(11, 1, 3, 1), members.reshape(9, 1, 3, 1), 0.3)
    np.testing.assert_array_equal(images, log_q(x, members, 0.3))


def test_log_q_keeps_its_digits_far_from_the_origin():
    """At eps = 1e-4 in 3,000 dimensions, where products of rows would lose eps^2 beside |x|^2."""
    members = np.random.default_rng(5).uniform(-1, 1, (3, 3000)).astype(np.float32)
    x, which = draw(members, 1e-4, jax.random.key(5), 50)
    own = gaussian(members[which].astype(np.float64), 1e-4)(x) - math.log(3)
    np.testing.assert_allclose(log_q(x, members, 1e-4), own, rtol=1e-12)
    found = memorization_divergence(gaussian(), members, 1e-4, jax.random.key(5), 50)
    near(found, np.mean([kl(member, 1e-4, 1.0) for member in members]) - math.log(3))
    assert np.isfinite(log_q(members[:1] + np.float32(2), members, 1e-4)).all()


def test_draws_are_of_the_law_and_do_not_depend_on_their_number():
    members = np.asarray([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], np.float32)
    x, which = draw(members, 0.5, jax.random.key(6), 6000)
    assert x.dtype == np.float32
    assert stats.chisquare(np.bincount(which, minlength=3)).pvalue > 1e-3
    assert stats.kstest(((x - members[which]) / 0.5).ravel(), "norm").pvalue > 1e-3
    again = draw(members, 0.5, jax.random.key(6), 7)
    np.testing.assert_array_equal(again[0], x[:7])
    np.testing.assert_array_equal(again[1], which[:7])


def test_the_paired_difference_is_that_of_two_estimates_on_the_same_draws():
    members = np.random.default_rng(7).normal(size=(50, 3)).astype(np.float32)
    a, b = gaussian(0.2, 1.1), gaussian(0.0, 1.3)
    x, _ = draw(members, 0.1, jax.random.key(7), 4000)
    found = divergence_difference(a(x), b(x))
    each = [memorization_divergence(p, members, 0.1, jax.random.key(7), 4000) for p in (a, b)]
    np.testing.assert_allclose(found.estimate, each[0].estimate - each[1].estimate, rtol=1e-10)
    assert found.standard_error < 0.5 * math.hypot(*(one.standard_error for one in each))


def sets(seed, n, m, d, deviation=1.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(0, deviation, (m, d))


@pytest.mark.parametrize(
    ("d", "deviation", "tolerance"), [(1, 1.0, 0.05), (2, 1.5, 0.08), (4, 1.0, 0.1), (20, 1.0, 0.2)]
)
def test_neighbours_find_the_divergence_of_gaussians(d, deviation, tolerance):
    """By a tree and, in 20 dimensions, by brute force."""
    q, p = sets(8, 2000, 2500, d, deviation)
    expected = d * (math.log(deviation) + 0.5 / deviation**2 - 0.5)
    found = knn_divergence(q, p)
    assert abs(found.estimate - expected) < tolerance
    assert 0 < found.standard_error < tolerance


def test_neighbours_by_hand():
    """q at 0, 1, 3 and p at 0.5, 10, on a line, k = 1: rho 1, 1, 2 and nu 0.5, 0.5, 2.5."""
    q, p = np.asarray([[0.0], [1.0], [3.0]]), np.asarray([[0.5], [10.0]])
    np.testing.assert_allclose(knn_divergence(q, p, 1).estimate, math.log(0.5 * 0.5 * 1.25) / 3 + math.log(2 / 2))
    # psi(1) - psi(3) = -(1 + 1 / 2), and the ball of radius 1 is of length 2.
    np.testing.assert_allclose(knn_log_prob(q, p, 1), -1.5 - np.log(2 * np.asarray([0.5, 0.5, 2.5])))


def test_the_bias_of_neighbours_shrinks_with_their_number():
    bias = {}
    for n in (100, 3000):
        found = [knn_divergence(*sets(seed, n, n, 4, 1.5)).estimate for seed in range(8)]
        bias[n] = abs(np.mean(found) - 4 * (math.log(1.5) + 0.5 / 1.5**2 - 0.5))
    assert bias[3000] < 0.6 * bias[100]


def test_log_prob_by_neighbours_is_unbiased_where_p_is_constant():
    points = np.full((1, 2), 0.5)
    found = [knn_log_prob(points, np.random.default_rng(seed).uniform(size=(200, 2)), 3)[0] for seed in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 20
    assert np.std(found) > 0.3  # so log k - log m, 0.18 more, would be seen


def test_the_hybrid_sees_members_that_neighbours_do_not():
    """With fewer draws than members, those of q are as far apart as its members, and say nothing of the noise."""
    rng = np.random.default_rng(9)
    members, samples = (rng.normal(size=(n, 2)).astype(np.float32) for n in (500, 4000))
    truth = memorization_divergence(gaussian(), members, 0.01, jax.random.key(9), 6000).estimate
    hybrid = memorization_divergence(lambda x: knn_log_prob(x, samples), members, 0.01, jax.random.key(8), 300)
    neighbours = knn_divergence(draw(members, 0.01, jax.random.key(8), 300)[0], samples)
    assert truth > 2
    assert abs(hybrid.estimate - truth) < 0.15
    assert neighbours.estimate < truth - 1


ROWS = np.zeros((3, 2), np.float32)
KEY = jax.random.key(0)
BAD = {
    "epsilon must be above 0 and finite, got 0.0": lambda: draw(ROWS, 0.0, KEY, 5),
    "epsilon must be above 0 and finite, got nan": lambda: log_q(ROWS, ROWS, math.nan),
    "epsilon must be 6.1e-05 or more, so that float32": lambda: draw(ROWS + 8, 1e-5, KEY, 5),
    "num_samples must be 2 or more, for a standard error, got 1": lambda: draw(ROWS, 1.0, KEY, 1),
    "members must be floats [n, ...], n at least 1, got float32 (0, 2)": lambda: draw(ROWS[:0], 1.0, KEY, 5),
    "members must be floats [n, ...], n at least 1, got uint8": lambda: draw(ROWS.astype(np.uint8), 1.0, KEY, 5),
    "members must be finite, but hold 6 numbers that are not": lambda: draw(ROWS + np.float32(np.inf), 1.0, KEY, 5),
    "x and members must be of one shape, got (1,) and (2,)": lambda: log_q(ROWS[:, :1], ROWS, 1.0),
    "log_prob_fn has 2 of 5 numbers that are not finite": lambda: memorization_divergence(
        lambda x: np.asarray([0, -np.inf, 0, np.nan, 0]), ROWS, 1.0, KEY, 5
    ),
    "log_prob_fn must give one number for each draw, got shape (5, 2)": lambda: memorization_divergence(
        lambda x: x, ROWS, 1.0, KEY, 5
    ),
    "log_prob_fn must give 5 numbers for 5 draws, got 4": lambda: memorization_divergence(
        lambda x: np.zeros(4), ROWS, 1.0, KEY, 5
    ),
    "must be of the same draws, got 3 and 4": lambda: divergence_difference(np.zeros(3), np.zeros(4)),
    "log_p_b has 1 of 3 numbers": lambda: divergence_difference(np.zeros(3), np.asarray([0, np.inf, 0])),
    "a standard error needs 2 terms or more, got 1": lambda: divergence_difference(np.zeros(1), np.zeros(1)),
    "3 of 3 rows have 1 exact copies among q_samples": lambda: knn_divergence(ROWS, ROWS + 1, 1),
    "1 of 3 rows have 1 exact copies among p_samples": lambda: knn_divergence(
        np.eye(3, dtype=np.float64), np.eye(3)[:1], 1
    ),
    "k must be between 1 and the 2 neighbours that q_samples can have, got 3": lambda: knn_divergence(ROWS, ROWS, 3),
    "k must be between 1 and the 3 neighbours that samples can have, got 0": lambda: knn_log_prob(ROWS, ROWS, 0),
    "p_samples has 1 features where q_samples has 2": lambda: knn_divergence(ROWS, ROWS[:, :1], 1),
}


@pytest.mark.parametrize("message", BAD)
def test_errors_name_the_value(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        BAD[message]()


def test_copies_that_are_smoothed_alike_are_no_error():
    copies = np.repeat(np.random.default_rng(10).normal(size=(20, 2)), 5, axis=0)
    noise = np.random.default_rng(11).normal(0, 0.1, (2, 100, 2))
    assert abs(knn_divergence(copies + noise[0], copies + noise[1], 3).estimate) < 0.5
