"""The workdir of a run: whether it can be used, by whom, and with which config."""

import contextlib
import dataclasses
import fcntl
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections

from side_jax import builders, files, manifest
from side_jax.config import from_config
from side_jax.errors import InputError
from side_jax.settings import Settings


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes the workdir and holds it for this process alone; the system lets go of it even after a kill.

    Raises:
      InputError: if it can't be written, or another process is using it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not files.local(workdir):  # an object store has no locks
            yield
            return
        file = open(workdir / ".lock", "a")  # noqa: SIM115 held open for as long as the block runs
    except OSError as error:
        raise InputError(
            f"--workdir={workdir} can't be written ({error.strerror}); choose a folder of yours."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"--workdir={workdir} is in use by another run; wait for it, or use another.") from None
        yield


def saved_config(workdir: Path) -> ml_collections.ConfigDict:
    """The resolved config that a workdir was made with.

    Raises:
      InputError: if there is none.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise InputError(f"--workdir={workdir} holds no config.json; give --config=FILE to start a run there.")
    return ml_collections.ConfigDict(files.read_json(path)).lock()


def adopt(config: ml_collections.ConfigDict, settings: Settings, workdir: Path) -> None:
    """Writes config.json, unless the workdir's DPM was made with other settings.

    Later stages are redone where their settings change; the DPM, the most expensive part, is never thrown away.

    Raises:
      InputError: naming what differs.
    """
    check_model(settings, workdir)
    files.write_json(workdir / "config.json", config.to_dict())


def check_model(settings: Settings, workdir: Path) -> None:
    """Raises InputError where the workdir's DPM was made with other settings, naming what differs."""
    path = workdir / "config.json"
    if path.exists():
        saved = files.read_json(path)
        try:
            before = from_config(ml_collections.ConfigDict(saved))
        except InputError as error:
            raise InputError(f"--workdir={workdir} was made by another version of side_jax: {error}") from None
        if manifest.fingerprint(before, "train") != manifest.fingerprint(settings, "train"):
            old, new = (_flat(dataclasses.asdict(s)) for s in (before, settings))
            keys = [key for key in new if key.partition(".")[0] in manifest.TARGET_SECTIONS and old[key] != new[key]]
            listed = ", ".join(f"{key} {old[key]!r} there and {new[key]!r} here" for key in keys[:4])
            raise InputError(
                f"--workdir={workdir} holds a model made with another config ({listed}); use a new "
                "--workdir, or that config."
            )


def check_space(settings: Settings, workdir: Path) -> None:
    """Raises InputError where the disk can't hold what the run will write."""
    need, free = space(settings, workdir)
    if free < need:
        raise InputError(
            f"--workdir={workdir} has {free / 2**20:,.0f} MiB free, but this run can need {need / 2**20:,.0f} MiB; "
            "free some, or use another disk."
        )


def space(settings: Settings, workdir: Path) -> tuple[int, float]:
    """Bytes that the run will write, at most, and those that are free; of an object store, infinitely many."""
    pixels = math.prod(builders.image_shape(settings))
    count = settings.synthesize.num_images + settings.extract.num_images * len(settings.extract.runs())
    # Images at worst uncompressed; two checkpoints kept and one in flight, each of float32 parameters, two Adam
    # moments and the average, for the U-Net. Classifiers are small beside the fixed margin.
    parameters = builders.parameter_count(settings)
    need = count * pixels + 3 * 4 * 4 * parameters + 50 * 2**20
    if settings.extract.clusters_images and settings.label.features == "pixels":  # other features are few numbers
        need += 2 * 4 * pixels * settings.synthesize.num_images  # cached, and in label/labels.npz
    if not files.local(workdir):
        return need, math.inf
    there = next(folder for folder in (workdir, *Path(os.path.abspath(workdir)).parents) if folder.exists())
    return need, shutil.disk_usage(there).free


def check_writable(workdir: Path) -> None:
    """Raises InputError where a folder of the workdir can't be written."""
    if not files.local(workdir):
        return
    for folder in (workdir, *(p for p in workdir.iterdir() if p.is_dir())):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{folder} can't be written; change its permissions, or use another --workdir.")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
