"""Checks and subsamples sets of feature rows."""

import numpy as np


def check_rows(minimum: int, dtype: type = np.float32, /, **sets: np.ndarray) -> list[np.ndarray]:
    """Converts sets to `dtype` [n, d], in their order.

    Args:
      minimum: number of rows that each set must have.
      dtype: np.float32 or np.float64.
      **sets: real [n, d], by the name to use in errors.

    Raises:
      ValueError: if a set is not two-dimensional, has too few rows, is not finite, or differs in d.
    """
    arrays: dict[str, np.ndarray] = {name: np.ascontiguousarray(rows, dtype) for name, rows in sets.items()}
    width = None
    for name, rows in arrays.items():
        if rows.ndim != 2:
            raise ValueError(f"{name} must be rows of features [n, d], got shape {rows.shape}")
        width = rows.shape[1] if width is None else width
        if rows.shape[1] != width:
            raise ValueError(f"{name} has {rows.shape[1]} features where {next(iter(arrays))} has {width}")
        if len(rows) < minimum:
            raise ValueError(f"{name} must have {minimum} rows or more, got {len(rows)}")
        if not np.isfinite(rows).all():
            raise ValueError(f"{name} must be finite, row {np.isfinite(rows).all(axis=1).argmin()} is not")
    return list(arrays.values())


def subsample(rows: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Draws at most `limit` rows without replacement, in their order; returns all rows if there are no more."""
    if len(rows) <= limit:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), limit, replace=False))]
