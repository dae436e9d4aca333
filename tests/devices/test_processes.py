"""Two real processes, joined by jax.distributed, share a run; a SIGTERM saves first; a kill loses nothing.

They compile anew each time, as processes on CPU must: networks and runs are as small as they go.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import runs
import shared

from side_jax.attacks.table import ATTACKS
from side_jax.config import from_config
from side_jax.pipeline.saved_config import saved_config
from side_jax.sampling import shards
from side_jax.stages import stage_inputs

pytestmark = pytest.mark.processes

STEPS = {
    "model__block_out_channels": "(8,)",
    "model__down_block_types": "('DownBlock2D',)",
    "model__up_block_types": "('UpBlock2D',)",
    "model__add_attention": False,
    # From the second checkpoint to the end takes two processes longer than a signal takes to reach both.
    "train__num_steps": 80,
    "train__log_every": 20,
    "train__checkpoint_every": 20,
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(workdir, processes, binary="train", **overrides):
    """A binary with 4 devices in all, and a compilation cache, which several processes must leave alone on CPU."""
    environment = runs.environment(4 // processes)
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
    ema = stage_inputs.load_target(settings, workdir).trees["ema"]
    return ema, [json.loads(line) for line in (workdir / "train" / "metrics.jsonl").read_text().splitlines()]


def assert_equal(one, other):
    (ema, rows), (expected, expected_rows) = trained(one), trained(other)
    jax.tree.map(np.testing.assert_array_equal, ema, expected)
    assert rows == expected_rows
    assert [row["step"] for row in rows] == [20, 40, 60, 80]


@pytest.fixture(scope="module")
def calm():
    """The workdir of two processes that nothing disturbed; read it, never write to it."""
    return shared.made_once("two_processes", lambda workdir: finish(start(workdir, 2)))


def told_to_stop(workdir, processes, number=signal.SIGTERM, code=143, cause="SIGTERM"):
    """Tells one of the processes to stop: all do at the same step, and what was done is saved."""
    told = start(workdir, processes)
    runs.wait_for(workdir / "checkpoints" / "40" / "meta", told)
    told[-1].send_signal(number)
    errors = finish(told, code)
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert f"stopped by {cause} after step {saved} of 80" in errors[0]
    assert "Traceback" not in errors[0]
    assert 40 < saved < 80


@pytest.mark.parametrize("told", [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_a_signal_saves_before_it_ends_training(tmp_path, told):
    told_to_stop(tmp_path / "run", 1, *told)


@pytest.mark.slow
def test_two_processes_killed_then_told_to_stop_end_like_undisturbed_ones(calm, tmp_path):
    workdir = tmp_path / "run"
    killed = start(workdir, 2)
    runs.wait_for(workdir / "checkpoints" / "20" / "meta", killed)
    for process in killed:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not json.loads((workdir / "train" / "manifest.json").read_text())["done"]
    told_to_stop(workdir, 2)
    errors = finish(start(workdir, 2))
    assert "continuing from the checkpoint of step" in errors[0]
    assert_equal(workdir, calm)


@pytest.mark.slow
def test_sigterm_while_sampling_ends_all_and_keeps_what_is_made(calm, tmp_path):
    """Only one is told: each writes the batch in flight, and going on gives the images of an undisturbed run."""
    many = {"stages": "synthesize", "synthesize__num_images": 2048, "sampler__num_steps": 100}
    told, undisturbed = (tmp_path / name for name in ("told", "undisturbed"))
    for workdir in (told, undisturbed):
        shutil.copytree(calm, workdir)
    alone = start(undisturbed, 1, "main", **many)
    pair = start(told, 2, "main", **many)
    runs.wait_for(told / "synthesize" / "shard_00032.npz", pair)  # the first of the second process's half
    pair[1].send_signal(signal.SIGTERM)
    errors = finish(pair, code=143)
    assert all("synthesize: stopped by SIGTERM with" in error for error in errors), errors
    parts = {workdir: shards.layout(workdir / "synthesize", 2048, 32) for workdir in (told, undisturbed)}
    there = [shard for shard in parts[told] if shard.path.exists()]
    assert all(shard.intact(thorough=True) for shard in there)
    assert 2 <= len(there) < 64
    times = [shard.path.stat().st_mtime_ns for shard in there]
    finish(start(told, 2, "main", **many))
    assert [shard.path.stat().st_mtime_ns for shard in there] == times  # not made twice
    finish(alone)
    images = [shards.read(parts[workdir])["images"].astype(int) for workdir in parts]
    assert np.abs(images[0] - images[1]).max() <= 1


@pytest.mark.slow
def test_what_fails_in_the_first_process_ends_the_others(calm, tmp_path):
    """Only the first one clusters; the other waits for it, and must not for long."""
    workdir = tmp_path / "failed"
    shutil.copytree(calm, workdir)
    began = time.monotonic()
    errors = finish(start(workdir, 2, "main", stages="synthesize,label", label__cohesion_threshold=1.0), code=1)
    assert time.monotonic() - began < 60
    sentence = errors[0].strip().splitlines()[-1].removeprefix("side_jax: ")
    assert "label.cohesion_threshold" in sentence
    assert f"side_jax: process 0 failed: {sentence}" in errors[1]


def assert_close(one, other):
    """Parameters that are equal but for rounding: several processes sum gradients in another order than one."""
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-3), one, other)


@pytest.mark.slow
def test_two_processes_train_like_one(calm, tmp_path):
    finish(start(tmp_path / "run", 1))
    (ema, rows), (expected, expected_rows) = trained(tmp_path / "run"), trained(calm)
    assert_close(ema, expected)
    for row, other in zip(rows, expected_rows, strict=True):
        for key in ("step", "loss", "gradient_norm"):
            np.testing.assert_allclose(row[key], other[key], rtol=1e-4)


@pytest.mark.slow
def test_two_processes_share_all_stages(calm, tmp_path):
    """Every stage by two processes of two devices each; one of four then makes the same surrogate, images and scores.

    A process of two devices cuts a batch into other parts than one of four, which rounds differently. Shards by two
    processes must not be those of one alone.
    """
    workdirs = {processes: tmp_path / str(processes) for processes in (1, 2)}
    few = {"extract__attacks": "('unconditional','side')", "extract__guidance_scales": "(10.0,)"}
    shutil.copytree(calm, workdirs[2])
    errors = finish(start(workdirs[2], 2, "main", **few))
    assert "report" in errors[0]
    alone = shutil.copytree(workdirs[2], tmp_path / "alone")
    shutil.rmtree(alone / "surrogate")
    finish(start(alone, 1, "main", stages="surrogate", **few))
    settings = from_config(saved_config(alone))
    assert_close(
        *(
            stage_inputs.load_classifier(settings, workdir, ATTACKS["side"].classifier)[1]
            for workdir in (alone, workdirs[2])
        )
    )
    shutil.copytree(workdirs[2], workdirs[1])
    made = list(workdirs[1].rglob("shard_*.npz"))
    assert len(made) == 4 + 2 * 2  # of 32 images: 128 synthetic ones, 64 of each run
    for path in made:
        path.unlink()
    shutil.rmtree(workdirs[1] / "evaluate")
    finish(start(workdirs[1], 1, "main", **few))
    for name in (path.relative_to(workdirs[1]) for path in made):
        with np.load(workdirs[1] / name) as ours, np.load(workdirs[2] / name) as theirs:
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


def test_another_number_of_processes_than_asked_for_is_an_error(tmp_path, monkeypatch, capsys):
    """As on a pod or under Slurm, where JAX itself finds how many there are."""
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_: None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert runs.run([*runs.arguments(tmp_path / "run"), "--processes=3"]) == 1
    assert "--processes=3 was given, but 2 processes joined" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_processes_that_ask_for_different_numbers_all_say_so(tmp_path):
    argv = [sys.executable, "-m", "side_jax.train", *runs.arguments(tmp_path / "run")]
    joined = [*argv, f"--coordinator=127.0.0.1:{free_port()}"]
    pair = [[*joined, "--processes=2", "--process_id=0"], [*joined, "--processes=3", "--process_id=1"]]
    options = {"cwd": runs.ROOT, "text": True, "stderr": subprocess.PIPE}
    errors = finish([subprocess.Popen(command, **options) for command in pair], code=1)
    sentence = "--processes=3 was given, but 2 processes joined; give each of them 2."
    assert f"side_jax: process 1 failed: {sentence}" in errors[0]
    assert f"side_jax: {sentence}" in errors[1]


def test_a_process_that_no_other_joins_says_so(tmp_path, capsys):
    assert runs.run([*runs.arguments(tmp_path / "run"), "--processes=2", "--process_id=2"]) == 2
    assert "--process_id=2 must be below --processes=2" in capsys.readouterr().err
