"""Estimates the remaining cost of a unit of work: seconds, from timed steps, and bytes on disk.

What no step stands for, such as the tables of the evaluation, takes the seconds that it took on two CPU cores.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from side_jax import builders
from side_jax.attacks.table import ATTACKS, Attack, Classifier, Run
from side_jax.measure import target_scores
from side_jax.sampling import shards
from side_jax.settings import Fit, Settings
from side_jax.workdir import checkpoint
from side_jax.workdir.work_units import Unit

# Bytes of a checkpoint per trained parameter: float32 parameters, two Adam moments and the average.
_CHECKPOINT = 4 * 4
_TRAINED = 3 * _CHECKPOINT  # on disk: two kept checkpoints and one being written
# Seconds on two CPU cores, measured on configs/digits.py: of clustering, of the evaluation, of each metric's tables of
# one run, of the page, and of the figures of one run.
CLUSTERING, _EVALUATE, _TABLES, _REPORT, _SHEET = 2.0, 3.0, 0.4, 2.0, 0.4
_LIKELIHOOD = 3 * 150  # evaluations for one point, of which a derivative counts as two


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """The remaining cost of a unit.

    Attributes:
      left: the remaining work, as text.
      seconds: device-seconds.
      host: seconds that more devices do not shorten: of compilation, and of the host.
      size: uncompressed bytes of its images.
    """

    left: str
    seconds: float = 0.0
    host: float = 0.0
    size: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """What a compiled program takes.

    Attributes:
      step: device-seconds of one step.
      compiling: seconds of its compilation.
      again: whether an earlier unit of the same plan has compiled it.
    """

    step: float
    compiling: float = 0.0
    again: bool = False

    @property
    def start(self) -> float:
        """Seconds of compilation before its first step."""
        return 0.0 if self.again else self.compiling


_DONE = Cost(left="done")


class Clock(Protocol):
    """Times one step of each kind on this machine."""

    def train_step(self) -> Timing:
        """One step of training the target model."""

    def classifier_step(self, classifier: Classifier) -> Timing:
        """One step of training a classifier."""

    def adapter_step(self) -> Timing:
        """One step of training the target's adapters."""

    def sampling_step(self, attack: Attack | None) -> Timing:
        """One step of sampling a batch on every local device, guided by an attack; None: unguided."""

    def product(self) -> float:
        """One multiplication and addition in a product of float32 matrices, in device-seconds."""


def training(work: Unit, fit: Fit, step: Callable[[Clock], Timing], clock: Clock) -> Cost:
    """The remaining cost of a unit that trains a network.

    Args:
      work: the unit.
      fit: the training settings.
      step: maps the clock to the timing of one step.
      clock: times steps.
    """
    if work.done():
        return _DONE
    done = checkpoint.latest_step(checkpoint.checkpoint_directory(work.workdir, work.name)) or 0
    left = max(fit.num_steps - (done if work.begun() else 0), 0)
    timing = step(clock)
    return Cost(left=f"{left:,} of {fit.num_steps:,} steps", seconds=left * timing.step, host=timing.start)


def imported(work: Unit, clock: Clock) -> Cost:
    """The remaining cost of a unit that reads the target from a file."""
    return _DONE if work.done() else Cost(left="imports the model of target.path")


def sampling(settings: Settings, work: Unit, parts: list[shards.Shard], run: Run | None, clock: Clock) -> Cost:
    """The cost of generating the missing or damaged shards of a run; None: of plain sampling.

    A call of the network in mode seeking costs a step of plain sampling; the classifier of a search, which sees an
    image once, is not counted.
    """
    usable = work.begun()  # files of other settings do not count
    todo = [part for part in parts if not (usable and part.intact(thorough=False))]
    images = sum(len(part.index) for part in todo)
    if not todo:
        return _DONE
    if run and run.rounds:
        steps = [(run.round_calls, clock.sampling_step(None))]
    else:
        attack = ATTACKS[run.attack] if run else None
        segments = _segments(settings, run)
        steps = [(stop - start, clock.sampling_step(attack if flag else None)) for start, stop, flag in segments]
    batches = len(todo)
    if run and ATTACKS[run.attack].searches:  # a batch for each generation that a shard has images of
        generation = builders.search_order(settings).generation
        batches = sum(len(np.unique(generation(np.asarray(part.index)))) for part in todo)
    return Cost(
        left=f"{len(todo):,} of {len(parts):,} shards, {images:,} images",
        seconds=batches * sum(count * timing.step for count, timing in steps),
        host=sum(timing.start for _, timing in steps),
        size=images * math.prod(builders.image_shape(settings)),
    )


