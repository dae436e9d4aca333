"""Stage train: splits the data, then trains the DPM on the members or imports a checkpoint; trains its twin."""

import contextlib
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from side_jax import builders
from side_jax.data import datasets, member_labels, split
from side_jax.data.datasets import Dataset
from side_jax.devices import placement, process_group
from side_jax.diffusion import pixel_range
from side_jax.errors import InputError
from side_jax.measure import target_scores
from side_jax.progress import doing
from side_jax.sampling.mode_generation import ModeGenerator
from side_jax.settings import Modes, Settings, random_streams
from side_jax.settings.target import OBJECT
from side_jax.stages import stage_inputs, stage_table, train_dpm
from side_jax.targets import formats, objects
from side_jax.training.monitor import Monitor, Sides
from side_jax.workdir import checkpoint, files
from side_jax.workdir.curves import Curves
from side_jax.workdir.work_units import Unit

logger = logging.getLogger(__name__)


def run(settings: Settings, workdir: Path) -> None:
    """Writes train/split.json, train/metrics.jsonl, train/monitor.jsonl and checkpoints/<step>/{state,ema,meta}.

    For the attacks of the twin, also train/twin/metrics.jsonl and its checkpoints.
    """
    _run_target(settings, workdir)
    if settings.extract.needs_twin:
        _run_twin(settings, workdir)


def _run_twin(settings: Settings, workdir: Path) -> None:
    """Trains the twin for as many steps as the target, on as many held-out images as there are members."""
    unit, target = stage_table.twin_unit(settings, workdir), stage_table.train_unit(settings, workdir)
    if not unit.begin():
        return
    members, heldout, _, ids = stage_inputs.load_split(settings, workdir, stream=True)
    count, last = len(members), target.content()["steps"]
    images = heldout.take(np.arange(count))
    labels = member_labels.member_labels(settings, images, ids[:count])
    stops = {"watch": lambda step, _: step >= last, "watch_every": last}
    content = train_dpm.train(settings, unit, images, labels, description="train the twin", **stops)
    unit.finish([unit.directory / "metrics.jsonl"], **content)


def _run_target(settings: Settings, workdir: Path) -> None:
    unit = stage_table.train_unit(settings, workdir)
    path = unit.directory / "split.json"
    if not unit.begin():
        return
    if process_group.primary() and not path.exists():
        with doing("reading and splitting the images"):
            dataset = datasets.load(settings.data, private=settings.report.private)
            new_split = split.make_split(dataset, settings.data, settings.seed)
        digest = stage_inputs.split_digest(new_split)
        if unit.content().get("split_sha256", digest) != digest:
            raise InputError(
                f"{path} is missing, and the data are no longer those that the model was trained on; restore "
                "either, or use a new --workdir."
            )
        files.write_json(path, new_split)
    if process_group.primary():
        unit.record(path)
    process_group.barrier("split")
    members, heldout, ids, _ = stage_inputs.load_split(settings, workdir, stream=True)
    saved_split = files.read_json(path)
    counts = saved_split["counts"]
    logger.info(
        "train: %d members, %d held-out images that the model never sees; excluded %d exact duplicates and "
        "%d held-out images that are near duplicates of members.",
        len(members),
        len(heldout),
        counts["exact_duplicates_left_out"],
        counts["near_duplicates_moved"],
    )
    if settings.target.path:
        content = _import(settings, unit, members)
    else:
        spread = _checked_spread(settings, stage_inputs.spread_of(members))
        labels = member_labels.member_labels(settings, members, ids)
        content = _fit(settings, unit, members, heldout, labels, spread)
    curves = [unit.directory / f"{name}.jsonl" for name in ("metrics", "monitor")]
    unit.finish(curves, split=counts, split_sha256=stage_inputs.split_digest(saved_split), **content)


def _checked_spread(settings: Settings, spread: float) -> float:
    """The spread; raises InputError if mode seeking has no such noise, before anything is trained."""
    for run in settings.runs():
        if run.noise:
            builders.mode_noise_levels(settings, run.noise, run.rounds, spread)
    return spread


