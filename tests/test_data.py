"""Datasets and the split."""

import dataclasses
import json

import numpy as np
import pytest

from side_jax.data import datasets, split
from side_jax.errors import InputError
from side_jax.settings import Data


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    digits = datasets.load(Data())
    original = load_digits()
    assert digits.images.shape == (1797, 8, 8, 1)
    assert digits.images.dtype == np.uint8
    assert digits.images.max() == 255
    np.testing.assert_array_equal(np.round(digits.images[..., 0] * (16 / 255)), original.images)
    np.testing.assert_array_equal(digits.labels, original.target)


def test_split_is_disjoint_and_repeatable():
    digits = datasets.load(Data())
    first, again, other = (split.make_split(digits, Data(), seed) for seed in (0, 0, 1))
    assert first == again
    assert first["members"] != other["members"]
    members, heldout = ({row["id"] for row in first[side]} for side in ("members", "heldout"))
    assert len(members) == len(heldout) == 200
    assert not members & heldout
    hashes = [{row["sha256"] for row in first[side]} for side in ("members", "heldout")]
    assert not hashes[0] & hashes[1]


def test_exact_duplicates_never_straddle_the_split():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 8, 8, 1), np.uint8)
    doubled = datasets.Dataset(images=np.concatenate([images, images]), labels=np.zeros(60, np.int32), num_classes=1)
    result = split.make_split(doubled, Data(num_members=15, num_heldout=15), 0)
    assert result["duplicates_left_out"] == 30
    assert sorted(row["id"] for side in ("members", "heldout") for row in result[side]) == list(range(30))
    with pytest.raises(InputError, match="need 32 different images, but the dataset has 30: 14 are left"):
        split.make_split(doubled, Data(num_members=16, num_heldout=16), 0)


def test_split_file_notices_changed_data(tmp_path):
    digits = datasets.load(Data())
    path = tmp_path / "split.json"
    path.write_text(json.dumps(split.make_split(digits, Data(), 0)))
    members, heldout, member_ids, heldout_ids = split.apply_split(digits, path)
    np.testing.assert_array_equal(members.images, digits.images[member_ids])
    np.testing.assert_array_equal(heldout.labels, digits.labels[heldout_ids])
    altered = digits.images.copy()
    altered[member_ids[3]] += 1
    with pytest.raises(InputError, match=f"image {member_ids[3]} of the dataset differs"):
        split.apply_split(dataclasses.replace(digits, images=altered), path)
    with pytest.raises(InputError, match="has only 10 images now"):
        split.apply_split(digits.take(np.arange(10)), path)


def test_fit_image_crops_the_centre_and_averages_areas():
    image = np.zeros((4, 8, 1), np.uint8)
    image[:, 2:4], image[:, 4:6], image[:, :2], image[:, 6:] = 100, 200, 50, 50
    assert datasets.fit_image(image, 2, 1)[..., 0].tolist() == [[100, 200], [100, 200]]
    checker = np.indices((4, 4)).sum(0).astype(np.uint8)[..., None] % 2 * 200
    assert datasets.fit_image(checker, 2, 1)[..., 0].tolist() == [[100, 100], [100, 100]]
    assert datasets.fit_image(image, 2, 3).shape == (2, 2, 3)
    assert datasets.fit_image(np.zeros((5, 7, 3), np.uint8), 4, 1).shape == (4, 4, 1)


def test_missing_tfds_dataset_says_how_to_prepare_it(tmp_path):
    data = Data(name="tfds", tfds_name="celeb_a", data_dir=str(tmp_path), image_size=64, channels=3)
    with pytest.raises(InputError, match="tfds build celeb_a --file_format=array_record"):
        datasets.load(data)


def test_wrong_image_shape_names_both():
    with pytest.raises(InputError, match=r"asks for images of \(16, 16, 1\).*digits gives \(8, 8, 1\)"):
        datasets.load(Data(image_size=16))
