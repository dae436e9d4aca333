"""Files of strangers: each ends in one sentence that names it, runs nothing, writes nothing, and blocks nothing."""

import csv
import io
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from side_jax.data import image_sets, safe_npz, stream
from side_jax.data.datasets import load
from side_jax.data.image_sets import read_sets
from side_jax.data.listed import find
from side_jax.data.printable import printable, reason, short
from side_jax.data.stream import Stream
from side_jax.errors import InputError
from side_jax.settings import Data

ROOT = pathlib.Path(__file__).parents[2]
HUGE = 10**12


@pytest.fixture(autouse=True)
def soon():
    """What blocks, fails."""

    def late(*_):
        raise AssertionError("it took longer than 20 seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def noise(n, size=8, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), np.uint8)


def picture(image):
    return Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)


def pictures(folder, images):
    """A folder of PNGs named 0.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        picture(image).save(folder / f"{i}.png")
    return folder


def everything(folder):
    """All files below, and what they hold."""
    found = {}
    for where, below, files in os.walk(folder):
        for name in [*below, *files]:
            path = pathlib.Path(where, name)
            found[str(path)] = path.read_bytes() if path.is_file() else None
    return found


def refused(call, *words):
    """Checks for exactly one sentence, which holds the words."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert text.isprintable()  # no line ends, nothing that turns the direction of writing, no half characters
    assert text.endswith(".")
    assert not re.search(r"\.[)\"']*\s+[A-Z]", text), text
    assert not re.search(r"Traceback|allow_pickle|Warning|Error", text), text
    assert len(text) < 800
    for word in words:
        assert word in text
    return text


def read_images(path, flag, size=None, channels=None, max_corrupt=0):
    """Reads one set alone, in its own shape unless another is given."""
    listing = find(path, flag, max_corrupt)
    height, width = image_sets.common_size([listing], size)
    return image_sets.read_set(listing, (height, width, channels or listing.channels))[0]


def refuses(path, *words, flag="--samples"):
    """The same of a set, which is left as it was; what a payload would make is no longer absent."""
    before = everything(path.parent)
    text = refused(lambda: read_images(str(path), flag), *words)
    assert everything(path.parent) == before
    return text


# Files of arrays.


class Payload:
    """What unpickling it does: it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.touch, (self.marker,)


def npy(shape="(2, 8, 8)", descr="'|u1'", data=bytes(128), order="False", version=(1, 0), header=None):
    """An NPY file's bytes, true or not."""
    text = header or f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text) + 1)
    return b"\x93NUMPY" + bytes(version) + length + text.encode() + b"\n" + data


def zipped(path, members, claims=None, packing=zipfile.ZIP_DEFLATED, level=None):
    """A ZIP of names and bytes, whose directory claims other attributes of the first."""
    with zipfile.ZipFile(path, "w", packing, compresslevel=level) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        for name, value in (claims or {}).items():
            setattr(archive.filelist[0], name, value)
    return path


def objects(tmp_path):
    values = np.empty(2, object)
    values[:] = Payload(tmp_path / "set" / "executed")
    return values


def saved(save, *args, **kwargs):
    buffer = io.BytesIO()
    save(buffer, *args, **kwargs)
    return buffer.getvalue()


