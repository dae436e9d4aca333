"""Stage 1: splits the data, and trains the unconditional DPM on the members or takes a foreign one."""

import contextlib
import functools
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from side_jax import builders, checkpoint, convert, files, parallel, sampling, training
from side_jax.config import from_config
from side_jax.curves import Curves
from side_jax.data import batches, datasets, split
from side_jax.data.datasets import Dataset
from side_jax.diffusion.process import denoising_loss
from side_jax.errors import InputError
from side_jax.manifest import Unit
from side_jax.monitor import Monitor
from side_jax.settings import Settings

logger = logging.getLogger(__name__)

PROFILE_BINS = 10  # equal parts of 0..T-1, the least noisy first


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes train/split.json, train/metrics.jsonl, train/monitor.jsonl and checkpoints/<step>/{state,ema,meta}."""
    settings = from_config(config)
    unit = builders.train_unit(settings, workdir)
    path = unit.directory / "split.json"
    if not unit.begin():
        return
    if parallel.primary() and not path.exists():
        made = split.make_split(datasets.load(settings.data), settings.data, settings.seed)
        if unit.content().get("split_sha256", _digest(made)) != _digest(made):
            raise InputError(
                f"{path} is missing, and the data are no longer those that the model was trained on; bring either "
                "back, or use a new --workdir."
            )
        files.write_json(path, made)
    parallel.barrier("split")
    members, heldout, _, _ = builders.load_split(settings, workdir, stream=True)
    made = files.read_json(path)
    counts = made["counts"]
    logger.info(
        "train: %d members, %d held-out images that the model never sees; %d exact duplicates left out, "
        "%d held-out images moved out as near duplicates of members.",
        len(members),
        len(heldout),
        counts["exact_duplicates_left_out"],
        counts["near_duplicates_moved"],
    )
    work = _import if settings.target.path else _fit
    unit.finish(split=counts, split_sha256=_digest(made), **work(settings, unit, members, heldout))


def _digest(made: dict[str, Any]) -> str:
    """Of a split's images, wherever they lie."""
    return files.digest([[row["sha256"] for row in made[side]] for side in ("members", "heldout")])


def _import(settings: Settings, unit: Unit, members: Dataset, heldout: Dataset) -> dict[str, Any]:
    """Keeps the foreign model's weights as the checkpoint of step 0."""
    _, params, _ = convert.from_diffusers(settings.target.path)
    meta = checkpoint.settings_meta(settings, unit.fingerprint)
    with checkpoint.Checkpoints(builders.checkpoint_directory(unit.workdir, "train")) as store:
        if store.latest_step() is None:  # else something else of this stage was lost
            params = parallel.place(params, parallel.mesh())
            store.save(0, state={"params": params}, ema=params, meta=meta)
    logger.info("train: took the model of %s; nothing is trained.", settings.target.path)
    return {"steps": 0, "imported": settings.target.path, "parameters": builders.size(params)}


def _fit(settings: Settings, unit: Unit, members: Dataset, heldout: Dataset) -> dict[str, Any]:
    unet, schedule = builders.build_unet(settings), builders.build_schedule(settings)
    seed = builders.stream_seed(settings, "train")
    directory = builders.checkpoint_directory(unit.workdir, "train")
    watch = None
    with contextlib.ExitStack() as stack:
        if settings.monitor.every_steps:
            curves = Curves(
                unit.directory / "monitor.jsonl",
                first_step=checkpoint.latest_step(directory) or 0,
                write=parallel.primary(),
            )
            watch = Monitor(
                settings.monitor,
                builders.build_generator(settings),
                builders.base_key(settings, "monitor"),
                members.images,
                heldout.images[: len(members)],  # as many, so that the closer side is a coin's toss
                stack.enter_context(curves),
            )
        streamed = not isinstance(members.images, np.ndarray)
        params, steps = training.run(
            loss_fn=functools.partial(dpm_loss, unet, schedule, settings.train.horizontal_flip),
            init_fn=builders.init_fn(unet, settings, seed),
            fetch=lambda chosen: (members.images[chosen],),
            num_examples=len(members),
            fit=settings.train,
            seed=seed,
            directory=unit.directory,
            checkpoints=directory,
            meta=checkpoint.settings_meta(settings, unit.fingerprint),
            description="train the DPM",
            watch=watch,
            watch_every=settings.monitor.every_steps,
            loader=batches.prefetched if streamed else map,
        )
    return {"steps": steps, "parameters": builders.size(params)}


def dpm_loss(
    unet: Any, schedule: Any, flip: bool, params: Any, batch: tuple, keys: jax.Array, key: jax.Array
) -> tuple[jax.Array, tuple[training.Metrics, training.Carried]]:
    """The denoising loss of a batch of uint8 images, and its profile over timesteps."""
    images = sampling.to_float(batch[0])
    if flip:
        mirrored = jax.vmap(lambda k: jax.random.bernoulli(jax.random.fold_in(k, 2)))(keys)
        images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        return unet.apply({"params": params}, x, t, deterministic=False, rngs={"dropout": key})

    losses, t = denoising_loss(denoise, schedule, images, keys)
    part = jax.nn.one_hot(t * PROFILE_BINS // schedule.num_timesteps, PROFILE_BINS)
    profile = (losses[:, None] * part).sum(axis=0), part.sum(axis=0)
    return losses.mean(), ({"loss": (losses.sum(), part.sum()), "loss_by_timestep": profile}, {})
