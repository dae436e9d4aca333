"""Reads models that were trained elsewhere from local files, and never runs code in them; makes targets of objects."""

from side_jax.targets.objects import from_function, from_torch

__all__ = ["from_function", "from_torch"]
