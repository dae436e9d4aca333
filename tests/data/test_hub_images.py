"""Data sets on the hub: pictures, arrays and Parquet files of a folder or a pattern, and no file that is not read."""

import io

import hubs
import numpy as np
import pytest
from test_hostile_files import noise, picture, read_images, refused

from side_jax.data import datasets, hub_images
from side_jax.data.image_sets import read_sets
from side_jax.data.sources import HIDDEN, open_source
from side_jax.settings import Data

pytestmark = hubs.needed
ID = "hf://datasets/me/set"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub_images.fetch.cache_clear()
    with hubs.serving() as hub:
        hubs.connect(monkeypatch, hub.address, tmp_path / "cache")
        yield hub


def png(image):
    buffer = io.BytesIO()
    picture(image).save(buffer, "PNG")
    return buffer.getvalue()


def npz(images):
    buffer = io.BytesIO()
    np.savez(buffer, images=images)
    return buffer.getvalue()


def table(images, labels=None, **options):
    """A Parquet file as the library of data sets writes it."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    columns = {"image": pa.array([{"bytes": png(image), "path": "x.png"} for image in images])}
    if labels is not None:
        columns["label"] = pa.array(labels)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), buffer, **options)
    return buffer.getvalue()


@pytest.fixture
def classes(hub):
    """Nine pictures in two classes, and what is not read."""
    images = noise(9)
    names = [f"train/{'cat' if i < 4 else 'dog'}/{i}.png" for i in range(9)]
    names[8] = "train/dog/8.PNG"
    more = {
        "README.md": b"",
        "train/metadata.jsonl": b"{}",
        "train/cat/.hidden.png": b"x",
        "test/cat/0.png": png(images[0]),
    }
    hub.add("me/set", {name: png(image) for name, image in zip(names, images, strict=True)} | more, kind="dataset")
    return images


def test_a_folder_of_pictures(hub, classes):
    found = open_source(f"{ID}/train", "--members")
    assert [name.partition("/")[2] for name in found.names] == [*(f"{i}.png" for i in range(8)), "8.PNG"]
    assert list(found.labels) == ["cat"] * 4 + ["dog"] * 5
    assert found.passed_over == {".jsonl": 1, HIDDEN: 1}
    assert sorted(hub.downloaded) == sorted(f"train/{name}" for name in found.names)
    np.testing.assert_array_equal(read_images(f"{ID}/train", "--members").images, classes)


def test_of_very_many_pictures_only_the_folder_is_downloaded(hub, classes, monkeypatch):
    monkeypatch.setattr(hub_images, "_FEW", 3)
    found = open_source(f"{ID}/train", "--members")
    assert len(found.names) == 9
    assert {*hub.downloaded} == {*(f"train/{name}" for name in found.names), "train/cat/.hidden.png"}


def test_a_run_reads_both_sides(hub, classes):
    sides = {"path": f"{ID}/train/cat", "heldout_from": f"{ID}@main/train/dog", "heldout_revision": hubs.MAIN}
    dataset = datasets.load(Data(name="folder", num_members=4, num_heldout=5, **sides))
    np.testing.assert_array_equal(dataset.images, classes)
    assert dataset.heldout_start == 4
    for forget in (hub_images.fetch.cache_clear, datasets.forget):
        forget()
    hub.add("me/set", {"train/cat/0.png": png(noise(1, seed=5)[0])}, commit=hubs.OTHER, kind="dataset")
    pinned = Data(name="folder", num_members=4, num_heldout=5, revision=hubs.MAIN, **sides)
    np.testing.assert_array_equal(datasets.load(pinned).images, classes)
    assert open_source(f"{ID}/train/cat", "config.data.path").names == ["0.png"]


def test_single_files_and_arrays(hub):
    images = noise(6)
    files = {"seen.npz": npz(images), "arrays/b.npz": npz(images[:2]), "arrays/a.npz": npz(images[2:]), "x/1.zip": b""}
    hub.add("me/set", files, kind="dataset")
    np.testing.assert_array_equal(read_images(f"{ID}/seen.npz", "--members").images, images)
    assert hub.downloaded == ["seen.npz"]
    found = open_source(f"{ID}/arrays", "--members")
    np.testing.assert_array_equal(found.read(0).image, images[2, ..., 0])
    refused(lambda: open_source(f"{ID}/x", "--members"), f"--members={ID}/x holds no image (but 1 .zip)")
    text = refused(lambda: open_source(f"{ID}/y", "--members"), f"--members: {ID}/y does not exist")
    assert "name one that it has (seen.npz, arrays, x)" in text
    refused(
        lambda: open_source("hf://datasets/me/none", "--members"), "--members: hf://datasets/me/none does not exist"
    )


def test_parquet_files_by_pattern(hub):
    images = noise(10)
    files = {
        "data/train-00000-of-00002.parquet": table(images[:3], [1, 0, 1]),
        "data/train-00001-of-00002.parquet": table(images[3:5], [0, 1]),
        "data/test-00000-of-00001.parquet": table(images[5:], [0] * 5),
        "README.md": b"",
    }
    hub.add("me/set", files, kind="dataset")
    found = open_source(f"{ID}/data/train-*", "--members")
    assert list(found.names) == [
        *(f"train-00000-of-00002.parquet:{row}" for row in range(3)),
        *(f"train-00001-of-00002.parquet:{row}" for row in range(2)),
    ]
    assert list(found.labels) == [1, 0, 1, 0, 1]
    assert sorted(hub.downloaded) == sorted(name for name in files if "train" in name)
    np.testing.assert_array_equal(read_images(f"{ID}/data/train-*", "--members").images, images[:5])
    refused(lambda: open_source(ID, "--members"), f"--members={ID} holds Parquet files of several splits (test, train)")
    # The cache holds files of both splits by now, in one folder.
    assert len(open_source(f"{ID}/data/t?ain-*", "--members").names) == 5
    assert len(open_source(f"{ID}/data/test-00000-of-00001.parquet", "--members").names) == 5


def test_sets_of_one_repository_are_kept_apart(hub, tmp_path):
    images = noise(15)
    files = {
        f"data/{name}-0.parquet": table(images[3 * i : 3 * i + 3]) for i, name in enumerate(["train", "test", "x"])
    }
    hub.add("me/set", files, kind="dataset")
    paths = [f"{ID}/data/{name}-*" for name in ("x", "train", "test")]
    sets = read_sets(*paths)
    np.testing.assert_array_equal(sets.members.images, images[:3])
    np.testing.assert_array_equal(sets.heldout.images, images[3:6])
    words = ("share 1 of their files", "--members", "--heldout", "each set needs its own images")
    refused(lambda: read_sets(paths[0], paths[1], f"{ID}@main/data/tr*"), *words)


def test_without_a_network_the_cache_is_read(hub, classes, tmp_path, monkeypatch):
    before = read_images(f"{ID}/train", "--members")
    hub_images.fetch.cache_clear()
    hub.asked.clear()
    hubs.connect(monkeypatch, hub.address, tmp_path / "cache", offline=True)
    np.testing.assert_array_equal(read_images(f"{ID}/train", "--members").images, before.images)
    assert not hub.asked
    refused(lambda: open_source("hf://datasets/me/other", "--members"), "--members: ", "HF_HUB_OFFLINE is set")


def test_pictures_come_before_tables(hub):
    images = noise(4)
    files = {"a/0.png": png(images[0]), "a/x.parquet": table(images)}
    hub.add("me/set", files, kind="dataset")
    found = open_source(ID, "--members")
    assert (list(found.names), found.passed_over) == (["a/0.png"], {".parquet": 1, HIDDEN: 1})
