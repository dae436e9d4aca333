"""Rows of Parquet files: the columns of images and labels that are read, and one sentence for those that are not."""

import io
import sys

import numpy as np
import pytest
from test_hostile_files import noise, picture, read_images, refused

from side_jax.data import parquet
from side_jax.data.sources import open_source

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def png(image):
    buffer = io.BytesIO()
    picture(image).save(buffer, "PNG")
    return buffer.getvalue()


def structs(images):
    return pa.array([{"bytes": png(image), "path": None} for image in images])


def write(path, columns, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.mark.parametrize("rows", [2, 100])
def test_rows_of_all_groups_and_files_in_order(tmp_path, rows):
    images = noise(9, channels=3)
    write(tmp_path / "b.parquet", {"image": structs(images[5:]), "label": [3, 2, 1, 0]}, row_group_size=rows)
    write(tmp_path / "a.parquet", {"label": [0, 1, 2, 3, 4], "image": structs(images[:5])}, row_group_size=rows)
    (tmp_path / "card.md").write_bytes(b"")
    found = open_source(str(tmp_path), "--members")
    assert found.names == [*(f"a.parquet:{i}" for i in range(5)), *(f"b.parquet:{i}" for i in range(4))]
    assert found.labels.tolist() == [0, 1, 2, 3, 4, 3, 2, 1, 0]
    assert found.passed_over == {".md": 1}
    for row in (8, 0, 4, 5):  # in any order
        np.testing.assert_array_equal(found.read(row).image, images[row])
    np.testing.assert_array_equal(read_images(str(tmp_path), "--members").images, images)
    np.testing.assert_array_equal(read_images(str(tmp_path / "b.parquet"), "--members").images, images[5:])


@pytest.mark.parametrize(
    ("columns", "labels"),
    [
        (lambda images: {"img": structs(images), "mask": structs(images), "labels": [1, None, 2]}, [1, -1, 2]),
        (lambda images: {"photo": structs(images), "label": ["b", None, "a"]}, ["b", "", "a"]),
        (lambda images: {"image": [png(image) for image in images]}, [0, 0, 0]),
        (lambda images: {"x": pa.array(map(png, images), pa.large_binary()), "label": [0.5, 1, 2]}, [0, 0, 0]),
    ],
)
def test_columns(tmp_path, columns, labels):
    images = noise(3)
    found = open_source(str(write(tmp_path / "x.parquet", columns(images))), "--members")
    assert found.labels.tolist() == labels
    for row in range(3):
        np.testing.assert_array_equal(found.read(row).image, images[row, ..., 0])


def test_a_damaged_row_is_one_image(tmp_path):
    images = noise(4)
    column = structs(images).to_pylist()
    column[1], column[2] = {"bytes": None, "path": "elsewhere.png"}, {"bytes": b"no picture", "path": None}
    path = write(tmp_path / "x.parquet", {"image": column})
    found = read_images(str(path), "--members", max_corrupt=2)
    assert found.damaged == ("x.parquet:1", "x.parquet:2")
    np.testing.assert_array_equal(found.images, images[[0, 3]])
    words = ("x.parquet:1 (its row holds no bytes of an image)", "x.parquet:2 (not a picture", "repair or remove")
    refused(lambda: read_images(str(path), "--members"), *words)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"text": ["a"], "label": [0]}, ("has no column of images (text, label)", "give files whose column `image`")),
        ({"left": [b"x"], "right": [b"y"]}, ("several columns that may hold images (left, right)",)),
        ({"image": [[1, 2]]}, ("has no column of images (image)",)),
    ],
)
def test_without_images(tmp_path, columns, words):
    path = write(tmp_path / "x.parquet", columns)
    refused(lambda: open_source(str(path), "--members"), "x.parquet of --members=", *words)


def test_damaged_files_name_themselves(tmp_path):
    whole = write(tmp_path / "whole.parquet", {"image": structs(noise(3))}).read_bytes()
    for number, content in enumerate((b"", b"PAR1", whole[:-40], whole[40:], whole[:4] + bytes(200) + whole[-8:])):
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(content)
        refused(lambda path=path: read_images(str(path), "--members"), f"{number}.parquet")


def test_groups_that_are_too_large_are_not_read(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", {"image": structs(noise(3))})
    monkeypatch.setattr(parquet, "_MAX_GROUP", 10)
    refused(lambda: read_images(str(path), "--members"), "its rows are in groups of", "more than the 10")
    monkeypatch.undo()
    monkeypatch.setattr(parquet, "_MAX_IMAGE", 10)
    refused(lambda: read_images(str(path), "--members"), "more than the 10 that are read")


def test_splits_and_kinds_of_labels_are_not_mixed(tmp_path):
    for name in ("train/0000", "train/validation-0000"):
        write(tmp_path / "splits" / f"{name}.parquet", {"image": structs(noise(1))})
    refused(lambda: open_source(str(tmp_path / "splits"), "--members"), "of several splits (train, validation)")
    (tmp_path / "splits" / "train" / "0000.parquet").unlink()
    assert len(open_source(str(tmp_path / "splits"), "--members").names) == 1
    for name, label in (("trainer", 1), ("contest", "a")):  # no splits
        write(tmp_path / "kinds" / f"{name}.parquet", {"image": structs(noise(1)), "label": [label]})
    refused(lambda: open_source(str(tmp_path / "kinds"), "--members"), "the labels", "are of different kinds")


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "x.parquet", {"image": structs(noise(1))})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(lambda: open_source(str(path), "--members"), "x.parquet of --members=", "pip install 'side_jax[hub]'")
