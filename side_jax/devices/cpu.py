"""CPU settings that make JAX fast, applied before its first computation: several devices, and malloc options."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import logging
import os
import sys
from collections.abc import Iterable

import jax

from side_jax.errors import InputError

logger = logging.getLogger(__name__)

# Options of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4

_cores_are_devices = False


def prepare(batch_sizes: Iterable[int]) -> None:
    """Applies `use_cores` and `keep_memory`, unless JAX is already in use."""
    use_cores(batch_sizes)
    keep_memory()


def use_cores(batch_sizes: Iterable[int]) -> None:
    """Makes JAX present a multi-core CPU as several devices.

    XLA runs a single large operation on all cores, but not many small ones; separate devices always run in parallel.
    The number of devices is the largest power of two that is at most the number of cores, divides every batch size,
    and leaves at least 8 images per device. A number set by XLA_FLAGS or JAX_NUM_CPU_DEVICES takes precedence. These
    devices suit independent work only; for collectives see `collective_devices`.

    Args:
      batch_sizes: sizes of all batches that will be split over the devices.
    """
    global _cores_are_devices
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or jax.config.jax_num_cpu_devices > 0:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sizes, devices = list(batch_sizes), 1
    while 2 * devices <= cores and all(size % (2 * devices) == 0 and size >= 16 * devices for size in sizes):
        devices *= 2
    with contextlib.suppress(RuntimeError):  # JAX is already in use
        jax.config.update("jax_num_cpu_devices", devices)
        _cores_are_devices = True


def use_one() -> None:
    """Makes a CPU one device, for programs that call back into Python: on several, such calls wait for each other.

    With JAX 0.10.2, two devices that call back with images of 64x64 pixels never return.

    Raises:
      InputError: if this process already uses several.
    """
    prepare([1])
    if jax.default_backend() != "cpu" or jax.local_device_count() == 1:
        return
    if _cores_are_devices:
        raise InputError(
            "this process already uses several CPU devices, on which calls of a Python object wait for each other; "
            "audit it in a new Python process."
        )
    logger.warning("Several CPU devices were asked for; calls of a Python object may wait for each other for ever.")


def collective_devices() -> list[jax.Device]:
    """The devices for collectives, over all processes: one per process where `use_cores` set the number, else all.

    XLA aborts a process when one device waits 40 seconds for another in a collective, which happens between the devices
    of one CPU on a busy machine (JAX 0.10.2). Training on one device still uses all cores, since XLA runs large
    operations on all of them.
    """
    if not _cores_are_devices or jax.default_backend() != "cpu":
        return jax.devices()
    first = {}
    for device in jax.devices():
        first.setdefault(device.process_index, device)
    return list(first.values())


def keep_memory() -> None:
    """Makes malloc keep freed memory for reuse; takes effect on Linux with glibc, for JAX on CPU.

    Otherwise each sampling or training step returns its working memory to the system and faults it in again page by
    page, which takes up to a quarter of the step. MALLOC_* and GLIBC_TUNABLES set by the user take precedence.
    """
    accelerated = importlib.metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu")
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if sys.platform != "linux" or chosen or (accelerated and jax.config.jax_platforms != "cpu"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # No mmap for large blocks; never trim. A single arena would make a step on 8x8 images 1.6 times as long.
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            mallopt(option, value)
