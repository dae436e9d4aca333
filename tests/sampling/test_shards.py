"""Shards of generated images: what is lost is made again, and only that; memory does not grow with their number."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import runs

from side_jax.devices import process_group
from side_jax.diffusion.schedule import make_schedule
from side_jax.diffusion.steps import step_table
from side_jax.errors import InputError, StoppedError
from side_jax.sampling import generation, shards
from side_jax.workdir import files

HERE = Path(__file__).parents[1]
COUNT, BATCH = 72, 16  # the last shard is half full


@pytest.fixture(scope="module")
def generator():
    table = step_table(make_schedule("linear", 1000), 2)
    return generation.Generator(
        denoise=lambda params, x, t, index: params * x, table=table, shape=(2, 2, 1), batch_size=BATCH, loop="scan"
    )


def write(generator, directory, count=COUNT):
    parts = shards.layout(directory, count, BATCH)
    labels = np.arange(count, dtype=np.int32) % 3
    options = {"params": np.float32(0.5), "base": jax.random.key(0), "labels": labels, "scale": 0.0}
    shards.write(generator, parts, description="test", **options)
    return parts


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero_the_middle(path):
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)


def exchange(path):
    path.write_bytes(path.with_name("shard_00002.npz").read_bytes())


def other_arrays(path):
    np.savez(path, images=np.zeros(3))


@pytest.mark.parametrize("spoil", [Path.unlink, cut, zero_the_middle, exchange, other_arrays])
def test_only_what_is_lost_is_made_again(generator, tmp_path, spoil):
    parts = write(generator, tmp_path)
    assert shards.complete(parts)
    before, times = contents(tmp_path), {part.path: part.path.stat().st_mtime_ns for part in parts}
    assert sorted(before) == [f"shard_0000{i}.npz" for i in range(5)]
    spoil(parts[1].path)
    if spoil is not zero_the_middle:  # of finished sets only the ends are looked at
        assert not shards.complete(parts)
    assert not parts[1].intact(thorough=True)
    write(generator, tmp_path)
    assert contents(tmp_path) == before
    again = {part.path for part in parts if part.path.stat().st_mtime_ns != times[part.path]}
    assert again == {parts[1].path}


def test_a_full_disk_keeps_what_is_written(generator, tmp_path, monkeypatch):
    whole = contents_of_undisturbed(generator, tmp_path / "undisturbed")
    real, written = files.write_npz, []

    def write_npz(path, **arrays):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        real(path, **arrays)

    monkeypatch.setattr(files, "write_npz", write_npz)
    with pytest.raises(OSError, match="No space left"):
        write(generator, tmp_path / "full")
    monkeypatch.undo()
    assert_two_shards_go_on(generator, tmp_path / "full", whole)


def assert_two_shards_go_on(generator, directory, whole):
    """What is there are the first two shards, and writing again gives the undisturbed bytes."""
    assert sorted(contents(directory)) == ["shard_00000.npz", "shard_00001.npz"]
    write(generator, directory)
    assert contents(directory) == whole


def contents_of_undisturbed(generator, directory):
    write(generator, directory)
    return contents(directory)


def test_half_a_file_is_not_left_behind(tmp_path):
    with pytest.raises(TypeError), files.atomic(tmp_path / "a.bin") as file:
        file.writelines([b"half", "not bytes"])
    assert not list(tmp_path.iterdir())


def test_sigterm_ends_after_the_batches_in_flight(generator, tmp_path, monkeypatch):
    whole, real = contents_of_undisturbed(generator, tmp_path / "undisturbed"), generator.dispatch

    def dispatch(params, base, index, labels, scale):
        if index[0] == BATCH:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(params, base, index, labels, scale)

    monkeypatch.setattr(generator, "dispatch", dispatch)
    with pytest.raises(StoppedError, match="stopped by SIGTERM with 2 of 5 batches saved"):
        write(generator, tmp_path / "told")
    monkeypatch.undo()
    assert_two_shards_go_on(generator, tmp_path / "told", whole)


@pytest.mark.parametrize(
    ("outcome", "error"),
    [("failed process 0 failed: no space", InputError), ("stopped elsewhere", StoppedError)],
)
def test_another_process_that_ends_ends_this_one_after_the_batches_in_flight(
    generator, tmp_path, monkeypatch, outcome, error
):
    whole, real = contents_of_undisturbed(generator, tmp_path / "undisturbed"), generator.dispatch

    def dispatch(params, base, index, labels, scale):
        if index[0] == BATCH:
            monkeypatch.setattr(process_group, "_value", {process_group._gate(): outcome}.get)
        return real(params, base, index, labels, scale)

    monkeypatch.setattr(generator, "dispatch", dispatch)
    with pytest.raises(error, match=f"^{outcome.partition(' ')[2]}$"):
        write(generator, tmp_path / "told")
    monkeypatch.undo()
    assert_two_shards_go_on(generator, tmp_path / "told", whole)


def test_batches_are_written_while_the_next_are_computed(generator, tmp_path, monkeypatch):
    """Of every batch but the last, the next one is handed to the devices before it is on the disk, never three."""
    events, real_dispatch, real_write = [], generator.dispatch, files.write_npz

    def dispatch(*args):
        events.append("computing")
        return real_dispatch(*args)

    def write_npz(path, **arrays):
        real_write(path, **arrays)
        events.append("written")

    monkeypatch.setattr(generator, "dispatch", dispatch)
    monkeypatch.setattr(files, "write_npz", write_npz)
    write(generator, tmp_path)
    ahead = np.cumsum([1 if event == "computing" else -1 for event in events])
    assert ahead.max() == shards.IN_FLIGHT
    assert ahead[-1] == 0


def test_processes_share_the_shards(generator, tmp_path, monkeypatch):
    """Each makes a contiguous part, nearly as long as every other's; together they make all, once, the same bytes."""
    whole = contents_of_undisturbed(generator, tmp_path / "one")
    made = []
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        before = set(contents(tmp_path / "three")) if made else set()
        made.append(list(process_group.own_range(5)))
        write(generator, tmp_path / "three")
        assert set(contents(tmp_path / "three")) - before == {f"shard_0000{i}.npz" for i in made[-1]}
    assert [i for part in made for i in part] == [0, 1, 2, 3, 4]
    assert {len(part) for part in made} == {1, 2}
    assert contents(tmp_path / "three") == whole


