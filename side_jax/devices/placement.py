"""Arrays on devices: a data-parallel mesh for training, and pmap over the local devices for sampling."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from side_jax.devices import cpu
from side_jax.errors import InputError


def missing_backend() -> str:
    """A sentence that says why JAX finds no device at all; empty if it finds one.

    Asked after an error, since what JAX raises for it depends on its version and on the platform.
    """
    try:
        jax.devices()
    except Exception as error:
        reason = str(error).partition("\n")[0].partition(" (set JAX")[0] or "its plugin is not installed"
        return (
            f"JAX finds no device with JAX_PLATFORMS={jax.config.jax_platforms or ''} ({reason}); set "
            "JAX_PLATFORMS=cpu, or install JAX for that device."
        )
    return ""


def check_divisible(key: str, batch_size: int, devices: int) -> None:
    """Raises InputError unless the batch splits evenly over the devices."""
    if batch_size % devices:
        up = -(-batch_size // devices) * devices
        raise InputError(f"config.{key} is {batch_size}, but it must be divisible by the {devices} devices; try {up}.")


def training_mesh() -> Mesh:
    """The training devices of all processes, on one axis, `batch`."""
    return Mesh(np.asarray(cpu.collective_devices()), ("batch",))


def local_mesh() -> Mesh:
    """The devices of this process, on one axis, `batch`."""
    return Mesh(np.asarray(jax.local_devices()), ("batch",))


def local_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """The rows of a global batch held by this process's devices, int64, ascending."""
    slices = NamedSharding(mesh, PartitionSpec("batch")).addressable_devices_indices_map((batch_size,))
    rows = np.arange(batch_size)
    return np.unique(np.concatenate([rows[index] for index in slices.values()]))


def shard_batch(local: Any, rows: np.ndarray, batch_size: int, mesh: Mesh) -> Any:
    """Global arrays [batch_size, ...] split over the mesh; each process supplies its own rows.

    Args:
      local: a tree of host arrays [len(rows), ...].
      rows: the result of local_rows.
      batch_size: of the global batch.
      mesh: the devices.
    """
    sharding, all_rows = NamedSharding(mesh, PartitionSpec("batch")), np.arange(batch_size)

    def global_array(array: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            return array[np.searchsorted(rows, all_rows[index[0]])]

        return jax.make_array_from_callback((batch_size, *array.shape[1:]), sharding, part)

    return jax.tree.map(global_array, local)


def replicated(make: Callable[..., Any], mesh: Mesh, *arguments: Any) -> Any:
    """The result of `make(*arguments)`, computed on every device; the arguments lie on the mesh or on the host."""
    return jax.jit(make, out_shardings=NamedSharding(mesh, PartitionSpec()))(*arguments)


def place(tree: Any, mesh: Mesh) -> Any:
    """Copies a tree of host arrays, equal on all processes, to every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def place_split(tree: Any, mesh: Mesh) -> Any:
    """Copies row i of each host array [devices, ...] (from `split`) to device i of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("batch")))


def pmap_batch(fn: Callable, *, batched: tuple[bool, ...], donate: tuple[int, ...] = ()) -> Callable:
    """jax.pmap of fn over the local devices.

    Args:
      fn: a function of positional arguments; the batched ones arrive as per-device batches [b / devices, ...].
      batched: for each argument, whether it is split over the devices; the others are passed whole to every device.
      donate: positions of arguments whose buffers the result may reuse.

    Returns:
      A function whose batched arguments and result have a leading device axis; see `split` and `merge`.
    """
    in_axes = tuple(0 if b else None for b in batched)
    return jax.pmap(fn, in_axes=in_axes, donate_argnums=donate, devices=jax.local_devices())


def in_batches(fn: Callable, batch_size: int) -> Callable:
    """Applies fn to arrays of any length: pmapped over the local devices, in equal batches, the last one padded.

    Args:
      fn: (params, *batch [b, ...]) -> [b, ...].
      batch_size: divisible by the number of local devices.

    Returns:
      A function (params, *arrays [n, ...]) -> [n, ...] of host arrays.
    """
    mapped = functools.cache(lambda count: pmap_batch(fn, batched=(False, *[True] * count)))

    def run(params: Any, *arrays: np.ndarray) -> np.ndarray:
        call, parts = mapped(len(arrays)), []
        for start in range(0, len(arrays[0]), batch_size):
            batch = [array[start : start + batch_size] for array in arrays]
            parts.append(merge(call(params, *split(batch_size, *batch)))[: len(batch[0])])
        return np.concatenate(parts)

    return run


def split(batch_size: int, *arrays: np.ndarray) -> list[np.ndarray]:
    """Prepares arrays for pmap_batch: [n, ...] -> [devices, batch_size / devices, ...], padded with the last row.

    n is between 1 and batch_size.
    """
    devices = jax.local_device_count()
    full = [np.concatenate([array, np.repeat(array[-1:], batch_size - len(array), axis=0)]) for array in arrays]
    return [array.reshape((devices, batch_size // devices, *array.shape[1:])) for array in full]


def merge(batch: jax.Array | np.ndarray) -> np.ndarray:
    """Copies [devices, b / devices, ...] from the devices to [b, ...] on the host; blocks until it is computed."""
    host = np.asarray(batch)
    return host.reshape((-1, *host.shape[2:]))


def abstract(make: Callable[[], Any], mesh: Mesh) -> Any:
    """The shapes, dtypes and (replicated) shardings of the result of `make()`, without computing it."""
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), jax.eval_shape(make)
    )
