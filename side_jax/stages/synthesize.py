"""Stage synthesize: generates synthetic images with the DPM, unconditionally."""

import logging
from pathlib import Path

import numpy as np

from side_jax import builders
from side_jax.devices import process_group
from side_jax.report import contact_sheet
from side_jax.sampling import shards
from side_jax.settings import Settings, random_streams
from side_jax.stages import stage_inputs, stage_table
from side_jax.stages.stage_table import unit
from side_jax.workdir import files

logger = logging.getLogger(__name__)

SHOWN = 64  # images in samples.png


def run(settings: Settings, workdir: Path) -> None:
    """Writes synthesize/shard_*.npz and the picture synthesize/samples.png."""
    if not settings.needs_synthetic:
        logger.info("synthesize: skipped, since no attack in config.extract.attacks learns from synthetic images.")
        return
    work = unit(settings, workdir, "synthesize")
    if not work.begin(lambda: shards.complete(stage_table.synthetic_shards(settings, workdir))):
        return
    parts = stage_table.synthetic_shards(settings, workdir)
    dpm = stage_inputs.load_target(settings, workdir)
    shards.write(
        builders.build_generator(settings),
        parts,
        params={"dpm": dpm.trees["ema"]},
        base=random_streams.stream_key(settings, "synthesize"),
        labels=np.full(settings.synthesize.num_images, -1, np.int32),
        scale=0.0,
        description="synthesize",
    )
    process_group.barrier("synthesized")
    if process_group.primary():
        shown = shards.read(parts[: -(-SHOWN // settings.sampler.batch_size)])["images"][:SHOWN]
        with files.atomic(work.directory / "samples.png") as file:
            file.write(contact_sheet.png(contact_sheet.grid(shown, columns=8)))
    work.finish([part.path for part in parts], index_range=[0, settings.synthesize.num_images])
