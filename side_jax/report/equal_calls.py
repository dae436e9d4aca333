"""Compares runs at equal cost: the members that each finds with the same number of calls of the model's network."""

from collections.abc import Sequence

import numpy as np
from msgspec import UnsetType

from side_jax.measure.records import Rarefaction


def budget(rarefactions: Sequence[Rarefaction]) -> int | None:
    """The calls of the run that took the fewest in all; None if calls are unknown, or equal in all runs."""
    totals = set()
    for one in rarefactions:
        if isinstance(one.network_calls, UnsetType):
            return None
        totals.add(one.network_calls * one.sizes[-1])
    return min(totals) if len(totals) > 1 else None


def found(one: Rarefaction, calls: int) -> float:
    """The members that a run finds with so many calls, at most all it took: by its rarefaction curve, interpolated."""
    return float(np.interp(calls / one.network_calls, (0, *one.sizes), (0, *one.expected)))
