"""How settings check themselves: one sentence that names the key, its value and what it must be."""

from collections.abc import Collection
from typing import Any

from side_jax.errors import InputError


def check(ok: bool, key: str, value: Any, need: str) -> None:
    """Raises InputError unless ok."""
    if not ok:
        raise InputError(f"config.{key} is {value!r}, but it must be {need}.")


def one_of(key: str, value: str, choices: Collection[str]) -> None:
    """Raises InputError unless the value is one of the choices."""
    check(value in choices, key, value, f"one of {', '.join(choices)}")
