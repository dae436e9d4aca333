"""Devices for the cores of a CPU, and memory that a process keeps."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from side_jax.devices import cpu

HERE = Path(__file__).parents[1]


def fresh(code, **environment):
    """What a new process prints."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("XLA_FLAGS", "MALLOC_", "GLIBC_"))
    }
    kept |= {"PYTHONPATH": str(HERE.parent), "JAX_PLATFORMS": "cpu"} | environment
    return subprocess.run([sys.executable, "-c", code], env=kept, check=True, text=True, capture_output=True).stdout


@pytest.mark.parametrize(
    ("cores", "batch_sizes", "devices"),
    [
        (1, [64], 1),
        (2, [64], 2),
        (3, [64], 2),
        (64, [64, 128], 8),  # 8 images each
        (8, [64, 36], 4),  # 36 is no multiple of 8
        (8, [64, 40], 4),  # 40 / 8 = 5 images each
        (8, [64, 33], 1),
        (8, [15], 1),
    ],
)
def test_devices_by_cores_and_batches(monkeypatch, cores, batch_sizes, devices):
    chosen = {}
    monkeypatch.setattr(cpu, "_cores_are_devices", False)  # as it is again afterwards
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(jax.config, "update", lambda name, value: chosen.update({name: value}))
    cpu.use_cores(batch_sizes)
    assert chosen == {"jax_num_cpu_devices": devices}


def test_a_process_has_them_unless_told_otherwise():
    """Devices that wait for each other are one of those made of cores, and all of those chosen."""
    code = """
import os
os.sched_getaffinity = lambda _: range(4)
import jax
from side_jax.devices import cpu, placement
cpu.prepare([64])
print(jax.device_count(), placement.local_mesh().size, placement.training_mesh().size)
cpu.prepare([8])  # too late: nothing happens
print(jax.device_count(), placement.local_mesh().size, placement.training_mesh().size)
"""
    assert fresh(code).split() == ["4", "4", "1"] * 2
    assert fresh(code, JAX_NUM_CPU_DEVICES="2").split() == ["2"] * 6
    assert fresh(code, XLA_FLAGS="--xla_force_host_platform_device_count=8").split() == ["8"] * 6


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_is_kept_unless_told_otherwise():
    code = """
import resource
import numpy as np
from side_jax.devices import cpu
cpu.keep_memory()
np.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(2**23)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    pages = 2**26 // os.sysconf("SC_PAGE_SIZE")
    assert int(fresh(code)) < pages / 10
    assert int(fresh(code, MALLOC_ARENA_MAX="1", NUMPY_MADVISE_HUGEPAGE="0")) > 4 * pages