# Content of a file, and what the sentence says; the data of none of these is ever read.
HEADERS = {
    "object array in npz": (lambda t: saved(np.savez, images=objects(t)), "Python objects"),
    "object array in npy": (lambda t: saved(np.save, objects(t)), "Python objects"),
    "objects in a structure": (lambda t: npy(descr="[('a', '|O')]"), "Python objects"),
    "huge shape, little data": (lambda t: {"images.npy": npy(f"({HUGE}, 8, 8)")}, f"promises {64 * HUGE} bytes"),
    "huge shape in npy": (lambda t: npy(f"({HUGE}, 8, 8)"), f"promises {64 * HUGE} bytes"),
    "overflowing shape": (lambda t: npy(f"({2**62}, 4, 8)"), f"promises {2**67} bytes"),
    "number of 5000 digits": (lambda t: npy(f"({'9' * 5000}, 8, 8)"), "its header can't be parsed"),
    "truncated npy": (lambda t: npy(data=bytes(100)), "promises 128 bytes of data, but 100 follow"),
    "more than promised": (lambda t: npy(data=bytes(200)), "promises 128 bytes of data, but 200 follow"),
    "negative size": (lambda t: npy("(-2, -8, 8)"), "negative"),
    "header without end": (lambda t: b"\x93NUMPY\x01\x00\xff\xff{", "its header can't be parsed"),
    "header of code": (lambda t: npy(header="__import__('os').mkdir('executed')"), "its header can't be parsed"),
    "header of brackets": (lambda t: npy(header="(" * 9000), "its header can't be parsed"),
    "long header": (lambda t: npy(header="0" * 20000), "its header can't be parsed"),
    "header of 4 GiB": (lambda t: npy(version=(2, 0)), "NPY format is 2.0"),
    "wrong keys": (lambda t: saved(np.savez, pictures=noise(2)), "no array `images` or `arr_0`, but pictures;"),
    "no arrays": (lambda t: saved(np.savez), "no array `images` or `arr_0`, but none;"),
    "paths": (lambda t: {"../../images.npy": npy(), "/tmp/arr_0.npy": npy()}, "no array `images` or `arr_0`"),
    "keys of markup": (lambda t: {"<img\n\u202eonerror>.npy": npy()}, r"but \x3cimg\x0a\u202eonerror\x3e;"),
    "floats": (lambda t: saved(np.savez, noise(2) / 255.0), "`arr_0` in", "of type float64", "must be uint8 (0..255)"),
    "NaN": (lambda t: saved(np.save, np.full((2, 8, 8), np.nan, np.float32)), "of type float32", "uint8"),
    "big endian": (lambda t: saved(np.savez, images=noise(2).astype(">u2")), "of type uint16, but", "must be uint8"),
    "signed": (lambda t: saved(np.savez, images=noise(2).astype(np.int8)), "of type int8", "must be uint8"),
    "one picture": (lambda t: saved(np.savez, images=noise(1)[0, :, :, 0]), "the shape (8, 8)", "[n, h, w]"),
    "five dimensions": (lambda t: saved(np.savez, images=noise(4)[None]), "the shape (1, 4, 8, 8, 1)", "[n, h, w]"),
    "seventeen channels": (lambda t: saved(np.savez, images=noise(2, 8, 17)), "(2, 8, 8, 17)", "at most 16 channels"),
    "channels first": (lambda t: saved(np.save, noise(2, 8, 3).transpose(0, 3, 1, 2)), "(2, 3, 8, 8)", "channels last"),
    "no image": (lambda t: saved(np.savez, images=noise(0)), "the shape (0, 8, 8, 1)"),
    "no pixel": (lambda t: saved(np.savez, images=np.zeros((4, 0, 8), np.uint8)), "the shape (4, 0, 8)"),
    "a number": (lambda t: saved(np.savez, images=np.uint8(3)), "the shape ()"),
    "empty": (lambda t: b"", "it is empty"),
    "text": (lambda t: b"images: none\n", "another kind of file"),
    "a picture": (lambda t: saved(lambda f: picture(noise(1)[0]).save(f, "PNG")), "another kind of file"),
    "a pickle": (lambda t: b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00.", "another kind of file"),
    "half a zip": (lambda t: saved(np.savez, images=noise(2))[:300], "can't be read as an NPZ"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_arrays_that_are_refused_before_their_data_is_read(tmp_path, monkeypatch, case):
    make, *words = HEADERS[case]
    content = make(tmp_path)
    path = tmp_path / "set" / "evil.npz"
    path.parent.mkdir()
    zipped(path, content) if isinstance(content, dict) else path.write_bytes(content)
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("its data was read"))
    refuses(path, "evil.npz", *words)


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        (
            {"file_size": 2**40 + 128},
            "claims 1099511627904 bytes, more than its packed size allows); it is damaged, or",
        ),
        ({"flag_bits": 1}, "encrypted"),
        ({"compress_type": zipfile.ZIP_LZMA}, "its compression method is not one that NumPy uses"),
        ({"compress_type": 99}, "its compression method is not one that NumPy uses"),
    ],
    ids=["bomb", "encrypted", "lzma", "unknown method"],
)
def test_zip_bombs_and_their_like_are_refused_before_anything_is_allocated(tmp_path, monkeypatch, claims, words):
    path = zipped(tmp_path / "bomb.npz", {"images.npy": npy(f"({2**34}, 8, 8)")}, claims)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("its data was read"))
    refuses(path, "--samples=", "bomb.npz", words)


def test_a_bomb_as_large_as_its_bytes_could_be_is_refused_by_its_size(tmp_path, monkeypatch):
    """17 MB that could unpack to 17 GB, as far as the directory tells."""
    header = npy(f"({2**28 + 1}, 8, 8)", data=b"")
    claims = {"file_size": len(header) + 2**34 + 64}
    path = zipped(tmp_path / "bomb.npz", {"images.npy": header + bytes(17 * 10**6)}, claims, level=0)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("its data was read"))
    refuses(path, "bomb.npz", f"it has {2**34 + 64} bytes, but at most {2**34} are read at once")


