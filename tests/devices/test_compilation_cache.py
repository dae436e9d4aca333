"""The folder of compiled programs: where it is, whose choice stands, and what a kill leaves."""

import jax
import pytest

from side_jax.devices import compilation_cache


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """JAX's settings as `prepare` changes them, starting from none; the home of caches is tmp_path."""
    changed = {"jax_compilation_cache_dir": None, "jax_enable_compilation_cache": True}
    config = type("Config", (), {"update": lambda self, name, value: changed.__setitem__(name, value)})()
    config.__class__.__getattr__ = lambda self, name: changed[name]
    monkeypatch.setattr(jax, "config", config)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return changed


def test_it_is_on_by_default(settings, tmp_path):
    compilation_cache.prepare()
    folder = compilation_cache.default_folder()
    assert settings["jax_compilation_cache_dir"] == str(folder)
    assert folder.is_dir()
    assert folder.is_relative_to(tmp_path / "side_jax")
    assert settings["jax_compilation_cache_max_size"] == 2**30


@pytest.mark.parametrize("chosen", [("jax_compilation_cache_dir", "/mine"), ("jax_enable_compilation_cache", False)])
def test_the_users_choice_stands(settings, tmp_path, chosen):
    settings[chosen[0]] = chosen[1]
    before = dict(settings)
    compilation_cache.prepare()
    assert settings == before
    assert not list(tmp_path.iterdir())


def test_no_folder_no_cache(settings, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compilation_cache.prepare()
    assert settings["jax_compilation_cache_dir"] is None


def test_another_processor_or_version_has_another_folder(settings, monkeypatch):
    before = compilation_cache.default_folder()
    monkeypatch.setattr(compilation_cache, "_instruction_sets", lambda: ["other"])
    other = compilation_cache.default_folder()
    monkeypatch.setattr(jax, "__version__", "0")
    assert len({before, other, compilation_cache.default_folder()}) == 3


def test_what_a_kill_left_is_removed(tmp_path):
    """JAX writes the program, then the time of its use: a program without the latter is half written."""
    for name in ("a-cache", "a-atime", "b-cache"):
        (tmp_path / name).touch()
    compilation_cache.remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*-*")) == ["a-atime", "a-cache"]


def test_jax_writes_such_files(tmp_path):
    """The names that `remove_unfinished` knows are JAX's own."""
    lru_cache = pytest.importorskip("jax._src.lru_cache")
    lru_cache.LRUCache(str(tmp_path), max_size=2**20).put("key", b"program")
    compilation_cache.remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.glob("key*")} == {"key-cache", "key-atime"}
