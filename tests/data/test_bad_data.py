"""Bad data: one sentence that names the value and the fix."""

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from test_datasets import make
from test_readers import prepare

from side_jax.data import datasets, split
from side_jax.errors import InputError
from side_jax.settings import Data


def pair(**settings):
    return Data(num_members=2, num_heldout=2, **settings)


def test_wrong_image_shape_names_both():
    with pytest.raises(InputError, match=r"asks for images of \(16, 16, 1\).*digits gives \(8, 8, 1\)"):
        datasets.load(Data(image_size=16))


def test_too_many_images_asked_for():
    with pytest.raises(InputError, match="need 2000 different images, but the dataset has 1797: 797 are left"):
        datasets.load(Data(num_members=1000, num_heldout=1000))


def test_labels_that_are_too_small(tmp_path):
    np.savez(tmp_path / "data.npz", images=np.zeros((9, 8, 8), np.uint8), labels=np.repeat([1, 2, 3], 3))
    with pytest.raises(InputError, match="need 4 different images, but the dataset has 0"):
        datasets.load(pair(name="npz", path=str(tmp_path / "data.npz"), min_per_label=4))


def test_faces_without_scikit_image(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(InputError, match=r"pip install 'side_jax\[faces\]'"):
        datasets.load(pair(name="faces"))


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(InputError, match=r"config.data.path=\S*nowhere does not exist; name a folder"):
        datasets.load(pair(name="folder", path=str(tmp_path / "nowhere")))
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputError, match=r"holds no image \(but 1 .txt\); NPZ, NPY, Parquet files and pictures of "):
        datasets.load(pair(name="folder", path=str(tmp_path)))


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_damaged_images_are_named_and_skipped_up_to_the_limit(tmp_path, caplog, storage):
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:50])
    (tmp_path / "6.png").write_text("no image at all")
    settings = {"name": "folder", "path": str(tmp_path), "storage": storage}
    data = Data(num_members=3, num_heldout=3, max_corrupt=2, **settings)
    dataset = datasets.load(data)
    result = split.make_split(dataset, data, 0)
    assert "1.png (" in caplog.text
    assert "6.png (not a picture of a supported kind)" in caplog.text
    assert result["counts"]["corrupt_skipped"] == 2
    assert sorted(row["id"] for side in ("members", "heldout") for row in result[side]) == [0, 2, 3, 4, 5, 7]
    data = Data(num_members=3, num_heldout=3, max_corrupt=1, **settings)
    with pytest.raises(InputError, match=r"than config.data.max_corrupt = 1 allows: 1.png \(.*\), 6.png \("):
        split.make_split(datasets.load(data), data, 0)
    data = Data(num_members=4, num_heldout=4, max_corrupt=2, **settings)
    with pytest.raises(InputError, match="need 8 different images, but the dataset has 6"):
        split.make_split(datasets.load(data), data, 0)
    if storage == "stream":
        with pytest.raises(InputError, match=r"the image 1.png \(.*can't be read"):
            dataset.images[[0, 1]]


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"pictures": np.zeros((4, 8, 8), np.uint8)}, "has no array `images`"),
        ({"images": np.zeros((4, 8, 8), np.float32)}, "is of type float32, but it must be uint8"),
        ({"images": np.asarray([{}, {}, {}, {}])}, "can't be read as an NPZ of plain arrays"),
        ({"images": np.zeros((4, 8), np.uint8)}, r"has the shape \(4, 8\), but it must be"),
        ({"images": np.zeros((4, 8, 8, 17), np.uint8)}, r"has the shape \(4, 8, 8, 17\), but it must be"),
        ({"images": np.zeros((0, 8, 8), np.uint8)}, r"has the shape \(0, 8, 8\), but it must be"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(3, int)}, r"type int64 and the shape \(3,\)"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.zeros(4)}, r"type float64 and the shape \(4,\)"),
    ],
)
def test_bad_npz(tmp_path, arrays, sentence):
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(InputError, match=sentence):
        datasets.load(pair(name="npz", path=str(tmp_path / "data.npz")))


def test_files_that_are_no_npz(tmp_path):
    with pytest.raises(
        InputError, match="does not exist; name a folder or a ZIP of pictures, an NPZ, an NPY or a Parquet file"
    ):
        datasets.load(pair(name="npz", path=str(tmp_path / "data.npz")))
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(InputError, match="can't be read as an NPZ"):
        datasets.load(pair(name="npz", path=str(tmp_path / "text.npz")))


@pytest.mark.parametrize("default", [False, True], ids=["data_dir", "default"])
@pytest.mark.parametrize("name", ["celeb_a", "cifar10", "imagenette/160px-v2", "no_such_dataset"])
def test_missing_tfds_dataset_says_how_to_prepare_it(tmp_path, monkeypatch, name, default):
    """TFDS itself raises other errors in its default folder than elsewhere."""
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    data = Data(name="tfds", tfds_name=name, data_dir="" if default else str(tmp_path), image_size=64, channels=3)
    with pytest.raises(InputError, match=f"tfds build {name} --file_format=array_record"):
        datasets.load(data)


def test_tfds_dataset_without_images(tmp_path):
    features = {"image": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
    prepare(tmp_path, "toy", features, [{"image": "a picture, in words", "label": 0}])
    with pytest.raises(InputError, match="has no feature `image` of 8 or 16 bits, but image, label; name a dataset"):
        datasets.load(pair(name="tfds", tfds_name="toy", data_dir=str(tmp_path)))


def test_identities_that_can_not_fill_both_sides():
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)
    data = Data(num_members=6, num_heldout=6, split_by="identity")
    with pytest.raises(InputError, match="needs two labels or more, but the dataset has 1"):
        split.make_split(make(images), data, 0)
    labels = np.repeat([0, 1], [15, 5])
    with pytest.raises(InputError, match=r"num_members = 6 .* the 2 labels have 20 different images, the largest 15"):
        split.make_split(make(images, labels), data, 0)


def test_too_few_held_out_images_far_from_members():
    images = np.arange(100, 108, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2)
    with pytest.raises(InputError, match=r"num_heldout = 4, but only 0 of the 4 .*near_duplicate_rmse = 0\.5;"):
        split.make_split(make(images), Data(num_members=4, num_heldout=4, near_duplicate_rmse=0.5), 0)