def test_a_truthful_bomb_is_refused_by_its_size(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "zeros.npz", images=np.zeros((1000, 8, 8), np.uint8))
    monkeypatch.setattr(safe_npz, "LIMIT", 64000)
    assert len(read_images(str(tmp_path / "zeros.npz"), "--samples")) == 1000
    monkeypatch.setattr(safe_npz, "LIMIT", 63999)
    refuses(
        tmp_path / "zeros.npz", "zeros.npz", "it has 64000 bytes, but at most 63999", "); use a folder of several such"
    )


def damaged(path, packing):
    """One byte of the pixels differs from what was saved."""
    zipped(path, {"images.npy": npy(data=noise(2).tobytes())}, packing=packing)
    content = bytearray(path.read_bytes())
    content[-150] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_data_of_a_zip(tmp_path, packing):
    damaged(tmp_path / "rot.npz", packing)
    refuses(tmp_path / "rot.npz", "rot.npz", "can't be read as an NPZ of plain arrays (")


def test_data_shorter_than_the_directory_of_the_zip_claims(tmp_path):
    path = zipped(tmp_path / "short.npz", {"images.npy": npy(data=bytes(100))}, {"file_size": len(npy())})
    refuses(path, "short.npz", "can't be read as an NPZ of plain arrays (")


@pytest.mark.parametrize(
    ("shape", "order"), [((5, 8, 9), "C"), ((5, 8, 9, 1), "F"), ((5, 8, 9, 3), "C"), ((5, 8, 9, 3), "F")]
)
@pytest.mark.parametrize("key", ["images", "arr_0", None])
def test_arrays_that_are_read(tmp_path, shape, order, key):
    """In any order of memory; `images` comes before arr_0, and other arrays of the file do not matter."""
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    stored, path = np.asarray(images, order=order), tmp_path / "set.bin"
    others = {"labels": np.arange(5)} | ({"arr_0": objects(tmp_path)} if key == "images" else {})
    with path.open("wb") as file:
        np.save(file, stored) if key is None else np.savez(file, **{key: stored}, **others)
    found = read_images(str(path), "--samples")
    np.testing.assert_array_equal(found.images, images.reshape(5, 8, 9, -1))
    assert found.images.dtype == np.uint8
    assert found.names == ("0", "1", "2", "3", "4")
    assert not (tmp_path / "set" / "executed").exists()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)], ids=["pipe", "device"])
def test_paths_that_are_no_files(tmp_path, make):
    make(tmp_path / "x.npz")
    refuses(tmp_path / "x.npz", "x.npz is neither a folder nor a file")
    refused(lambda: load(Data(name="npz", path=str(tmp_path / "x.npz"))), "x.npz is neither a folder nor a file")


@pytest.mark.parametrize("name", ["", "nowhere", "a\0b", "x" * 5000, "gs://bucket/folder", "\udcff\u202e\n"])
def test_paths_that_do_not_exist(name):
    refused(lambda: read_images(name, "--heldout"), "--heldout=", "does not exist; name a folder")


def test_a_link_to_itself_and_one_to_nothing(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for name in ("loop", "gone"):
        refuses(tmp_path / name, f"{name} does not exist")


@pytest.mark.parametrize("rot", ["encrypted", "damaged"])
def test_the_npz_of_a_config_is_read_as_carefully(tmp_path, rot):
    path = tmp_path / "data.npz"
    if rot == "damaged":
        damaged(path, zipfile.ZIP_DEFLATED)
    else:
        zipped(path, {"images.npy": npy()}, {"flag_bits": 1})
    refused(lambda: load(Data(name="npz", path=str(path))), "config.data.path=", "data.npz can't be read")
    zipped(path, {"images.npy": npy(), "labels.npy": saved(np.save, objects(tmp_path))})
    refused(lambda: load(Data(name="npz", path=str(path))), "data.npz", "Python objects")


# Files of pictures.


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width, height, *extra):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def encoded(kind, image=None, **options):
    image = picture(noise(1, 64)[0]) if image is None else image
    return saved(lambda file: image.save(file, kind, **options))


