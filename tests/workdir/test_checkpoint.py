"""Checkpoints give back what was saved, or say in one sentence why they can't."""

import errno
import shutil

import jax
import numpy as np
import pytest

from side_jax.errors import InputError
from side_jax.workdir import checkpoint
from side_jax.workdir.checkpoint import Checkpoints, latest_step

TREE = {"w": jax.ShapeDtypeStruct((3,), np.float32)}


def ema(step):
    return {"w": np.full(3, step, np.float32)}


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 1 and 2."""
    with Checkpoints(tmp_path / "checkpoints") as store:
        for step in (1, 2):
            store.save(step, ema=ema(step), meta={"fingerprint": "f"})
    return tmp_path / "checkpoints"


def restored(folder, fingerprint="f"):
    with Checkpoints(folder, read_only=True) as store:
        return store.restore(fingerprint=fingerprint, ema=TREE)


def test_the_newest_comes_back(folder):
    found = restored(folder)
    assert (found.step, latest_step(folder)) == (2, 2)
    np.testing.assert_array_equal(found.trees["ema"]["w"], ema(2)["w"])


def test_the_averages_of_another_step_are_noticed(folder):
    """Whole and undamaged, they are still not those that meta describes."""
    shutil.rmtree(folder / "2" / "ema")
    shutil.copytree(folder / "1" / "ema", folder / "2" / "ema")
    with pytest.raises(InputError, match=r"checkpoints/2 was altered: its ema no longer match"):
        restored(folder)


def test_other_settings_are_refused(folder):
    with pytest.raises(InputError, match="with other settings"):
        restored(folder, "g")


def test_another_format_names_the_version_that_wrote_it(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, Checkpoints(tmp_path) as store:
        patch.setattr(checkpoint, "FORMAT_VERSION", 99)
        patch.setattr(checkpoint, "__version__", "9.8")
        store.save(1, ema=ema(1), meta={"fingerprint": "f"})
    with pytest.raises(InputError, match=r"/1 was written by side_jax 9\.8 in format 99, but this is side_jax \d"):
        restored(tmp_path)


def test_a_full_disk_is_an_error_of_the_system(folder, monkeypatch):
    """Which says so on leaving, too, unless something else went wrong before."""

    def full(*_):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']")

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "wait_until_finished", full)
    with pytest.raises(OSError, match="No space left on device") as caught, Checkpoints(folder):
        pass
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(folder))
    with pytest.raises(KeyError, match="first"), Checkpoints(folder):
        raise KeyError("first")


def test_an_earlier_step_comes_back_where_it_was_kept(tmp_path):
    with Checkpoints(tmp_path / "all", keep=None) as store:
        for step in (1, 2, 3, 4):
            store.save(step, ema=ema(step), meta={"fingerprint": "f"})
    with Checkpoints(tmp_path / "all", read_only=True) as store:
        found = store.restore(fingerprint="f", step=1, ema=TREE)
        np.testing.assert_array_equal(found.trees["ema"]["w"], ema(1)["w"])
        assert found.step == 1
        with pytest.raises(InputError, match=r"no checkpoint of step 5, only of 1, 2, 3, 4; .* train.keep_checkpoints"):
            store.restore(fingerprint="f", step=5, ema=TREE)


def test_nothing_there(tmp_path):
    assert latest_step(tmp_path / "none") is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no checkpoint"):
        restored(tmp_path / "empty")
