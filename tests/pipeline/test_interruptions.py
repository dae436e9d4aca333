"""A run that is interrupted at any moment, and started again: the results of one that nothing disturbed."""

import collections
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import runs
import shared

from side_jax.workdir import files, lock

KILLS = int(os.environ.get("SIDE_JAX_KILLS", 0))
# Every stage, with as few images and networks as make more than one shard.
SMALL = {
    "train__num_steps": 2,
    "train__checkpoint_every": 1,
    "surrogate__num_steps": 2,
    "synthesize__num_images": 64,
    "label__num_clusters": 3,
    "extract__num_images": 64,
    "extract__attacks": "('unconditional','side')",
    "extract__guidance_scales": "(10.0,)",
    "sampler__num_steps": 1,
}


class Interruption(BaseException):
    """Nothing in the package catches it, as nothing catches a kill."""


def files_of(workdir):
    """Every file that a user or program reads, byte for byte; checkpoints hold times."""
    kept = [
        path
        for path in workdir.rglob("*")
        if path.suffix in (".npz", ".csv", ".json", ".html", ".jsonl", ".png", ".svg")
    ]
    kept = [path for path in kept if {"checkpoints", "best"}.isdisjoint(path.parts)]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in kept}


def ending_at_new_writes(seen):
    """files.atomic for one start of a run, which ends at the first write that no start before ended at.

    A write is told by its path, and by how often the start wrote that before. Half of the file is left.
    """
    written, real = collections.Counter(), files.atomic

    @contextlib.contextmanager
    def atomic(path, mode="wb"):
        with real(path, mode) as file:
            yield file
            write = str(path), written[path]
            written[path] += 1
            if write not in seen:
                seen.add(write)
                path.with_name(f"{path.name}.0.tmp").write_bytes(b"half")
                raise Interruption(path)

    return atomic


def test_ending_at_each_write_changes_nothing(tmp_path, monkeypatch, no_figures):
    workdir, seen, starts = tmp_path / "run", set(), 1
    while True:
        with monkeypatch.context() as patch, contextlib.suppress(Interruption):
            patch.setattr(files, "atomic", ending_at_new_writes(seen))
            assert runs.run(runs.arguments(workdir, **SMALL)) == 0
            break
        starts += 1
    assert starts > 35  # two shards are written at a time
    assert not list(workdir.rglob("*.tmp"))
    assert runs.run(runs.arguments(tmp_path / "calm", **SMALL)) == 0
    assert files_of(workdir) == files_of(tmp_path / "calm")


@pytest.mark.processes
def test_a_killed_run_goes_on(finished, tmp_path):
    """SIGKILL while a classifier is trained; to the bytes of a run in one process."""
    workdir = shutil.copytree(finished, tmp_path / "run")
    for name in ("surrogate/conditional", "extract/conditional_1", "extract/conditional_10", "evaluate", "report"):
        shutil.rmtree(workdir / name)
    cache = shared.compilation_settings(tmp_path / "compiled")
    process = runs.start(runs.arguments(workdir), devices=8, cache=cache, stderr=subprocess.DEVNULL)
    runs.wait_for(workdir / "surrogate" / "conditional" / "checkpoints" / "10" / "meta", [process])
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert json.loads((workdir / "surrogate" / "conditional" / "manifest.json").read_text())["done"] is False
    assert runs.run(runs.arguments(workdir)) == 0
    assert files_of(workdir) == files_of(finished)
    assert not list(workdir.rglob("*.tmp"))


@pytest.mark.processes
@pytest.mark.parametrize(
    ("number", "code", "lost", "moment"),
    [
        (signal.SIGINT, 130, "", "stage train."),  # compiles
        (signal.SIGTERM, 143, "evaluate", "stage evaluate."),
        (signal.SIGTERM, 143, "extract/unconditional", "extract/unconditional/shard_00001.npz"),
    ],
)
def test_a_signal_ends_a_run_in_one_line(finished, tmp_path, number, code, lost, moment):
    """Wherever it comes; the same command then does what is left."""
    workdir, many = tmp_path / "run", {"extract__num_images": 4096, "extract__attacks": "('unconditional',)"}
    if lost:
        shutil.copytree(finished, workdir)
        shutil.rmtree(workdir / lost)
    argv = runs.arguments(workdir, **(many if lost.startswith("extract") else {}))
    cache = {"JAX_ENABLE_COMPILATION_CACHE": False} if not lost else shared.compilation_settings(tmp_path / "compiled")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits what is ignored
    process = runs.start(argv, cache=cache, stderr=subprocess.PIPE)
    signal.signal(signal.SIGINT, before)
    if moment.endswith(".npz"):
        runs.wait_for(workdir / moment, [process])
    else:
        while moment not in process.stderr.readline():
            assert process.poll() is None
    process.send_signal(number)
    said = [line for line in process.communicate(timeout=120)[1].splitlines() if line[2:3] != ":"]  # no log line
    assert process.returncode == code
    assert len(said) == 1
    assert said[0].startswith("side_jax: ")
    assert f"stopped by {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'}" in said[0]
    kept = len(list((workdir / "extract" / "unconditional").glob("shard_*.npz")))
    if moment.endswith(".npz"):
        assert 2 <= kept < 128
        assert f"with {kept} of 128 batches saved" in said[0]
    elif lost:
        assert runs.run(argv) == 0
        assert files_of(workdir) == files_of(finished)


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from side_jax.commands import cli
sys.exit(cli.main(["side_jax", *sys.argv[1:]], "test", ("train", "extract")))
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("limit", "sentence"),
    [
        (40_000, "/checkpoints failed: File too large. What was written before is kept"),
        (2**30, "/checkpoints/40 is damaged (NOT_FOUND"),
    ],
    ids=["full", "damaged"],
)
def test_a_full_disk_and_a_damaged_checkpoint_are_one_sentence(finished, tmp_path, limit, sentence):
    """Whatever the threads of orbax, tensorstore and tensorboardX, and the end of the process, make of it."""
    workdir = shutil.copytree(finished, tmp_path / "run")
    if limit < 2**30:
        shutil.rmtree(workdir / "checkpoints")
    else:
        (workdir / "checkpoints" / "40" / "ema" / "manifest.ocdbt").unlink()
        shutil.rmtree(workdir / "extract")
    command = [sys.executable, "-c", FULL.format(limit=limit), *runs.arguments(workdir)]
    env = runs.environment(1, {"JAX_ENABLE_COMPILATION_CACHE": False})  # the limit would cut short what it keeps
    done = subprocess.run(command, cwd=runs.ROOT, env=env, capture_output=True, text=True, check=False, timeout=240)
    said = [line for line in done.stderr.splitlines() if line[2:3] != ":"]  # no log line
    assert (done.returncode, len(said)) == (1, 1), done.stderr[-3000:]
    assert said[0].startswith("side_jax: ")
    assert sentence in said[0]
    assert (workdir / "train" / "split.json").exists()


