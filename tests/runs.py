"""Helpers for tests that run the real command: the smoke config, shrunk."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax

from side_jax.commands import cli
from side_jax.stages import stage_table

ROOT = Path(__file__).parent.parent
SMOKE = str(ROOT / "configs" / "smoke.py")
TINY = {
    "train.num_steps": 40,
    "surrogate.num_steps": 30,
    "conditional.num_steps": 10,
    "sampler.num_steps": 3,
    "synthesize.num_images": 128,
    "extract.num_images": 64,
    "extract.guidance_scales": "(1.0,10.0)",
    # Most of the time of so short a run would go into compiling these; test_pipeline.py has a run with all of them.
    "evaluate.membership": False,
    "evaluate.distribution": False,
    "evaluate.divergence": False,
    "evaluate.divergence_draws": 2,
    "evaluate.controls": False,
}
WHOLE = {f"evaluate__{name}": True for name in ("membership", "distribution", "divergence", "controls")}


def arguments(workdir, stages=None, **overrides):
    """Command-line arguments for a tiny run; overrides use __ for the dots of a key."""
    values = TINY | {key.replace("__", "."): value for key, value in overrides.items()}
    argv = [f"--config={SMOKE}", f"--workdir={workdir}", *(f"--config.{key}={value}" for key, value in values.items())]
    return [*argv, f"--stages={stages}"] if stages else argv


def run(argv, stages=None):
    """Runs the command in this process, all stages by default; returns its exit code."""
    # optax's Adam relies on implicit promotion (decay ** count), so only what is ours is tested in strict mode.
    with jax.numpy_dtype_promotion("standard"):
        return cli.main(["side_jax", *argv], "test", stages or stage_table.audit_stages())


def wait_for(path, processes, timeout=240):
    """Waits until a running process has written the path."""
    deadline = time.monotonic() + timeout
    while not path.exists():
        for process in processes:
            assert process.poll() is None, f"the run ended before it wrote {path}: {process.communicate()[1]}"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.002)


def start(argv, cache, **options):
    """Starts the real command in a process of its own, on one device; what it compiles is kept in `cache`."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "side_jax.main", *argv]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **options)
