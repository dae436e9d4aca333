"""Times the steps of a run on this machine, and their compilation, with random parameters and the run's batch sizes.

Nothing is written. A step is run once to compile it; slow ones are then timed once, others several times.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax import builders
from side_jax.attacks.table import PLAIN, Attack, Classifier
from side_jax.models import adapters
from side_jax.settings import Settings
from side_jax.stages.estimates import Timing
from side_jax.training import losses, trainer
from side_jax.training.losses import build_loss

REPEATS = 3
SLOW = 2.0  # seconds; what takes longer is timed once
STEPS, MORE_STEPS = 2, 10  # of sampling, for one timing; more where they are quick, of which a call costs as much
QUICK = 0.2  # seconds
EDGE = 512  # of the matrices whose product is timed


class Clock:
    """Times a step of each kind once, when first requested; see stages.estimates.Clock."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._timings: dict[Any, Timing] = {}
        self._planned: set[Any] = set()

    def for_plan(self, settings: Settings) -> "Clock":
        """The clock for another plan, in which nothing is compiled yet: what was timed counts for it too.

        Args:
          settings: of that plan, with the same networks and batch sizes.
        """
        other = Clock(settings)
        other._timings = self._timings
        return other

    def _timing(self, key: Any, measure: Callable[[], Timing]) -> Timing:
        if key not in self._timings:
            self._timings[key] = measure()
        again = key in self._planned
        self._planned.add(key)
        return dataclasses.replace(self._timings[key], again=again)

    def train_step(self) -> Timing:
        """One training step of the DPM."""
        settings = self._settings

        def measure() -> Timing:
            unet = builders.build_network(settings)
            loss_fn = build_loss(settings, unet, builders.build_schedule(settings))
            labels = (np.zeros(settings.train.batch_size, np.int32),) if settings.condition.labels else ()
            return self._step(loss_fn, unet, settings.train, labels)

        return self._timing("train", measure)

    def classifier_step(self, classifier: Classifier) -> Timing:
        """One training step of a classifier."""
        settings, noised, fit = self._settings, classifier.noised, getattr(self._settings, classifier.section)

        def measure() -> Timing:
            module = builders.build_classifier(settings, settings.label.num_clusters, time_dependent=noised)
            loss_fn = losses.classifier_loss(module, builders.build_schedule(settings) if noised else None)
            return self._step(loss_fn, module, fit, (np.zeros(fit.batch_size, np.int32),))

        return self._timing(("classifier", noised), measure)

    def adapter_step(self) -> Timing:
        """One training step of the target's adapters."""
        settings, own, classes = self._settings, self._settings.adapters, self._settings.label.num_clusters

        def measure() -> Timing:
            target, network = builders.build_target(settings), builders.build_adapted_network(settings, classes)
            loss_fn = losses.adapter_loss(network, builders.build_schedule(settings), own.alpha, own.dropout)
            params = builders.init_fn(target.network, settings, 0)()
            make = builders.adapters_fn(settings, params, classes, 0)
            shape = (own.batch_size, *builders.sampled_shape(settings))
            labels = np.zeros(own.batch_size, np.int32)
            batch = np.zeros(shape, np.float32 if target.latent else np.uint8), labels
            given = () if target.default_labels(labels) is None else (labels,)
            return self._stepped(loss_fn, lambda: make() | {adapters.FROZEN: params}, own, (*batch, *given))

        return self._timing("adapters", measure)

    def _step(self, loss_fn: trainer.LossFn, module: Any, fit: Any, labels: tuple[np.ndarray, ...]) -> Timing:
        images = np.zeros((fit.batch_size, *builders.image_shape(self._settings)), np.uint8)
        return self._stepped(loss_fn, builders.init_fn(module, self._settings, 0), fit, (images, *labels))

    def _stepped(
        self, loss_fn: trainer.LossFn, init_fn: Callable[[], Any], fit: Any, batch: tuple[np.ndarray, ...]
    ) -> Timing:
        stepper = trainer.Stepper(loss_fn, init_fn, fit, batch)
        before = time.perf_counter()
        state, key = stepper.initial(), stepper.key(0)
        parts = stepper.load(lambda rows: tuple(array[rows] for array in batch), np.arange(fit.batch_size))
        built = time.perf_counter() - before  # the initial parameters, which are compiled too

        def step() -> None:
            nonlocal state
            state = jax.block_until_ready(stepper(*state, parts, key))

        first, each = _timed(step)
        return Timing(step=each * jax.device_count(), compiling=max(built + first - each, 0.0))

    def sampling_step(self, attack: Attack | None) -> Timing:
        """One sampling step of a batch, guided by an attack; None: unguided."""
        attack = attack or PLAIN
        noised = attack.classifier is None or attack.classifier.noised
        kind = attack.guided, attack.at_x0, attack.own_labels, attack.weak, attack.adapted, noised
        return self._timing(("sampling", *kind), lambda: self._sample(*kind))

    def _sample(self, *kind: bool) -> Timing:
        timing, call = self._call(STEPS, *kind)
        if call > QUICK or self._settings.diffusion.num_timesteps < MORE_STEPS:
            return timing
        return dataclasses.replace(timing, step=self._call(MORE_STEPS, *kind)[0].step)

    def _call(
        self, steps: int, guided: bool, at_x0: bool, own_labels: bool, weak: bool, adapted: bool, noised: bool
    ) -> tuple[Timing, float]:
        """(the timing, seconds of a call) of a batch that takes so many steps."""
        steps = min(steps, self._settings.diffusion.num_timesteps)
        sampler = dataclasses.replace(self._settings.sampler, num_steps=steps)
        extract = dataclasses.replace(self._settings.extract, guidance_interval=())
        settings = dataclasses.replace(self._settings, sampler=sampler, extract=extract)
        params, classifier = {"dpm": builders.init_fn(builders.build_network(settings), settings, 0)()}, None
        if weak:
            params["weak"] = builders.init_fn(builders.build_weak_network(settings), settings, 0)()
        elif guided and not (own_labels or adapted):
            classifier = builders.build_classifier(settings, settings.label.num_clusters, time_dependent=noised)
            params["classifier"] = builders.init_fn(classifier, settings, 0)()
            params["temperature"] = np.ones(settings.diffusion.num_timesteps, np.float32)
        options = {"at_x0": at_x0, "own_labels": own_labels, "weak": weak}
        if adapted:
            classes = settings.label.num_clusters
            params["dpm"] = builders.init_fn(builders.build_adapted_network(settings, classes), settings, 0)()
            generator = builders.build_adapted_generator(settings, classes, steered=True, sampler=sampler)
        else:
            generator = builders.build_generator(settings, classifier, **options)
        index = np.arange(sampler.batch_size)
        first, each = _timed(lambda: generator(params, jax.random.key(0), index, np.zeros_like(index), 1.0))
        # Meanwhile the devices of the other processes sample batches of their own.
        step = each / steps * jax.device_count() / jax.process_count()
        return Timing(step=step, compiling=max(first - each, 0.0)), each

    def product(self) -> float:
        """One multiplication and addition in a product of float32 matrices, on one device, in seconds."""

        def measure() -> Timing:
            multiply = jax.jit(jnp.dot)
            matrix = np.ones((EDGE, EDGE), np.float32)
            _, each = _timed(lambda: jax.block_until_ready(multiply(matrix, matrix)))
            return Timing(step=each / EDGE**3)

        return self._timing("product", measure).step


def _timed(step: Callable[[], Any]) -> tuple[float, float]:
    """(seconds of the first call, which compiles; of a further one)."""
    before = time.perf_counter()
    step()
    first = time.perf_counter() - before
    before = time.perf_counter()
    step()
    once = time.perf_counter() - before
    if once > SLOW:
        return first, once
    before = time.perf_counter()
    for _ in range(REPEATS):
        step()
    return first, (time.perf_counter() - before) / REPEATS
