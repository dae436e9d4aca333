"""A folder where JAX keeps compiled programs, so that the next run, or the next process, need not compile them again.

By default it is <cache>/side_jax/compiled/<key>, where <cache> is $XDG_CACHE_HOME or ~/.cache. The key stands for the
versions of JAX and of the processor's instruction set: compiled programs hold machine code, and several machines may
share a home folder. Set JAX_COMPILATION_CACHE_DIR to choose another folder, or JAX_ENABLE_COMPILATION_CACHE=false to
have none. Several processes on CPU have none either, see process_group.join.
"""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

import filelock
import jax
import jaxlib

MAX_BYTES = 2**30  # least recently used programs leave first
MIN_SECONDS = 0.2  # programs that compile faster are not worth a file


def prepare() -> None:
    """Turns the folder on, unless the user chose one, or it can't be written."""
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    folder = default_folder()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)


def default_folder() -> Path:
    """The folder of this machine's kind."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    versions = (jax.__version__, jaxlib.__version__, platform.machine(), *_instruction_sets())
    return cache / "side_jax" / "compiled" / hashlib.sha256(" ".join(versions).encode()).hexdigest()[:16]


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process left half written: JAX marks each finished program by a file of its own.

    JAX holds the same lock while it reads or writes, so that no program is removed while it is being written.
    """
    with filelock.FileLock(folder / ".lockfile", timeout=60):
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                program.unlink()


def _instruction_sets() -> list[str]:
    """The processor's features as Linux lists them; elsewhere its name."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        listed = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
        return sorted(next(listed, "").split())
    return [platform.processor()]
