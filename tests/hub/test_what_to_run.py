"""What a sentence says to run where the hub does not give what an id names, by the real command; and that it works."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import hubs
import numpy as np
import pytest
import runs

from side_jax.data import hub_images
from side_jax.hub import repository
from side_jax.hub.repository import commit_of, parse, snapshot

pytestmark = hubs.needed
FILES = {"a.txt": b"1", "unet/config.json": b"{}", "data/train-0.npz": b"2", "data/test-0.npz": b"3", "[x]/y.npz": b"4"}
GONE = {"OFFLINE": True, "NOWHERE": False}  # how the hub is out of reach
KINDS = {"target.path": ("model", "hf://"), "data.path": ("dataset", "hf://datasets/")}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with a model and a data set, both called me/it, which this process asks."""
    hub_images.fetch.cache_clear()
    with hubs.serving() as hub:
        for kind, _ in KINDS.values():
            hub.add("me/it", FILES, kind=kind)
        hubs.connect(monkeypatch, hub.address, tmp_path / "cache")
        yield hub


def go_offline(hub, how, tmp_path, monkeypatch):
    hub_images.fetch.cache_clear()
    address = hub.address if GONE[how] else "http://127.0.0.1:9"  # no server listens there
    hubs.connect(monkeypatch, address, tmp_path / "cache", offline=GONE[how])


def sentence(setting, text, capsys, tmp_path):
    """The one line by which the command refuses an audit with such an id."""
    images = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "seen.npz", images=images)
    np.savez(tmp_path / "unseen.npz", images=images[::-1])
    given = {"data__name": "npz", "data__path": tmp_path / "seen.npz", "data__heldout_from": tmp_path / "unseen.npz"}
    given[setting.replace(".", "__")] = text
    assert runs.run(runs.arguments(tmp_path / "run", "train", **given)) == 1
    assert not (tmp_path / "run" / "train").exists()
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(f"side_jax: config.{setting}: "), line
    assert not re.search(r"\. [A-Z]|Traceback|Request ID", line), line
    return line


def ran(line, hub, tmp_path):
    """Runs the command of a sentence as a shell would, with the program of this Python; returns its exit code."""
    words = shlex.split(next(code for code in re.findall("`(.*?)`", line) if " download " in code))
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(tmp_path / "cache")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    environment.pop("HF_HUB_OFFLINE", None)  # parity/theirs.py sets it
    while "=" in words[0]:
        name, _, environment[name] = words.pop(0).partition("=")
    program = Path(sys.executable).with_name(words[0])
    return subprocess.run([program, *words[1:]], env=environment, capture_output=True, check=False).returncode


@pytest.mark.parametrize("how", GONE)
@pytest.mark.parametrize("setting", KINDS)
def test_offline_the_command_that_gets_it_is_named_and_gets_it(hub, tmp_path, monkeypatch, capsys, setting, how):
    kind, scheme = KINDS[setting]
    hub.tags["v1"] = hubs.MAIN
    go_offline(hub, how, tmp_path, monkeypatch)
    line = sentence(setting, f"{scheme}me/it@v1", capsys, tmp_path)
    words = [f"{scheme}me/it can't be asked of http://", "download me/it", "--revision v1", "give a local path"]
    words += [
        str(tmp_path / "cache"),
        *["`HF_HUB_OFFLINE=0 hf"] * GONE[how],
        *["--repo-type dataset"] * (kind != "model"),
    ]
    for word in words:
        assert word in line
    asked = len(hub.asked)
    assert ran(line, hub, tmp_path) == 0
    assert len(hub.asked) > asked
    commit = commit_of(f"{scheme}me/it@v1")
    found = snapshot(f"{scheme}me/it@v1", commit)
    assert set(FILES) <= set(found.names)
    assert (found.fetch(["a.txt"]) / "a.txt").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://a/b", "hf download a/b"),
        ("hf://a/b@v1/unet", "hf download a/b --revision v1"),  # the scheduler is beside it
        ("hf://a/b/runs/7", "hf download a/b --include 'runs*'"),
        ("hf://a/b@refs%2Fpr%2F3/c/d.pt", "hf download a/b --revision refs/pr/3 --include 'c*'"),
        ("hf://datasets/a/b", "hf download a/b --repo-type dataset"),
        ("hf://datasets/a/b/data/train-*", "hf download a/b --repo-type dataset --include 'data/train-*'"),
        ("hf://datasets/a/b@x/data", "hf download a/b --repo-type dataset --revision x --include 'data*'"),
        ("hf://datasets/a/b/[x]", "hf download a/b --repo-type dataset --include '[[]x]*'"),
        ("hf://datasets/a/b/[x]?", "hf download a/b --repo-type dataset --include '[[]x]?'"),
        ("hf://datasets/a/b@it's", "hf download a/b --repo-type dataset --revision 'it'\"'\"'s'"),
    ],
)
def test_the_command_of_an_id(text, expected, monkeypatch):
    assert repository.command(parse(text)) == expected
    monkeypatch.setattr(repository.importlib.metadata, "entry_points", lambda **_: ())
    assert repository.command(parse(text)) == expected.replace("hf ", "huggingface-cli ", 1)


