"""Strict numerics on 8 fake CPU devices, set before anything is computed; what many tests need."""

import contextlib
import importlib.util
import io
import logging
import mmap
import os
import shutil
import signal
from pathlib import Path

import jax
import pytest
import shared
from PIL import Image

from side_jax.diffusion.schedule import make_schedule


def xla_knows(option):
    """Whether the installed XLA has an option; one that it does not have would end the process."""
    (folder,) = importlib.util.find_spec("jaxlib").submodule_search_locations
    for library in Path(folder).glob("*jax_common.*"):
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(option.encode()) >= 0
    return False


flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
if xla_knows("xla_cpu_use_fusion_emitters"):
    flags.append("--xla_cpu_use_fusion_emitters=false")  # most time goes into compiling; this halves it
os.environ["XLA_FLAGS"] = " ".join(flags).strip()  # read at the first computation, here and in child processes
for name, value in {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": True}.items():
    os.environ[name] = str(value)  # for child processes
    jax.config.update(name.lower(), value)
for name, value in shared.compilation_settings().items():
    jax.config.update(name.lower(), value)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for a shell's background job; side_jax would respect that
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The files that take longest, longest first: a worker that began one of these last would keep the other waiting.
FIRST = (
    *("test_processes.py", "test_pipeline.py", "test_interruptions.py", "test_surrogate.py", "test_suspects.py"),
    *("test_lost_files.py", "test_member_labels.py", "test_device_counts.py", "test_bad_input.py", "test_audit.py"),
)
MAPPINGS = 20_000  # of memory; Linux allows a process 65,530


def pytest_sessionstart(session):
    """The process that starts the others tidies up."""
    if not hasattr(session.config, "workerinput"):
        shared.forget_programs()


def pytest_collection_modifyitems(items):
    """The longest files come first."""
    place = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(FIRST)))


@pytest.fixture(autouse=True, scope="module")
def forget_compiled():
    """Each compiled program maps memory in pieces: before they are too many, all programs are given up."""
    yield
    with contextlib.suppress(FileNotFoundError):  # no Linux, no limit
        if Path("/proc/self/maps").read_bytes().count(b"\n") > MAPPINGS:
            jax.clear_caches()


@pytest.fixture
def schedule():
    return make_schedule("linear", 1000)


@pytest.fixture(scope="session")
def finished():
    """A finished tiny run of the whole pipeline; read it, never write to it."""
    import runs

    return runs.finished("plain")


@pytest.fixture
def workdir(finished, tmp_path):
    """A private copy of a finished tiny run."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def no_figures(monkeypatch):
    """Every figure of the report is empty: to draw those of one run takes a second or two."""
    from side_jax.report import plots

    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    empty = {
        bytes: buffer.getvalue(),
        str: "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'><path d='M 0 0 L 9 9'/></svg>",
    }
    kinds = {name: getattr(one, "__annotations__", {}).get("return") for name, one in vars(plots).items()}
    drawing = {name: empty[kind] for name, kind in kinds.items() if kind in empty}
    assert len(drawing) > 8
    for name, content in drawing.items():
        monkeypatch.setattr(plots, name, lambda *args, content=content, **kwargs: content)


@pytest.fixture
def compiled():
    """What was handed to the compiler so far."""
    events = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append("compiled")

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.clear_event_listeners()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """A browser, as a selenium driver; see browser.py."""
    import browser

    with browser.chromium(tmp_path_factory.mktemp("profile")) as driver:
        driver.set_script_timeout(10)
        yield driver


@pytest.fixture
def said(caplog, monkeypatch):
    """What the run logs."""
    monkeypatch.setattr(logging.getLogger("side_jax"), "propagate", True)
    monkeypatch.setattr("side_jax.commands.cli.log_to_stderr", lambda: None)
    caplog.set_level(logging.INFO, logger="side_jax")
    return caplog
