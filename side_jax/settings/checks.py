"""Checks of settings; an error is one sentence with the key, its value and the requirement."""

from collections.abc import Collection, Sequence
from typing import Any

from side_jax.errors import InputError


def check(ok: bool, key: str, value: Any, need: str) -> None:
    """Raises InputError unless ok; `need` completes the sentence "it must be ..."."""
    if not ok:
        raise InputError(f"config.{key} is {value!r}, but it must be {need}.")


def one_of(key: str, value: str, choices: Collection[str]) -> None:
    """Raises InputError unless the value is one of the choices."""
    check(value in choices, key, value, f"one of {', '.join(choices)}")


def check_different(key: str, values: Sequence[Any]) -> None:
    """Raises InputError unless there are one or more values, each of them once."""
    check(0 < len(values) == len(set(values)), key, values, "one or more different values")


def check_scales(key: str, values: Sequence[float]) -> None:
    """Raises InputError unless there are one or more guidance scales, which the names of runs can tell apart."""
    ok = 0 < len(values) == len({f"{value:g}" for value in values}) and min(values) >= 0
    check(ok, key, values, "one or more different numbers of at least 0")
