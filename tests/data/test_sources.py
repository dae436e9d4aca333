"""What a path may hold: folders, links, stacks, arrays, ZIPs; each is read, or counted, or refused in one sentence."""

import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from PIL import features as pillow
from test_hostile_files import noise, picture, pictures, read_images, refused, zipped

from side_jax.data import datasets, split
from side_jax.data.decode import Facts, Rules, suffixes
from side_jax.data.image_sets import read_sets
from side_jax.data.listed import find
from side_jax.data.sources import LINKED, REDUCED, open_source
from side_jax.settings import Data


def run(path, n, **settings):
    """The dataset of a run on a path that holds n images."""
    return datasets.load(Data(name="folder", path=str(path), num_members=n // 2, num_heldout=n - n // 2, **settings))


def listed(path):
    return open_source(str(path), "--members")


def test_linked_folders_are_read_once_and_loops_end(tmp_path):
    images = noise(9)
    root = tmp_path / "set"
    pictures(root / "a", images[:2])
    pictures(tmp_path / "store" / "b", images[2:5])
    pictures(tmp_path / "store" / "b" / "deep", images[5:7])
    (root / "b").symlink_to(tmp_path / "store" / "b")
    (root / "c").symlink_to(tmp_path / "store" / "b" / "deep")  # reached through b already
    (root / "a" / "again").symlink_to(root / "a")
    (root / "up").symlink_to(tmp_path)  # holds this set and others
    (tmp_path / "store" / "b" / "loop").symlink_to(tmp_path / "store" / "b")
    found = listed(root)
    assert list(found.names) == [
        "a/0.png",
        "a/1.png",
        *(f"b/{i}.png" for i in range(3)),
        "b/deep/0.png",
        "b/deep/1.png",
    ]
    assert list(found.labels) == ["a"] * 2 + ["b"] * 5
    assert found.passed_over == {LINKED: 4}
    np.testing.assert_array_equal(read_images(str(root), "--members").images, images[:7])
    assert len(run(root, 6)) == 7


LOSSLESS = ("bmp", "dib", "gif", "apng", "png", "ppm", "pnm", "pgm", "sgi", "tga", "tiff", "qoi", "pcx")


@pytest.mark.parametrize("suffix", [*LOSSLESS, "jfif", "jpe", "jpeg", "jp2", "j2k", "webp", "avif", "mpo", "JPG"])
def test_every_kind_of_picture_is_read_by_its_suffix(tmp_path, suffix):
    needed = {"avif": "avif", "jp2": "jpg_2000", "j2k": "jpg_2000"}.get(suffix)
    if needed and not pillow.check(needed):
        pytest.skip("this Pillow can't write it")
    colour = suffix not in ("gif", "pgm")
    image = np.broadcast_to(np.arange(0, 256, 8, np.uint8)[:, None, None], (32, 32, 3 if colour else 1))
    picture(np.ascontiguousarray(image)).save(tmp_path / f"x.{suffix}")
    pictures(tmp_path, noise(1, 32))
    found = read_images(str(tmp_path), "--members", channels=3)
    assert f"x.{suffix}" in found.names
    shown = found.images[found.names.index(f"x.{suffix}")].astype(int)
    assert np.abs(shown - image).max() <= (0 if suffix in LOSSLESS else 24)


def test_what_is_not_read_is_counted_and_named_by_its_kind(tmp_path):
    pictures(tmp_path, noise(4))
    for name in ("labels.csv", "a.psd", "b.psd", "README", ".DS_Store", "scan.mha", "scan.jane_doe"):
        (tmp_path / name).write_bytes(b"x")
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(3))
    (tmp_path / ".thumbnails").mkdir()
    counts = {".csv": 1, ".psd": 2, "of other kinds": 2, ".mha": 1, ".npz": 1, "hidden": 2}
    assert listed(tmp_path).passed_over == counts
    data = Data(name="folder", path=str(tmp_path), num_members=2, num_heldout=2)
    made = split.make_split(datasets.load(data), data, 0)
    assert made["counts"]["reading"]["passed_over"] == counts
    assert read_images(str(tmp_path), "--samples").reading["passed_over"] == counts


def stack(path, images, **options):
    first, *others = map(picture, images)
    first.save(path, "TIFF", save_all=True, append_images=others, **options)


def test_pages_of_a_stack_are_pictures(tmp_path):
    images = noise(7)
    stack(tmp_path / "a.tif", images[:3])
    stack(tmp_path / "b.TIFF", images[3:6])
    picture(images[6]).save(tmp_path / "c.png")
    found = read_images(str(tmp_path), "--members")
    assert found.names == ("a.tif", "a.tif#page=2", "a.tif#page=3", "b.TIFF", "b.TIFF#page=2", "b.TIFF#page=3", "c.png")
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(read_images(str(tmp_path / "a.tif"), "--members").images, images[:3])
    np.testing.assert_array_equal(run(tmp_path, 7).images, images)


def test_a_thumbnail_in_a_tiff_is_no_picture(tmp_path):
    small = TiffImagePlugin.ImageFileDirectory_v2()
    small[254] = 1  # a reduced version of another image in this file
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "a.tif"), new=True) as file:
        picture(noise(1)[0]).save(file, "TIFF")
        file.newFrame()
        picture(noise(1, 4)[0]).save(file, "TIFF", tiffinfo=small)
        file.newFrame()
    pictures(tmp_path, noise(2, seed=1))
    found = listed(tmp_path)
    assert list(found.names) == ["0.png", "1.png", "a.tif"]
    assert found.passed_over == {REDUCED: 1}


