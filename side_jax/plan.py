"""What a run would do (--dry-run): what is left of each stage, device-seconds from timed steps, disk space.

One training step, one unguided and one guided sampling step of the run's own networks and batches are compiled and
timed on this machine, with random parameters; nothing is written. Clustering, evaluation and the report are not timed.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from side_jax import builders, checkpoint, losses, manifest, shards, training
from side_jax import workdir as workdirs
from side_jax.settings import ATTACKS, Attack, ClassifierFit, Run, Settings
from side_jax.stages.train import build_loss

REPEATS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One unit of work: what is left of it, its device-seconds, and the bytes of its images, uncompressed."""

    unit: str
    left: str
    seconds: float
    size: int = 0


def lines(settings: Settings, workdir: Path, chosen: list[str]) -> list[Line]:
    """The chosen stages' units of work that take time, with what is left of each."""
    clock = _Clock(settings)
    found = []
    if "train" in chosen:
        work = builders.train_unit(settings, workdir)
        found.append(_training(work, settings.train, clock.train_step, imported=bool(settings.target.path)))
    if "synthesize" in chosen and settings.extract.needs_pseudo_labels:
        work = manifest.unit(settings, workdir, "synthesize")
        found.append(_sampling(settings, work, builders.synthetic_shards(settings, workdir), clock, None))
    if "surrogate" in chosen:
        for name, work in manifest.surrogate_units(settings, workdir).items():
            fit = settings.conditional if name == "conditional" else settings.surrogate
            found.append(_training(work, fit, lambda name=name, fit=fit: clock.classifier_step(name, fit)))
    if "extract" in chosen:
        for run, work in manifest.extraction_units(settings, workdir):
            found.append(_sampling(settings, work, builders.extracted_shards(settings, work), clock, run))
    return found


def text(settings: Settings, workdir: Path, chosen: list[str]) -> str:
    """The plan for people."""
    found = lines(settings, workdir, chosen)
    device = jax.devices()[0]
    rows = [f"Plan of {settings.name} in {workdir}, on {jax.device_count()} x {device.device_kind}:"]
    for line in found:
        size = f"{line.size / 2**20:10,.1f} MiB" if line.size else ""
        rows.append(f"  {line.unit:28} {line.left:42} {line.seconds:12,.1f} device-seconds {size}".rstrip())
    total = sum(line.seconds for line in found)
    hours = total / jax.device_count() / 3600
    rows.append(
        f"  In all {total:,.0f} device-seconds, {hours:,.2f} hours on these devices, from timed steps; compilation, "
        "clusters, evaluation and the report come on top."
    )
    need, free = workdirs.space(settings, workdir)
    rows.append(f"  Disk: at most {need / 2**20:,.0f} MiB, with {free / 2**20:,.0f} MiB free. Nothing was written.")
    return "\n".join(rows)


def _training(work: manifest.Unit, fit: Any, step: Callable[[], float], imported: bool = False) -> Line:
    done = checkpoint.latest_step(builders.checkpoint_directory(work.workdir, work.name)) or 0
    if work.done():
        return Line(unit=work.name, left="done", seconds=0.0)
    if imported:
        return Line(unit=work.name, left="takes the model of target.path", seconds=0.0)
    left = max(fit.num_steps - (done if work.begun() else 0), 0)
    return Line(unit=work.name, left=f"{left:,} of {fit.num_steps:,} steps", seconds=left * step())


def _sampling(
    settings: Settings, work: manifest.Unit, parts: list[shards.Shard], clock: "_Clock", run: Run | None
) -> Line:
    usable = work.begun()  # what was made with other settings is made again
    todo = [part for part in parts if not (usable and part.intact(thorough=False))]
    images = sum(len(part.index) for part in todo)
    if not todo:
        return Line(unit=work.name, left="done", seconds=0.0)
    size = images * math.prod(builders.image_shape(settings))
    left = f"{len(todo):,} of {len(parts):,} shards, {images:,} images"
    attack = ATTACKS[run.attack if run else "unconditional"]
    guided = attack.guided
    by = settings.guided_sampler if guided else settings.sampler
    segments = builders.build_step_table(settings, by).segments(guided)
    batch = sum((stop - start) * clock.sampling_step(attack if flag else None) for start, stop, flag in segments)
    return Line(unit=work.name, left=left, seconds=len(todo) * batch, size=size)


