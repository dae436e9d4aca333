"""Workdirs in object stores: the same code on a local folder that is treated as one, and on fsspec's memory as gs://."""

import contextlib

import jax
import numpy as np
import pytest
import runs
from etils import epath
from etils.epath import backend
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from side_jax.errors import InputError
from side_jax.sampling import shards
from side_jax.workdir import files, lock
from side_jax.workdir.work_units import Unit


class Upload(AbstractBufferedFile):
    """What is written to a store: nothing can be sought, and nothing is there before it is closed."""

    def _upload_chunk(self, final=False):
        if final:
            MemoryFile(self.fs, self.path, self.buffer.getvalue()).commit()
        return False  # keeps what was written so far


class Store(MemoryFileSystem):
    """A bucket: objects with slashes in their names, and no folders."""

    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.removeprefix("gs:/"))

    def mkdir(self, path, create_parents=True, **kwargs):
        pass

    def makedirs(self, path, exist_ok=False):
        pass

    def rmdir(self, path):
        pass

    def _open(self, path, mode="rb", **kwargs):
        return Upload(self, path, mode) if mode == "wb" else super()._open(path, mode, **kwargs)


@pytest.fixture
def store(monkeypatch):
    """Makes gs:// paths those of a bucket in memory, which it returns."""
    made = Store(global_store=False)
    monkeypatch.setattr(backend.fsspec_backend, "_get_filesystem", lambda name: made)
    return made


@pytest.fixture(params=["local", "store"])
def either(request, tmp_path):
    """A workdir's path, on a disk or in a store."""
    if request.param == "store":
        request.getfixturevalue("store")
        return files.as_path("gs://bucket/run")
    return files.as_path(str(tmp_path / "run"))


def test_every_workdir_is_an_epath(tmp_path):
    assert isinstance(files.as_path(str(tmp_path)), type(epath.Path("gs://bucket/folder")))
    assert files.local(files.as_path(str(tmp_path)))
    assert not files.local(epath.Path("gs://bucket/folder"))


def test_a_run_without_what_only_a_local_disk_has(tmp_path, finished, monkeypatch):
    """No lock, no fsync, no free space asked for: the same results."""
    monkeypatch.setattr(files, "local", lambda path: False)
    workdir = tmp_path / "run"
    assert runs.run(runs.arguments(workdir)) == 0
    assert not (workdir / ".lock").exists()
    for name in (
        "evaluate/results.json",
        "evaluate/matches.csv",
        "train/metrics.jsonl",
        "train/split.json",
        "extract/side_10/manifest.json",
        "extract/side_10/shard_00000.npz",
    ):
        assert (workdir / name).read_bytes() == (finished / name).read_bytes()
    assert runs.run(runs.arguments(workdir)) == 0


def test_a_url_that_no_library_opens(capsys, monkeypatch):
    def refuse(self):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(type(epath.Path("gs://bucket/run")), "exists", refuse)
    for url, reason in (("gs://bucket/run", "Please install gcsfs"), ("nothing://bucket/run", "unknown kind of URL")):
        assert runs.run(runs.arguments(url)) == 2
        error = capsys.readouterr().err
        assert f"{url} can't be opened here" in error
        assert reason in error


def test_atomic_in_a_store(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "local", lambda path: False)
    path = files.as_path(str(tmp_path / "a.json"))
    files.write_json(path, {"a": 1})
    assert files.read_json(path) == {"a": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(InputError, match="is missing"):
        files.read_json(tmp_path / "b.json")


def unit(workdir, fingerprint):
    return Unit(workdir=workdir, name="extract/side_10", fingerprint=fingerprint)


def filled(workdir):
    """A unit of fingerprint `one` with a file of its own, and one in a subfolder."""
    work = unit(workdir, "one")
    assert work.begin()
    files.write_npz(work.directory / "shard_00000.npz", index=np.arange(3), label=np.arange(3), images=np.arange(3))
    files.write_json(work.directory / "checkpoints" / "10" / "meta", {"step": 10})
    work.finish(images=3)
    return work


def test_a_shard_comes_back(either):
    (shard,) = shards.layout(filled(either).directory, 3, 3)
    assert shard.intact(thorough=True)
    np.testing.assert_array_equal(shard.read()["images"], np.arange(3))
    assert unit(either, "one").done()


def test_what_is_stale_moves(either):
    filled(either)
    for count in (1, 2):
        assert unit(either, "two").begin()
        assert [path.name for path in (either / "extract" / "side_10").iterdir()] == ["manifest.json"]
        aside = either / "stale" / ("extract-side_10-one" + "+" * (count - 1))
        assert sorted(path.name for path in aside.iterdir()) == ["checkpoints", "manifest.json", "shard_00000.npz"]
        assert files.read_json(aside / "checkpoints" / "10" / "meta") == {"step": 10}
        assert files.read_npz(aside / "shard_00000.npz", ["index"])["index"].tolist() == [0, 1, 2]
        (either / "extract" / "side_10").rmtree()
        filled(either)
    assert len(list((either / "stale").iterdir())) == 2


@pytest.mark.parametrize("after", range(6))
def test_a_move_cut_short_is_moved_again(store, monkeypatch, after):
    """A store moves file by file: whenever it ends, nothing is lost, and nothing old passes for new."""
    workdir = files.as_path("gs://bucket/run")
    filled(workdir)
    commit, remove, left = MemoryFile.commit, store.rm_file, iter(range(after))

    def limited(act):
        def acting(*arguments):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return act(*arguments)

        return acting

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFile, "commit", limited(commit))
        patch.setattr(store, "rm_file", limited(remove))
        with pytest.raises(KeyboardInterrupt):
            unit(workdir, "two").begin()
    assert not unit(workdir, "two").begun()
    assert unit(workdir, "two").begin()
    assert [path.name for path in (workdir / "extract" / "side_10").iterdir()] == ["manifest.json"]
    for name in ("shard_00000.npz", "checkpoints/10/meta", "manifest.json"):
        assert any((aside / name).exists() for aside in (workdir / "stale").iterdir())


def test_an_error_in_a_run_is_its_own(either):
    with pytest.raises(OSError, match="of the body") as caught, lock.locked(either):
        raise OSError("of the body")
    assert not isinstance(caught.value, InputError)


def test_a_store_that_refuses_is_named(store, monkeypatch):
    def refuse(path, exist_ok):
        raise OSError("Forbidden: you may not")

    monkeypatch.setattr(store, "makedirs", refuse)
    refused = pytest.raises(InputError, match=r"gs://bucket/run can't be written \(Forbidden: you may not\)")
    with refused, lock.locked(files.as_path("gs://bucket/run")):
        pass


def test_two_processes_write_the_same_file(either, monkeypatch):
    """Whoever ends last has written it, whole; what a kill left is overwritten by the same process."""
    path = either / "features" / "key.npz"
    with contextlib.ExitStack() as both:
        opened = []
        for process in (0, 1):
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            opened.append(both.enter_context(files.atomic(path)))
        for text in (b"one", b"two"):
            for file in opened:
                file.write(text)
    assert path.read_bytes() == b"onetwo"
    assert [found.name for found in path.parent.iterdir()] == ["key.npz"]
    left = path.with_name("key.npz.1.tmp")
    left.write_bytes(b"half of a file, longer than the next")
    with files.atomic(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    assert not left.exists()
