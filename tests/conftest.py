"""Strict numerics on 8 fake CPU devices; set before anything imports JAX."""

import logging
import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the time would go into compiling, here and in the commands that the tests start.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8").strip()

import jax
import pytest

from side_jax.diffusion.schedule import make_schedule

# Many runs of this process compile the same; no other process shares the folder, where half a file would be a warning.
cache = tempfile.TemporaryDirectory(prefix="side_jax_tests_")
jax.config.update("jax_compilation_cache_dir", cache.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def forget_compiled():
    """Each compiled program maps memory in pieces, of which Linux allows a process 65,530: all files need more."""
    yield
    jax.clear_caches()


@pytest.fixture
def schedule():
    return make_schedule("linear", 1000)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished tiny run of the whole pipeline; read it, never write to it."""
    import runs

    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert runs.run(runs.arguments(workdir)) == 0
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    """A private copy of a finished tiny run."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def said(caplog, monkeypatch):
    """What the run logs."""
    monkeypatch.setattr(logging.getLogger("side_jax"), "propagate", True)
    monkeypatch.setattr("side_jax.commands.cli.log_to_stderr", lambda: None)
    caplog.set_level(logging.INFO, logger="side_jax")
    return caplog
