"""Two real processes, joined by jax.distributed, share a run; a SIGTERM saves first; a kill loses nothing."""

import json
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import runs

from side_jax import builders
from side_jax.config import from_config
from side_jax.workdir import saved_config

STEPS = {"train__num_steps": 60, "train__log_every": 20, "train__checkpoint_every": 20}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(workdir, processes, binary="train", **overrides):
    """A binary with 4 devices in all.

    No compilation cache: on CPU, what two processes read back from one waits for its other half forever (JAX 0.10.2).
    """
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // processes}"}
    argv = [sys.executable, "-m", f"side_jax.{binary}", *runs.arguments(workdir, **(STEPS | overrides))]
    started = []
    port = free_port()
    for i in range(processes):
        joined = [f"--processes={processes}", f"--coordinator=127.0.0.1:{port}", f"--process_id={i}"]
        command = argv + (joined if processes > 1 else [])
        started.append(subprocess.Popen(command, cwd=runs.ROOT, env=environment, text=True, stderr=subprocess.PIPE))
    return started


def finish(processes, code=0):
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), errors
    return errors


def trained(workdir):
    """The averaged parameters and the logged curve of a finished workdir."""
    settings = from_config(saved_config(workdir))
    unet = builders.build_unet(settings)
    ema = builders.restore_ema(settings, builders.train_unit(settings, workdir), unet).trees["ema"]
    return ema, [json.loads(line) for line in (workdir / "train" / "metrics.jsonl").read_text().splitlines()]


def assert_equal(one, other):
    (ema, rows), (expected, expected_rows) = trained(one), trained(other)
    jax.tree.map(np.testing.assert_array_equal, ema, expected)
    assert rows == expected_rows
    assert [row["step"] for row in rows] == [20, 40, 60]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """The workdir of two processes that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("processes") / "calm"
    finish(start(workdir, 2))
    return workdir


def test_two_processes_killed_and_resumed_match_undisturbed_ones(calm, tmp_path):
    workdir = tmp_path / "killed"
    killed = start(workdir, 2)
    runs.wait_for(workdir / "checkpoints" / "20" / "meta", killed)
    for process in killed:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not json.loads((workdir / "train" / "manifest.json").read_text())["done"]
    errors = finish(start(workdir, 2))
    assert "going on from the checkpoint of step" in errors[0]
    assert_equal(workdir, calm)


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_before_it_exits(calm, tmp_path, processes):
    """Of two processes only one is told: both stop at the same step, and going on ends as if nothing had been."""
    workdir = tmp_path / "told"
    told = start(workdir, processes)
    runs.wait_for(workdir / "checkpoints" / "20" / "meta", told)
    told[-1].send_signal(signal.SIGTERM)
    errors = finish(told, code=143)
    assert "stopped by SIGTERM after step" in errors[0]
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert f"after step {saved} of 60" in errors[0]
    assert 20 < saved < 60
    if processes == 2:
        finish(start(workdir, 2))
        assert_equal(workdir, calm)


def test_two_processes_share_all_stages(tmp_path):
    """Every stage, by two processes of two devices each and by one of four, gives the same images and scores.

    A process of two devices cuts a batch into other parts than one of four, which rounds differently; training, where
    a device holds as many images either way, does not. Shards by two processes must not be those of one alone.
    """
    workdirs = {processes: tmp_path / str(processes) for processes in (1, 2)}
    errors = {}
    for processes, workdir in workdirs.items():
        few = {"extract__attacks": "('unconditional','side')", "extract__guidance_scales": "(10.0,)"}
        errors[processes] = finish(start(workdir, processes, "main", **few))
    assert "report" in errors[2][0]
    one, two = ({path.relative_to(w): path for path in w.rglob("*.npz")} for w in workdirs.values())
    assert one.keys() == two.keys()
    shards = [name for name in one if name.name.startswith("shard_")]
    assert len(shards) == 4 + 2 * 2  # of 32 images: 128 synthetic ones, 64 of each run
    for name in shards:
        with np.load(one[name]) as ours, np.load(two[name]) as theirs:
            np.testing.assert_array_equal(ours["index"], theirs["index"])
            np.testing.assert_array_equal(ours["label"], theirs["label"])
            difference = np.abs(ours["images"].astype(int) - theirs["images"])
        assert difference.max() <= 1, name
    results = [json.loads((w / "evaluate" / "results.json").read_text())["rows"] for w in workdirs.values()]
    for ours, theirs in zip(*results, strict=True):
        assert ours.keys() == theirs.keys()
        assert (ours["attack"], ours["guidance_scale"]) == (theirs["attack"], theirs["guidance_scale"])
        np.testing.assert_allclose(ours["p95"], theirs["p95"], rtol=0.05)
    assert (workdirs[2] / "report" / "index.html").exists()


def test_a_process_that_no_other_joins_says_so(tmp_path, capsys):
    assert runs.run([*runs.arguments(tmp_path / "run"), "--processes=2", "--process_id=2"]) == 2
    assert "--process_id=2 must be below --processes=2" in capsys.readouterr().err
