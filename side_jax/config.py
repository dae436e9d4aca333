"""ConfigDicts, which users and config files write, to validated settings and back; nothing beyond sees a ConfigDict."""

import dataclasses
from typing import Any

import ml_collections

from side_jax.errors import InputError
from side_jax.settings import Settings


def default_config() -> ml_collections.ConfigDict:
    """The ConfigDict of all defaults, for a config file to override."""
    return ml_collections.ConfigDict(dataclasses.asdict(Settings()))


def from_config(config: ml_collections.ConfigDict) -> Settings:
    """Validates a ConfigDict.

    Raises:
      InputError: naming the key, its value and what it must be.

    """
    return _build(Settings, config.to_dict(), "")


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
        if dataclasses.is_dataclass(field.type):
            value = _build(field.type, value, f"{prefix}{name}.")
        elif isinstance(field.default, tuple):
            value = tuple(value)
        elif type(field.default) is float and type(value) is int:
            value = float(value)
        elif type(value) is not type(field.default):
            kind = type(field.default).__name__
            raise InputError(f"config.{prefix}{name} is {value!r}, but it must be of type {kind}.")
        kwargs[name] = value
    try:
        return cls(**kwargs)
    except InputError as error:
        raise InputError(str(error).replace("config.*.", f"config.{prefix}")) from None