@pytest.mark.parametrize("path", ["data/train-*", "data", "[x]", "data/test-0.npz"])
def test_what_the_cache_lacks_of_a_known_commit_is_got_by_its_command(hub, tmp_path, monkeypatch, path):
    """Part of the repository is in the cache, which without a network is not all there is."""
    text = f"hf://datasets/me/it/{path}"
    snapshot("hf://datasets/me/it", commit_of("hf://datasets/me/it")).fetch(["a.txt"])
    go_offline(hub, "NOWHERE", tmp_path, monkeypatch)
    kinds = ((".npz",),)
    line = hubs.refused(lambda: hub_images.fetch(text, "", kinds), f"what {text} names", "is not in the hub's cache")
    assert "does not exist" not in line
    assert f"--revision {hubs.MAIN} --include" in line
    assert ran(line, hub, tmp_path) == 0
    found = hub_images.fetch(text, "", kinds)
    assert found.names
    assert all((found.folder / name).read_bytes() in FILES.values() for name in found.names)


@pytest.mark.parametrize("setting", KINDS)
def test_what_is_not_there_or_closed_names_what_to_do(hub, tmp_path, monkeypatch, capsys, setting):
    kind, scheme = KINDS[setting]
    kept = "--repo-type dataset" if kind == "dataset" else ""

    def said(text, *words):
        line = sentence(setting, text, capsys, tmp_path)
        for word in words:
            assert word in line, line
        return line

    line = said(f"{scheme}me/none", f"{scheme}me/none does not exist at http://", "correct the name", "`hf auth login`")
    assert f"`hf download me/none{' ' * bool(kept)}{kept}`" in line
    assert ran(line, hub, tmp_path) != 0  # for the same reason
    said(f"{scheme}me/it@v9", f"{scheme}me/it has no revision v9", "leave @ out for its main branch")
    line = said(f"{scheme}me/it/sub", f"{scheme}me/it/sub does not exist", "no file or folder sub", "a.txt, unet, data")
    assert "download" not in line  # nothing would come of it
    hub.private.add("me/it")
    said(f"{scheme}me/it", "does not exist at http://", "or is private", "`hf auth login`", "HF_TOKEN")
    hub.private.clear()
    hub.gated.add("me/it")
    line = said(
        f"{scheme}me/it", "accepted its terms", "`hf auth login`", "HF_TOKEN", f"`hf download me/it{' ' * bool(kept)}"
    )
    assert ran(line, hub, tmp_path) != 0
    monkeypatch.setenv("HF_TOKEN", "right")
    assert ran(line, hub, tmp_path) == 0
    monkeypatch.setattr(repository.importlib.metadata, "entry_points", lambda **_: ())
    monkeypatch.delenv("HF_TOKEN")
    said(f"{scheme}me/none", "`huggingface-cli login`", "`huggingface-cli download me/none")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_of_a_server_names_the_login(hub, tmp_path, monkeypatch, capsys, status):
    monkeypatch.setattr(hub, "answer", lambda *_: (status, {}, b"{}"))
    for setting, (_, scheme) in KINDS.items():
        assert "`hf auth login`" in sentence(setting, f"{scheme}me/it", capsys, tmp_path)


@pytest.mark.parametrize("setting", KINDS)
def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch, capsys, setting):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    line = sentence(setting, f"{KINDS[setting][1]}me/it", capsys, tmp_path)
    assert "needs huggingface_hub; run `pip install 'side_jax[hub]'`." in line
