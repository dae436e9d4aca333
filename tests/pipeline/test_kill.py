"""SIGKILL at any moment, then the same command again, gives the results of a run that nothing disturbed."""

import json
import os
import random
import signal
import subprocess
import time

import pytest
import runs

# (unit killed, a file whose appearance says that the unit is in the middle of its work)
MOMENTS = [
    ("train", "checkpoints/30/meta"),
    ("synthesize", "synthesize/shard_00001.npz"),
    ("surrogate/side", "surrogate/side/checkpoints/10/meta"),
    ("extract/side_1", "extract/side_1/manifest.json"),
]
LONGER = {"train__num_steps": 60, "surrogate__num_steps": 60, "synthesize__num_images": 256, "extract__num_images": 256}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nothing disturbed, beside the cache of what it compiled."""
    folder = tmp_path_factory.mktemp("kill")
    assert runs.start(runs.arguments(folder / "run", **LONGER), folder / "cache").wait() == 0
    return folder / "run"


def kill_when(process, path):
    runs.wait_for(path, [process])
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_killed_runs_end_like_undisturbed_ones(undisturbed, tmp_path):
    killed, cache = tmp_path / "killed", undisturbed.with_name("cache")
    for unit, moment in MOMENTS:
        process = runs.start(runs.arguments(killed, **LONGER), cache)
        kill_when(process, killed / moment)
        manifest = json.loads((killed / unit / "manifest.json").read_text())
        assert manifest["done"] is False, f"{unit} was done before the kill"
        assert not (killed / "evaluate" / "results.json").exists()
    assert runs.start(runs.arguments(killed, **LONGER), cache).wait() == 0
    results = [(workdir / "evaluate" / "results.json").read_bytes() for workdir in (undisturbed, killed)]
    assert results[0] == results[1]
    matches = [(workdir / "evaluate" / "matches.csv").read_bytes() for workdir in (undisturbed, killed)]
    assert matches[0] == matches[1]
    metrics = [(workdir / "train" / "metrics.jsonl").read_text() for workdir in (undisturbed, killed)]
    assert metrics[0] == metrics[1]
    assert not list(killed.rglob("*.tmp"))


def files_of(workdir):
    """Every file that a user or program reads, byte for byte; checkpoints hold times."""
    kept = [path for path in workdir.rglob("*") if path.suffix in (".npz", ".csv", ".json", ".html")]
    kept = [path for path in kept if "checkpoints" not in path.parts]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in kept}


def test_random_kills_change_nothing(undisturbed, tmp_path):
    """SIGKILL or SIGTERM at random moments, SIDE_JAX_KILLS of them, and the same command after each."""
    kills, moments = int(os.environ.get("SIDE_JAX_KILLS", 2)), random.Random(0)
    cache, expected = undisturbed.with_name("cache"), files_of(undisturbed)

    def start(workdir):
        return runs.start(runs.arguments(workdir, **LONGER), cache, stderr=subprocess.DEVNULL)

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
    process = runs.start(runs.arguments(tmp_path / "run"), tmp_path / "cache")
    try:
        while not (tmp_path / "run" / "config.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        assert runs.run(runs.arguments(tmp_path / "run")) == 1
        assert "is in use by another run" in capsys.readouterr().err
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("left", ['{"unit": "tr', ""])
def test_a_manifest_cut_short_is_named(tmp_path, capsys, left):
    (tmp_path / "run" / "train").mkdir(parents=True)
    (tmp_path / "run" / "train" / "manifest.json").write_text(left)
    assert runs.run(runs.arguments(tmp_path / "run")) == 1
    assert "manifest.json is damaged" in capsys.readouterr().err
