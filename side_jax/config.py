"""ConfigDicts, which users and config files write, to validated settings and back; nothing beyond sees a ConfigDict."""

import dataclasses
import math
import runpy
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from side_jax.errors import InputError
from side_jax.settings import Settings


def default_config(cls: type = Settings) -> ml_collections.ConfigDict:
    """The ConfigDict of all defaults, for a config file to override: of an audit, or of another class of settings."""
    return ml_collections.ConfigDict(dataclasses.asdict(cls()))


def base_config(file: str, name: str, *arguments: str) -> ml_collections.ConfigDict:
    """The ConfigDict of another config file of the same folder, for a config file that differs from it in little.

    Args:
      file: __file__ of the config file that asks.
      name: of the other, such as "celeba.py".
      *arguments: for its get_config.
    """
    return runpy.run_path(str(Path(file).with_name(name)))["get_config"](*arguments)


def from_config(config: ml_collections.ConfigDict, cls: type = Settings) -> Any:
    """Validates a ConfigDict; returns Settings, or an object of another class of settings.

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
        kwargs[name] = value
    try:
        return cls(**kwargs)
    except InputError as error:
        raise InputError(str(error).replace("config.*.", f"config.{prefix}")) from None


def _typed(value: Any, like: Any, key: str) -> Any:
    """The value, if it is of the type of `like`; a whole number may stand for a float, which must be finite."""
    if type(like) is float and type(value) is int:
        value = float(value)
    if type(value) is not type(like):
        raise InputError(f"config.{key} holds {value!r}, but it must be of type {type(like).__name__}.")
    if type(value) is float and not math.isfinite(value):
        raise InputError(f"config.{key} holds {value!r}, but it must be finite.")
    return value
