"""Trains a DPM as a unit of work: the target, its twin, or the weaker model."""

from typing import Any

import numpy as np

from side_jax import builders
from side_jax.data import batches
from side_jax.data.datasets import Dataset
from side_jax.models.unet import UNet
from side_jax.settings import Fit, Settings, random_streams
from side_jax.training import trainer
from side_jax.training.losses import build_loss
from side_jax.workdir import checkpoint
from side_jax.workdir.work_units import Unit


def train(
    settings: Settings,
    unit: Unit,
    images: Dataset | np.ndarray,
    labels: np.ndarray | None = None,
    *,
    description: str,
    unet: UNet | None = None,
    fit: Fit | None = None,
    watch: trainer.WatchFn | None = None,
    watch_every: int = 0,
    meta: dict[str, Any] | None = None,
    keep: int | None = 2,
) -> dict[str, Any]:
    """Trains a DPM with the random stream of the unit's name; returns the manifest's content.

    Args:
      settings: of the run.
      unit: owns the curves and checkpoints.
      images: uint8 [n, h, w, c], in memory or streamed.
      labels: int32 [n], or None for an unconditional model.
      description: for the progress bar.
      unet: the network; None: the target's.
      fit: how it is trained; None: settings.train.
      watch: see trainer.run.
      watch_every: steps between calls of watch.
      meta: more of the checkpoints' meta.
      keep: number of newest checkpoints to keep; None: all.
    """
    unet, schedule = unet or builders.build_network(settings), builders.build_schedule(settings)
    seed = random_streams.stream_seed(settings, unit.name)
    pixels = images.images if isinstance(images, Dataset) else images
    targets = () if labels is None else (labels,)
    params, steps = trainer.run(
        loss_fn=build_loss(settings, unet, schedule),
        init_fn=builders.init_fn(unet, settings, seed),
        fetch=lambda chosen: (pixels[chosen], *(array[chosen] for array in targets)),
        num_examples=len(images),
        fit=fit or settings.train,
        seed=seed,
        directory=unit.directory,
        checkpoints=checkpoint.checkpoint_directory(unit.workdir, unit.name),
        meta=checkpoint.settings_meta(settings, unit.fingerprint) | (meta or {}),
        description=description,
        watch=watch,
        watch_every=watch_every,
        loader=map if isinstance(pixels, np.ndarray) else batches.prefetch,
        keep=keep,
    )
    return {"steps": steps, "parameters": builders.size(params)}
