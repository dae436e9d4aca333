"""Devices and processes: a data-parallel mesh for training, and pmap over the local devices for sampling.

Training uses jit over global arrays (the batch is split over the devices of all processes, parameters are replicated).
Sampling uses jax.pmap: replicated inputs go in by in_axes=None, per-sample inputs are split on their first axis, and
only images come out, so nothing has to be replicated or unreplicated by hand. Each process samples its own share.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from side_jax import cpu
from side_jax.errors import InputError, StoppedError

_passed: list[str] = []  # the barriers behind this process; all processes come to the same ones in one order
_SIGTERM = "RECEIVED_PREEMPTION_NOTICE"  # JAX sets this key for all, about a second after any process got the signal


def join(processes: int, coordinator: str | None, process_id: int | None) -> None:
    """Joins this process with others, before any computation; on TPU and Slurm JAX finds the others by itself.

    Args:
      processes: how many there must be in all; 1 joins nothing.
      coordinator: HOST:PORT of the first process, or None to let JAX find it.
      process_id: 0..processes-1, or None to let JAX find it.

    Raises:
      InputError: if another number of processes came together: each would run an audit of its own.
    """
    if processes == 1:
        return
    try:
        jax.distributed.initialize(coordinator, processes if coordinator else None, process_id)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--processes={processes} could not be joined ({reason}); see --coordinator.") from None
    with together():
        if jax.process_count() != processes:
            raise InputError(f"--processes={processes} was asked for, but {jax.process_count()} came together.")
        barrier("counted")
    if jax.default_backend() == "cpu":  # where what several processes read back from one waits forever (JAX 0.10.2)
        jax.config.update("jax_enable_compilation_cache", False)
    # Now all are here, so the devices connect at once. Later, one may be busy for longer than a connection waits.
    multihost_utils.sync_global_devices("joined")


def primary() -> bool:
    """Whether this process is the one that writes what belongs to all."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here, however long one is busy: by JAX's coordination service, not by devices.

    Raises:
      InputError: if another process failed, at once: it will never come.
      StoppedError: if any process was told to end.
    """
    if jax.process_count() == 1:
        return
    check_others()
    if told():
        raise StoppedError("stopped by SIGTERM; run the same command again to go on.")
    client = multihost.get_jax_distributed_client()
    if client.key_value_increment(f"{_gate()} {name}", 1) == jax.process_count():
        client.key_value_set(_gate(), "")
    _heed(client.blocking_key_value_get(_gate(), 24 * 3600 * 1000))
    _passed.append(name)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around what the processes share: an error that ends one ends the others where they next wait or sample."""
    try:
        yield
    except BaseException as error:
        if multihost.is_jax_distributed_client_initialized():
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # an earlier error stands, or JAX's service is gone
                multihost.get_jax_distributed_client().key_value_set(_gate(), _outcome(error))
        raise


def check_others() -> None:
    """Raises what `barrier` would, if another process failed or stopped since the last one."""
    _heed(_value(_gate()))


def told() -> bool:
    """Whether any of several processes got SIGTERM, which JAX then catches in all of them."""
    return _value(_SIGTERM) is not None


def _gate() -> str:
    """The key that opens the next barrier; its value is empty, or says why there won't be one."""
    return f"side_jax barrier {len(_passed)}"


def _value(key: str) -> str | None:
    """What JAX's coordination service says of a key, if anything."""
    if not multihost.is_jax_distributed_client_initialized():
        return None
    try:
        return multihost.get_jax_distributed_client().key_value_try_get(key)
    except jax.errors.JaxRuntimeError:  # no such key; or no such service, for which JAX itself ends the process
        return None


def _outcome(error: BaseException) -> str:
    """An error as the value of a gate."""
    sentence = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, StoppedError):
        return f"stopped {sentence}"
    return f"failed process {jax.process_index()} failed: {sentence}"


def _heed(outcome: str | None) -> None:
    """Raises what a gate says."""
    if outcome:
        kind, _, sentence = outcome.partition(" ")
        raise {"stopped": StoppedError, "failed": InputError}[kind](sentence)


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


def share(count: int) -> range:
    """Which of `count` pieces of work are this process's: a contiguous range, nearly as long as every other's."""
    of, all_of = jax.process_index(), jax.process_count()
    return range(count * of // all_of, count * (of + 1) // all_of)


def abstract(make: Callable[[], Any], over: Mesh) -> Any:
    """The shapes, types and (replicated) shardings of what `make` returns, without computing it."""
    sharding = NamedSharding(over, PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), jax.eval_shape(make)
    )