def labelling(settings: Settings, work: Unit, clock: Clock) -> Cost:
    """The cost of clustering the synthetic images, at modes if settings ask for it."""
    return _after_rounds(settings, Cost(left="clusters", host=CLUSTERING), work, settings.label.rounds, clock)


def adapting(settings: Settings, work: Unit, clock: Clock) -> Cost:
    """The remaining cost of the target's adapters, and of taking the synthetic images to modes before."""
    cost = training(work, settings.adapters, lambda clock: clock.adapter_step(), clock)
    return _after_rounds(settings, cost, work, settings.adapters.all_rounds, clock)


def _after_rounds(settings: Settings, cost: Cost, work: Unit, rounds: int, clock: Clock) -> Cost:
    """The cost of a unit that first takes all synthetic images to modes, of which nothing is kept."""
    if work.done():
        return _DONE
    if not rounds:
        return cost
    timing, batches = clock.sampling_step(None), -(-settings.synthesize.num_images // settings.sampler.batch_size)
    seconds = cost.seconds + batches * rounds * timing.step
    return dataclasses.replace(cost, seconds=seconds, host=cost.host + timing.start)


def evaluation(settings: Settings, work: Unit, clock: Clock) -> Cost:
    """The cost of scoring every run, and of what the target is asked about members and held-out images."""
    if work.done():
        return _DONE
    data, metrics, runs = settings.data, len(settings.evaluate.metrics), len(settings.runs())
    pairs = (data.num_members + data.num_heldout) * (runs * settings.extract.num_images + data.num_heldout)
    products = metrics * pairs * math.prod(builders.image_shape(settings))
    own = _asked(settings, clock)
    return Cost(
        left=f"{runs} runs", seconds=own.seconds, host=own.host + tabulating(settings) + products * clock.product()
    )


def tabulating(settings: Settings) -> float:
    """Seconds of the tables and tests of the evaluation."""
    return _EVALUATE + len(settings.runs()) * len(settings.evaluate.metrics) * _TABLES


def asked(settings: Settings, clock: Clock) -> float:
    """Seconds of what the evaluation asks the target about members and held-out images."""
    cost = _asked(settings, clock)
    return cost.seconds / jax.device_count() + cost.host


def asked_calls(settings: Settings) -> int:
    """How often the evaluation evaluates the target's network for one image."""
    e, data = settings.evaluate, settings.data
    calls = sum(min(count, e.loss_images) for count in (data.num_members, data.num_heldout)) * target_scores.REPEATS
    calls += e.membership * (data.num_members + data.num_heldout) * target_scores.membership_calls(settings)
    calls += e.label_images * min(e.max_labels, settings.condition.num_labels) * settings.sampler.num_steps
    return calls + e.divergence * 2 * e.divergence_draws * _LIKELIHOOD


def _asked(settings: Settings, clock: Clock) -> Cost:
    e, own, calls = settings.evaluate, clock.sampling_step(None), asked_calls(settings)
    # Compilation grows with the calls in a program.
    programs = 1 + 2 * e.membership + 3 * e.divergence + bool(e.label_images)
    return Cost(left="", seconds=calls / settings.sampler.batch_size * own.step, host=programs * own.compiling)


def reporting(settings: Settings, work: Unit) -> Cost:
    """The cost of writing the page."""
    return _DONE if work.done() else Cost(left="the page", host=_REPORT + len(settings.runs()) * _SHEET)


def _segments(settings: Settings, run: Run | None) -> list[tuple[int, int, bool]]:
    """(start, stop, guided) of the sampler's steps that a run takes; None: plain sampling."""
    sampler = settings.guided_sampler if run and run.guided else settings.sampler
    return list(builders.build_step_table(settings, sampler).segments(run is not None and run.steered))


def network_calls(settings: Settings, run: Run) -> int:
    """How often a run evaluates the target's network for one image, the image that it starts from included.

    A gradient through the network counts as two further evaluations, and a weaker model of its size as one; equal
    evaluations in one step are one, as they are when compiled. Those of a guiding classifier are not counted.
    """
    if run.rounds:
        return run.round_calls + (network_calls(settings, run.start_run) if run.start_run else 0)
    attack, calls = ATTACKS[run.attack], 0
    for start, stop, guided in _segments(settings, run):
        each = 1 + guided * (2 * attack.at_x0 + attack.own_labels + attack.weak + attack.adapted)
        calls += (stop - start) * each
    return calls


def requests(run: Run) -> int | None:
    """How many images a run asks an API for, to have one: those that it starts from and each round; None: it can't."""
    return 1 + run.rounds if ATTACKS[run.attack].needs_api_only else None


def image_bytes(settings: Settings, work: Unit, parts: list[shards.Shard]) -> int:
    """Upper bound of the bytes of images yet to be written: their uncompressed size."""
    begun = work.begun()  # files of other settings do not count
    count = sum(len(part.index) for part in parts if not (begun and part.path.exists()))
    return count * math.prod(builders.image_shape(settings))


def target_bytes(settings: Settings, work: Unit) -> int:
    """Bytes of the target's checkpoints yet to be written."""
    if work.done():
        return 0
    existing = _size(work, checkpoint.checkpoint_directory(work.workdir, work.name))
    each, fit = _TRAINED, settings.train
    if fit.keep_checkpoints:
        each = max(each, -(-fit.num_steps // fit.checkpoint_every) * _CHECKPOINT)
    return max(each * builders.parameter_count(settings) - existing, 0)


def adapter_bytes(settings: Settings, work: Unit) -> int:
    """Bytes yet to be written of the adapters' checkpoints, which leave out the target's parameters."""
    if work.done():
        return 0
    shapes = jax.eval_shape(builders.init_fn(builders.build_network(settings), settings, 0))
    trained = jax.eval_shape(builders.adapters_fn(settings, shapes, settings.label.num_clusters, 0))
    return max(_TRAINED * builders.size(trained) - _size(work, work.directory), 0)


def classifier_bytes(settings: Settings, work: Unit, classifier: Classifier) -> int:
    """Bytes yet to be written of a classifier's checkpoints and of the features that its unit caches."""
    if work.done():
        return 0
    fit, surrogate = getattr(settings, classifier.section), settings.surrogate
    count = _classifier_parameters(settings, classifier.noised)
    best = 2 * 4 * count if fit.patience else 0  # the best parameters, and their successor while it is written
    trains_teacher = surrogate.objective == "tdkd" and not surrogate.teacher_path and classifier.distilled
    need = _TRAINED * (count + (_classifier_parameters(settings, False) if trains_teacher else 0)) + best
    features = _feature_size(settings) * settings.data.num_heldout if classifier.images == "heldout" else 0
    return max(need - _size(work, work.directory), 0) + features


def _classifier_parameters(settings: Settings, time_dependent: bool) -> int:
    # The number of the members' labels is unknown until they are read; the number of clusters stands in for it.
    module = builders.build_classifier(settings, settings.label.num_clusters, time_dependent=time_dependent)
    return builders.parameter_count(settings, module)


def feature_bytes(settings: Settings, work: Unit) -> int:
    """Bytes yet to be written of the synthetic images' features, in the cache and in label/labels.npz."""
    if work.done():
        return 0
    existing = _size(work, work.workdir / "features") + _size(work, work.directory)
    return max(2 * _feature_size(settings) * settings.synthesize.num_images - existing, 0)


def _feature_size(settings: Settings) -> int:
    """Bytes of one image's features; negligible for all but pixels."""
    return 4 * math.prod(builders.image_shape(settings)) if settings.label.features == "pixels" else 0


def _size(work: Unit, folder: Path) -> int:
    """Bytes in a local folder, if the unit was begun with its current fingerprint; otherwise 0."""
    if not work.begun():
        return 0
    return sum(os.path.getsize(Path(parent) / name) for parent, _, names in os.walk(folder) for name in names)
