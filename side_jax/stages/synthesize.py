"""Stage 2: draws synthetic images from the DPM, without any condition."""

import logging
from pathlib import Path

import ml_collections
import numpy as np

from side_jax import builders, files, images, parallel, shards
from side_jax.config import from_config
from side_jax.manifest import unit

logger = logging.getLogger(__name__)

SHOWN = 64  # images in samples.png


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes synthesize/shard_*.npz and the picture synthesize/samples.png."""
    settings = from_config(config)
    if not settings.extract.needs_pseudo_labels:
        logger.info("synthesize: not needed, since config.extract.attacks has none that learns from synthetic images.")
        return
    work = unit(settings, workdir, "synthesize")
    parts = builders.synthetic_shards(settings, workdir)
    if not work.begin(lambda: shards.complete(parts)):
        return
    dpm = builders.restore_ema(settings, builders.train_unit(settings, workdir), builders.build_unet(settings))
    shards.write(
        builders.build_generator(settings),
        parts,
        params={"dpm": dpm.trees["ema"]},
        base=builders.base_key(settings, "synthesize"),
        labels=np.full(settings.synthesize.num_images, -1, np.int32),
        scale=0.0,
        description="synthesize",
    )
    parallel.barrier("synthesized")
    if parallel.primary():
        shown = shards.read(parts[: -(-SHOWN // settings.sampler.batch_size)])["images"][:SHOWN]
        with files.atomic(work.directory / "samples.png") as file:
            file.write(images.png(images.grid(shown, columns=8)))
    work.finish(index_range=[0, settings.synthesize.num_images])
