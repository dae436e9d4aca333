"""The workdir of a run: whether it can be used, by whom, and with which config."""

import contextlib
import dataclasses
import fcntl
import functools
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

_MARGIN = 50 * 2**20  # bytes for all that is small
# Bytes for each parameter of a network: two checkpoints are kept and one is in flight, each of float32 parameters, two
# Adam moments and the average.
_TRAINED = 3 * 4 * 4


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes the workdir and holds it for this process alone; the system lets go of it even after a kill.

    Raises:
      InputError: if it can't be written, or another process is using it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # An object store has no locks. The file is held open for as long as the block runs.
        lock = open(workdir / ".lock", "a") if files.local(workdir) else contextlib.nullcontext()  # noqa: SIM115
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"--workdir={workdir} can't be written ({reason}); choose a folder of yours.") from None
    with lock as file:
        try:
            if file:
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
    """Raises InputError where the disk can't hold what the run has yet to write."""
    if not files.local(workdir):
        return
    need, free = space(settings, workdir)
    if free < need:
        raise InputError(
            f"--workdir={workdir} has {free / 2**20:,.0f} MiB free, but what is left of this run can need "
            f"{need / 2**20:,.0f} MiB; free some, or use another disk."
        )


def space(settings: Settings, workdir: Path) -> tuple[int, float]:
    """Bytes that the run has yet to write, at most, and those that are free; of an object store, infinitely many."""
    need = _images_left(settings, workdir) + _networks_left(settings, workdir) + _features_left(settings, workdir)
    ends = [manifest.evaluation_unit(settings, workdir), manifest.report_unit(settings, workdir)]
    if need or not all(work.done() for work in ends):
        need += _MARGIN
    if not files.local(workdir):
        return need, math.inf
    there = next(folder for folder in (workdir, *Path(os.path.abspath(workdir)).parents) if folder.exists())
    return need, shutil.disk_usage(there).free


def _images_left(settings: Settings, workdir: Path) -> int:
    """Images at worst uncompressed."""
    sets = [
        (work, builders.extracted_shards(settings, work)) for _, work in manifest.extraction_units(settings, workdir)
    ]
    if settings.extract.needs_pseudo_labels:
        sets.append((manifest.unit(settings, workdir, "synthesize"), builders.synthetic_shards(settings, workdir)))
    count = 0
    for work, parts in sets:
        begun = work.begun()  # what was made with other settings is made again
        count += sum(len(part.index) for part in parts if not (begun and part.path.exists()))
    return count * math.prod(builders.image_shape(settings))


def _networks_left(settings: Settings, workdir: Path) -> int:
    """Checkpoints of the networks that are not trained yet, less what is there of them."""

    @functools.cache
    def parameters(timed: bool) -> int:
        # How many labels the members have is not known before they are read: as many as there are clusters, say.
        classifier = builders.build_classifier(settings, settings.label.num_clusters, time_dependent=timed)
        return builders.parameter_count(settings, classifier)

    def of_classifier(name: str) -> int:
        timed, s = name != "conditional", settings.surrogate
        best = 2 * 4 * parameters(timed) if (s if timed else settings.conditional).patience else 0  # and its successor
        taught = s.objective == "tdkd" and not s.teacher_path and name.startswith("side")
        return _TRAINED * (parameters(timed) + (parameters(False) if taught else 0)) + best

    train, need = builders.train_unit(settings, workdir), 0
    if not train.done():
        need = max(_TRAINED * builders.parameter_count(settings) - _size(train, workdir / "checkpoints"), 0)
    for name, work in manifest.surrogate_units(settings, workdir).items():
        if not work.done():
            need += max(of_classifier(name) - _size(work, work.directory), 0)
    return need


def _features_left(settings: Settings, workdir: Path) -> int:
    """Features are cached, those of synthetic images also in label/labels.npz; other than pixels are few numbers."""
    if settings.label.features != "pixels":
        return 0
    each, need = 4 * math.prod(builders.image_shape(settings)), 0
    label = manifest.unit(settings, workdir, "label")
    if settings.extract.needs_pseudo_labels and not label.done():
        there = _size(label, workdir / "features") + _size(label, label.directory)
        need = max(2 * each * settings.synthesize.num_images - there, 0)
    heldout = manifest.surrogate_units(settings, workdir).get("side_heldout")
    if heldout and not heldout.done():
        need += each * settings.data.num_heldout
    return need


def _size(work: manifest.Unit, folder: Path) -> int:
    """Bytes below a folder on a local disk that belong to the unit as it is set now."""
    if not work.begun():
        return 0
    return sum(os.path.getsize(Path(where) / name) for where, _, names in os.walk(folder) for name in names)


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
