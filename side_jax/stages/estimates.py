"""What is left of a unit of work: device-seconds from timed steps, and bytes on disk."""

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from side_jax import builders
from side_jax.attacks.table import Attack, Classifier
from side_jax.sampling import shards
from side_jax.settings import Fit, Settings
from side_jax.workdir import checkpoint
from side_jax.workdir.work_units import Unit

# Bytes for each parameter of a network in training: two checkpoints are kept and one is being written, each of float32
# parameters, two Adam moments and the average.
_TRAINED = 3 * 4 * 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What is left of a unit, in words; its device-seconds; the bytes of its images, uncompressed."""

    left: str
    seconds: float
    size: int = 0


class Clock(Protocol):
    """Device-seconds of one step of each kind, timed on this machine."""

    def train_step(self) -> float:
        """One step of training the target model."""

    def classifier_step(self, classifier: Classifier) -> float:
        """One step of training a classifier."""

    def sampling_step(self, attack: Attack | None) -> float:
        """One step of sampling a batch on every local device, guided by an attack; None: unguided."""


def training(work: Unit, fit: Fit, step: Callable[[Clock], float], clock: Clock, *, imported: bool = False) -> Cost:
    """The cost of training a network that has a unit of its own.

    Args:
      work: the unit.
      fit: how it is trained.
      step: the device-seconds of one step.
      clock: times it.
      imported: whether the network was trained elsewhere.
    """
    if work.done():
        return Cost(left="done", seconds=0.0)
    if imported:
        return Cost(left="takes the model of target.path", seconds=0.0)
    done = checkpoint.latest_step(checkpoint.checkpoint_directory(work.workdir, work.name)) or 0
    left = max(fit.num_steps - (done if work.begun() else 0), 0)
    return Cost(left=f"{left:,} of {fit.num_steps:,} steps", seconds=left * step(clock))


def sampling(settings: Settings, work: Unit, parts: list[shards.Shard], attack: Attack | None, clock: Clock) -> Cost:
    """The cost of the shards that are missing or damaged; of plain sampling where the attack is None or unguided."""
    usable = work.begun()  # what was made with other settings is made again
    todo = [part for part in parts if not (usable and part.intact(thorough=False))]
    images = sum(len(part.index) for part in todo)
    if not todo:
        return Cost(left="done", seconds=0.0)
    guided = attack is not None and attack.guided
    sampler = settings.guided_sampler if guided else settings.sampler
    segments = builders.build_step_table(settings, sampler).segments(guided)
    batch = sum((stop - start) * clock.sampling_step(attack if flag else None) for start, stop, flag in segments)
    return Cost(
        left=f"{len(todo):,} of {len(parts):,} shards, {images:,} images",
        seconds=len(todo) * batch,
        size=images * math.prod(builders.image_shape(settings)),
    )


def image_bytes(settings: Settings, work: Unit, parts: list[shards.Shard]) -> int:
    """Bytes of the images yet to be written, at worst uncompressed."""
    begun = work.begun()  # what was made with other settings is made again
    count = sum(len(part.index) for part in parts if not (begun and part.path.exists()))
    return count * math.prod(builders.image_shape(settings))


def target_bytes(settings: Settings, work: Unit) -> int:
    """Bytes of the target's checkpoints, less what is there of them."""
    if work.done():
        return 0
    held = _size(work, checkpoint.checkpoint_directory(work.workdir, work.name))
    return max(_TRAINED * builders.parameter_count(settings) - held, 0)


def classifier_bytes(settings: Settings, work: Unit, classifier: Classifier) -> int:
    """Bytes of a classifier's checkpoints, less what is there of them, and of the features that its unit caches."""
    if work.done():
        return 0
    fit, surrogate = getattr(settings, classifier.section), settings.surrogate

    def parameters(time_dependent: bool) -> int:
        # How many labels the members have is not known before they are read: as many as there are clusters, say.
        module = builders.build_classifier(settings, settings.label.num_clusters, time_dependent=time_dependent)
        return builders.parameter_count(settings, module)

    own = parameters(classifier.noised)
    best = 2 * 4 * own if fit.patience else 0  # and its successor, while that is written
    taught = surrogate.objective == "tdkd" and not surrogate.teacher_path and not classifier.true_labels
    need = _TRAINED * (own + (parameters(False) if taught else 0)) + best
    features = _feature_size(settings) * settings.data.num_heldout if classifier.images == "heldout" else 0
    return max(need - _size(work, work.directory), 0) + features


def feature_bytes(settings: Settings, work: Unit) -> int:
    """Bytes of the synthetic images' features, which are cached and are in label/labels.npz, too."""
    if work.done():
        return 0
    there = _size(work, work.workdir / "features") + _size(work, work.directory)
    return max(2 * _feature_size(settings) * settings.synthesize.num_images - there, 0)


def _feature_size(settings: Settings) -> int:
    """Bytes of one image's features; other than pixels are few numbers."""
    return 4 * math.prod(builders.image_shape(settings)) if settings.label.features == "pixels" else 0


def _size(work: Unit, folder: Path) -> int:
    """Bytes below a folder on a local disk that belong to the unit as it is set now."""
    if not work.begun():
        return 0
    return sum(os.path.getsize(Path(where) / name) for where, _, names in os.walk(folder) for name in names)
