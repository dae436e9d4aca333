"""DICOM and NIfTI: known values come back as the uint8 that they should be, and what can't be read is one sentence."""

import gzip
import hashlib
import logging
import os
import struct
import sys
import tracemalloc
import zipfile
import zlib

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless
from test_hostile_files import encoded, noise, pictures, read_images, refused, soon  # noqa: F401 it is a fixture

from side_jax.data import datasets, medical, split
from side_jax.data.decode import Rules
from side_jax.data.listed import find
from side_jax.data.sources import open_source
from side_jax.measure.records import Reading
from side_jax.report import findings
from side_jax.settings import Data

SECRET = "LOVELACE"  # of patients, which nothing may show
JPEG, JPEG_LS, DEFLATED = (UID(f"1.2.840.10008.1.2.{end}") for end in ("4.50", "4.80", "1.99"))


def header(values, **elements):
    """A dataset of grey values [h, w] or [frames, h, w], 16 bits of which 12 are used, or of colours [h, w, 3]."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    made.PatientName, made.PatientID, made.PatientBirthDate = f"{SECRET}^ADA", f"{SECRET}1815", "18151210"
    colour = values.shape[-1] == 3 and values.dtype == np.uint8
    made.SamplesPerPixel, made.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        made.PlanarConfiguration = 0
    elif values.ndim == 3:
        made.NumberOfFrames = len(values)
    made.Rows, made.Columns = values.shape[-3:-1] if colour else values.shape[-2:]
    made.BitsAllocated = 8 * values.dtype.itemsize
    made.BitsStored = 12 if made.BitsAllocated == 16 else made.BitsAllocated
    made.PixelRepresentation = int(values.dtype.kind == "i")
    made.update(elements)
    made.HighBit = made.BitsStored - 1
    return made


def dicom(path, values, syntax=ExplicitVRLittleEndian, pixels=None, **elements):
    """Writes a DICOM file of values, as `header` has them, with other elements; returns its path."""
    made = header(values, **elements)
    made.file_meta.TransferSyntaxUID = syntax
    made.PixelData = values.tobytes() if pixels is None else pixels
    made["PixelData"].VR = "OB" if made.BitsAllocated == 8 or syntax.is_encapsulated else "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def twelve(seed=0, shape=(4, 4)):
    return np.random.default_rng(seed).integers(0, 4096, shape).astype(np.uint16)


def read(path, name=None):
    """The only picture of a folder's or a file's, uint8 [h, w], and its reading."""
    found = read_images(str(path), "--members")
    return found.images[0, :, :, 0] if found.images.shape[-1] == 1 else found.images[0], found.reading


RAMP = np.asarray([[0, 1, 100, 1023], [1024, 2047, 3000, 4095]], np.uint16)
# Elements, and what RAMP becomes, by hand.
GREYS = {
    "all bits": ({}, np.round(RAMP * (255 / 4095))),
    "low values are white": ({"PhotometricInterpretation": "MONOCHROME1"}, np.round((4095 - RAMP) * (255 / 4095))),
    # Center 1024.5 and width 1025 of the standard: black up to 512, white above 1536, 1024 values between.
    "window": (
        {"WindowCenter": "1024.5", "WindowWidth": "1025"},
        np.round(255 * np.clip((RAMP - 512.0) / 1024, 0, 1)),
    ),
    "window of Hounsfield units": (
        {"WindowCenter": "24.5", "WindowWidth": "1025", "RescaleSlope": "1", "RescaleIntercept": "-1000"},
        np.round(255 * np.clip((RAMP - 512.0) / 1024, 0, 1)),
    ),
    "window after a slope": (
        {"WindowCenter": "512.5", "WindowWidth": "513", "RescaleSlope": "0.5", "RescaleIntercept": "0"},
        np.round(255 * np.clip((RAMP / 2 - 256.0) / 512, 0, 1)),
    ),
    "window, low values are white": (
        {"WindowCenter": "1024.5", "WindowWidth": "1025", "PhotometricInterpretation": "MONOCHROME1"},
        np.round(255 * (1 - np.clip((RAMP - 512.0) / 1024, 0, 1))),
    ),
    "the first of several windows": (
        {"WindowCenter": ["1024.5", "10"], "WindowWidth": ["1025", "5"]},
        np.round(255 * np.clip((RAMP - 512.0) / 1024, 0, 1)),
    ),
    "exact window": (
        {"WindowCenter": "1024", "WindowWidth": "1024", "VOILUTFunction": "LINEAR_EXACT"},
        np.round(255 * np.clip((RAMP - 512.0) / 1024, 0, 1)),
    ),
    "sigmoid": (
        {"WindowCenter": "1000", "WindowWidth": "800", "VOILUTFunction": "SIGMOID"},
        np.round(255 / (1 + np.exp(-4 * (RAMP - 1000.0) / 800))),
    ),
    "empty window": ({"WindowCenter": None, "WindowWidth": None}, np.round(RAMP * (255 / 4095))),
    "a slope alone changes no order": ({"RescaleSlope": "2", "RescaleIntercept": "-7"}, np.round(RAMP * (255 / 4095))),
    "a negative slope turns it": (
        {"RescaleSlope": "-1", "RescaleIntercept": "0"},
        np.round((4095 - RAMP) * (255 / 4095)),
    ),
}


@pytest.mark.parametrize("case", GREYS)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_grey_values(tmp_path, case, syntax):
    elements, right = GREYS[case]
    dicom(tmp_path / "scan.DCM", RAMP, syntax, **elements)
    image, reading = read(tmp_path)
    np.testing.assert_array_equal(image, right)
    window = elements.get("WindowCenter") is not None
    assert (reading["windowed"], reading["full_range"], reading["sixteen_bit"]) == (window, not window, not window)
    assert reading["inverted"] == (elements.get("PhotometricInterpretation") == "MONOCHROME1")
    assert reading["passed_over"] == {}


def test_signed_values_and_big_endian(tmp_path):
    """From -2048, black, to 2047, white."""
    signed = RAMP.astype(np.int16) - 2048
    dicom(tmp_path / "a" / "scan.dicom", signed)
    np.testing.assert_array_equal(read(tmp_path / "a")[0], np.round(RAMP * (255 / 4095)))
    dicom(tmp_path / "b" / "scan.dcm", signed, WindowCenter="0.5", WindowWidth="2001")
    right = np.round(255 * np.clip((signed + 1000.0) / 2000, 0, 1))
    np.testing.assert_array_equal(read(tmp_path / "b")[0], right)
    dicom(tmp_path / "c" / "scan.dcm", RAMP, ExplicitVRBigEndian, RAMP.astype(">u2").tobytes())
    np.testing.assert_array_equal(read(tmp_path / "c")[0], np.round(RAMP * (255 / 4095)))


def test_eight_bits_are_as_stored_and_one_bit_is_black_and_white(tmp_path):
    image = noise(1)[0, :, :, 0]
    dicom(tmp_path / "a" / "scan.dcm", image)
    found, reading = read(tmp_path / "a")
    np.testing.assert_array_equal(found, image)
    assert {name: reading[name] for name in ("windowed", "full_range", "sixteen_bit", "inverted")} == dict.fromkeys(
        ("windowed", "full_range", "sixteen_bit", "inverted"), 0
    )
    bits = noise(1)[0, :, :, 0] > 99
    packed = np.packbits(bits, bitorder="little").tobytes()
    dicom(tmp_path / "b" / "mask.dcm", image, pixels=packed, BitsAllocated=1, BitsStored=1)
    np.testing.assert_array_equal(read(tmp_path / "b")[0], bits * 255)


def table(values, first, bits):
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), first, bits])
    item.add_new("LUTData", "US", list(values))
    return Sequence([item])


def test_tables_of_values(tmp_path):
    """A modality's table squares 0 to 15; a display's reverses 0 to 255."""
    values = np.arange(16, dtype=np.uint16).reshape(4, 4)
    squares = table([i * i for i in range(16)], 0, 8)
    dicom(tmp_path / "a" / "scan.dcm", values, ModalityLUTSequence=squares)
    np.testing.assert_array_equal(read(tmp_path / "a")[0], values.astype(int) ** 2)
    reverse = table(range(255, -1, -1), 0, 8)
    dicom(tmp_path / "b" / "scan.dcm", values, ModalityLUTSequence=squares, VOILUTSequence=reverse)
    image, reading = read(tmp_path / "b")
    np.testing.assert_array_equal(image, 255 - values.astype(int) ** 2)
    assert reading["windowed"] == 1
    # Of stored values that a slope changes: the table is of Hounsfield units, 12 bits deep.
    deep = table([0, 4095], 5, 12)
    dicom(tmp_path / "c" / "scan.dcm", values, RescaleSlope="1", RescaleIntercept="-1", VOILUTSequence=deep)
    np.testing.assert_array_equal(read(tmp_path / "c")[0], 255 * (values > 6))


def test_frames_are_pictures_of_their_own(tmp_path):
    frames = twelve(shape=(5, 4, 4))
    dicom(tmp_path / "a.dcm", frames, WindowCenter="2048", WindowWidth="4096")
    dicom(tmp_path / "b.dcm", frames[0], NumberOfFrames=1)
    found = read_images(str(tmp_path), "--members")
    assert found.names == (*(f"a.dcm[{i}]" for i in range(5)), "b.dcm")
    right = np.round(255 * np.clip((frames - 2047.5 + 0.0) / 4095 + 0.5, 0, 1))
    np.testing.assert_array_equal(found.images[:5, :, :, 0], right)
    alone = read_images(str(tmp_path / "a.dcm"), "--members")
    np.testing.assert_array_equal(alone.images, found.images[:5])


def test_frames_of_enhanced_files_have_windows_of_their_own(tmp_path):
    def groups(slope=None, window=None):
        item = Dataset()
        if slope is not None:
            scale = Dataset()
            scale.RescaleSlope, scale.RescaleIntercept = slope, "0"
            item.PixelValueTransformationSequence = [scale]
        if window is not None:
            shown = Dataset()
            shown.WindowCenter, shown.WindowWidth = window
            item.FrameVOILUTSequence = [shown]
        return item

    frames = np.stack([RAMP, RAMP])
    per_frame = [groups(window=window) for window in (("512.5", "513"), ("1024.5", "1025"))]
    elements = {
        "SharedFunctionalGroupsSequence": Sequence([groups(slope="0.5")]),
        "PerFrameFunctionalGroupsSequence": Sequence(per_frame),
    }
    dicom(tmp_path / "a.dcm", frames, **elements)
    found = read_images(str(tmp_path), "--members").images[..., 0]
    np.testing.assert_array_equal(found[0], np.round(255 * np.clip((RAMP / 2 - 256.0) / 512, 0, 1)))
    np.testing.assert_array_equal(found[1], np.round(255 * np.clip((RAMP / 2 - 512.0) / 1024, 0, 1)))


def test_colours(tmp_path):
    image = noise(1, 8, 3)[0]
    dicom(tmp_path / "a" / "scan.dcm", image)
    np.testing.assert_array_equal(read(tmp_path / "a")[0], image)
    # Of YBR, luma alone is grey; red is Y = 76, Cb = 85, Cr = 255.
    ybr = np.full((2, 2, 3), 128, np.uint8)
    ybr[..., 0] = [[0, 50], [200, 255]]
    ybr[1, 1] = 76, 85, 255
    dicom(tmp_path / "b" / "scan.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    found = read(tmp_path / "b")[0]
    assert found[0, 1].tolist() == [50] * 3
    assert np.abs(found[1, 1].astype(int) - [255, 0, 0]).max() <= 1
    palette = {}
    for i, colour in enumerate(("Red", "Green", "Blue")):
        palette[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        palette[f"{colour}PaletteColorLookupTableData"] = np.asarray([0, 100 + i, 200 + i, 255], "<u2") * 257
    palette = {key: value.astype("<u2").tobytes() if key.endswith("Data") else value for key, value in palette.items()}
    index = np.arange(4, dtype=np.uint8).reshape(2, 2)
    dicom(tmp_path / "c" / "scan.dcm", index, PhotometricInterpretation="PALETTE COLOR", **palette)
    assert read(tmp_path / "c")[0].reshape(4, 3).tolist() == [[0] * 3, [100, 101, 102], [200, 201, 202], [255] * 3]


def test_packed_pixels(tmp_path):
    made = header(RAMP)
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.PixelData = RAMP.tobytes()
    made["PixelData"].VR = "OW"
    made.compress(RLELossless, encoding_plugin="pydicom")
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read(tmp_path)[0], np.round(RAMP * (255 / 4095)))
    smooth = np.full((8, 8), 77, np.uint8)
    dicom(tmp_path / "b" / "b.dcm", smooth, JPEG, encapsulate([encoded("JPEG", Image.fromarray(smooth))]))
    np.testing.assert_array_equal(read(tmp_path / "b")[0], smooth)


def test_sixteen_bits_that_would_be_dark_need_their_range(tmp_path):
    values = np.minimum(twelve(shape=(4, 4, 4)), 4095)
    for i, one in enumerate(values):
        dicom(tmp_path / f"{i}.dcm", one, BitsStored=16)
    refused(lambda: read_images(str(tmp_path), "--members"), "4 pictures of 16 bits", "set data.bit_range")
    listing = find(str(tmp_path), "--members", rules=Rules(bit_range=4095))
    assert len(listing.names) == 4
    data = Data(name="folder", path=str(tmp_path), num_members=2, num_heldout=2, image_size=4, bit_range=4095)
    np.testing.assert_array_equal(datasets.load(data).images[..., 0], np.round(values * (255 / 4095)))
    for i, one in enumerate(values):  # a file that says 12 bits has said its range: 65535 is not believed
        dicom(tmp_path / "twelve" / f"{i}.dcm", one // 16)
    data = Data(**{**vars(data), "path": str(tmp_path / "twelve"), "bit_range": 65535})
    np.testing.assert_array_equal(datasets.load(data).images[..., 0], np.round(values // 16 * (255 / 4095)))


# Volumes.


def nifti(path, values, kind=nibabel.Nifti1Image, **fields):
    image = kind(values, np.eye(4))
    for name, value in fields.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(path)
    return path


def scaled(volume, low, high):
    return np.round(255 * np.clip((volume - low) / (high - low), 0, 1))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint8])
def test_slices_are_pictures_by_the_percentiles_of_their_volume(tmp_path, name, kind, dtype):
    volume = np.random.default_rng(0).integers(0, 200, (6, 5, 7)).astype(dtype)
    volume[0, 0, 0] = 3 if dtype is np.uint8 else -1000
    nifti(tmp_path / name, volume, kind)
    found = read_images(str(tmp_path), "--members")
    assert found.names == tuple(f"{name}[{k}]" for k in range(7))
    right = scaled(volume.astype(float), *np.percentile(volume, [0.5, 99.5]))
    np.testing.assert_array_equal(found.images[..., 0], np.moveaxis(right, -1, 0))
    assert found.reading["percentiles"] == 7
    alone = read_images(str(tmp_path / name), "--members")
    np.testing.assert_array_equal(alone.images, found.images)


def test_what_a_header_scales_and_what_is_no_number(tmp_path):
    volume = np.arange(48, dtype=np.float64).reshape(4, 4, 3)
    head = nifti(tmp_path / "a.nii", volume.astype(np.int16))
    with head.open("r+b") as file:
        file.seek(112)  # scl_slope and scl_inter
        file.write(struct.pack("<2f", -0.5, 100.0))
    right = 100 - volume / 2
    right = np.moveaxis(scaled(right, *np.percentile(right, [0.5, 99.5])), -1, 0)
    np.testing.assert_array_equal(read_images(str(tmp_path), "--members").images[..., 0], right)
    volume[0, 0, 0], volume[1, 1, 1], volume[2, 2, 2] = np.nan, np.inf, -np.inf
    nifti(tmp_path / "b.nii", volume)
    found = read_images(str(tmp_path / "b.nii"), "--members").images[..., 0]
    low, high = np.percentile(volume[np.isfinite(volume)], [0.5, 99.5])
    assert (found[0, 0, 0], found[1, 1, 1], found[2, 2, 2]) == (0, 255, 0)
    assert found[0, 3, 3] == np.round(255 * (45 - low) / (high - low))


def test_constant_slices_are_kept_and_two_dimensions_are_one_picture(tmp_path):
    volume = np.zeros((4, 4, 3), np.int16)
    volume[:, :, 1] = 100
    nifti(tmp_path / "a.nii", volume)
    assert read_images(str(tmp_path), "--members").images[:, 0, 0, 0].tolist() == [0, 255, 0]
    nifti(tmp_path / "a.nii", np.full((4, 4, 3), 7, np.int16))
    assert read_images(str(tmp_path), "--members").images.max() == 0
    plane = np.arange(16, dtype=np.float32).reshape(4, 4)
    nifti(tmp_path / "b" / "b.nii", plane)
    found = read_images(str(tmp_path / "b"), "--members")
    assert found.names == ("b.nii",)
    np.testing.assert_array_equal(found.images[0, :, :, 0], scaled(plane, *np.percentile(plane, [0.5, 99.5])))
    nifti(tmp_path / "c" / "c.nii.gz", volume[..., None])  # a fourth dimension of 1
    assert len(read_images(str(tmp_path / "c"), "--members")) == 3


def test_volumes_that_change_with_time_are_refused(tmp_path):
    nifti(tmp_path / "a.nii", np.zeros((4, 4, 3, 2), np.int16))
    words = "a.nii of --members=", "has 4 dimensions (4 x 4 x 3 x 2)", "a file of its own"
    refused(lambda: read_images(str(tmp_path), "--members"), *words)
    refused(lambda: read_images(str(tmp_path / "a.nii"), "--members"), *words)


def test_percentiles_of_large_volumes_are_of_a_part(tmp_path, monkeypatch):
    monkeypatch.setattr(medical, "SAMPLED", 100)
    volume = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    nifti(tmp_path / "a.nii", volume)
    part = np.concatenate([volume[:, :, k].ravel("F")[::41] for k in range(16)])
    right = scaled(volume, *np.percentile(part, [0.5, 99.5]))
    found = read_images(str(tmp_path), "--members").images[..., 0]
    assert np.abs(found - np.moveaxis(right, -1, 0)).max() <= 1  # float32 or float64


def test_a_volume_is_read_slice_by_slice(tmp_path):
    """64 MiB on disk; a slice has 64 KiB."""
    with (tmp_path / "a.nii").open("wb") as file:
        head = nibabel.Nifti1Header()
        head.set_data_shape((256, 256, 512))
        head.set_data_dtype(np.int16)
        head["magic"], head["vox_offset"] = b"n+1", 352
        file.write(head.binaryblock + bytes(4))
        for k in range(512):
            file.write(np.full((256, 256), k, np.int16).tobytes())
    source = open_source(str(tmp_path), "--members")
    source.read(0)  # this also finds the percentiles
    tracemalloc.start()
    assert [np.asarray(source.read(k).image)[0, 0] for k in (0, 255, 511)] == [0, 127, 255]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


# ZIPs, other pictures, sets.


def test_a_zip_of_scans_beside_pictures(tmp_path):
    frames, volume = twelve(shape=(3, 8, 8)), twelve(1, (8, 8, 2)).astype(np.int16)
    dicom(tmp_path / "set" / "a.dcm", frames)
    nifti(tmp_path / "set" / "b.nii.gz", volume)
    nifti(tmp_path / "set" / "c.nii", volume)
    pictures(tmp_path / "set", noise(1))
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (tmp_path / "set").iterdir():
            archive.write(path, path.name)
    zipped, folder = (read_images(str(tmp_path / name), "--members") for name in ("set.zip", "set"))
    assert zipped.names == folder.names
    assert len(folder) == 8
    np.testing.assert_array_equal(zipped.images, folder.images)
    np.testing.assert_array_equal(folder.images[1:4, :, :, 0], np.round(frames * (255 / 4095)))


def test_a_stream_of_scans_is_the_same(tmp_path):
    dicom(tmp_path / "a.dcm", twelve(shape=(5, 8, 8)))
    nifti(tmp_path / "b.nii.gz", twelve(1, (8, 8, 5)).astype(np.int16))
    options = {"name": "folder", "path": str(tmp_path), "num_members": 4, "num_heldout": 4}
    stream, memory = (datasets.load(Data(**options, storage=storage)).images for storage in ("stream", "memory"))
    np.testing.assert_array_equal(stream[np.asarray([7, 2, 9])], memory[[7, 2, 9]])
    np.testing.assert_array_equal(np.asarray(stream), memory)


def report(path):
    """A structured report: DICOM without an image."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.3"
    made.PatientName = SECRET
    made.save_as(path, enforce_file_format=True)


