"""The plan of a run (--dry-run): remaining work, device-seconds estimated from timed steps, and disk space.

One training step of each network and one sampling step of each kind are compiled and timed on this machine, with random
parameters and the run's batch sizes; nothing is written. Clustering, evaluation and the report are not timed.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from side_jax import builders
from side_jax.attacks.table import PLAIN, Attack, Classifier
from side_jax.pipeline import space
from side_jax.settings import Settings
from side_jax.stages import stage_table
from side_jax.stages.estimates import Cost
from side_jax.training import losses, trainer
from side_jax.training.losses import build_loss

REPEATS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A unit of work and its remaining cost."""

    unit: str
    cost: Cost


def lines(settings: Settings, workdir: Path, chosen: list[str]) -> list[Line]:
    """The remaining cost of each unit of the chosen stages that is worth timing."""
    clock = _Clock(settings)
    works = [work for name in chosen for work in stage_table.STAGES[name].plan(settings, workdir)]
    return [Line(unit=work.unit.name, cost=work.cost(clock)) for work in works if work.cost]


def text(settings: Settings, workdir: Path, chosen: list[str]) -> str:
    """The plan as printed text."""
    planned = lines(settings, workdir, chosen)
    device = jax.devices()[0]
    rows = [f"Plan of {settings.name} in {workdir}, on {jax.device_count()} x {device.device_kind}:"]
    width = max((len(line.unit) for line in planned), default=0)
    for line in planned:
        cost = line.cost
        size = f"{cost.size / 2**20:10,.1f} MiB" if cost.size else ""
        rows.append(f"  {line.unit:{width}}  {cost.left:42} {cost.seconds:12,.1f} device-seconds {size}".rstrip())
    total = sum(line.cost.seconds for line in planned)
    hours = total / jax.device_count() / 3600
    rows.append(
        f"  Total: {total:,.0f} device-seconds, {hours:,.2f} hours on these devices, from timed steps; excludes "
        "compilation, clustering, evaluation and the report."
    )
    need, free = space.space(settings, workdir)
    rows.append(f"  Disk: at most {need / 2**20:,.0f} MiB, with {free / 2**20:,.0f} MiB free. Nothing was written.")
    return "\n".join(rows)


class _Clock:
    """Times a step of each kind once, when first requested; see stages.estimates.Clock."""

    def __init__(self, settings: Settings):
        self._settings, self._timings = settings, {}

    def _device_seconds(self, key: Any, measure: Callable[[], float]) -> float:
        if key not in self._timings:
            self._timings[key] = measure() * jax.device_count()
        return self._timings[key]

    def train_step(self) -> float:
        """Device-seconds of one training step of the DPM."""
        settings = self._settings
        unet = builders.build_network(settings)
        loss_fn = build_loss(settings, unet, builders.build_schedule(settings))
        labels = (np.zeros(settings.train.batch_size, np.int32),) if settings.condition.labels else ()
        return self._device_seconds("train", lambda: self._step(loss_fn, unet, settings.train, labels))

    def classifier_step(self, classifier: Classifier) -> float:
        """Device-seconds of one training step of a classifier."""
        settings, noised, fit = self._settings, classifier.noised, getattr(self._settings, classifier.section)
        module = builders.build_classifier(settings, settings.label.num_clusters, time_dependent=noised)
        loss_fn = losses.classifier_loss(module, builders.build_schedule(settings) if noised else None)
        labels = (np.zeros(fit.batch_size, np.int32),)
        return self._device_seconds(("classifier", noised), lambda: self._step(loss_fn, module, fit, labels))

    def _step(self, loss_fn: trainer.LossFn, module: Any, fit: Any, labels: tuple[np.ndarray, ...]) -> float:
        images = np.zeros((fit.batch_size, *builders.image_shape(self._settings)), np.uint8)
        batch = (images, *labels)
        stepper = trainer.Stepper(loss_fn, builders.init_fn(module, self._settings, 0), fit, batch)
        (state, ema), key = stepper.initial(), stepper.key(0)
        parts = stepper.load(lambda rows: tuple(array[rows] for array in batch), np.arange(fit.batch_size))
        state, ema = jax.block_until_ready(stepper(state, ema, parts, key))  # compiles
        start = time.perf_counter()
        for _ in range(REPEATS):
            state, ema = stepper(state, ema, parts, key)
        jax.block_until_ready((state, ema))
        return (time.perf_counter() - start) / REPEATS

    def sampling_step(self, attack: Attack | None) -> float:
        """Device-seconds of one sampling step of a batch, guided by an attack; None: unguided."""
        attack = attack or PLAIN
        noised = attack.classifier is None or attack.classifier.noised
        kind = attack.guided, attack.at_x0, attack.own_labels, attack.weak, noised
        return self._device_seconds(("sampling", *kind), lambda: self._sample(*kind))

    def _sample(self, guided: bool, at_x0: bool, own_labels: bool, weak: bool, noised: bool) -> float:
        steps = min(4, self._settings.diffusion.num_timesteps)
        sampler = dataclasses.replace(self._settings.sampler, num_steps=steps)
        extract = dataclasses.replace(self._settings.extract, guidance_interval=())
        settings = dataclasses.replace(self._settings, sampler=sampler, extract=extract)
        params, classifier = {"dpm": builders.init_fn(builders.build_network(settings), settings, 0)()}, None
        if weak:
            params["weak"] = builders.init_fn(builders.build_weak_network(settings), settings, 0)()
        elif guided and not own_labels:
            classifier = builders.build_classifier(settings, settings.label.num_clusters, time_dependent=noised)
            params["classifier"] = builders.init_fn(classifier, settings, 0)()
            params["temperature"] = np.ones(settings.diffusion.num_timesteps, np.float32)
        options = {"at_x0": at_x0, "own_labels": own_labels, "weak": weak}
        generator = builders.build_generator(settings, classifier, **options)
        index = np.arange(sampler.batch_size)
        generator(params, jax.random.key(0), index, np.zeros_like(index), 1.0)  # compiles
        start = time.perf_counter()
        for _ in range(REPEATS):
            generator(params, jax.random.key(0), index, np.zeros_like(index), 1.0)
        # Meanwhile the devices of the other processes sample batches of their own.
        return (time.perf_counter() - start) / (REPEATS * steps) / jax.process_count()
