"""Fits low-rank adapters and labels to the target's own samples by their pseudo-labels, as a unit of work."""

import functools
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np

from side_jax import builders
from side_jax.attacks.table import ADAPTED
from side_jax.diffusion import pixel_range
from side_jax.errors import InputError
from side_jax.models import adapters
from side_jax.sampling import shards
from side_jax.settings import Settings, random_streams
from side_jax.stages import stage_inputs, stage_table
from side_jax.training import losses, trainer
from side_jax.workdir import checkpoint, files
from side_jax.workdir.work_units import Unit

logger = logging.getLogger(__name__)


def fit(settings: Settings, workdir: Path, unit: Unit) -> dict[str, Any]:
    """Trains the adapters and writes their curves and checkpoints; returns the manifest's content."""
    own, seed = settings.adapters, random_streams.stream_seed(settings, unit.name)
    params = jax.device_get(stage_inputs.load_target(settings, workdir).trees["ema"])
    chosen = _ranks(settings, params)
    count = int(own.keep * (_labels(workdir) >= 0).sum())
    _check(settings, chosen, count)
    batch = examples(settings, workdir, {"dpm": params})
    classes = int(batch[1].max()) + 1
    if empty := int((np.bincount(batch[1]) == 0).sum()):
        logger.warning(
            "%s: %d of %d labels have no image among those of adapters.keep, so that nothing is learned for them.",
            ADAPTED.name,
            empty,
            classes,
        )
    make = builders.adapters_fn(settings, params, classes, seed)
    network = builders.build_adapted_network(settings, classes)
    trained, steps = trainer.run(
        loss_fn=losses.adapter_loss(network, builders.build_schedule(settings), own.alpha, own.dropout),
        init_fn=lambda: make() | {adapters.FROZEN: params},
        fetch=lambda rows: tuple(part[rows] for part in batch),
        num_examples=count,
        fit=own,
        seed=seed,
        directory=unit.directory,
        checkpoints=checkpoint.checkpoint_directory(unit.workdir, unit.name),
        meta=checkpoint.settings_meta(settings, unit.fingerprint),
        description="train the adapters",
    )
    capped = sum(rank < own.rank for rank in chosen.values())
    counts = {"images": count, "kernels": len(chosen), "capped": capped, "parameters": builders.size(trained)}
    return {"steps": steps, "classes": classes, **counts}


def load(settings: Settings, workdir: Path) -> tuple[Any, int]:
    """(the parameters of the target with its adapters, see builders.merge_adapters; the number of labels)."""
    unit = stage_table.adapters_unit(settings, workdir)
    unit.check()
    params, classes = stage_inputs.load_target(settings, workdir).trees["ema"], unit.content()["classes"]
    make = builders.adapters_fn(settings, params, classes, 0)
    trained = stage_inputs.restore_average(unit, make).trees["ema"]
    return builders.merge_adapters(settings, params, trained), classes


def examples(settings: Settings, workdir: Path, params: dict[str, Any]) -> tuple[np.ndarray, ...]:
    """(what the target samples for the images of the fit, int32 pseudo-labels [n]), as settings.Adapters chooses them.

    Of a model that always needs a label, also those that the images were drawn with, int32 [n].

    A label belongs to the sample as it was drawn, also where mode seeking moved it.
    """
    own = settings.adapters
    images = shards.read(stage_table.synthetic_shards(settings, workdir))["images"]
    labels = _labels(workdir)
    index = np.flatnonzero(labels >= 0)
    # All samples, though some have no label: which label a model that always needs one gave them goes by their index.
    seek = functools.partial(stage_inputs.taken_to_modes, settings, workdir, params)
    images = seek(images, own.rounds, own.noise, "adapters.noise")
    if own.keep < 1:
        moved = pixel_range.to_float(seek(images, 1, own.noise, "adapters.noise")) - pixel_range.to_float(images)
        distance = np.sqrt(np.square(moved).mean(axis=(1, 2, 3)))[index]
        index = np.sort(index[np.argsort(distance, kind="stable")[: int(own.keep * len(index))]])
    chosen = stage_inputs.sampled(settings, workdir, images[index]), labels[index]
    given = builders.build_target(settings).default_labels(index)
    return chosen if given is None else (*chosen, np.asarray(given))


def _labels(workdir: Path) -> np.ndarray:
    """The pseudo-labels of all synthetic images, int32 [n]; -1 for none."""
    return files.read_npz(workdir / "label" / "labels.npz")["label"].astype(np.int32)


def check_kernels(settings: Settings) -> None:
    """Raises InputError if the network has none of the kernels that are to be adapted."""
    own = settings.adapters
    shapes = jax.eval_shape(builders.init_fn(builders.build_network(settings), settings, 0))
    if own.rank and not _ranks(settings, shapes):
        raise InputError(
            f"config.adapters.kernels is {own.kernels!r}, but the model has no such kernels; choose another one of "
            f"{', '.join(adapters.KERNELS)}."
        )


def _ranks(settings: Settings, params: Any) -> dict[tuple[str, ...], int]:
    """Of the target's adapted kernels, see adapters.ranks."""
    return adapters.ranks(builders.build_network(settings), params, settings.adapters.rank, settings.adapters.kernels)


def _check(settings: Settings, chosen: dict[tuple[str, ...], int], count: int) -> None:
    """Says how many ranks are capped.

    Raises:
      InputError: if the images do not fill a batch.
    """
    own = settings.adapters
    if count < own.batch_size:
        raise InputError(
            f"{ADAPTED.name} has {count} images to learn from, fewer than its batch of {own.batch_size}; lower "
            "adapters.batch_size, raise adapters.keep, or lower label.cohesion_threshold."
        )
    capped = sum(rank < own.rank for rank in chosen.values())
    if capped:
        logger.info(
            "%s: rank %d is above the smaller side of %d of %d kernels, whose adapters get that side as their rank.",
            ADAPTED.name,
            own.rank,
            capped,
            len(chosen),
        )