def test_what_holds_no_image_is_counted(tmp_path):
    report(tmp_path / "report.dcm")
    refused(lambda: read_images(str(tmp_path), "--members"), "holds no image (but 1 DICOM without an image)")
    dicom(tmp_path / "a.dcm", RAMP)
    assert read_images(str(tmp_path), "--members").reading["passed_over"] == {medical.NO_IMAGE: 1}


def test_choices_are_said_in_the_findings():
    text = findings._read("the members", Reading(windowed=1, full_range=1200, percentiles=3, inverted=2))
    assert text == [
        "Reading the members: 1 picture by the window of their DICOM file; 1,200 pictures by all values of their bits, "
        "since their DICOM file has no window; 3 pictures by the 0.5 to 99.5 percentiles of their NIfTI volume; "
        "2 pictures inverted, since their DICOM file says that low values are white."
    ]


# Patients.


def test_no_patient_is_on_both_sides(tmp_path, caplog):
    """Whatever the folders; a file without an id goes by its folder."""
    caplog.set_level(logging.DEBUG)
    images = twelve(shape=(24, 8, 8))
    for i, image in enumerate(images):
        patient = "" if i >= 20 else f"{SECRET}{i % 5}"
        dicom(tmp_path / f"day{i % 3}" / f"{i:02}.dcm", image, PatientID=patient)
    options = {"name": "folder", "path": str(tmp_path), "num_members": 8, "num_heldout": 8}
    data = Data(**options, split_by="identity")
    dataset = datasets.load(data)
    assert dataset.num_classes == 5 + 3
    for seed in range(5):
        made = split.make_split(dataset, data, seed)
        sides = [{row["label"] for row in made[side]} for side in ("members", "heldout")]
        assert not sides[0] & sides[1]
        patients = [
            {int(row["name"][5:7]) % 5 for row in made[side] if int(row["name"][5:7]) < 20}
            for side in ("members", "heldout")
        ]
        assert not patients[0] & patients[1]
        assert SECRET not in repr(made)
    assert SECRET not in caplog.text
    by_image = datasets.load(Data(**options))
    assert by_image.num_classes == 3  # folders are classes
    source = open_source(str(tmp_path), "--members")
    assert SECRET not in repr(source)
    assert source.patients[0] == hashlib.sha256(f"{SECRET}0".encode()).hexdigest()


