"""Reads, checks and writes the config saved in a workdir."""

import dataclasses
from pathlib import Path
from typing import Any

import ml_collections

from side_jax import __version__
from side_jax.config import default_config, from_config, to_config
from side_jax.errors import InputError
from side_jax.settings import Settings
from side_jax.stages import stage_table
from side_jax.workdir import files, work_units


def saved_config(workdir: Path) -> ml_collections.ConfigDict:
    """Returns the resolved config that a workdir was made with, locked.

    Raises:
      InputError: if there is none, or another version of side_jax made it.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise InputError(f"--workdir={workdir} holds no config.json; give --config=NAME to start a run there.")
    return to_config(_read(workdir)).lock()


def _read(workdir: Path) -> Settings:
    """The settings in config.json; those that the version which wrote it did not have take their defaults."""
    saved = files.read_json(workdir / "config.json")
    try:
        return from_config(ml_collections.ConfigDict(_filled(saved, default_config().to_dict())))
    except InputError as error:
        raise InputError(
            f"--workdir={workdir} was made by {_author(workdir)}, and this is side_jax {__version__}: {error} Use that "
            "version, or a new --workdir."
        ) from None


def _author(workdir: Path) -> str:
    """The version of side_jax that began a workdir."""
    path = workdir / "train" / "manifest.json"
    return work_units.written_by(files.read_json(path) if path.exists() else {})


def _filled(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The values, with the defaults of all keys that are missing."""
    filled = defaults | values
    for name, value in defaults.items():
        if isinstance(value, dict) and isinstance(filled[name], dict):
            filled[name] = _filled(filled[name], value)
    return filled


def adopt(settings: Settings, workdir: Path) -> None:
    """Writes config.json, unless the workdir's DPM was trained with other settings.

    Later stages run again when their settings change; the DPM, the most expensive part, is never discarded.

    Raises:
      InputError: if the DPM's settings differ; names them.
    """
    check_model(settings, workdir)
    files.write_json(workdir / "config.json", dataclasses.asdict(settings))


def check_model(settings: Settings, workdir: Path) -> None:
    """Raises InputError if the workdir's DPM was trained with other settings; the message names them."""
    path = workdir / "config.json"
    if path.exists():
        before = _read(workdir)
        if stage_table.fingerprint(before, "train") != stage_table.fingerprint(settings, "train"):
            old, new = (_flat(dataclasses.asdict(s)) for s in (before, settings))
            keys = [key for key in new if key.partition(".")[0] in stage_table.TARGET_SECTIONS and old[key] != new[key]]
            listed = ", ".join(f"{key} {old[key]!r} there and {new[key]!r} here" for key in keys[:4])
            raise InputError(
                f"--workdir={workdir} holds a model made with another config ({listed}); use a new "
                "--workdir, or that config."
            )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
