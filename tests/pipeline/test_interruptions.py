"""A run that is interrupted at any moment, and started again: the results of one that nothing disturbed."""

import collections
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
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
    kept = [path for path in workdir.rglob("*") if path.suffix in (".npz", ".csv", ".json", ".html", ".jsonl", ".png")]
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


@pytest.mark.parametrize("left", ['{"unit": "tr', ""])
def test_a_manifest_cut_short_is_named(tmp_path, capsys, left):
    (tmp_path / "run" / "train").mkdir(parents=True)
    (tmp_path / "run" / "train" / "manifest.json").write_text(left)
    assert runs.run(runs.arguments(tmp_path / "run")) == 1
    assert "manifest.json is damaged" in capsys.readouterr().err