def test_patients_of_volumes_are_their_folders(tmp_path):
    for i in range(4):
        nifti(tmp_path / f"patient{i}" / "scan.nii.gz", twelve(i, (8, 8, 4)).astype(np.int16))
    data = Data(name="folder", path=str(tmp_path), num_members=6, num_heldout=6, split_by="identity")
    made = split.make_split(datasets.load(data), data, 0)
    sides = [{row["name"].partition("/")[0] for row in made[side]} for side in ("members", "heldout")]
    assert not sides[0] & sides[1]


def test_patients_among_members_are_not_held_out_from_elsewhere(tmp_path):
    for i, image in enumerate(twelve(shape=(12, 8, 8))):
        dicom(tmp_path / ("a" if i < 6 else "b") / f"{i}.dcm", image, PatientID=f"{i % 8}")
    options = {"num_members": 6, "num_heldout": 2, "image_size": 8, "split_by": "identity"}
    data = Data(name="folder", path=str(tmp_path / "a"), heldout_from=str(tmp_path / "b"), **options)
    made = split.make_split(datasets.load(data), data, 0)
    assert {row["name"] for row in made["heldout"]} == {"heldout: 6.dcm", "heldout: 7.dcm"}


# Files of strangers.


def cut(path, end):
    path.write_bytes(path.read_bytes()[:end])