def test_a_damaged_page_is_named(tmp_path):
    stack(tmp_path / "a.tif", noise(3, 32), compression="tiff_deflate")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with Image.open(tmp_path / "a.tif") as opened:
        opened.seek(1)
        (start,) = opened.tag_v2[273]
    content[start : start + 200] = bytes(200)
    (tmp_path / "a.tif").write_bytes(content)
    refused(lambda: read_images(str(tmp_path), "--members"), "1 of the 3 images", ": a.tif#page=2 (")


def test_frames_of_an_animation_are_counted(tmp_path):
    first, *others = map(picture, noise(3))
    first.save(tmp_path / "a.gif", save_all=True, append_images=others)
    pictures(tmp_path, noise(2))
    assert read_images(str(tmp_path), "--members").reading["animated"] == 1


def test_pictures_beside_an_array_are_refused(tmp_path):
    """Samplers write a preview beside the array that holds all images."""
    pictures(tmp_path, noise(3))
    np.savez(tmp_path / "samples_80x8x8x1.npz", noise(80))
    text = refused(lambda: read_images(str(tmp_path), "--samples"), "both pictures and an array of images, samples_80")
    refused(lambda: run(tmp_path, 4), text.partition(" holds ")[2])
    assert len(read_images(str(tmp_path / "samples_80x8x8x1.npz"), "--samples")) == 80


def test_a_folder_of_arrays(tmp_path):
    images, labels = noise(9), np.arange(9) % 4
    np.savez(tmp_path / "a.npz", images=images[:4], labels=labels[:4])
    (tmp_path / "more").mkdir()
    np.savez(tmp_path / "more" / "b.npz", images[4:7], labels[4:7])  # arr_0 and arr_1
    np.save(tmp_path / "more" / "c.npy", images[7:, :, :, 0])
    np.savez(tmp_path / "statistics.npz", mu=np.zeros(3))
    found = read_images(str(tmp_path), "--members")
    np.testing.assert_array_equal(found.images, images)
    assert found.reading["passed_over"] == {".npz": 1}
    loaded = run(tmp_path, 8)
    np.testing.assert_array_equal(loaded.images, images)
    assert loaded.labels.tolist() == [*labels[:7], 0, 0]


def test_an_unusable_array_among_others_is_refused_and_not_passed_over(tmp_path):
    np.savez(tmp_path / "a.npz", images=noise(3))
    np.save(tmp_path / "b.npy", noise(3) / 255)
    refused(lambda: read_images(str(tmp_path), "--members"), "b.npy is of type float64, but it must be uint8")
    (tmp_path / "b.npy").write_bytes((tmp_path / "b.npy").read_bytes()[:300])
    refused(lambda: read_images(str(tmp_path), "--members"), "b.npy can't be read as an NPZ of plain arrays")


