"""Sets up JAX's compilation cache on disk, which saves later runs and processes from compiling the same programs.

The default folder is <cache>/side_jax/compiled/<key>, where <cache> is $XDG_CACHE_HOME or ~/.cache. The key identifies
the version of JAX and the processor's instruction set, since compiled programs hold machine code and several machines
may share a home folder. JAX_COMPILATION_CACHE_DIR chooses another folder; JAX_ENABLE_COMPILATION_CACHE=false disables
the cache. Several CPU processes never use it; see process_group.join.
"""

import contextlib
import hashlib
import os
import platform
from pathlib import Path

import filelock
import jax
import jaxlib

MAX_BYTES = 2**30  # least recently used programs are removed first
MIN_SECONDS = 0.2  # programs that compile faster are not worth a file


def prepare() -> None:
    """Enables the cache, unless the user configured it or the folder can't be written."""
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
    """The cache folder for this kind of machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    versions = (jax.__version__, jaxlib.__version__, platform.machine(), *_instruction_sets())
    return cache / "side_jax" / "compiled" / hashlib.sha256(" ".join(versions).encode()).hexdigest()[:16]


def remove_unfinished(folder: Path) -> None:
    """Removes partially written programs of killed processes; JAX writes an additional file for each complete program.

    JAX holds the same lock while it reads or writes, so that no program is removed while it is being written.
    """
    with filelock.FileLock(folder / ".lockfile", timeout=60):
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                program.unlink()


def _instruction_sets() -> list[str]:
    """The processor's features on Linux; elsewhere its name."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        listed = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
        return sorted(next(listed, "").split())
    return [platform.processor()]
