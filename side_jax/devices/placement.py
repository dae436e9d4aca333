"""Arrays on devices: a data-parallel mesh for training, and pmap over the local devices for sampling."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from side_jax.devices import cpu
from side_jax.errors import InputError


def check_divisible(key: str, batch_size: int, devices: int) -> None:
    """Raises InputError where a batch cannot be split evenly over so many devices."""
    if batch_size % devices:
        up = -(-batch_size // devices) * devices
        raise InputError(f"config.{key} is {batch_size}, but it must be divisible by the {devices} devices; try {up}.")


def mesh() -> Mesh:
    """The devices that train together, of all processes, on one axis, `batch`."""
    return Mesh(np.asarray(cpu.talking()), ("batch",))


def local_mesh() -> Mesh:
    """The devices of this process."""
    return Mesh(np.asarray(jax.local_devices()), ("batch",))


def local_rows(batch_size: int, over: Mesh) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, int64, ascending."""
    held = NamedSharding(over, PartitionSpec("batch")).addressable_devices_indices_map((batch_size,))
    rows = np.arange(batch_size)
    return np.unique(np.concatenate([rows[index] for index in held.values()]))


def shard_batch(local: Any, rows: np.ndarray, batch_size: int, over: Mesh) -> Any:
    """Makes global arrays [batch_size, ...], split over the mesh, of which each process gives its own rows.

    Args:
      local: a tree of host arrays [len(rows), ...].
      rows: what local_rows says.
      batch_size: of the global batch.
      over: the mesh.
    """
    sharding, every = NamedSharding(over, PartitionSpec("batch")), np.arange(batch_size)

    def whole(array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            return array[np.searchsorted(rows, every[index[0]])]

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, part)

    return jax.tree.map(whole, local)


def replicated(make: Callable[[], Any], over: Mesh) -> Any:
    """Computes what `make` returns on every device of the mesh."""
    return jax.jit(make, out_shardings=NamedSharding(over, PartitionSpec()))()


def place(tree: Any, over: Mesh) -> Any:
    """Copies a tree of host arrays, the same on every process, to every device of the mesh."""
    return jax.device_put(tree, NamedSharding(over, PartitionSpec()))


def place_parts(tree: Any, over: Mesh) -> Any:
    """Copies each row of a tree of host arrays [devices, ...], see `spread`, to its device of the mesh."""
    return jax.device_put(tree, NamedSharding(over, PartitionSpec("batch")))


def pmap_batch(fn: Callable, *, batched: tuple[bool, ...], donate: tuple[int, ...] = ()) -> Callable:
    """jax.pmap of fn over the local devices.

    Args:
      fn: takes positional arguments; sees a per-device batch [b / devices, ...] in the batched ones.
      batched: for each argument, whether it is split over devices; the others are given whole to each device.
      donate: arguments whose buffers the result may reuse.

    Returns:
      A function whose batched arguments and result have a leading device axis, see `spread` and `merge`.
    """
    in_axes = tuple(0 if b else None for b in batched)
    return jax.pmap(fn, in_axes=in_axes, donate_argnums=donate, devices=jax.local_devices())


def in_batches(fn: Callable, batch_size: int) -> Callable:
    """Fn over arrays of any length: pmapped over the local devices, in batches of one shape, the last one padded.

    Args:
      fn: (whole, *batch [b, ...]) -> [b, ...].
      batch_size: divisible by the number of local devices.

    Returns:
      A function of (whole, *arrays [n, ...]) on the host; its result [n, ...] is there too.
    """
    mapped = functools.cache(lambda count: pmap_batch(fn, batched=(False, *[True] * count)))

    def run(whole: Any, *arrays: np.ndarray) -> np.ndarray:
        call, parts = mapped(len(arrays)), []
        for start in range(0, len(arrays[0]), batch_size):
            batch = [array[start : start + batch_size] for array in arrays]
            parts.append(merge(call(whole, *spread(batch_size, *batch)))[: len(batch[0])])
        return np.concatenate(parts)

    return run


def spread(batch_size: int, *arrays: np.ndarray) -> list[np.ndarray]:
    """For pmap_batch: [n, ...], n from 1 to batch_size, filled up by its last row -> [devices, b / devices, ...]."""
    devices = jax.local_device_count()
    full = [np.concatenate([array, np.repeat(array[-1:], batch_size - len(array), axis=0)]) for array in arrays]
    return [array.reshape((devices, batch_size // devices, *array.shape[1:])) for array in full]


def merge(batch: jax.Array) -> np.ndarray:
    """[devices, b / devices, ...] on the devices -> [b, ...] on the host; waits until it is computed."""
    host = np.asarray(batch)
    return host.reshape((-1, *host.shape[2:]))


def abstract(make: Callable[[], Any], over: Mesh) -> Any:
    """The shapes, types and (replicated) shardings of what `make` returns, without computing it."""
    sharding = NamedSharding(over, PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), jax.eval_shape(make)
    )