NO_PICTURE = "not a picture of a supported kind"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(executed) (w) file closefile\nshowpage\n"
PICTURES = {
    "bomb": (raw_png(60000, 60000), "it claims more than 67108864 pixels"),
    "bomb that PIL warns of": (raw_png(12000, 12000), "it claims more than 67108864 pixels"),
    "bomb that PIL allows": (raw_png(9000, 9000), "it claims more than 67108864 pixels"),
    "no width": (raw_png(0, 8), "("),
    "bomb of text": (raw_png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24)))), "too large"),
    "bomb of a profile": (raw_png(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**24)))), "too large"),
    "truncated png": (encoded("PNG")[:500], "truncated"),
    "truncated jpeg": (encoded("JPEG")[:700], "truncated"),
    "flipped bit": (encoded("PNG")[:80] + b"\xff" + encoded("PNG")[81:], "("),
    "truncated gif": (encoded("GIF")[:300], "("),
    "truncated tiff": (encoded("TIFF")[:300], "("),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', NO_PICTURE),
    "html": (b"<!doctype html><script>alert(1)</script>", NO_PICTURE),
    "program": (EPS, NO_PICTURE),
    "python": (b"open('executed', 'w')\n", NO_PICTURE),
    "empty": (b"", NO_PICTURE),
    "floats": (encoded("TIFF", Image.new("F", (8, 8), float("nan"))), "floating-point", "save it in 8 or 16 bits"),
    "floats in a pfm": (b"Pf\n2 2\n-1.0\n" + bytes(16), "floating-point"),
    "beyond 16 bits": (encoded("TIFF", Image.new("I", (8, 8), 70000)), "outside 0..65535"),
}


@pytest.mark.parametrize("case", PICTURES)
def test_a_picture_that_can_not_be_read_is_named(tmp_path, monkeypatch, case):
    content, *words = PICTURES[case]
    folder = pictures(tmp_path / "set", noise(2))
    (folder / "0evil.png").write_bytes(content)
    monkeypatch.chdir(folder)
    refuses(folder, "1 of the 3 images of --samples=", ": 0evil.png (", *words, "); repair or remove them.")
    found = read_images(str(folder), "--samples", max_corrupt=1)
    assert (found.names, found.damaged) == (("0.png", "1.png"), ("0evil.png",))
    np.testing.assert_array_equal(found.images, noise(2))


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """Makes something that is no file, called x.png, in a folder of two pictures."""
    folder = pictures(tmp_path / "set", noise(2))
    monkeypatch.chdir(folder)

    def sock():
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("x.png")

    makers = {
        "pipe": lambda: os.mkfifo("x.png"),
        "socket": sock,
        "device": lambda: os.symlink("/dev/zero", "x.png"),
        "dangling link": lambda: os.symlink("nowhere", "x.png"),
        "link to itself": lambda: os.symlink("x.png", "x.png"),
        "links in a circle": lambda: (os.symlink("y", "x.png"), os.symlink("x.png", "y")),
    }
    return folder, makers


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("pipe", "it is not a regular file"),
        ("socket", "it is not a regular file"),
        ("device", "it is not a regular file"),
        ("dangling link", "No such file or directory"),
        ("link to itself", "Too many levels of symbolic links"),
        ("links in a circle", "Too many levels of symbolic links"),
    ],
)
def test_what_is_no_file_is_named_and_never_opened(odd, kind, why):
    folder, makers = odd
    makers[kind]()
    refused(lambda: read_images(str(folder), "--members"), "--members=", f": x.png ({why}); repair or remove")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    folder = pictures(tmp_path / "set", noise(3))
    (folder / "1.png").chmod(0)
    refused(lambda: read_images(str(folder), "--samples"), "1.png (Permission denied)")


def test_a_subfolder_without_permission_is_not_left_out_silently(tmp_path, monkeypatch):
    folder = pictures(tmp_path / "set", noise(2))
    pictures(folder / "locked", noise(2))
    scandir = os.scandir

    def guarded(path):
        if os.path.basename(path) == "locked":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    refused(lambda: read_images(str(folder), "--members"), "locked' (in --members) can't be listed (Permission denied)")


def test_folders_that_link_to_their_parents_end(tmp_path):
    folder = pictures(tmp_path / "set", noise(2))
    (folder / "up").symlink_to(folder)
    (folder / "above.png").symlink_to(tmp_path)
    (folder / "a").mkdir()
    (folder / "a" / "b").symlink_to(folder / "a")
    assert read_images(str(folder), "--samples").names == ("0.png", "1.png")


def test_a_folder_named_as_a_picture_is_a_folder(tmp_path):
    pictures(tmp_path / "set" / "x.png", noise(2))
    assert read_images(str(tmp_path / "set"), "--samples").names == ("x.png/0.png", "x.png/1.png")


