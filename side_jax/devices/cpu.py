"""What makes JAX fast on CPU, set before it computes anything: a device for each core, and memory that is kept."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterable

import jax

# Of mallopt(3), glibc's.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8

_cores_are_devices = False


def prepare(batch_sizes: Iterable[int]) -> None:
    """Does both of the below, unless JAX is in use already."""
    use_cores(batch_sizes)
    keep_memory()


def use_cores(batch_sizes: Iterable[int]) -> None:
    """Makes JAX see several devices in a CPU of several cores.

    XLA spreads single operations over cores, but not the many small ones; devices work side by side throughout. There
    will be the largest power of two of them that the cores allow, that divides every batch, and that leaves each
    device 8 images or more. Who has chosen a number, by XLA_FLAGS or JAX_NUM_CPU_DEVICES, keeps it. They are for work
    that devices do apart from each other, see `talking`.

    Args:
      batch_sizes: of all that will be split over the devices.
    """
    global _cores_are_devices
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or jax.config.jax_num_cpu_devices > 0:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sizes, devices = list(batch_sizes), 1
    while 2 * devices <= cores and all(size % (2 * devices) == 0 and size >= 16 * devices for size in sizes):
        devices *= 2
    with contextlib.suppress(RuntimeError):  # JAX is in use already
        jax.config.update("jax_num_cpu_devices", devices)
        _cores_are_devices = True


def talking() -> list[jax.Device]:
    """The devices for work in which they wait for each other, of all processes: of those that `use_cores` made, one.

    XLA ends a process of which one device waits 40 seconds for another, and on a busy machine the devices of one CPU do
    (JAX 0.10.2). Training on one of them still uses all cores: XLA spreads single operations over them.
    """
    if not _cores_are_devices or jax.default_backend() != "cpu":
        return jax.devices()
    first = {}
    for device in jax.devices():
        first.setdefault(device.process_index, device)
    return list(first.values())


def keep_memory() -> None:
    """Lets this process keep memory that it frees, for its next use of as much; on Linux with glibc, for JAX on CPU.

    Otherwise each step of sampling or training gives its working memory back to the system and gets it anew, page by
    page: up to a third of its time. Who has set MALLOC_... or GLIBC_TUNABLES keeps them.
    """
    accelerated = importlib.metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu")
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if sys.platform != "linux" or chosen or (accelerated and jax.config.jax_platforms != "cpu"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # One heap, since only the main one grows without limit, for blocks of all sizes, never cut back.
        for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            mallopt(option, value)
