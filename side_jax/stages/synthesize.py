"""Stage 2: draws synthetic images from the DPM, without any condition."""

import logging
from pathlib import Path

import ml_collections

from side_jax import builders, files, images, sampling
from side_jax.config import from_config
from side_jax.manifest import unit

logger = logging.getLogger(__name__)


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes synthesize/shard_*.npz and the picture synthesize/samples.png."""
    settings = from_config(config)
    if not settings.extract.needs_pseudo_labels:
        logger.info("synthesize: not needed, since config.extract.attacks has none that learns from synthetic images.")
        return
    work = unit(settings, workdir, "synthesize")
    if not work.begin():
        return
    dpm = builders.restore_ema(settings, builders.train_unit(settings, workdir), builders.build_unet(settings))
    sampling.write_shards(
        builders.build_generator(settings),
        work.directory,
        params={"dpm": dpm.trees["ema"]},
        base=builders.base_key(settings, "synthesize"),
        num_images=settings.synthesize.num_images,
        description="synthesize",
    )
    made = sampling.read_shards(work.directory, settings.synthesize.num_images)
    with files.atomic(work.directory / "samples.png") as file:
        file.write(images.png(images.grid(made["images"][:64], columns=8)))
    work.finish(index_range=[0, settings.synthesize.num_images])
