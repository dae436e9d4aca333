"""Ids of the hub: what they name, their commits, which files are downloaded, and one sentence for whatever fails."""

import logging
import sys

import hubs
import pytest
from hubs import refused

from side_jax.errors import InputError
from side_jax.hub import repository
from side_jax.hub.repository import Location, commit_of, parse, snapshot

pytestmark = hubs.needed
FILES = {"a.txt": b"first", "unet/config.json": b"{}", "b[1].bin": b"second", "big.bin": bytes(1000)}
NOWHERE = "http://127.0.0.1:9"  # no server listens there


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with one model, which this process asks."""
    with hubs.serving() as hub:
        hub.add("me/tiny", FILES)
        hubs.connect(monkeypatch, hub.address, tmp_path)
        yield hub


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://google/ddpm-cifar10-32", Location(kind="model", name="google/ddpm-cifar10-32")),
        ("hf://a/b@v1.0", Location(kind="model", name="a/b", revision="v1.0")),
        ("hf://a/b/c/d.pt", Location(kind="model", name="a/b", path="c/d.pt")),
        ("hf://datasets/a/b@x/data/", Location(kind="dataset", name="a/b", revision="x", path="data")),
        (
            "hf://a/b@refs/convert/parquet/c",
            Location(kind="model", name="a/b", revision="refs/convert/parquet", path="c"),
        ),
        ("hf://a/b@refs%2Fpr%2F3/c", Location(kind="model", name="a/b", revision="refs/pr/3", path="c")),
    ],
)
def test_an_id_is_read(text, expected):
    assert parse(text) == expected
    assert repository.is_id(text)


@pytest.mark.parametrize(
    "text",
    [
        *("hf://", "hf://gpt2", "hf://datasets/mnist", "hf://spaces/a/b", "hf://a/b@", "hf://a/b/c@v1", "hf:///a/b"),
        *("hf://a/b/../c", "hf://a/b//c", "hf://a b/c", "hf://a/b?c"),
    ],
)
def test_what_is_no_id_is_refused(text):
    refused(lambda: parse(text), f"{text} is no id of the hub", "hf://datasets/OWNER/NAME@REVISION/PATH")


def test_only_what_is_asked_for_is_downloaded_and_once(hub, tmp_path):
    assert commit_of("hf://me/tiny") == commit_of(f"hf://me/tiny@{hubs.MAIN}") == hubs.MAIN
    found = snapshot("hf://me/tiny", hubs.MAIN)
    assert sorted(found.names) == sorted([".gitattributes", *FILES])
    assert not hub.downloaded
    for _ in range(2):
        folder = found.fetch(["a.txt", "b[1].bin"])
        assert folder.name == hubs.MAIN
        assert folder.is_relative_to(tmp_path)  # in the hub's own cache
        assert (folder / "b[1].bin").read_bytes() == b"second"
        assert sorted(hub.downloaded) == ["a.txt", "b[1].bin"]
    found.fetch(["unet/config.json"], ["unet/*"])
    assert sorted(hub.downloaded) == ["a.txt", "b[1].bin", "unet/config.json"]


def test_a_branch_that_moves_is_another_commit_and_the_old_one_stays(hub):
    hub.add("me/tiny", FILES | {"a.txt": b"third"}, commit=hubs.OTHER)
    assert commit_of("hf://me/tiny") == hubs.OTHER
    assert commit_of(f"hf://me/tiny@{hubs.MAIN}") == hubs.MAIN
    folder = snapshot("hf://me/tiny", hubs.MAIN).fetch(["a.txt"])
    assert (folder / "a.txt").read_bytes() == b"first"


@pytest.mark.parametrize("offline", [True, False])
def test_without_the_network_the_cache_is_used(hub, tmp_path, monkeypatch, caplog, offline):
    snapshot("hf://me/tiny", commit_of("hf://me/tiny")).fetch(["a.txt"])
    hub.asked.clear()
    hubs.connect(monkeypatch, hub.address if offline else NOWHERE, tmp_path, offline=offline)
    with caplog.at_level(logging.WARNING, logger="side_jax"):
        assert commit_of("hf://me/tiny") == hubs.MAIN
        found = snapshot("hf://me/tiny", hubs.MAIN)
    assert found.names == (".gitattributes", "a.txt")
    assert (found.fetch(["a.txt"]) / "a.txt").read_bytes() == b"first"
    assert "the 2 files of the commit in the hub's cache are used" in caplog.text
    assert ("HF_HUB_OFFLINE is set" in caplog.text) == offline
    assert not hub.asked
    why = "HF_HUB_OFFLINE is set" if offline else NOWHERE
    refused(
        lambda: commit_of("hf://me/tiny@v1"),
        "hf://me/tiny can't be asked of",
        why,
        "hf download me/tiny --revision v1`",
    )
    refused(lambda: snapshot("hf://me/tiny", hubs.OTHER), "can't be asked of", why, "give a local path")
    for name in ("big.bin", "unheard.of"):  # the first is in a list that new versions of the library keep
        refused(lambda name=name: found.fetch([name]), "hf://me/tiny", "not whole in the hub's cache")


def test_the_cache_alone_may_be_asked(hub):
    refused(lambda: snapshot("hf://me/tiny", hubs.MAIN, cached=True), f"{hubs.MAIN[:12]} is not in the hub's cache")
    snapshot("hf://me/tiny", hubs.MAIN).fetch(["a.txt"])
    hub.asked.clear()
    assert snapshot("hf://me/tiny", hubs.MAIN, cached=True).names == ("a.txt",)
    assert not hub.asked


def test_a_repository_that_is_gone_by_now_is_read_from_the_cache(hub, caplog):
    snapshot("hf://me/tiny", hubs.MAIN).fetch(["a.txt"])
    hub.private.add("me/tiny")
    assert snapshot("hf://me/tiny", hubs.MAIN).names == ("a.txt",)
    assert "does not exist" in caplog.text
    refused(lambda: commit_of("hf://me/tiny"), "hf://me/tiny does not exist")  # where it is now, nobody knows


def test_what_does_not_exist_or_is_closed_is_said(hub, monkeypatch):
    refused(lambda: commit_of("hf://me/none"), "hf://me/none does not exist at http://", "hf://datasets/OWNER/NAME")
    refused(lambda: commit_of("hf://datasets/me/tiny"), "hf://datasets/me/tiny does not exist", "no datasets/")
    refused(lambda: commit_of("hf://me/tiny@v9"), "hf://me/tiny has no revision v9", "branch, tag or commit")
    refused(lambda: snapshot("hf://me/tiny", "c" * 40), "has no revision cccc")
    refused(lambda: commit_of("hf://a--b/c"), "hf://a--b/c is no id of the hub")
    hub.private.add("me/tiny")
    refused(lambda: commit_of("hf://me/tiny"), "or is private", "hf auth login", "HF_TOKEN")
    hub.add("me/gated", FILES)
    hub.gated.add("me/gated")
    found = snapshot("hf://me/gated", hubs.MAIN)  # the list is open
    for call in (lambda: commit_of("hf://me/gated"), lambda: found.fetch(["a.txt"])):
        page = f"{hub.address}/me/gated"
        refused(call, "hf://me/gated is open only to those who accepted its terms", page, "HF_TOKEN")
    assert not hub.downloaded
    monkeypatch.setenv("HF_TOKEN", "right")
    assert commit_of("hf://me/tiny") == hubs.MAIN
    found.fetch(["a.txt"])
    assert hub.downloaded == ["a.txt"]


def test_a_hub_in_trouble_is_named(hub, monkeypatch):
    monkeypatch.setattr(hub, "answer", lambda *_: (403, {}, b"{}"))
    refused(lambda: commit_of("hf://me/tiny"), "refused to show hf://me/tiny", "HF_TOKEN")
    monkeypatch.setattr(hub, "answer", lambda *_: (418, {}, b"{}"))
    refused(lambda: commit_of("hf://me/tiny"), "hf://me/tiny can't be asked of", "418")


def test_a_full_disk_is_left_to_whoever_knows_the_folder(hub, monkeypatch):
    import huggingface_hub

    def full(*_, **__):
        raise OSError(28, "No space left on device", "blobs/x")

    found = snapshot("hf://me/tiny", hubs.MAIN)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(OSError, match="No space left") as caught:
        found.fetch(["a.txt"])
    assert not isinstance(caught.value, InputError)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(lambda: commit_of("hf://me/tiny"), "pip install 'side_jax[hub]'")
    refused(lambda: snapshot("hf://me/tiny", hubs.MAIN), "pip install 'side_jax[hub]'")
