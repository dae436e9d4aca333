"""Which settings are paths: `~` is expanded in them, and a private report leaves them out.

Some may also be ids of the Hugging Face hub, hf://..., whose commit another setting records.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from side_jax.settings.checks import check

_MARK = "path"
_COMMIT = re.compile(r"[0-9a-f]{40}|")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PathSetting:
    """A setting that is a path.

    Attributes:
      section: of the settings; "" before it is known.
      name: of the setting; likewise.
      digest: name of the field of the same section that records the file's SHA-256; "" if none does.
      revision: name of the field of the same section that records the commit of an id of the hub; "" if the path can't
        be such an id.
    """

    section: str = ""
    name: str = ""
    digest: str = ""
    revision: str = ""

    @property
    def recorded(self) -> tuple[str, ...]:
        """The fields of the same section that describe what was found there."""
        return tuple(name for name in (self.digest, self.revision) if name)


def path_field(*, digest: str = "", revision: str = "") -> Any:
    """A dataclass field that holds a path, empty by default; `digest` and `revision` as in PathSetting."""
    return dataclasses.field(default="", metadata={_MARK: PathSetting(digest=digest, revision=revision)})


def is_path(field: dataclasses.Field) -> bool:
    """Whether a setting is a path."""
    return _MARK in field.metadata


def path_fields(settings: type) -> Iterator[PathSetting]:
    """Yields every path in a class of settings."""
    for section in dataclasses.fields(settings):
        if dataclasses.is_dataclass(section.type):
            for field in dataclasses.fields(section.type):
                if is_path(field):
                    yield dataclasses.replace(field.metadata[_MARK], section=section.name, name=field.name)


def check_revision(name: str, value: str) -> None:
    """Raises InputError unless a recorded revision is a commit, or empty."""
    check(bool(_COMMIT.fullmatch(value)), name, value, "empty, or a commit of 40 hexadecimal digits")
