"""Checks of settings; an error is one sentence with the key, its value and the requirement."""

from collections.abc import Collection
from typing import Any

from side_jax.errors import InputError


def check(ok: bool, key: str, value: Any, need: str) -> None:
    """Raises InputError unless ok; `need` completes the sentence "it must be ..."."""
    if not ok:
        raise InputError(f"config.{key} is {value!r}, but it must be {need}.")


def one_of(key: str, value: str, choices: Collection[str]) -> None:
    """Raises InputError unless the value is one of the choices."""
    check(value in choices, key, value, f"one of {', '.join(choices)}")
