"""Checking sets of feature rows before they are compared."""

import numpy as np


def checked(least: int, dtype: type = np.float32, /, **sets: np.ndarray) -> list[np.ndarray]:
    """The sets as float32 or `dtype` [n, d], in their order.

    Args:
      least: the number of rows that each must have.
      dtype: np.float32 or np.float64.
      **sets: real [n, d], by the name that an error shall give.

    Raises:
      ValueError: if a set is not rows, has too few of them, holds a number that is not finite, or differs in d.
    """
    arrays: dict[str, np.ndarray] = {name: np.ascontiguousarray(rows, dtype) for name, rows in sets.items()}
    width = None
    for name, rows in arrays.items():
        if rows.ndim != 2:
            raise ValueError(f"{name} must be rows of features [n, d], got shape {rows.shape}")
        width = rows.shape[1] if width is None else width
        if rows.shape[1] != width:
            raise ValueError(f"{name} has {rows.shape[1]} features where {next(iter(arrays))} has {width}")
        if len(rows) < least:
            raise ValueError(f"{name} must have {least} rows or more, got {len(rows)}")
        if not np.isfinite(rows).all():
            raise ValueError(f"{name} must be finite, row {np.isfinite(rows).all(axis=1).argmin()} is not")
    return list(arrays.values())


def drawn(rows: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """At most `limit` of the rows, drawn without replacement, in their order; all of them where they are no more."""
    if len(rows) <= limit:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), limit, replace=False))]