def promising(path, shape, packed=False):
    """A NIfTI file whose header claims a shape, of 1,000 bytes."""
    head = nibabel.Nifti1Header()
    head["dim"][: len(shape) + 1] = [len(shape), *shape]
    head["datatype"], head["bitpix"], head["magic"], head["vox_offset"] = 2, 8, b"n+1", 352
    content = head.binaryblock + bytes(652)
    path.write_bytes(gzip.compress(content) if packed else content)


def deflated(path):
    """Some kilobytes that would unpack to 128 MiB."""
    dicom(path, RAMP)
    meta = path.read_bytes()[:132]
    syntax = DEFLATED.encode() + b"\0" * (len(DEFLATED) % 2)
    element = struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = b"".join(packer.compress(bytes(2**20)) for _ in range(128)) + packer.flush()
    path.write_bytes(meta + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(element)) + element + body)


DAMAGED = {
    "cut meta": ("x.dcm", lambda p: (dicom(p, RAMP), cut(p, 200)), "its DICOM header is damaged"),
    "cut header": ("x.dcm", lambda p: (dicom(p, RAMP), cut(p, -30)), "its pixels need 16 bytes, but at most 0 follow"),
    "cut pixels": ("x.dcm", lambda p: (dicom(p, RAMP), cut(p, -6)), "its pixels need 16 bytes, but at most 10 follow"),
    "no pixels": ("x.dcm", lambda p: dicom(p, RAMP, pixels=b""), "its pixels need 16 bytes, but at most 0 follow"),
    "more rows than pixels": ("x.dcm", lambda p: dicom(p, RAMP, Rows=60), "its pixels need 480 bytes, but at most 16"),
    "huge": ("x.dcm", lambda p: dicom(p, RAMP, Rows=65535, Columns=65535), "claims more than 67108864 pixels"),
    "many frames": ("x.dcm", lambda p: dicom(p, RAMP, NumberOfFrames=2**30), "it claims 1073741824 frames"),
    "no rows": ("x.dcm", lambda p: dicom(p, RAMP, Rows=0), "its pixels need 0 bytes"),
    "no frames": ("x.dcm", lambda p: dicom(p, RAMP, NumberOfFrames=-1), "it claims -1 frames"),
    "packed frames": (
        "x.dcm",
        lambda p: dicom(p, RAMP, JPEG, encapsulate([b"junk"]), NumberOfFrames=900),
        "its pixels need 7200 bytes",
    ),
    "junk in place of JPEG": (
        "x.dcm",
        lambda p: dicom(p, RAMP, JPEG, encapsulate([b"junk" * 9])),
        "it can't be decoded as JPEG Baseline (Process 1)",
    ),
    "text": ("x.dcm", lambda p: p.write_bytes(b"no image at all"), "it is no DICOM file"),
    "empty": ("x.dcm", lambda p: p.write_bytes(b""), "it is no DICOM file"),
    "a picture": ("x.dcm", lambda p: p.write_bytes(encoded("PNG")), "it is no DICOM file"),
    "no window": (
        "x.dcm",
        lambda p: dicom(p, RAMP, WindowCenter="5", WindowWidth="0"),
        "it can't be decoded as Explicit VR Little Endian",
    ),
    "a slope of nothing": (
        "x.dcm",
        lambda p: dicom(p, RAMP, WindowCenter="5", WindowWidth="9", RescaleSlope="0", RescaleIntercept="1"),
        "its rescaling makes all values equal",
    ),
    "other colours": (
        "x.dcm",
        lambda p: dicom(p, noise(1, 8, 3)[0], PhotometricInterpretation="HSV", SamplesPerPixel=1),
        "its colours are neither",
    ),
    "10^12 voxels": ("x.nii", lambda p: promising(p, (10000, 10000, 10000)), "or more than 65536 of them"),
    "10^11 voxels": ("x.nii", lambda p: promising(p, (8000, 8000, 2000)), "promises 128000000352 bytes, but the file"),
    "10^11 packed": ("x.nii.gz", lambda p: promising(p, (8000, 8000, 2000), True), "promises 128000000352 bytes"),
    "half packed": ("x.nii.gz", lambda p: promising(p, (900, 30), True), "27352 bytes, but it unpacks to 1000"),
    "no voxels": ("x.nii", lambda p: promising(p, (8, 0, 8)), "real numbers in two or three dimensions"),
    "negative": ("x.nii", lambda p: promising(p, (8, -8, 8)), "("),
    "one dimension": ("x.nii", lambda p: promising(p, (8,)), "real numbers in two or three dimensions"),
    "complex": ("x.nii", lambda p: nifti(p, np.ones((4, 4, 4), np.complex64)), "not real numbers"),
    "no NIfTI": ("x.nii", lambda p: p.write_bytes(b"no image at all" * 99), "it is no NIfTI file of one part"),
    "nothing": ("x.nii", lambda p: p.write_bytes(b""), "it is no NIfTI file of one part"),
    "no gzip": ("x.nii.gz", lambda p: p.write_bytes(b"no image at all"), "its NIfTI header is damaged"),
    "half a gzip": (
        "x.nii.gz",
        lambda p: (nifti(p, twelve(0, (24, 24)).astype(np.int16)), cut(p, -200)),
        "its voxels can't be read",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_scans_are_named_and_counted_in_little_memory(tmp_path, case):
    name, make, words = DAMAGED[case]
    folder = pictures(tmp_path / "set", noise(2))
    make(folder / name)
    tracemalloc.start()
    text = refused(lambda: read_images(str(folder), "--members"), "1 of the 3 images", f"{name} (", words)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20
    assert SECRET not in text
    found = read_images(str(folder), "--members", max_corrupt=1)
    assert (found.names, found.damaged) == (("0.png", "1.png"), (name,))
    np.testing.assert_array_equal(found.images, noise(2))


def test_a_bomb_is_not_unpacked(tmp_path):
    """pydicom would unpack all of it to read the header."""
    deflated(tmp_path / "x.dcm")
    assert (tmp_path / "x.dcm").stat().st_size < 2**18
    tracemalloc.start()
    words = "x.dcm of --members=", "is packed as Deflated Explicit VR Little Endian", "without compression"
    refused(lambda: read_images(str(tmp_path), "--members"), *words)
    assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    tracemalloc.stop()
    (tmp_path / "x.dcm").unlink()
    promising(tmp_path / "y", (16, 16, 2))
    content = (tmp_path / "y").read_bytes()
    (tmp_path / "y").unlink()
    with gzip.open(tmp_path / "y.nii.gz", "wb") as file:
        file.write(content)
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    assert len(read_images(str(tmp_path), "--members")) == 2
    assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("syntax", [JPEG_LS, UID("1.2.840.10008.1.2.4.76"), UID("1.2.840.99999.1.2.4.80")])
def test_packing_that_nothing_unpacks_is_named(tmp_path, syntax):
    path = dicom(tmp_path / "x.dcm", RAMP, JPEG_LS, encapsulate([b"junk"]))
    path.write_bytes(path.read_bytes().replace(JPEG_LS.encode(), syntax.encode()))
    pictures(tmp_path, noise(2))
    words = "x.dcm of --members=", f"is packed as {syntax.name}", "pylibjpeg"
    assert SECRET not in refused(lambda: read_images(str(tmp_path), "--members", max_corrupt=9), *words)


@pytest.mark.parametrize(("name", "package"), [("x.dcm", "pydicom"), ("x.nii.gz", "nibabel")])
def test_what_is_missing_is_named(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"")
    words = f"{name} of --members=", f"needs {package}; run `pip install 'side_jax[medical]'`"
    refused(lambda: read_images(str(tmp_path), "--members"), *words)
    data = Data(name="folder", path=str(tmp_path), num_members=2, num_heldout=2)
    refused(lambda: datasets.load(data), f"{name} of config.data.path=", package)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.dcm")
    os.mkfifo(tmp_path / "y.nii")
    refused(lambda: read_images(str(tmp_path), "--members"), "x.dcm (it is not a regular file)", "y.nii (it is not a")


def test_nothing_of_a_header_is_told(tmp_path, caplog, capfd):
    """What pydicom says of a value that it does not know quotes it."""
    caplog.set_level(logging.DEBUG)
    dicom(tmp_path / "x.dcm", RAMP, PhotometricInterpretation=SECRET)
    text = refused(lambda: read_images(str(tmp_path), "--members"), "x.dcm (it can't be decoded as Explicit VR")
    assert SECRET not in text + caplog.text + "".join(capfd.readouterr())