def test_a_finished_run_that_cannot_be_written_prints_its_verdict(workdir, monkeypatch, capsys):
    """Root may write everything, so that the system's answer is made up."""

    def times():
        return {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}

    access, before = os.access, times()
    monkeypatch.setattr(os, "access", lambda path, mode, **more: not mode & os.W_OK and access(path, mode, **more))
    assert runs.run(runs.arguments(workdir)) == 0
    assert "Report: " in capsys.readouterr().out
    assert times() == before
    (workdir / "report" / "index.html").unlink()
    assert runs.run(runs.arguments(workdir)) == 1
    assert "can't be written; change its permissions" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(not KILLS, reason="nightly or before a release: SIDE_JAX_KILLS=20")
def test_random_kills_change_nothing(tmp_path):
    """SIGKILL or SIGTERM at random moments, SIDE_JAX_KILLS of them, and the same command after each."""
    kills, moments = KILLS, random.Random(0)

    cache = shared.compilation_settings(tmp_path / "compiled")

    def start(workdir):
        return runs.start(runs.arguments(workdir), cache=cache, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "first").wait() == 0  # what it compiled is there for the others
    expected = files_of(tmp_path / "first")
    begun = time.monotonic()
    assert start(tmp_path / "calm").wait() == 0
    duration = time.monotonic() - begun
    assert files_of(tmp_path / "calm") == expected
    done, finished, seen = 0, 0, set()
    while done < kills or not finished:
        process = start(tmp_path / f"run_{finished}")
        # After the last one the run goes on to its end. Starting up takes a good part of a run.
        delay = moments.uniform(0.2, 0.9) * duration if done < kills else None
        try:
            code = process.wait(delay)
        except subprocess.TimeoutExpired:
            number = moments.choice([signal.SIGKILL, signal.SIGTERM])
            process.send_signal(number)
            code = process.wait()
            # SIGTERM is heeded where images or gradients are being made, and may come after the end of a run.
            assert code in ((-number,) if number == signal.SIGKILL else (-number, 143, 0)), code
            done += 1
            found = tmp_path / f"run_{finished}"
            seen.add(len(list(found.rglob("shard_*.npz"))) + len(list(found.glob("checkpoints/*/meta"))))
        if code == 0:
            assert files_of(tmp_path / f"run_{finished}") == expected
            finished += 1
    assert len(seen) > 1 or kills < 4  # not all at one moment, where there are some
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_run_holds_its_workdir(tmp_path, capsys):
    with lock.locked(tmp_path / "run"):
        assert runs.run(runs.arguments(tmp_path / "run")) == 1
    assert "is in use by another run" in capsys.readouterr().err


def test_the_lock_needs_no_fcntl(tmp_path):
    """As on Windows."""
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from side_jax.commands import cli\nfrom side_jax.workdir import files, lock\n"
        "with lock.locked(files.as_path(sys.argv[1])), lock.locked(files.as_path(sys.argv[1])): pass"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("wait for it to end, or use another --workdir.")


@pytest.mark.parametrize(
    ("left", "sentence"),
    [
        ('{"unit": "tr', "manifest.json is damaged"),
        ("", "manifest.json is damaged"),
        (
            '{"format": 99, "side_jax": "9.8"}',
            "manifest.json was written by side_jax 9.8 in format 99, but this is side",
        ),
        ('{"format": 0}', "manifest.json was written by an earlier version of side_jax in format 0"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_named(tmp_path, capsys, left, sentence):
    (tmp_path / "run" / "train").mkdir(parents=True)
    (tmp_path / "run" / "train" / "manifest.json").write_text(left)
    assert runs.run(runs.arguments(tmp_path / "run")) == 1
    assert sentence in capsys.readouterr().err
