"""The operators of the genetic search: the law of what they act on, and the search on fitness that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from side_jax.diffusion import genetic, sampler
from side_jax.diffusion.genetic import Order, Rates

SHAPE = (4, 4, 2)
COUNT = 4000  # images of 32 numbers


def keys(count, seed=0):
    return sampler.sample_keys(jax.random.key(seed), jnp.arange(count, dtype=jnp.uint32))


def noise(count, seed):
    return sampler.initial_noise(keys(count, seed), SHAPE)


def related(seed):
    """Parents as a search has them: the second is a mutated copy of the first, of correlation 0.8."""
    first = noise(COUNT, seed)
    return first, 0.8 * first + 0.6 * noise(COUNT, seed + 1)


def assert_standard_normal(x):
    """Each number by Kolmogorov and Smirnov, the covariance of all, and the law of their squared length."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    worst = min(stats.kstest(column, "norm").pvalue for column in flat.T)
    assert worst > 0.001 / flat.shape[1]
    covariance = flat.T @ flat / len(flat)
    assert np.abs(covariance - np.eye(flat.shape[1])).max() < 6 / np.sqrt(len(flat))
    assert stats.kstest(np.square(flat).sum(axis=1), stats.chi2(flat.shape[1]).cdf).pvalue > 0.001


@pytest.mark.parametrize("mutation", [0.0, 0.3, 1.0])
def test_mutation_keeps_the_law_and_the_share_of_the_parent(mutation):
    parent = noise(COUNT, 1)
    child = genetic.mutate(keys(COUNT, 2), parent, mutation)
    assert_standard_normal(child)
    correlation = np.corrcoef(np.ravel(parent), np.ravel(child))[0, 1]
    assert correlation == pytest.approx(np.sqrt(1 - mutation**2), abs=0.01)


def test_crossover_keeps_the_law_even_of_parents_that_resemble_each_other():
    """A weighted sum of them does not: its variance is 1.8 in place of 1."""
    first, second = related(3)
    child = genetic.cross(keys(COUNT, 5), first, second)
    assert_standard_normal(child)
    taken = np.asarray(child == first)
    assert (taken | np.asarray(child == second)).all()
    assert taken.mean() == pytest.approx(0.5, abs=0.01)
    assert np.var((first + second) / np.sqrt(2)) == pytest.approx(1.8, abs=0.02)


@pytest.mark.parametrize("crossover", [0.0, 0.4, 1.0])
def test_children_of_many_generations_are_standard_normal(crossover):
    """Without selection; of generations of x + 0.5 z the variance would be 6."""
    x = noise(COUNT, 6)
    for generation in range(20):
        pairs = np.asarray(genetic.choose(keys(COUNT, 7 + generation), COUNT))
        x = genetic.breed(
            keys(COUNT, 50 + generation),
            x[pairs[:, 0]],
            x[pairs[:, 1]],
            Rates(parents=1, crossover=crossover, mutation=0.5),
        )
    # Children of common ancestors are no independent draws, so only the mean law of all of their numbers is tested.
    flat = np.ravel(x)
    assert flat.mean() == pytest.approx(0, abs=0.03)
    assert flat.var() == pytest.approx(1, abs=0.03)
    assert stats.kurtosis(flat) == pytest.approx(0, abs=0.1)


def test_one_generation_is_as_breed_says():
    """Children of one parent are mutants of it; as many as asked for have two."""
    first, second = noise(COUNT, 8), noise(COUNT, 9)
    child = genetic.breed(keys(COUNT, 10), first, second, Rates(parents=2, crossover=0.3, mutation=0.0))
    one = np.asarray(child == first).all(axis=(1, 2, 3))
    assert one.mean() == pytest.approx(0.7, abs=0.03)
    assert (np.asarray(child == first) | np.asarray(child == second)).all()
    assert_standard_normal(genetic.breed(keys(COUNT, 11), *related(12), Rates(parents=2, crossover=0.5, mutation=0.4)))


def test_parents_are_uniform_and_independent():
    pairs = np.asarray(genetic.choose(keys(COUNT, 13), 5))
    counts = np.zeros((5, 5))
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    assert stats.chisquare(counts.ravel()).pvalue > 0.001


def test_the_fittest_are_those_of_a_sort_and_the_earlier_ones_on_ties():
    assert genetic.fittest(np.asarray([1.0, 5.0, 3.0, 5.0, -np.inf]), 3).tolist() == [1, 3, 2]
    assert genetic.fittest(np.asarray([1.0, 2.0]), 5).tolist() == [1, 0]


def test_log_odds_are_the_logit_of_the_probability():
    logits = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    target = np.asarray([0, 1, 2, 3, 0, 1])
    probability = np.exp(logits)[np.arange(6), target] / np.exp(logits).sum(axis=1)
    got = genetic.log_odds(jax.nn.log_softmax(logits), target)
    np.testing.assert_allclose(got, np.log(probability / (1 - probability)), rtol=1e-4, atol=1e-5)
    sure = genetic.log_odds(jax.nn.log_softmax(jnp.asarray([[40.0, 0.0], [30.0, 0.0]])), np.zeros(2, int))
    np.testing.assert_allclose(sure, [40, 30], rtol=1e-5)  # while both probabilities are 1 in float32


def test_images_are_in_the_order_of_generations_of_searches():
    order = Order(searches=3, population=2)
    index = np.arange(14)
    assert order.search(index).tolist() == [0, 0, 1, 1, 2, 2] * 2 + [0, 0]
    assert order.generation(index).tolist() == [0] * 6 + [1] * 6 + [2] * 2
    assert order.images(1, 14).tolist() == list(range(6, 12))
    assert order.images(2, 14).tolist() == [12, 13]


def climb(rates, generations, seed, population=50):
    """The best fitness after each generation; fitness is the closeness to a target, which only a search finds."""
    target = np.asarray(noise(1, 99))[0]
    pool, fitness, course = np.zeros((0, *SHAPE), np.float32), np.zeros(0), []
    for generation in range(generations):
        own = sampler.sample_keys(jax.random.key(seed), jnp.arange(population) + population * generation)
        if generation:
            pairs = np.asarray(genetic.choose(own, len(pool)))
            x = np.asarray(genetic.breed(own, pool[pairs[:, 0]], pool[pairs[:, 1]], rates))
        else:
            x = np.asarray(sampler.initial_noise(own, SHAPE))
        pool = np.concatenate([pool, x])
        fitness = np.concatenate([fitness, -np.square(x - target).mean(axis=(1, 2, 3))])
        best = genetic.fittest(fitness, rates.parents)
        pool, fitness = pool[best], fitness[best]
        course.append(fitness[0])
    return np.asarray(course)


def test_the_search_climbs_and_never_loses_its_best():
    """Of 1,500 images it comes closer to a target than the best of 1,500 random ones."""
    course = climb(Rates(parents=10, crossover=0.5, mutation=0.3), 30, seed=1)
    assert (np.diff(course) >= 0).all()
    random = climb(Rates(parents=10, crossover=0.5, mutation=1.0), 30, seed=1)
    assert random[0] == course[0]
    assert course[-1] > random[-1] / 2 > course[0]
    np.testing.assert_array_equal(course, climb(Rates(parents=10, crossover=0.5, mutation=0.3), 30, seed=1))
    assert climb(Rates(parents=10, crossover=0.5, mutation=0.3), 30, seed=2)[-1] != course[-1]