def _import(settings: Settings, unit: Unit, members: Dataset) -> dict[str, Any]:
    """Saves the imported model's weights as the checkpoint of step 0."""
    path, revision = settings.target.path, settings.target.revision
    if settings.target.format == OBJECT:
        params, weights, notes = objects.parameters_of(settings.target.sha256), ["a Python object"], ()
    else:
        local = formats.located(settings.target)
        origin = formats.read_target(local, formats.hints(settings)).origin
        params, notes, folder = origin.read_params(), origin.notes, local if local.is_dir() else local.parent
        weights = [os.path.relpath(file, folder) for file in origin.weights]
    encode = functools.partial(target_scores.encoded, settings, params)
    spread = _checked_spread(settings, stage_inputs.spread_of(members, encode))
    meta = checkpoint.settings_meta(settings, unit.fingerprint) | {"spread": spread}
    with checkpoint.Checkpoints(checkpoint.checkpoint_directory(unit.workdir, "train")) as store:
        if store.latest_step() is None:  # otherwise only another output was lost
            params = placement.place(params, placement.training_mesh())
            store.save(0, state={"params": params}, ema=params, meta=meta)
    logger.info("train: imported %s of %s; nothing is trained.", ", ".join(weights), path)
    return {
        "steps": 0,
        "imported": path,
        **({"revision": revision} if revision else {}),
        "target_format": settings.target.format,  # "format" is the manifest's own
        "weights": weights,
        "notes": list(notes),
        "parameters": builders.count(settings, params),
    }


def _fit(
    settings: Settings, unit: Unit, members: Dataset, heldout: Dataset, labels: np.ndarray | None, spread: float
) -> dict[str, Any]:
    """Trains the DPM on the members, with labels int32 [n], or unconditionally if None; `spread` is the members'."""
    directory, watch = checkpoint.checkpoint_directory(unit.workdir, unit.name), None
    with contextlib.ExitStack() as stack:
        if settings.monitor.every_steps:
            curves = Curves(
                unit.directory / "monitor.jsonl",
                first_step=checkpoint.latest_step(directory) or 0,
                write=process_group.primary(),
            )
            watch = Monitor(
                settings.monitor,
                builders.build_generator(settings),
                random_streams.stream_key(settings, "monitor"),
                _sides(settings, unit.directory / "split.json", members, heldout),
                stack.enter_context(curves),
                _seeker(settings, spread) if settings.monitor.seeks_modes else None,
                next((one for one in settings.evaluate.make_metrics() if not one.needs_features), None),
            )
        return train_dpm.train(
            settings,
            unit,
            members,
            labels,
            description="train the DPM",
            watch=watch,
            watch_every=settings.monitor.every_steps,
            meta={"spread": spread},
            keep=None if settings.train.keep_checkpoints else 2,
        )


def _sides(settings: Settings, split_file: Path, members: Dataset, heldout: Dataset) -> Sides:
    """What the monitor compares with: members, and as many held-out images, or fewer where there are fewer."""
    heldout = heldout.take(np.arange(min(len(members), len(heldout))))
    images = (pixel_range.to_float(np.asarray(side.images)) for side in (members, heldout))
    near = [row.get("near_moved", False) for row in files.read_json(split_file)["members"]]
    return Sides(
        **dict(zip(("members", "heldout"), images, strict=True)),
        groups=(members.labels, heldout.labels) if settings.data.split_by == "identity" else None,
        tested=~np.asarray(near),
    )


def _seeker(settings: Settings, spread: float) -> Callable[[np.ndarray], ModeGenerator]:
    """Mode seeking by its default recipe, whatever the attack's is: the monitor may decide when training ends."""
    default = builders.with_modes(settings, Modes())
    levels = builders.mode_noise_levels(default, Modes().noise_levels[0], Modes().rounds[0], spread)
    return lambda samples: builders.build_mode_generator(default, levels, lambda index: samples[index])