def test_labels_beside_images_are_passed_over(tmp_path):
    np.save(tmp_path / "images.npy", noise(3))
    np.save(tmp_path / "labels.npy", np.arange(3))
    found = read_images(str(tmp_path), "--members")
    assert (len(found), found.reading["passed_over"]) == (3, {".npy": 1})
    (tmp_path / "images.npy").unlink()
    np.save(tmp_path / "floats.npy", noise(3) / 255)  # beside pictures, no array of images
    pictures(tmp_path, noise(4))
    assert read_images(str(tmp_path), "--members").reading["passed_over"] == {".npy": 2}


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((5, 3, 8, 8), "np.transpose(images, (0, 2, 3, 1)) puts channels last"),
        ((5, 1, 8, 8), "np.transpose(images, (0, 2, 3, 1)) puts channels last"),
        ((16, 16, 3), "may be one picture in colour or 16 grey ones of 3 columns"),
    ],
)
def test_arrays_in_another_order_of_axes(tmp_path, shape, words):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    refused(lambda: read_images(str(tmp_path / "a.npy"), "--samples"), str(shape), words)
    refused(lambda: run(tmp_path / "a.npy", 4), str(shape), words)


def test_a_zip_of_pictures(tmp_path):
    images = noise(6)
    pictures(tmp_path / "set" / "cats", images[:2])
    pictures(tmp_path / "set" / "dogs", images[2:4])
    stack(tmp_path / "set" / "z.tif", images[4:])
    (tmp_path / "set" / "dataset.json").write_text("{}")
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((tmp_path / "set").rglob("*")):
            archive.write(path, path.relative_to(tmp_path / "set"))
        archive.writestr("__MACOSX/cats/._0.png", b"x")
    found = read_images(str(tmp_path / "set.zip"), "--members")
    assert found.names == ("cats/0.png", "cats/1.png", "dogs/0.png", "dogs/1.png", "z.tif", "z.tif#page=2")
    np.testing.assert_array_equal(found.images, images)
    assert found.reading["passed_over"] == {".json": 1, "hidden": 1}
    loaded = run(tmp_path / "set.zip", 6)
    np.testing.assert_array_equal(loaded.images, images)
    assert loaded.labels.tolist() == [1, 1, 2, 2, 0, 0]
    assert not (tmp_path / "cats").exists()


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"file_size": 2**40}, "it claims 1099511627776 bytes, more than its packed size"),
        ({"flag_bits": 1}, "encrypted"),
        ({"compress_type": zipfile.ZIP_LZMA}, "its compression method is not one of a plain ZIP"),
    ],
)
def test_a_picture_of_a_zip_that_can_not_be_read_is_named(tmp_path, claims, why):
    contents = {}
    for name, image in zip(("a.png", "b.png"), noise(2), strict=True):
        picture(image).save(buffer := io.BytesIO(), "PNG")
        contents[name] = buffer.getvalue()
    path = zipped(tmp_path / "set.zip", contents, claims)
    refused(lambda: read_images(str(path), "--members"), "1 of the 2 images of --members=", ": a.png (", why)
    assert read_images(str(path), "--members", max_corrupt=1).names == ("b.png",)


@pytest.mark.parametrize(
    ("name", "words"),
    [("list.csv", "is a list or a table"), ("index.json", "is a list or a table"), ("x.png", "is a single picture")],
)
def test_files_that_hold_no_set(tmp_path, name, words):
    (tmp_path / name).write_bytes(b"a.png\n")
    refused(lambda: read_images(str(tmp_path / name), "--members"), name, words, "name ")


def exif(folder, images):
    """JPEGs that are to be turned by a quarter."""
    folder.mkdir()
    tags = Image.Exif()
    tags[0x0112] = 6
    for i, image in enumerate(images):
        picture(image).save(folder / f"{i}.png", exif=tags)
    return folder


