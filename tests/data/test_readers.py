"""Where images come from: built-in sets, folders, NPZ and TFDS, and how a picture becomes uint8."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image
from tensorflow_datasets.core.folder_dataset import write_metadata_utils

from side_jax.data import datasets
from side_jax.data.decode import Picture, Rules, convert, read_picture
from side_jax.settings import Data

ROOT = Path(__file__).parents[2]


def png(value, size=(8, 8), mode="L"):
    buffer = io.BytesIO()
    Image.new(mode, size, value).save(buffer, "PNG")
    return buffer.getvalue()


def read(data, **file):
    """Fits one file, whose bytes are given, to 8x8."""
    return fit(read_picture(io.BytesIO(data)), file.get("size", 8), file.get("channels", 1))


def fit(picture, size, channels, **rules):
    picture = picture if isinstance(picture, Picture) else Picture(image=picture)
    return convert(picture, (size, size, channels), Rules(**rules))[0]


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    digits = datasets.load(Data())
    original = load_digits()
    assert digits.images.shape == (1797, 8, 8, 1)
    assert digits.images.dtype == np.uint8
    assert digits.images.max() == 255
    np.testing.assert_array_equal(np.round(digits.images[..., 0] * (16 / 255)), original.images)
    np.testing.assert_array_equal(digits.labels, original.target)
    assert digits.names[7] == "7"


def test_faces_are_the_first_hundred_patches_cropped_not_resampled():
    from skimage.data import lfw_subset

    faces = datasets.load(Data(name="faces", image_size=24, num_members=50, num_heldout=50))
    original = lfw_subset()
    assert faces.images.shape == (100, 24, 24, 1)
    np.testing.assert_allclose(faces.images[..., 0] / 255, original[:100, :24, :24], atol=0.5001 / 255)
    assert faces.num_classes == 1
    small = datasets.load(Data(name="faces", image_size=5, num_members=50, num_heldout=50)).images[..., 0]
    means = original[:100].reshape(100, 5, 5, 5, 5).mean((2, 4))
    np.testing.assert_allclose(small / 255, means, atol=1.5 / 255)


def test_the_centre_is_cropped_and_areas_are_averaged():
    image = np.zeros((4, 8), np.uint8)
    image[:, 2:4], image[:, 4:6], image[:, :2], image[:, 6:] = 100, 200, 50, 50
    picture = Image.fromarray(image)
    assert fit(picture, 2, 1)[..., 0].tolist() == [[100, 200], [100, 200]]
    checker = np.indices((4, 4)).sum(0).astype(np.uint8) % 2 * 200
    assert fit(Image.fromarray(checker), 2, 1)[..., 0].tolist() == [[100, 100], [100, 100]]
    assert fit(picture, 2, 3).shape == (2, 2, 3)
    assert fit(Image.fromarray(np.zeros((5, 7, 3), np.uint8)), 4, 1).shape == (4, 4, 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_sixteen_bits_is_scaled_not_clipped(kind):
    values = np.asarray([[0, 257], [257 * 100, 65535]], np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    assert read(buffer.getvalue(), size=2)[..., 0].tolist() == [[0, 1], [100, 255]]


def test_a_pgm_of_twelve_bits_is_scaled_by_its_own_maximum():
    pixels = np.asarray([[0, 4095], [2048, 4095]], ">u2").tobytes()
    assert read(b"P5 2 2 4095\n" + pixels, size=2)[..., 0].tolist() == [[0, 255], [128, 255]]


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (Image.new("F", (8, 8), 0.5), "floating-point"),
        (Image.new("I", (8, 8), 70000), "outside 0..65535"),
        (Image.new("I", (8, 8), -1), "outside 0..65535"),
    ],
)
def test_grey_without_a_known_range_is_refused(picture, reason):
    with pytest.raises(ValueError, match=reason):
        fit(picture, 8, 1)


def test_colour_palette_transparency_and_animation():
    assert read(png((10, 20, 30), mode="RGB"), channels=3)[0, 0].tolist() == [10, 20, 30]
    assert read(png((10, 20, 30, 0), mode="RGBA"), channels=3)[0, 0].tolist() == [10, 20, 30]
    assert read(png(77), channels=3)[0, 0].tolist() == [77, 77, 77]
    assert read(png((100, 100, 100), mode="RGB"))[0, 0].tolist() == [100]
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=b"\x00\x80")  # PIL warns where this goes straight to RGB
    assert read(buffer.getvalue(), channels=3)[0, 0].tolist() == [200, 100, 50]
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 10).save(buffer, "GIF", save_all=True, append_images=[Image.new("L", (8, 8), 200)])
    assert read(buffer.getvalue())[0, 0].tolist() == [10]


def test_exif_orientation_is_applied():
    image = np.zeros((8, 8), np.uint8)
    image[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", exif=exif)
    np.testing.assert_array_equal(read(buffer.getvalue())[..., 0], image[::-1])


def test_folder_is_sorted_and_subfolders_are_labels(tmp_path):
    for value, name in enumerate(["b/2.png", "b/10.PNG", "a/deep/er/1.png", "root.png", "a/x.png"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(10 * value))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "._x.png").write_bytes(b"what a Mac leaves behind")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "y.png").write_bytes(png(1))
    loaded = datasets.load(Data(name="folder", path=str(tmp_path), num_members=2, num_heldout=2))
    assert loaded.names == ("a/deep/er/1.png", "a/x.png", "b/10.PNG", "b/2.png", "root.png")
    assert loaded.images[:, 0, 0, 0].tolist() == [20, 40, 10, 0, 30]
    assert loaded.labels.tolist() == [1, 1, 2, 2, 0]  # those directly in the folder have a label of their own
    assert loaded.num_classes == 3


@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 8, 8, 1), (6, 8, 8, 3)])
def test_npz(tmp_path, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.asarray([7, -1, 7, 30, -1, 7]))
    channels = 3 if shape[-1] == 3 else 1
    loaded = datasets.load(
        Data(name="npz", path=str(tmp_path / "data.npz"), channels=channels, num_members=3, num_heldout=3)
    )
    np.testing.assert_array_equal(loaded.images, images.reshape(6, 8, 8, channels))
    assert loaded.labels.tolist() == [1, 0, 1, 2, 0, 1]
    assert loaded.num_classes == 3


def test_npz_without_labels_has_one(tmp_path):
    np.savez(tmp_path / "data.npz", images=np.zeros((4, 8, 8), np.uint8))
    loaded = datasets.load(Data(name="npz", path=str(tmp_path / "data.npz"), num_members=2, num_heldout=2))
    assert loaded.labels.tolist() == [0] * 4


def prepare(data_dir, name, features, rows, *, broken=()):
    """Writes a TFDS dataset as `tfds build --file_format=array_record` does, without TensorFlow."""
    folder = data_dir / name / "1.0.0"
    folder.mkdir(parents=True)
    dataset = name.partition("/")[0]
    features = tfds.features.FeaturesDict(features)
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    writer = array_record_module.ArrayRecordWriter(
        str(folder / f"{dataset}-train.array_record-00000-of-00001"), "group_size:1"
    )
    for i, row in enumerate(rows):
        encoded = features.encode_example({k: io.BytesIO(v) if isinstance(v, bytes) else v for k, v in row.items()})
        writer.write(b"no example" if i in broken else serializer.serialize_example(encoded))
    writer.close()
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=dataset, split="train", filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(name="train", shard_lengths=[len(rows)], num_bytes=0, filename_template=template)
    write_metadata_utils.write_metadata(data_dir=folder, features=features, split_infos=[split], check_data=False)


@pytest.mark.parametrize("name", ["toy", "toy/big-v2"])
@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_tfds_end_to_end_in_array_record(tmp_path, name, storage):
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=10)}
    rows = [{"image": png((i, 2 * i, 3 * i), (8, 12), "RGB"), "label": i % 3} for i in range(40)]
    prepare(tmp_path, name, features, rows)
    settings = Data(
        name="tfds",
        tfds_name=name,
        data_dir=str(tmp_path),
        channels=3,
        num_members=10,
        num_heldout=10,
        max_corrupt=4,
        storage=storage,
    )
    loaded = datasets.load(settings)
    assert len(loaded) == 25  # those asked for, 5 % more, and max_corrupt
    assert loaded.labels.tolist() == [i % 3 for i in range(25)]
    np.testing.assert_array_equal(np.asarray(loaded.images)[:, 5, 5], [(i, 2 * i, 3 * i) for i in range(25)])
    assert loaded.names[3] == "train/3"


def test_tfds_damaged_records_and_pictures_are_skipped(tmp_path, caplog):
    features = {"image": tfds.features.Image(), "label": tfds.features.Text()}
    rows = [{"image": png((i, i, i), mode="RGB"), "label": f"person {i % 2}"} for i in range(8)]
    rows[5]["image"] = rows[5]["image"][:40]
    prepare(tmp_path, "toy", features, rows, broken=[0, 3])
    settings = Data(name="tfds", tfds_name="toy", data_dir=str(tmp_path), num_members=2, num_heldout=2, max_corrupt=4)
    loaded = datasets.load(settings)
    assert loaded.unreadable == (0, 3, 5)
    assert loaded.labels[[1, 2, 4, 6, 7]].tolist() == [1, 0, 0, 0, 1]
    for row in (0, 3, 5):
        assert f"train/{row} (" in caplog.text


def test_tfds_celeb_a_attributes_become_eight_classes(tmp_path):
    names = ("Male", "Smiling", "Young")
    features = {"image": tfds.features.Image(), "attributes": {name: tfds.features.Scalar(np.bool_) for name in names}}
    rows = [
        {"image": png((i, i, i), mode="RGB"), "attributes": {n: bool(i >> bit & 1) for bit, n in enumerate(names)}}
        for i in range(8)
    ]
    prepare(tmp_path, "toy", features, rows)
    settings = Data(name="tfds", tfds_name="toy", data_dir=str(tmp_path), num_members=4, num_heldout=4)
    assert datasets.load(settings).labels.tolist() == list(range(8))


def test_reading_imports_no_tensorflow(tmp_path):
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}
    prepare(tmp_path, "toy", features, [{"image": png((i,) * 3, mode="RGB"), "label": i % 2} for i in range(6)])
    code = f"""
import sys
import numpy as np
from side_jax.data import batches, datasets
from side_jax.settings import Data
loaded = datasets.load(Data(name="tfds", tfds_name="toy", data_dir={str(tmp_path)!r}, num_members=2, num_heldout=2,
                            storage="stream"))
steps = batches.prefetch(lambda step: loaded.images[np.asarray([step])], range(6))
assert [int(batch.mean()) for batch in steps] == list(range(6))
assert "tensorflow" not in sys.modules
print("ok")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == "ok\n", done.stderr