def test_folders_in_folders(tmp_path, monkeypatch):
    pictures(tmp_path / "set", noise(1))
    monkeypatch.chdir(tmp_path / "set")
    depth, limit = 400, sys.getrecursionlimit()
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
    sys.setrecursionlimit(400)
    try:
        if sys.version_info < (3, 12):
            refused(lambda: read_images(str(tmp_path / "set"), "--samples"), "--samples=", "too deep")
        else:
            assert len(read_images(str(tmp_path / "set"), "--samples")) == 1
    finally:
        sys.setrecursionlimit(limit)
        for _ in range(depth):  # pytest could not remove them
            os.chdir("..")
            os.rmdir("d")


@pytest.mark.parametrize(
    ("name", "held"),
    [("", ";"), (".x.png", " (but 1 hidden);"), ("notes.txt", " (but 1 .txt);"), (".hidden/x.png", " (but 1 hidden);")],
)
def test_folders_without_a_picture(tmp_path, name, held):
    if name:
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        (tmp_path / "set" / name).write_bytes(encoded("PNG"))
    else:
        (tmp_path / "set").mkdir()
    refuses(tmp_path / "set", f"set holds no image{held}")


def test_many_damaged_pictures_are_counted_and_ten_named(tmp_path):
    folder = pictures(tmp_path / "set", noise(2))
    for i in range(14):
        (folder / f"bad{i:02}.png").write_bytes(b"")
    text = refused(lambda: read_images(str(folder), "--samples", max_corrupt=13), "14 of the 16", "where 13 may be")
    assert [f"bad{i:02}.png" in text for i in range(14)] == [True] * 10 + [False] * 4
    found = read_images(str(folder), "--samples", max_corrupt=14)
    assert len(found.damaged) == 14
    assert len(found) == 2
    for i in range(2):
        (folder / f"{i}.png").unlink()
    refused(lambda: read_images(str(folder), "--samples", max_corrupt=99), "14 of the 14")


def test_a_picture_that_vanishes_later_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(image_sets, "MEMORY_LIMIT", 0)
    folder = pictures(tmp_path / "set", noise(3))
    found = read_images(str(folder), "--samples")
    (folder / "1.png").unlink()
    refused(lambda: found.images[[0, 1]], "1.png (No such file or directory)")