def test_orientation_is_applied_or_not_and_counted(tmp_path):
    images = noise(4)
    folder = exif(tmp_path / "set", images)
    pictures(folder / "plain", noise(1, seed=1))
    turned = np.rot90(images, -1, axes=(1, 2))
    np.testing.assert_array_equal(run(folder, 4).images[:4], turned)
    np.testing.assert_array_equal(run(folder, 4, orientation="ignore").images[:4], images)
    for orientation, right in (("apply", turned), ("ignore", images)):
        listing = find(str(folder), "--members", rules=Rules(orientation=orientation))
        np.testing.assert_array_equal([np.asarray(listing.read(i).image) for i in range(4)], right[..., 0])
    data = Data(name="folder", path=str(folder), num_members=2, num_heldout=2, orientation="ignore")
    counts = split.make_split(datasets.load(data), data, 0)["counts"]["reading"]
    assert (counts["rotated"], counts["orientation"]) == (4, "ignore")


def test_pictures_are_cropped_or_squashed_and_counted(tmp_path):
    image = np.repeat(np.asarray([0, 0, 100, 100, 200, 200, 40, 40], np.uint8)[None], 4, axis=0)[..., None]
    folder = pictures(tmp_path / "wide", [image, image ^ 1, image ^ 2, image ^ 3])
    assert run(folder, 4, image_size=4).images[0, 0, :, 0].tolist() == [100, 100, 200, 200]
    assert run(folder, 4, image_size=4, fit="squash").images[0, 0, :, 0].tolist() == [0, 100, 200, 40]
    paths = {"samples": folder, "members": tmp_path / "members", "heldout": tmp_path / "heldout"}
    for i, name in enumerate(("members", "heldout")):
        pictures(paths[name], noise(3, 4, seed=i))
    sets = read_sets(*map(str, paths.values()), 4, rules=Rules(fit="squash"))
    assert sets.samples.images[0, 0, :, 0].tolist() == [0, 100, 200, 40]
    assert [one.reading["reshaped"] for one in (sets.samples, sets.members)] == [4, 0]
    assert sets.samples.reading["fit"] == "squash"


def deep(folder, values):
    folder.mkdir()
    for i, image in enumerate(values):
        Image.fromarray(image.astype(np.uint16)).save(folder / f"{i}.png")
    return folder


def test_twelve_bits_in_sixteen(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (4, 8, 8))
    values[:, 0, 0] = 4095
    folder = deep(tmp_path / "scans", values)
    words = "4 pictures of 16 bits", "no value above 4095 of 65535", "set data.bit_range"
    refused(lambda: read_images(str(folder), "--members"), *words)
    data = Data(name="folder", path=str(folder), num_members=2, num_heldout=2)
    refused(lambda: split.make_split(datasets.load(data), data, 0), *words)
    right = np.round(values * (255 / 4095))
    np.testing.assert_array_equal(run(folder, 4, bit_range=4095).images[..., 0], right)
    np.testing.assert_array_equal(run(folder, 4, bit_range=65535).images[..., 0], np.round(values / 257))
    refused(
        lambda: run(folder, 4, bit_range=4000, max_corrupt=0), "its largest grey value is 4095, above data.bit_range"
    )


def test_a_dark_picture_among_others_of_sixteen_bits_is_no_error(tmp_path):
    folder = deep(tmp_path / "scans", [np.full((8, 8), value) for value in (100, 4000, 60000, 257)])
    found = read_images(str(folder), "--members")
    assert found.images[:, 0, 0, 0].tolist() == [0, 16, 233, 1]
    assert found.reading["sixteen_bit"] == 4


def test_facts_of_a_plain_picture_are_empty(tmp_path):
    folder = pictures(tmp_path / "set", noise(4))
    assert run(folder, 4).facts == {}
    assert Facts() == Facts(rotated=False, animated=False, reshaped=False, largest=None)


def test_nothing_executable_is_read():
    assert not {".eps", ".ps", ".pdf", ".wmf", ".svg"} & set(suffixes())
    assert os.path.splitext("x.PNG")[1].lower() in suffixes()
