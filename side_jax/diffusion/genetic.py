"""A genetic search over what images are drawn from, by operators that keep the law N(0, I) of what they act on.

That is an image's genome: its starting noise x_T, or the weights of its label embedding (models/label_table.py). A
generation's images are drawn; of all images of the search so far, the fittest are the parents of the next generation.
A child has one parent, or two whose numbers it mixes one by one, and is then mutated:

    x = a or b, for each number by a fair coin          (crossover)
    x' = sqrt(1 - m^2) x + m z,   z ~ N(0, I)           (mutation)

Where the pairs (a_i, b_i) of two parents are independent of each other over i and have standard normal parts, so are
the numbers of x, however much a and b resemble each other; a weighted sum of a and b would need them independent. The
usual x' = x + m z lets the noise grow, and leaves what the model was trained on. What is not N(0, I) are the survivors:
selection is what a search is for.

Searches run side by side: image i is image i mod p of block i div p, where p is the population; blocks are the first
generation of every search in turn, then the second, and so on.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Rates(NamedTuple):
    """The operators' rates, which may be traced.

    Attributes:
      parents: images of a search from which a generation descends, at least 1.
      crossover: probability that a child has two parents.
      mutation: m, in [0, 1]; at 1 children have nothing of their parents.
    """

    parents: int
    crossover: float
    mutation: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """Which search and generation an image belongs to, by its index.

    Attributes:
      searches: that run side by side.
      population: images of each generation of a search.
    """

    searches: int
    population: int

    @property
    def size(self) -> int:
        """Images of one generation of all searches."""
        return self.searches * self.population

    def search(self, index: np.ndarray) -> np.ndarray:
        """The search of images, int [n]."""
        return index // self.population % self.searches

    def generation(self, index: np.ndarray) -> np.ndarray:
        """The generation of images, int [n]."""
        return index // self.size

    def images(self, generation: int, count: int) -> np.ndarray:
        """The images of one generation of all searches, at most those below `count`, int [n]."""
        return np.arange(generation * self.size, min((generation + 1) * self.size, count))


def mutate(keys: jax.Array, x: jax.Array, mutation: float) -> jax.Array:
    """sqrt(1 - m^2) x + m z, float32 [b, ...], with z from each image's key [b]."""
    z = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], jnp.float32))(keys)
    return jnp.sqrt(1.0 - jnp.square(mutation)) * x + mutation * z


def cross(keys: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
    """Every number from either parent, by a fair coin: float32 [b, ...] of both, with keys [b]."""
    from_first = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, first.shape[1:]))(keys)
    return jnp.where(from_first, first, second)


def breed(keys: jax.Array, first: jax.Array, second: jax.Array, rates: Rates) -> jax.Array:
    """The genomes of children, float32 [b, ...].

    Args:
      keys: typed keys [b], one for each child.
      first: genome of a parent of each child, float32 [b, ...].
      second: likewise, of the other parent, of which only some children have something.
      rates: of the operators.
    """
    pair, mask, noise = (jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, part) for part in (1, 2, 3))
    two = jax.vmap(lambda key: jax.random.bernoulli(key, rates.crossover))(pair)
    crossed = jnp.where(two.reshape(-1, *[1] * (first.ndim - 1)), cross(mask, first, second), first)
    return mutate(noise, crossed, rates.mutation)


def choose(keys: jax.Array, parents: int) -> jax.Array:
    """Two parents of each child, int32 [b, 2] below `parents`, uniform and independent; they may be the same."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 0)
    return jax.vmap(lambda key: jax.random.randint(key, (2,), 0, parents))(keys)


def fittest(fitness: np.ndarray, parents: int) -> np.ndarray:
    """The positions of the highest fitness, best first, int [at most parents]; on ties the earlier one.

    Of earlier parents, then a new generation, the best is never worse than before.
    """
    return np.argsort(-fitness, kind="stable")[:parents]


def log_odds(log_probs: jax.Array, target: jax.Array) -> jax.Array:
    """The log-odds of p(y), float32 [b], of log-probabilities [b, C] and y int [b]: ordered as p(y).

    In float32, p(y) is 1 for many images long before these differ no more.
    """
    chosen = jax.nn.one_hot(target, log_probs.shape[1], dtype=bool)
    own = jnp.where(chosen, log_probs, -jnp.inf).max(axis=1)
    return own - jax.nn.logsumexp(jnp.where(chosen, -jnp.inf, log_probs), axis=1)
