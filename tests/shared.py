"""What tests share on disk: runs that many of them read, and compiled programs; kept from one pytest to the next.

Runs lie in .pytest_cache/side_jax, compiled programs beside those of the package, where clones share them; or both in
the folder that SIDE_JAX_TEST_CACHE names. Deleting them costs time alone. A run is never stale: its name is a hash of
the package's sources, of the tests that make it, and of the versions; a program's is one of all that it computes.
"""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from side_jax.devices import compilation_cache

ROOT = Path(__file__).parent.parent
CHOSEN = os.environ.get("SIDE_JAX_TEST_CACHE")
FOLDER = Path(CHOSEN or ROOT / ".pytest_cache" / "side_jax").absolute()
COMPILED = (FOLDER if CHOSEN else compilation_cache.default_folder()) / "tests"
MAX_BYTES = 2**30  # of compiled programs; beyond it, all are given up
SOURCES = (
    *sorted(path for path in (ROOT / "side_jax").rglob("*") if path.is_file() and path.suffix != ".pyc"),
    *sorted((ROOT / "configs").glob("*.py")),
    *(ROOT / "tests" / name for name in ("conftest.py", "shared.py", "runs.py")),
)
VERSIONS = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "orbax-checkpoint", "matplotlib", "pillow")
DAY = 24 * 3600


def compilation_settings(copy: Path | None = None) -> dict[str, object]:
    """JAX's options, as environment variables, for one cache on disk.

    A process that reads what another is still writing warns, and compiles. What a kill cut short would do so for ever:
    a process that will be killed gets a copy.
    """
    COMPILED.mkdir(parents=True, exist_ok=True)
    if copy:
        shutil.copytree(COMPILED, copy)
    return {"JAX_COMPILATION_CACHE_DIR": str(copy or COMPILED), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0.1}


def forget_programs() -> None:
    """Deletes the compiled programs where they have become too many."""
    if COMPILED.exists() and sum(path.stat().st_size for path in COMPILED.iterdir()) > MAX_BYTES:
        shutil.rmtree(COMPILED)


def digest() -> str:
    """The hash of all that a shared run depends on."""
    total = hashlib.sha256(platform.python_version().encode())
    for name in VERSIONS:
        total.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    for path in SOURCES:
        total.update(f"{path.relative_to(ROOT)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder of that name, made by `make`, which gets a path that is not there yet, unless another process did.

    Nobody may write to it.
    """
    folder = FOLDER / "runs" / digest()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        if not (folder / name).exists():
            _forget(folder)
            shutil.rmtree(folder / "half" / name, ignore_errors=True)
            make(folder / "half" / name)
            (folder / "half" / name).rename(folder / name)
    return folder / name


def _forget(but: Path) -> None:
    """Deletes what was made a day ago from other sources."""
    for folder in but.parent.iterdir():
        if folder != but and time.time() - folder.stat().st_mtime > DAY:
            shutil.rmtree(folder, ignore_errors=True)
