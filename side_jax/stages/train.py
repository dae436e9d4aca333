"""Stage 1: splits the data, and trains the DPM on the members, with labels if asked to, or takes a foreign one."""

import contextlib
import functools
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from side_jax import builders, checkpoint, conditioning, convert, files, parallel, sampling, training
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
    members, heldout, ids, _ = builders.load_split(settings, workdir, stream=True)
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
    if settings.target.path:
        content = _import(settings, unit)
    else:
        content = _fit(settings, unit, members, heldout, conditioning.member_labels(settings, members, ids))
    unit.finish(split=counts, split_sha256=_digest(made), **content)


def _digest(made: dict[str, Any]) -> str:
    """Of a split's images, wherever they lie."""
    return files.digest([[row["sha256"] for row in made[side]] for side in ("members", "heldout")])


def _import(settings: Settings, unit: Unit) -> dict[str, Any]:
    """Keeps the foreign model's weights as the checkpoint of step 0."""
    _, params, _ = convert.from_diffusers(settings.target.path)
    meta = checkpoint.settings_meta(settings, unit.fingerprint)
    with checkpoint.Checkpoints(builders.checkpoint_directory(unit.workdir, "train")) as store:
        if store.latest_step() is None:  # else something else of this stage was lost
            params = parallel.place(params, parallel.mesh())
            store.save(0, state={"params": params}, ema=params, meta=meta)
    logger.info("train: took the model of %s; nothing is trained.", settings.target.path)
    return {"steps": 0, "imported": settings.target.path, "parameters": builders.size(params)}


def _fit(
    settings: Settings, unit: Unit, members: Dataset, heldout: Dataset, labels: np.ndarray | None
) -> dict[str, Any]:
    """Trains the DPM on the members, with their labels int32 [n]; None: an unconditional one."""
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
        given = () if labels is None else (labels,)
        params, steps = training.run(
            loss_fn=build_loss(settings, unet, schedule),
            init_fn=builders.init_fn(unet, settings, seed),
            fetch=lambda chosen: (members.images[chosen], *(array[chosen] for array in given)),
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


def build_loss(settings: Settings, unet: Any, schedule: Any) -> training.LossFn:
    """The DPM's loss by the settings."""
    options = {"label_dropout": settings.condition.dropout}
    return functools.partial(dpm_loss, unet, schedule, settings.train.horizontal_flip, **options)


def dpm_loss(
    unet: Any,
    schedule: Any,
    flip: bool,
    params: Any,
    batch: tuple,
    keys: jax.Array,
    key: jax.Array,
    *,
    label_dropout: float = 0.0,
) -> tuple[jax.Array, tuple[training.Metrics, training.Carried]]:
    """The denoising loss of a batch, and its profile over timesteps.

    The batch is uint8 images [b, h, w, c] and, of a conditional DPM, their labels int32 [b], of which a share of
    label_dropout, drawn by each image's key, is not shown (Ho and Salimans 2022, algorithm 1).
    """
    images = sampling.to_float(batch[0])
    labels = batch[1] if len(batch) > 1 else None
    if labels is not None:
        hidden = jax.vmap(lambda k: jax.random.bernoulli(jax.random.fold_in(k, 3), label_dropout))(keys)
        labels = jnp.where(hidden, -1, labels)
    if flip:
        mirrored = jax.vmap(lambda k: jax.random.bernoulli(jax.random.fold_in(k, 2)))(keys)
        images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        return unet.apply({"params": params}, x, t, deterministic=False, labels=labels, rngs={"dropout": key})

    losses, t = denoising_loss(denoise, schedule, images, keys)
    part = jax.nn.one_hot(t * PROFILE_BINS // schedule.num_timesteps, PROFILE_BINS)
    profile = (losses[:, None] * part).sum(axis=0), part.sum(axis=0)
    return losses.mean(), ({"loss": (losses.sum(), part.sum()), "loss_by_timestep": profile}, {})
