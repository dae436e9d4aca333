"""Datasets as uint8 arrays in memory, with integer labels."""

import dataclasses
import functools

import numpy as np
from PIL import Image

from side_jax.errors import InputError
from side_jax.settings import Data


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Attributes: images uint8 [n, h, w, c]; labels int32 [n], in 0..num_classes-1; num_classes."""

    images: np.ndarray
    labels: np.ndarray
    num_classes: int

    def __len__(self) -> int:
        return len(self.images)

    def take(self, ids: np.ndarray) -> "Dataset":
        """The images with these ids, in their order."""
        return dataclasses.replace(self, images=self.images[ids], labels=self.labels[ids])


@functools.lru_cache(maxsize=1)
def load(data: Data) -> Dataset:
    """Loads the dataset that the settings name, once in a process: several stages use it.

    Raises:
      InputError: if it is not there, or does not have the stated size and channels.
    """
    dataset = {"digits": _digits, "tfds": _tfds}[data.name](data)
    shape = (data.image_size, data.image_size, data.channels)
    if dataset.images.shape[1:] != shape:
        raise InputError(
            f"config.data asks for images of {shape} (height, width, channels), but {data.name} gives "
            f"{dataset.images.shape[1:]}; set data.image_size and data.channels to that."
        )
    return dataset


def _digits(data: Data) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels; its 17 grey levels are spread over 0..255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return Dataset(images=images, labels=digits.target.astype(np.int32), num_classes=10)


def fit_image(image: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Centre-crops to a square and resizes by area (box filter): uint8 [h, w, c] -> uint8 [size, size, channels]."""
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    picture = picture.convert("L" if channels == 1 else "RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    small = picture.resize((size, size), Image.Resampling.BOX, box=box)
    return np.asarray(small, np.uint8).reshape(size, size, channels)


def _tfds(data: Data) -> Dataset:
    """The train split of a TFDS dataset that is prepared as ArrayRecord, read without TensorFlow."""
    import tensorflow_datasets as tfds

    try:
        source = tfds.data_source(data.tfds_name, split="train", data_dir=data.data_dir or None, download=False)
    except (
        OSError,
        ValueError,
        ImportError,
        AssertionError,
        NotImplementedError,
        tfds.core.registered.DatasetNotFoundError,
    ) as error:
        raise InputError(
            f"the TFDS dataset {data.tfds_name!r} (config.data.tfds_name) can't be read: {str(error).splitlines()[0]} "
            f"Prepare it once with `tfds build {data.tfds_name} --file_format=array_record`, and set "
            "config.data.data_dir where it lies."
        ) from None
    needed = min(len(source), data.num_members + data.num_heldout)
    # The subset is fixed by the dataset's own order; the split shuffles it.
    rows = [source[i] for i in range(needed)]
    images = np.stack([fit_image(row["image"], data.image_size, data.channels) for row in rows])
    labels = np.asarray([_tfds_label(row) for row in rows], np.int32)
    return Dataset(images=images, labels=labels, num_classes=int(labels.max()) + 1)


def _tfds_label(row: dict) -> int:
    """`label` where the dataset has one; for CelebA's 40 attributes, a class of gender, smile and age (8 classes)."""
    if "attributes" in row:
        attributes = row["attributes"]
        return sum(int(attributes[name]) << bit for bit, name in enumerate(("Male", "Smiling", "Young")))
    return int(row.get("label", 0))
