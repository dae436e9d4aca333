"""Stage 1: splits the data and trains the unconditional DPM on the members."""

import logging
from pathlib import Path

import jax
import ml_collections

from side_jax import builders, checkpoint, files, sampling, training
from side_jax.config import from_config
from side_jax.data import datasets, split
from side_jax.diffusion.process import denoising_loss

logger = logging.getLogger(__name__)


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes train/split.json, train/metrics.jsonl and checkpoints/<step>/{state,ema,meta}."""
    settings = from_config(config)
    unit = builders.train_unit(settings, workdir)
    if not unit.begin():
        return
    path = unit.directory / "split.json"
    if not path.exists():
        files.write_json(path, split.make_split(datasets.load(settings.data), settings.data, settings.seed))
    members, heldout, _, _ = builders.load_split(settings, workdir)
    logger.info("train: %d members, %d held-out images that the model never sees.", len(members), len(heldout))

    unet, schedule = builders.build_unet(settings), builders.build_schedule(settings)
    seed = builders.stream_seed(settings, "train")

    def loss_fn(params, batch, key):
        key_loss, key_dropout = jax.random.split(key)

        def denoise(x, t):
            return unet.apply({"params": params}, x, t, deterministic=False, rngs={"dropout": key_dropout})

        return denoising_loss(denoise, schedule, batch[0], key_loss).mean(), {}

    params = training.run(
        loss_fn=loss_fn,
        init_fn=builders.init_fn(unet, settings, seed),
        examples=(sampling.to_float(members.images),),
        fit=settings.train,
        seed=seed,
        directory=unit.directory,
        checkpoints=builders.checkpoint_directory(workdir, "train"),
        meta=checkpoint.settings_meta(settings, unit.fingerprint),
        description="train the DPM",
    )
    unit.finish(steps=settings.train.num_steps, parameters=sum(leaf.size for leaf in jax.tree.leaves(params)))
