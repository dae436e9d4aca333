"""Lists the images of each dataset of the settings: digits, faces, a path, TFDS."""

import collections
import dataclasses
import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from side_jax.data.decode import read_picture
from side_jax.data.sources import Source, in_memory, open_source
from side_jax.errors import InputError
from side_jax.settings import Data


def digits(data: Data) -> Source:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels; its 17 grey levels are spread over 0..255."""
    from sklearn.datasets import load_digits

    if data.shape != (8, 8, 1):
        raise InputError(
            f"config.data asks for images of {data.shape} (height, width, channels), but digits gives (8, 8, 1); set "
            "data.image_size and data.channels to that."
        )
    loaded = load_digits()
    return in_memory(np.round(loaded.images * (255 / 16)).astype(np.uint8), loaded.target)


def faces(data: Data) -> Source:
    """scikit-image's 100 grey faces of 25x25 pixels (LFW). Identities are unknown: all have the label 0.

    For data.image_size = 24, which a U-Net can halve three times, the last row and column are cropped and nothing is
    resampled. Other sizes are resized as usual.
    """
    try:
        from skimage.data import lfw_subset
    except ImportError:
        raise InputError(
            "config.data.name is 'faces', which needs scikit-image; run `pip install 'side_jax[faces]'`."
        ) from None
    images = np.round(lfw_subset()[:100] * 255).astype(np.uint8)  # the other 100 patches are not faces
    crop = min(images.shape[1], data.image_size) if data.image_size >= 24 else images.shape[1]
    return in_memory(images[:, :crop, :crop], np.zeros(len(images), np.int64))


def path(data: Data) -> Source:
    """The images of data.path, see sources.open_source. A scan's label is its patient if identities are split."""
    source = open_source(data.path, "config.data.path", data.orientation, data.revision)
    if data.split_by == "identity" and source.patients:
        labels = [patient or label for patient, label in zip(source.patients, source.labels, strict=True)]
        return dataclasses.replace(source, labels=labels)
    return source


def tfds(data: Data, split: str = "train") -> Source:
    """A split of a TFDS dataset that is prepared as ArrayRecord, read without TensorFlow.

    Takes the first images in the dataset's own order: as many as the settings ask for, plus 5 % and data.max_corrupt
    to replace duplicates and damaged ones. Takes all images if the settings ask for all, or if identities matter
    (data.split_by = "identity" or data.min_per_label above 1). The label is `label` if the dataset has one; for
    CelebA's 40 attributes, a class of gender, smile and age (8 classes); else 0. PIL decodes the images.
    """
    import tensorflow_datasets as tfds

    skip = {"image": tfds.decode.SkipDecoding()}  # labels need no decoding, and all readers share one decoder
    try:
        records = tfds.data_source(
            data.tfds_name, split=split, data_dir=data.data_dir or None, download=False, decoders=skip
        )
    except (
        OSError,
        ValueError,
        KeyError,  # a split of an unprepared dataset
        ImportError,
        AssertionError,
        NotImplementedError,
        tfds.core.registered.DatasetNotFoundError,
    ) as error:
        reason = str(error.args[0] if isinstance(error, KeyError) else error).partition("\n")[0]
        raise InputError(
            f"the TFDS dataset {data.tfds_name!r} (config.data.tfds_name) can't be read: {reason} Prepare it once with "
            f"`tfds build {data.tfds_name} --file_format=array_record`, and set config.data.data_dir to its folder."
        ) from None
    features = dict(records.dataset_info.features.items())
    kind = features.get("image")
    if not isinstance(kind, tfds.features.Image) or kind.np_dtype == np.float32:
        raise InputError(
            f"the TFDS dataset {data.tfds_name!r} (config.data.tfds_name) has no feature `image` of 8 or 16 bits, but "
            f"{', '.join(sorted(features))}; name a dataset of images."
        )
    required = data.num_members + data.num_heldout
    considered = required + required // 20 + data.max_corrupt
    if data.split_by == "identity" or data.min_per_label > 1 or not (data.num_members and data.num_heldout):
        considered = len(records)
    considered = min(considered, len(records))
    lock = threading.Lock()  # TFDS opens its files on first use

    def record(row: int) -> dict[str, Any]:
        with lock:
            return records[row]

    return Source(
        read=lambda row: read_picture(io.BytesIO(record(row)["image"]), orientation=data.orientation),
        labels=_tfds_labels(record, considered),
        names=[f"{split}/{row}" for row in range(considered)],
    )


def _tfds_labels(record: Callable[[int], dict[str, Any]], num: int) -> np.ndarray:
    labels, damaged = [], []
    for row in range(num):
        try:
            labels.append(_tfds_label(record(row)))
        except Exception:  # whatever a damaged record raises; its picture can't be read either, and is skipped later
            damaged.append(row)
    # A damaged record gets an existing label, so that no label is added.
    return np.insert(labels, np.asarray(damaged, int) - np.arange(len(damaged)), labels[0] if labels else 0)


def _tfds_label(record: dict[str, Any]) -> int | str | bytes:
    if "attributes" in record:
        attributes = record["attributes"]
        return sum(int(attributes[name]) << bit for bit, name in enumerate(("Male", "Smiling", "Young")))
    label = record.get("label", 0)
    return label if isinstance(label, str | bytes) else int(label)


READERS = {"digits": digits, "faces": faces, "folder": path, "npz": path, "tfds": tfds}


def heldout(data: Data) -> Source:
    """Reads data.heldout_from: another folder or NPZ than data.path, or another split of the TFDS dataset."""
    try:
        if data.name == "tfds":
            return tfds(data, data.heldout_from)
        return READERS[data.name](dataclasses.replace(data, path=data.heldout_from, revision=data.heldout_revision))
    except InputError as error:
        raise InputError(str(error).replace("config.data.path", "config.data.heldout_from")) from None


def concatenate(first: Source, second: Source) -> Source:
    """Appends the second source to the first and marks its names as held-out. Labels are compared by value.

    Raises:
      InputError: if only one of the sources has numeric labels.
    """
    start = len(first.names)
    try:
        labels = np.concatenate([np.asarray(first.labels), np.asarray(second.labels)])
        if labels.dtype.kind != np.asarray(first.labels).dtype.kind:
            raise TypeError
    except TypeError:
        raise InputError(
            "the labels of config.data.path and config.data.heldout_from are of different kinds; use one kind for both."
        ) from None
    return Source(
        read=lambda row: first.read(row) if row < start else second.read(row - start),
        labels=labels,
        names=[*first.names, *(f"heldout: {name}" for name in second.names)],
        passed_over=collections.Counter(first.passed_over) + collections.Counter(second.passed_over),
    )
