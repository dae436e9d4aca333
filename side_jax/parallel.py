"""Devices: a data-parallel mesh for training, and pmap over the local devices for sampling.

Training uses jit over global arrays (the batch is split over the mesh, parameters are replicated). Sampling uses
jax.pmap: replicated inputs go in by in_axes=None, per-sample inputs are split on their first axis, and only images
come out, so nothing has to be replicated or unreplicated by hand.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from side_jax.errors import InputError


def device_count() -> int:
    """Local devices."""
    return jax.local_device_count()


def check_divisible(key: str, batch_size: int) -> None:
    """Raises InputError where a batch cannot be split evenly over the local devices."""
    devices = device_count()
    if batch_size % devices:
        up = -(-batch_size // devices) * devices
        raise InputError(f"config.{key} is {batch_size}, but it must be divisible by the {devices} devices; try {up}.")


def mesh() -> Mesh:
    """All devices on one axis, `batch`."""
    return Mesh(np.asarray(jax.devices()), ("batch",))


def shard_batch(batch: Any, over: Mesh) -> Any:
    """Places a host batch (a tree of arrays [b, ...]) on the mesh, split on the first axis."""
    return jax.device_put(batch, NamedSharding(over, PartitionSpec("batch")))


def replicate(tree: Any, over: Mesh) -> Any:
    """Places a tree on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(over, PartitionSpec()))


def pmap_batch(fn: Callable, *, batched: tuple[bool, ...], donate: tuple[int, ...] = ()) -> Callable:
    """jax.pmap of fn over the local devices.

    Args:
      fn: takes positional arguments; sees a per-device batch [b / devices, ...] in the batched ones.
      batched: for each argument, whether it is split over devices; the others are given whole to each device.
      donate: arguments whose buffers the result may reuse.

    Returns:
      A function whose batched arguments and result have a leading device axis, see `split` and `merge`.
    """
    return jax.pmap(fn, in_axes=tuple(0 if b else None for b in batched), donate_argnums=donate)


def split(batch: Any) -> Any:
    """[b, ...] -> [devices, b / devices, ...], for each array of a tree."""
    devices = device_count()
    return jax.tree.map(lambda x: x.reshape((devices, x.shape[0] // devices, *x.shape[1:])), batch)


def merge(batch: jax.Array) -> np.ndarray:
    """[devices, b / devices, ...] on the devices -> [b, ...] on the host."""
    host = np.asarray(batch)
    return host.reshape((-1, *host.shape[2:]))


def abstract(make: Callable[[], Any], over: Mesh) -> Any:
    """The shapes, types and (replicated) shardings of what `make` returns, without computing it."""
    sharding = NamedSharding(over, PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), jax.eval_shape(make)
    )
