"""Makes targets of files, local or of the hub, without running code in them, and of Python objects."""

from side_jax.targets.objects import from_function, from_torch

__all__ = ["from_function", "from_torch"]
