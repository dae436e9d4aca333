"""Workdirs in object stores: the same code on a local folder that is treated as one, and URLs that can't be opened."""

import pytest
import runs
from etils import epath

from side_jax import files
from side_jax.errors import InputError


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
        "extract/side_10/manifest.json",
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
