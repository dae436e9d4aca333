"""Turns ConfigDicts, which users and config files write, into validated settings, and back; finds config files.

A config file is a Python file with a function get_config(), which returns a ConfigDict. The files in configs/ are part
of the package and are found by name.
"""

import dataclasses
import math
import os
import runpy
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from side_jax.errors import InputError
from side_jax.settings import Settings
from side_jax.settings.paths import is_path


def default_config(cls: type = Settings) -> ml_collections.ConfigDict:
    """Returns the ConfigDict of all defaults, for a config file to override.

    Args:
      cls: the class of settings; by default, those of an audit.

    Example:
      >>> config = default_config()
      >>> config.data.name
      'digits'
    """
    return to_config(cls())


def to_config(settings: Any) -> ml_collections.ConfigDict:
    """Returns the ConfigDict of some settings; from_config turns it back into equal ones."""
    return ml_collections.ConfigDict(dataclasses.asdict(settings))


def base_config(file: str, name: str, *arguments: str) -> ml_collections.ConfigDict:
    """Returns the ConfigDict of another config file in the same folder, for a config file that differs little from it.

    Args:
      file: __file__ of the calling config file.
      name: name of the other file, such as "celeba.py".
      *arguments: for its get_config.
    """
    return runpy.run_path(str(Path(file).with_name(name)))["get_config"](*arguments)


def packaged_configs() -> dict[str, Path]:
    """The configs that come with side_jax: {name: file}, sorted by name.

    An installed package has its own folder configs/; in a clone it stands beside the package.
    """
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if folder.is_dir():
            return {file.stem: file for file in sorted(folder.glob("*.py"))}
    return {}


def load_config(name: str | Path) -> ml_collections.ConfigDict:
    """Loads a config, locked.

    Args:
      name: a packaged config, such as "digits", or the path of a config file. What follows a colon is passed to its
        get_config: "celeba:64".

    Raises:
      InputError: if there is no such config, or it can't be read.

    Example:
      >>> load_config("celeba:64").data.image_size
      64
    """
    given = os.fspath(name)
    stem, colon, argument = given.partition(":")
    packaged = packaged_configs()
    file = packaged.get(stem) or Path(os.path.expanduser(stem))
    if not file.is_file():
        raise InputError(
            f"config {given!r} not found: give the path of a config file, or one of the configs that come with "
            f"side_jax: {', '.join(packaged)}."
        )
    try:
        names = runpy.run_path(str(file))
        if "get_config" not in names:
            raise InputError(
                f"the config file {file} can't be read: it does not define get_config(); let that return the settings."
            )
        config = names["get_config"](*([argument] if colon else []))
    except InputError:
        raise
    except Exception as error:  # a config file is code and may raise anything
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        raise InputError(f"the config file {file} can't be read ({reason}); correct it.") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(f"get_config() in {file} returned {type(config).__name__}, but it must return a ConfigDict.")
    return config.lock()


def with_overrides(config: ml_collections.ConfigDict, overrides: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The config with other values, such as {"extract.num_images": 1024}; from_config checks these.

    Raises:
      InputError: if there is no such setting.
    """
    values = config.to_dict()
    for key, value in overrides.items():
        section, _, name = key.rpartition(".")
        part = values.get(section) if section else values
        if not isinstance(part, dict) or isinstance(part.get(name, {}), dict):
            raise InputError(f"overrides holds {key!r}, which is not a setting; see docs/settings.md.")
        part[name] = value
    return ml_collections.ConfigDict(values)


def from_config(config: ml_collections.ConfigDict, cls: type = Settings) -> Any:
    """Validates a ConfigDict; returns Settings, or an object of another class of settings. Expands `~` in paths.

    Raises:
      InputError: naming the key, its value and what it must be.
    """
    return _build(cls, config.to_dict(), "")


def _build(cls: type, values: dict[str, Any], prefix: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise InputError(
                f"config.{prefix}{name} is not a setting; {prefix or 'the config '}has {', '.join(fields)}."
            )
    kwargs = {}
    for name, field in fields.items():
        if name not in values:
            raise InputError(f"config.{prefix}{name} is missing; start the config file from default_config().")
        value = values[name]
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            value = _build(field.type, value, f"{prefix}{name}.")
        elif isinstance(field.default, tuple):
            if isinstance(value, str) or not isinstance(value, Sequence):
                raise InputError(f"config.{prefix}{name} is {value!r}, but it must be a tuple.")
            like = typing.get_args(field.type)[0]()
            value = tuple(_typed(item, like, prefix + name) for item in value)
        else:
            value = _typed(value, field.default, prefix + name)
        kwargs[name] = os.path.expanduser(value) if is_path(field) else value
    try:
        return cls(**kwargs)
    except InputError as error:
        raise InputError(str(error).replace("config.*.", f"config.{prefix}")) from None


def _typed(value: Any, like: Any, key: str) -> Any:
    """Returns the value if it has the type of `like`; an int may stand for a float, which must be finite."""
    if type(like) is float and type(value) is int:
        value = float(value)
    if type(value) is not type(like):
        raise InputError(f"config.{key} holds {value!r}, but it must be of type {type(like).__name__}.")
    if type(value) is float and not math.isfinite(value):
        raise InputError(f"config.{key} holds {value!r}, but it must be finite.")
    return value
