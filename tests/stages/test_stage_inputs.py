"""The split as later stages read it: an image that is gone since then is named in one sentence."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from side_jax.config import from_config, load_config
from side_jax.data import datasets, split
from side_jax.errors import InputError
from side_jax.settings import Data
from side_jax.stages import stage_inputs


def drawn(tmp_path, storage, count, from_another=False):
    """(settings, folder, what was drawn) of 64 members and 64 held-out images from `count`, as the train stage does."""
    images = np.random.default_rng(0).integers(0, 256, (2 * count, 8, 8), np.uint8)
    folders = [tmp_path / "images", tmp_path / "others"]
    for folder, part in zip(folders, np.split(images, 2), strict=True):
        folder.mkdir()
        for i, image in enumerate(part):
            Image.fromarray(image).save(folder / f"patient_{i:03}.png")
    data = Data(name="folder", path=str(folders[0]), num_members=64, num_heldout=64, storage=storage)
    if from_another:
        data = dataclasses.replace(data, heldout_from=str(folders[1]))
    settings = dataclasses.replace(from_config(load_config("smoke")), data=data)
    made = split.make_split(datasets.load(data), data, 0)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "split.json").write_text(json.dumps(made))
    stage_inputs.load_split(settings, tmp_path)
    datasets.forget()
    return settings, folders, made


@pytest.mark.parametrize("storage", ["memory", "stream"])
@pytest.mark.parametrize("count", [128, 140])  # too few are left to fill both sides, or not
@pytest.mark.parametrize("side", ["members", "heldout"])
def test_an_image_that_is_gone_is_named(tmp_path, storage, count, side):
    settings, (folder, _), made = drawn(tmp_path, storage, count)
    for at, more in ((3, ""), (5, r" \(and 1 more\)")):
        (folder / made[side][at]["name"]).unlink()
        datasets.forget()
        name = made[side][min(at, 3)]["name"]
        with pytest.raises(InputError, match=f"the image {name}{more} of .*split.json is no longer in the data"):
            stage_inputs.load_split(settings, tmp_path, stream=storage == "stream")


def test_a_held_out_image_that_is_gone_from_a_folder_of_its_own(tmp_path):
    settings, (_, others), made = drawn(tmp_path, "memory", 128, from_another=True)
    name = made["heldout"][0]["name"]
    (others / name.removeprefix("heldout: ")).unlink()
    with pytest.raises(InputError, match=f"the image {name} of .*split.json is no longer in the data"):
        stage_inputs.load_split(settings, tmp_path)


def test_an_image_of_neither_side_that_is_gone(tmp_path):
    """All images after it have other ids."""
    settings, (folder, _), made = drawn(tmp_path, "memory", 140)
    used = {row["name"] for side in ("members", "heldout") for row in made[side]}
    next(path for path in sorted(folder.iterdir()) if path.name not in used).unlink()
    with pytest.raises(InputError, match=r"is patient_\d+.png now, but was patient_\d+.png when .*split.json was"):
        stage_inputs.load_split(settings, tmp_path)