def test_real_commands_warn_of_nothing_and_wait_for_nothing(tmp_path):
    """As users run it: PIL only warns of some bombs, and a pipe would be waited for."""
    for name, content in (("warned", raw_png(12000, 12000)), ("pipe", None)):
        folder = pictures(tmp_path / name, noise(1))
        (folder / "x.png").write_bytes(content) if content else os.mkfifo(folder / "x.png")
    code = f"""
from side_jax.data.listed import find
for name in ("warned", "pipe"):
    try:
        find({str(tmp_path)!r} + "/" + name, "--samples")
    except Exception as error:
        print(type(error).__name__, "x.png (" in str(error))
"""
    command = [sys.executable, "-W", "default::RuntimeWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("InputError True\n" * 2, "")


NAMES = {
    b"<img src=x onerror=alert(1)>.png": r"\x3cimg src=x onerror=alert(1)\x3e.png",
    b'"; DROP TABLE; --.png': r"\x22; DROP TABLE; --.png",
    b"two\nlines\r\t.png": r"two\x0alines\x0d\x09.png",
    b"\x1b[2J\x07.png": r"\x1b[2J\x07.png",
    "\u202egnp.exe.png".encode(): r"\u202egnp.exe.png",
    b"\xff\xfe.png": r"\udcff\udcfe.png",
    b"=cmd|' C calc'!A0.png": r"\x3dcmd|' C calc'!A0.png",
    b"-1+1.png": r"\x2d1+1.png",
    rb"\x3c.png": r"\x5cx3c.png",
    "Bär & שלום 猫.png".encode(): "Bär & שלום 猫.png",
    "\U000e0041.png".encode(): r"\U000e0041.png",
    b"a, b.png": "a, b.png",
    b"x" * 250 + b".png": "x" * 250 + ".png",
}


def test_names_can_be_written_anywhere(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        picture(noise(1, seed=i)[0]).save(saving := io.BytesIO(), "PNG")
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(saving.getvalue())
    found = read_images(str(folder), "--samples")
    assert sorted(found.names) == sorted(NAMES.values())
    shown = dict(zip(found.names, found.images, strict=True))
    for i, name in enumerate(NAMES.values()):
        np.testing.assert_array_equal(shown[name], noise(1, seed=i)[0])
    table = io.StringIO(newline="")
    csv.writer(table).writerows([name] for name in found.names)
    rows = table.getvalue().encode("utf-8").decode().splitlines()
    assert [next(csv.reader([row])) for row in rows] == [[name] for name in found.names]
    assert json.loads(json.dumps(found.names, ensure_ascii=False).encode("utf-8")) == list(found.names)


@pytest.mark.parametrize("name", NAMES)
def test_names_in_sentences(tmp_path, name):
    folder = pictures(tmp_path / "set", noise(1))
    with open(os.path.join(os.fsencode(folder), name), "wb"):
        pass
    refused(lambda: read_images(str(folder), "--samples"), short(os.fsdecode(name)) + f" ({NO_PICTURE})")


def test_printable_keeps_different_names_different_and_short_keeps_both_ends():
    rng = np.random.default_rng(0)
    texts = {"".join(rng.choice(list("\\x3c<\n=a"), 4)) for _ in range(3000)}
    assert len({printable(text) for text in texts}) == len(texts)
    assert short("a" * 80) == "a" * 80
    assert short("a" * 80 + "b") == "a" * 40 + "..." + "a" * 39 + "b"
    assert reason(ValueError("what.\nmore")) == "what"
    assert reason(KeyError()) == "KeyError"


# What comes out where nothing is wrong.


def test_kinds_of_pictures_in_one_folder(tmp_path):
    """One picture with colour gives all three channels; grey of 16 bits is scaled, of animations the first is read."""
    grey, red = np.full((8, 8), 60, np.uint8), Image.new("RGB", (8, 8), (200, 100, 50))
    folder = tmp_path / "set"
    folder.mkdir()
    still, moving = Image.fromarray(grey), Image.new("L", (8, 8), 250)
    still.save(folder / "a_animated.gif", save_all=True, append_images=[moving])
    still.save(folder / "b_grey.png")
    Image.fromarray(np.full((8, 8), 60 * 257, np.uint16)).save(folder / "c_sixteen.png")
    still.convert("LA").save(folder / "d_alpha.png")
    assert read_images(str(folder), "--samples").images.shape == (4, 8, 8, 1)
    red.save(folder / "e_colour.png")
    Image.new("RGBA", (8, 8), (200, 100, 50, 7)).save(folder / "f_transparent.png")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.save(folder / "g_palette.png")
    Image.new("CMYK", (8, 8), (55, 155, 205, 0)).save(folder / "h_print.tif")
    found = read_images(str(folder), "--samples")
    assert found.images.shape == (8, 8, 8, 3)
    assert [image[3, 4].tolist() for image in found.images] == [[60] * 3] * 4 + [[200, 100, 50]] * 4
    assert read_images(str(folder), "--samples", channels=1).images[7, 0, 0].tolist() == [124]  # ITU-R 601's luma


def test_orientation_is_applied_before_sizes_are_compared(tmp_path):
    folder, image = tmp_path / "set", np.random.default_rng(0).integers(0, 256, (6, 10), np.uint8)
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(image).save(folder / "turned.png", exif=exif)
    Image.fromarray(np.rot90(image, -1)).save(folder / "upright.png")
    found = read_images(str(folder), "--samples")
    assert found.images.shape == (2, 10, 6, 1)
    assert found.hashes[0] == found.hashes[1]
    assert found.repeats == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_one_pixel(tmp_path, channels):
    images = noise(5, 1, channels)
    folder = pictures(tmp_path / "set", images)
    np.testing.assert_array_equal(read_images(str(folder), "--samples").images, images)
    small = read_sets(
        str(folder), *(npz(tmp_path / name, noise(5, 1, channels, i)) for i, name in ((1, "m"), (2, "h")))
    )
    assert small.samples.images.shape == (5, 1, 1, channels)


@pytest.mark.parametrize("limit", [2**31, 3 * 64 * 3 - 1], ids=["memory", "stream"])
def test_the_same_pixels_are_the_same_set_wherever_they_lie(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(image_sets, "MEMORY_LIMIT", limit)
    images = noise(3, 8, 3)
    folder = pictures(tmp_path / "set", images)
    np.savez(tmp_path / "set.npz", images)
    first, second = (read_images(str(tmp_path / name), "--samples") for name in ("set", "set.npz"))
    assert isinstance(first.images, Stream) == (limit < images.size)
    np.testing.assert_array_equal(first.images, images)
    np.testing.assert_array_equal(second.images, images)
    assert first.sha256 == second.sha256
    ids = np.asarray([2, 0])
    np.testing.assert_array_equal(first.take(ids).images, images[ids])
    assert first.take(ids).sha256 == second.take(ids).sha256 != first.sha256
    assert first.take(ids).names == ("2.png", "0.png")
    small = read_images(str(folder), "--samples", size=4, channels=1)
    assert small.images.shape == (3, 4, 4, 1)
    again = read_images(str(tmp_path / "set.npz"), "--samples", size=4, channels=1)
    assert small.hashes == again.hashes


def test_large_images_are_read_fewer_at_a_time(monkeypatch):
    monkeypatch.setattr(stream, "CHUNK_BYTES", 1000)
    taken = []
    stream.scan(noise(20, 16), lambda ids, chunk: taken.append(len(chunk)))
    assert sorted(taken) == [2] + [3] * 6
    taken.clear()
    stream.scan(noise(2, 32), lambda ids, chunk: taken.append(len(chunk)))
    assert taken == [1, 1]


@pytest.mark.parametrize("size", [0, -1, 10**9])
def test_sizes_that_can_not_be(size):
    refused(lambda: read_sets(".", ".", ".", size), f"--size is {size}", "between 1 and 8192")


# The shards of a run.


def shards(folder, images, ends=(0, 4, 6), **others):
    folder.mkdir(parents=True, exist_ok=True)
    for i, (start, end) in enumerate(itertools.pairwise(ends)):
        arrays_of = {"images": images[start:end], "index": np.arange(start, end), "label": np.zeros(end - start)}
        np.savez_compressed(folder / f"shard_{i:05}.npz", **arrays_of | others)
    return folder


@pytest.mark.parametrize("limit", [2**31, 0], ids=["memory", "stream"])
def test_shards(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(image_sets, "MEMORY_LIMIT", limit)
    images = noise(300, 8, 3)
    folder = shards(tmp_path / "set", images, range(0, 301, 60))
    (folder / "manifest.json").write_text("{}")
    (folder / "notes.txt").write_text("of the day")
    found = read_images(str(folder), "--samples")
    assert found.reading["passed_over"] == {".txt": 1}
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_array_equal(found.images[np.asarray([299, 0, 60])], images[[299, 0, 60]])
    assert found.names[60] == "60"


def test_shards_that_are_not_whole(tmp_path):
    folder = shards(tmp_path / "set", noise(9), (0, 3, 6, 9))
    (folder / "shard_00001.npz").rename(tmp_path / "gone")
    refuses(folder, "shard_00002.npz does not hold images 3 to 5, which come next; finish the run")
    (folder / "shard_00001.npz").write_bytes((tmp_path / "gone").read_bytes()[:400])
    refuses(folder, "shard_00001.npz can't be read")
    np.savez(folder / "shard_00001.npz", images=noise(3))
    refuses(folder, "shard_00001.npz has no `images` or no `index`")
    np.savez(folder / "shard_00001.npz", images=noise(3), index=objects(tmp_path))
    refuses(folder, "shard_00001.npz can't be read", "Python objects")
    np.savez(folder / "shard_00001.npz", images=noise(3) / 255, index=np.arange(3, 6))
    refuses(folder, "shard_00001.npz is of type float64")
    np.savez(folder / "shard_00001.npz", images=noise(3, 9), index=np.arange(3, 6))
    refuses(folder, "0 of --samples=", "is 8 x 8 pixels, but 3 of --samples=", "is 9 x 9; give --size=N")
    (folder / "shard_00001.npz").unlink()
    os.mkfifo(folder / "shard_00001.npz")
    refuses(folder, "shard_00001.npz can't be read", "not a regular file")
    picture(noise(1)[0]).save(folder / "x.png")
    refuses(folder, "holds both shards and pictures")


# Three sets together.


def npz(path, images):
    np.savez(path.with_suffix(".npz"), images=images)
    return str(path.with_suffix(".npz"))


@pytest.fixture
def three(tmp_path):
    """Folders of samples, members and held-out images, as a dict of paths."""
    names = ("samples", "members", "heldout")
    return {name: str(pictures(tmp_path / name, noise(4 + i, seed=i))) for i, name in enumerate(names)}


def test_three_sets(three):
    found = read_sets(**three)
    assert [len(one) for one in (found.samples, found.members, found.heldout)] == [4, 5, 6]
    np.testing.assert_array_equal(found.heldout.images, noise(6, seed=2))
    assert (found.exact_dropped, found.near_dropped) == (0, 0)
    assert found.members.path == three["members"]


def test_colour_in_one_set_gives_all_three_channels(tmp_path, three):
    colour = noise(3, 8, 3, seed=7)
    found = read_sets(**three | {"heldout": npz(tmp_path / "colour", colour)})
    assert {one.images.shape[3] for one in (found.samples, found.members, found.heldout)} == {3}
    np.testing.assert_array_equal(found.heldout.images, colour)
    np.testing.assert_array_equal(found.samples.images, noise(4).repeat(3, axis=3))


@pytest.mark.parametrize("flag", ["samples", "members", "heldout"])
def test_sizes_that_differ_are_named(tmp_path, three, flag):
    wide = Image.fromarray(noise(1, 20)[0, :9, :, 0])
    wide.save(pathlib.Path(three[flag], "wide.png"))
    refused(
        lambda: read_sets(**three),
        "0.png of --samples=",
        "is 8 x 8 pixels, but wide.png of",
        f"--{flag}=",
        "is 20 x 9; give --size=N",
    )
    found = read_sets(**three, size=4)
    assert {one.images.shape[1:] for one in (found.samples, found.members, found.heldout)} == {(4, 4, 1)}


def test_equal_sizes_need_not_be_square(tmp_path):
    paths = [npz(tmp_path / str(i), noise(4, 20, 1, i)[:, :9]) for i in range(3)]
    assert read_sets(*paths).members.images.shape == (4, 9, 20, 1)


@pytest.mark.parametrize("first", ["samples", "members", "heldout"])
@pytest.mark.parametrize("second", ["samples", "members", "heldout"])
@pytest.mark.parametrize("how", ["same", "linked", "dotted", "below", "linked below"])
def test_sets_that_share_a_folder_are_refused(tmp_path, three, monkeypatch, first, second, how):
    if first == second:
        return
    outer = three[first]
    pictures(pathlib.Path(outer, "deep", "er"), noise(1, seed=9))
    (tmp_path / "link").symlink_to(outer)
    (tmp_path / "link2").symlink_to(pathlib.Path(outer, "deep", "er"))
    monkeypatch.chdir(tmp_path)
    three[second] = {
        "same": outer,
        "linked": "link",
        "dotted": f"link/../{first}/deep/..",
        "below": f"{outer}/deep",
        "linked below": "link2",
    }[how]
    same = how in ("same", "linked", "dotted")
    words = "are the same; each set" if same else "the first contains the second; move it out"
    text = refused(lambda: read_sets(**three), words, f"--{first}=", f"--{second}=")
    assert same or text.index(f"--{first}=") < text.index(f"--{second}=")


def test_folders_whose_names_only_begin_alike_are_apart(tmp_path, three):
    three["samples"] = str(pictures(tmp_path / "members_2", noise(3, seed=8)))
    assert len(read_sets(**three).samples) == 3


def test_one_file_for_two_sets(tmp_path, three):
    path = npz(tmp_path / "all", noise(3, seed=8))
    os.link(path, tmp_path / "again.npz")
    for other in (path, str(tmp_path / "again.npz")):
        refused(lambda other=other: read_sets(**three | {"members": path, "heldout": other}), "are the same")


def test_held_out_images_that_are_members_are_dropped_and_counted(tmp_path):
    members, heldout = noise(6), noise(8, seed=1)
    heldout[1], heldout[4] = members[5], members[2]
    heldout[6] = members[0] ^ 1  # one grey level: RMSE 1 / 127.5
    paths = {
        "samples": npz(tmp_path / "samples", members),
        "members": npz(tmp_path / "members", members),
        "heldout": str(pictures(tmp_path / "heldout", heldout)),
    }
    (tmp_path / "heldout" / "9.png").symlink_to(tmp_path / "heldout" / "1.png")
    found = read_sets(**paths)
    assert (found.exact_dropped, found.near_dropped) == (3, 1)
    assert found.heldout.names == ("0.png", "2.png", "3.png", "5.png", "7.png")
    np.testing.assert_array_equal(found.heldout.images, heldout[[0, 2, 3, 5, 7]])
    assert len(found.samples) == len(found.members) == 6
    found = read_sets(**paths, near_duplicate_rmse=0.0)
    assert (found.exact_dropped, found.near_dropped) == (3, 0)
    refused(
        lambda: read_sets(**paths | {"heldout": npz(tmp_path / "copies", members[::-1] ^ 1)}),
        "every image of --heldout=",
        "hold out images that the model has not seen",
    )


def test_a_link_to_a_member_among_the_held_out_images_is_dropped(tmp_path, three):
    os.symlink(pathlib.Path(three["members"], "2.png"), pathlib.Path(three["heldout"], "linked.png"))
    found = read_sets(**three)
    assert found.exact_dropped == 1
    assert "linked.png" not in found.heldout.names


def test_damaged_pictures_are_allowed_in_each_set(three):
    for path in three.values():
        pathlib.Path(path, "bad.png").write_bytes(b"")
    refused(lambda: read_sets(**three), "1 of the 5 images of --samples=", "bad.png")
    found = read_sets(**three, max_corrupt=1)
    assert found.samples.damaged == found.members.damaged == found.heldout.damaged == ("bad.png",)
    assert [len(one) for one in (found.samples, found.members, found.heldout)] == [4, 5, 6]
