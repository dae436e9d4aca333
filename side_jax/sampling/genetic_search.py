"""Generates the images of a genetic search, a generation after the other; see diffusion/genetic.py.

Nothing but the images is stored. The genome of an image follows from its own key and from its parents, the parents from
the fitness of the images before, and the fitness from these images as they are stored: whoever continues a search
replays it, without asking the model anything.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from side_jax.devices import placement
from side_jax.diffusion import genetic, sampler
from side_jax.diffusion.genetic import Order, Rates
from side_jax.diffusion.pixel_range import to_float, to_uint8
from side_jax.diffusion.steps import StepTable
from side_jax.errors import InputError
from side_jax.models import label_table
from side_jax.sampling.generation import ApplyFn, drawn_labels

# Global indices int [n] -> images uint8 [n, h, w, c]; InputError: one is not there.
Stored = Callable[[np.ndarray], np.ndarray]


def targets(key: jax.Array, searches: int, num_classes: int) -> np.ndarray:
    """The class that each search looks for, int32 [searches]: different ones in random order, as long as there are."""
    order = np.asarray(jax.random.permutation(key, num_classes), np.int32)
    return np.resize(order, searches)


class SearchProgram:
    """The compiled parts: the first generation, children, images, and their fitness; the rates are traced.

    A genome is an image's starting noise; or the weights of its label, while the starting noise is the image's own. The
    first generation are plain samples; over labels, those of uniform ones, as guidance by a target's labels draws them.

    Attributes:
      batch_size: images per batch.
      shape: of one genome.
    """

    def __init__(
        self,
        *,
        denoise: ApplyFn,
        log_prob: Callable[[Any, jax.Array], jax.Array],
        decode: Callable[[Any, jax.Array], jax.Array] = lambda params, x: x,
        table: StepTable,
        shape: tuple[int, int, int],
        batch_size: int,
        labels: int = 0,
    ):
        """Prepares the compiled functions.

        Args:
          denoise: the DPM, (params, x_t, t, indices) -> its prediction, of the table's prediction type; of labels,
            their genomes (models/label_table.py) take the place of the indices.
          log_prob: of a classifier of clean images: (params, images float32 [b, h, w, c] in [-1, 1]) -> [b, classes].
          decode: (params, what was sampled) -> images in about [-1, 1]; by default, images are sampled.
          table: of the sampler; one that draws no noise where the genome is x_T, so that it determines the image.
          shape: (height, width, channels) of what is sampled for one image.
          batch_size: images per batch; divisible by the number of local devices.
          labels: number of labels whose mixtures are searched; 0: starting noise is.
        """
        self.batch_size, self.shape = batch_size, (labels,) if labels else shape

        def first(base: jax.Array, index: jax.Array) -> jax.Array:
            if labels:
                return label_table.of_labels(drawn_labels(base, index, labels), labels)
            return sampler.initial_noise(sampler.sample_keys(base, index), shape)

        def child(given: tuple, index: jax.Array, one: jax.Array, other: jax.Array) -> jax.Array:
            key, rates = given
            return genetic.breed(sampler.sample_keys(key, index), one, other, rates)

        def choose(given: tuple, index: jax.Array) -> jax.Array:
            key, rates = given
            return genetic.choose(sampler.sample_keys(key, index), rates.parents)

        def draw(given: tuple, index: jax.Array, genomes: jax.Array) -> jax.Array:
            params, base = given
            keys = sampler.sample_keys(base, index)
            noise, own = (sampler.initial_noise(keys, shape), genomes) if labels else (genomes, index)
            sampled = sampler.sample_from(lambda x, t: denoise(params, x, t, own), table, noise, keys)
            return to_uint8(decode(params, sampled))

        def fitness(params: Any, images: jax.Array, target: jax.Array) -> jax.Array:
            return genetic.log_odds(log_prob(params, to_float(images)), target)

        in_batches = functools.partial(placement.in_batches, batch_size=batch_size)
        self.first, self.choose, self.child = in_batches(first), in_batches(choose), in_batches(child)
        self.draw, self.fitness = in_batches(draw), in_batches(fitness)


class GeneticSearch:
    """Generates the images of given global indices, as generation.Generator does; an index always gives the same image.

    What is asked for in order is generated once. What comes before it is taken from what is stored, and generated where
    it is not, as for the second of several processes.

    Attributes:
      batch_size: images per batch.
      targets: int32 [searches], the class that each search looks for.
    """

    def __init__(
        self,
        program: SearchProgram,
        order: Order,
        rates: Rates,
        *,
        targets: np.ndarray,
        key: jax.Array,
        stored: Stored,
    ):
        """Begins before the first generation.

        Args:
          program: the compiled parts.
          order: of the images.
          rates: of the operators.
          targets: the class that each search looks for.
          key: the typed key of parents and children.
          stored: the images that an earlier start of the same search has left.
        """
        self.batch_size, self.targets = program.batch_size, targets
        self._program, self._order, self._stored = program, order, stored
        self._given = key, Rates(np.int32(rates.parents), np.float32(rates.crossover), np.float32(rates.mutation))
        self._fitness: dict[int, float] = {}
        self._restart()

    def _restart(self) -> None:
        """Before the first generation; the fitness of images is still known."""
        self._generation = 0
        shape = (self._order.searches, 0)
        self._parents = np.zeros((*shape, *self._program.shape), np.float32)  # genomes, the fittest first
        self._parents_fitness = np.zeros(shape, np.float32)

    def labels(self, index: np.ndarray) -> np.ndarray:
        """The class that each image is meant to show, int32 [n]."""
        return self.targets[self._order.search(index)]

    def dispatch(self, params: Any, base: jax.Array, index: np.ndarray, labels: np.ndarray, scale: float) -> np.ndarray:
        """As generation.Generator.dispatch, but the images are computed; labels and scale are ignored."""
        generations = self._order.generation(index)
        parts = []
        for generation in np.unique(generations):
            self._advance(params, base, int(generation))
            own = index[generations == generation]
            images = self._draw(params, base, own)
            self._judge(params, own, images)
            parts.append(images)
        return np.concatenate(parts)[None]

    def __call__(self, params: Any, base: jax.Array, index: np.ndarray, labels: np.ndarray, scale: float) -> np.ndarray:
        """Images uint8 [n, h, w, c] of ascending global indices [n]."""
        return placement.merge(self.dispatch(params, base, index, labels, scale))

    def best(self, params: Any, base: jax.Array, count: int) -> list[int]:
        """The indices of the fittest image of each generation of each search, among the first `count` images."""
        last = int(self._order.generation(np.asarray(count - 1)))
        self._advance(params, base, last)
        self._known(params, base, self._order.images(last, count))
        fitness = np.asarray([self._fitness[i] for i in range(count)])
        starts = range(0, count, self._order.population)
        return [start + int(fitness[start : start + self._order.population].argmax()) for start in starts]

    def _advance(self, params: Any, base: jax.Array, generation: int) -> None:
        """Goes on to a generation: its parents are then known."""
        if generation < self._generation:
            self._restart()
        while self._generation < generation:
            index = self._order.images(self._generation, np.iinfo(np.int32).max)
            genomes, fitness = self._genomes(base, index), self._known(params, base, index)
            own = (self._order.searches, self._order.population)
            genomes = np.concatenate([self._parents, genomes.reshape(*own, *self._program.shape)], axis=1)
            fitness = np.concatenate([self._parents_fitness, fitness.reshape(own)], axis=1)
            best = np.stack([genetic.fittest(one, self._given[1].parents) for one in fitness])
            rows = np.arange(len(best))[:, None]
            self._parents, self._parents_fitness = genomes[rows, best], fitness[rows, best]
            self._generation += 1

    def _genomes(self, base: jax.Array, index: np.ndarray) -> np.ndarray:
        """The genomes of images of the current generation, float32 [n, ...]."""
        numbers = index.astype(np.uint32)
        if not self._generation:
            return self._program.first(base, numbers)
        search, pairs = self._order.search(index), self._program.choose(self._given, numbers)
        one, other = (self._parents[search, pairs[:, side]] for side in (0, 1))
        return self._program.child(self._given, numbers, one, other)

    def _draw(self, params: Any, base: jax.Array, index: np.ndarray) -> np.ndarray:
        return self._program.draw((params, base), index.astype(np.uint32), self._genomes(base, index))

    def _judge(self, params: Any, index: np.ndarray, images: np.ndarray) -> None:
        fitness = self._program.fitness(params, images, self.labels(index))
        self._fitness.update(zip(index.tolist(), fitness.tolist(), strict=True))

    def _known(self, params: Any, base: jax.Array, index: np.ndarray) -> np.ndarray:
        """The fitness of images of the current generation, float32 [n]; generates them where nothing has."""
        unknown = np.asarray([i for i in index.tolist() if i not in self._fitness], int)
        for start in range(0, len(unknown), self.batch_size):
            part = unknown[start : start + self.batch_size]
            try:
                images = self._stored(part)
            except InputError:
                images = self._draw(params, base, part)
            self._judge(params, part, images)
        return np.asarray([self._fitness[i] for i in index.tolist()], np.float32)