def test_reading_in_parts_and_by_index(generator, tmp_path):
    parts = write(generator, tmp_path)
    whole = shards.read(parts)
    np.testing.assert_array_equal(whole["index"], np.arange(COUNT))
    np.testing.assert_array_equal(whole["label"], np.arange(COUNT) % 3)
    chunks = list(shards.stream(parts, size=2 * BATCH * 4))
    assert [len(chunk["images"]) for chunk in chunks] == [32, 32, 8]
    np.testing.assert_array_equal(np.concatenate([chunk["images"] for chunk in chunks]), whole["images"])
    np.testing.assert_array_equal(shards.pick(parts, np.asarray([70, 3, 17])), whole["images"][[70, 3, 17]])
    parts[2].path.unlink()
    with pytest.raises(InputError, match=r"shard_00002\.npz is missing"):
        shards.read(parts)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """10,000 images, generated and then scored, take no more than 2,000 do, which are several of the probe's chunks.

    The probe's chunks are small, so that few images are many chunks; the default ones are a little larger.
    """
    assert shards.CHUNK * np.dtype(np.float32).itemsize <= 2**25
    environment = runs.environment(devices=1) | {"PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, str(HERE / "memory_probe.py"), str(tmp_path), "2000", "10000"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    peaks = [int(word) for word in done.stdout.split()]
    more_images = 8_000 * 32 * 32 * 3 / 2**20  # MiB, and four times that as float32
    for few, many in (peaks[:2], peaks[2:]):
        assert many - few < more_images / 2, peaks