class _Clock:
    """Times a step of each kind once, when first asked."""

    def __init__(self, settings: Settings):
        self._settings, self._known = settings, {}

    def _device_seconds(self, key: Any, measure: Callable[[], float]) -> float:
        if key not in self._known:
            self._known[key] = measure() * jax.device_count()
        return self._known[key]

    def train_step(self) -> float:
        """Of the DPM."""
        settings = self._settings
        unet = builders.build_unet(settings)
        loss_fn = build_loss(settings, unet, builders.build_schedule(settings))
        labels = (np.zeros(settings.train.batch_size, np.int32),) if settings.condition.labels else ()
        return self._device_seconds("train", lambda: self._step(loss_fn, unet, settings.train, labels))

    def classifier_step(self, name: str, fit: ClassifierFit) -> float:
        """Of a classifier's training."""
        settings, timed = self._settings, name != "conditional"
        module = builders.build_classifier(settings, settings.label.num_clusters, time_dependent=timed)
        loss_fn = losses.classifier_loss(module, builders.build_schedule(settings) if timed else None)
        labels = (np.zeros(fit.batch_size, np.int32),)
        return self._device_seconds(("classifier", timed), lambda: self._step(loss_fn, module, fit, labels))

    def _step(self, loss_fn: training.LossFn, module: Any, fit: Any, more: tuple[np.ndarray, ...]) -> float:
        images = np.zeros((fit.batch_size, *builders.image_shape(self._settings)), np.uint8)
        batch = (images, *more)
        stepper = training.Stepper(loss_fn, builders.init_fn(module, self._settings, 0), fit, batch)
        (state, ema), key = stepper.initial(), stepper.key(0)
        parts = stepper.load(lambda rows: tuple(array[rows] for array in batch), np.arange(fit.batch_size))
        state, ema = jax.block_until_ready(stepper(state, ema, parts, key))  # compiles
        start = time.perf_counter()
        for _ in range(REPEATS):
            state, ema = stepper(state, ema, parts, key)
        jax.block_until_ready((state, ema))
        return (time.perf_counter() - start) / REPEATS

    def sampling_step(self, attack: Attack | None) -> float:
        """Of a batch of every local device; None: without guidance."""
        at_x0, own_labels = (attack.at_x0, attack.own_labels) if attack else (False, False)
        kind = attack is not None, at_x0, own_labels
        return self._device_seconds(("sampling", *kind), lambda: self._sample(*kind))

    def _sample(self, guided: bool, at_x0: bool, own_labels: bool) -> float:
        steps = min(4, self._settings.diffusion.num_timesteps)
        sampler = dataclasses.replace(self._settings.sampler, num_steps=steps)
        extract = dataclasses.replace(self._settings.extract, guidance_interval=())
        settings = dataclasses.replace(self._settings, sampler=sampler, extract=extract)
        params, classifier = {"dpm": builders.init_fn(builders.build_unet(settings), settings, 0)()}, None
        if guided and not own_labels:
            classifier = builders.build_classifier(settings, settings.label.num_clusters, time_dependent=not at_x0)
            params["classifier"] = builders.init_fn(classifier, settings, 0)()
            params["temperature"] = np.ones(settings.diffusion.num_timesteps, np.float32)
        generator = builders.build_generator(settings, classifier, at_x0=at_x0, own_labels=own_labels)
        index = np.arange(sampler.batch_size)
        generator(params, jax.random.key(0), index, np.zeros_like(index), 1.0)  # compiles
        start = time.perf_counter()
        for _ in range(REPEATS):
            generator(params, jax.random.key(0), index, np.zeros_like(index), 1.0)
        # The other processes' devices sample batches of their own meanwhile.
        return (time.perf_counter() - start) / (REPEATS * steps) / jax.process_count()
