"""Which settings are paths: `~` is expanded in them, and a private report leaves them out."""

import dataclasses
from collections.abc import Iterator
from typing import Any

_MARK = "path"


def path_field(*, digest: str = "") -> Any:
    """A dataclass field that holds a path, empty by default.

    Args:
      digest: name of the field of the same section that records the file's SHA-256; "" if none does.
    """
    return dataclasses.field(default="", metadata={_MARK: digest})


def is_path(field: dataclasses.Field) -> bool:
    """Whether a setting is a path."""
    return _MARK in field.metadata


def path_fields(settings: type) -> Iterator[tuple[str, str, str]]:
    """Yields (section, name, digest) of every path in a class of settings; `digest` as in path_field."""
    for section in dataclasses.fields(settings):
        if dataclasses.is_dataclass(section.type):
            for field in dataclasses.fields(section.type):
                if is_path(field):
                    yield section.name, field.name, field.metadata[_MARK]
