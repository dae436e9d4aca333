"""With report.private, no output and no line of the log holds the name of a file or a patient, in any packing."""

import base64
import io
import json
import re
import zipfile

import numpy as np
import pytest
import runs
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from sklearn.datasets import load_digits

from side_jax.commands import cli
from side_jax.errors import InputError
from side_jax.pipeline import saved_config
from side_jax.stages import stage_inputs

FILE, PATIENT = "turing", "lovelace"  # words of the files' names, and of the patients' in the files
PRIVATE = "--config.report.private=True"


def scan(path, image, patient):
    """A DICOM file of an image of 8 bits."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    made.PatientName, made.PatientID = f"{PATIENT}^ada", f"{PATIENT}{patient}"
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.Rows, made.Columns = image.shape
    made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 7
    made.PixelData = image.tobytes()
    made["PixelData"].VR = "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)


def pieces(content):
    """The bytes of a file, and of all that is packed in it: entries of a ZIP, texts of a PNG, pictures of a page."""
    yield content
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from pieces(archive.read(name))
    if content.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            yield repr(picture.info).encode()
    for packed in re.findall(rb"base64,([A-Za-z0-9+/=]+)", content):
        yield from pieces(base64.b64decode(packed))


def holding(folder, *words):
    """The files below a folder that hold one of the words, in any case, or have it in their path."""
    found = set()
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        held = [name.encode(), *(pieces(path.read_bytes()) if path.is_file() else ())]
        if any(word.encode() in piece.lower() for piece in held for word in words):
            found.add(name)
    return found


@pytest.fixture(scope="module")
def digits():
    return np.round(load_digits().images * (255 / 16)).astype(np.uint8)


def ward(folder, images):
    """Scans of 35 patients, a damaged one and a damaged PNG, whose names and folders hold a word."""
    for i, image in enumerate(images):
        scan(folder / f"{FILE}_{i % 3}" / f"{FILE}_{i:03}.dcm", image, i % 35)
    scan(folder / f"{FILE}.dcm", images[0], 0)
    (folder / f"{FILE}.dcm").write_bytes((folder / f"{FILE}.dcm").read_bytes()[:-20])
    (folder / f"{FILE}.png").write_bytes(b"no picture")
    (folder / f"{FILE}.{PATIENT}").write_bytes(b"of another kind")
    return folder


def test_pieces_find_words_wherever_they_are_packed(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", names=np.asarray([PATIENT]).view(np.uint8))
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", "Lovelace" * 9)
    text = PngInfo()
    text.add_text("Title", PATIENT * 99, zip=True)
    Image.new("L", (1, 1)).save(tmp_path / "c.png", pnginfo=text)
    page = base64.b64encode((tmp_path / "c.png").read_bytes()).decode()
    (tmp_path / "d.html").write_text(f'<img src="data:image/png;base64,{page}">')
    (tmp_path / "lovelace").mkdir()
    (tmp_path / "e.txt").write_text("nothing")
    assert holding(tmp_path, PATIENT) == {"b.zip", "c.png", "d.html", "lovelace"}


def test_a_run_tells_neither_files_nor_patients(tmp_path, digits, said, capfd):
    folder, workdir = ward(tmp_path / "data", digits[:140]), tmp_path / "run"
    options = {"name": "folder", "path": str(folder), "split_by": "identity"}
    options = {f"data__{name}": value for name, value in options.items()}
    options |= {
        "extract__attacks": "('unconditional','side_lora')",
        "evaluate__membership": True,
        "report__private": True,
    }
    options |= {"adapters__num_steps": 2, "adapters__rounds": 0, "label__min_cluster_size": 1}
    argv = runs.arguments(workdir, **options)
    assert runs.run([*argv, "--dry_run"]) == 0
    assert runs.run(argv) == 0
    assert runs.run([f"--workdir={workdir}"]) == 0  # there is nothing left to do
    assert "evaluate: up to date" in said.text
    assert holding(workdir, FILE, PATIENT) == set()
    told = said.text + "".join(capfd.readouterr())
    assert {word for word in (FILE, PATIENT) if word in told.lower()} == set()
    assert re.search(r"skipped the unreadable image number \d+ \(its pixels need 64 bytes", told)
    rows = json.loads((workdir / "train" / "split.json").read_text())
    assert {row["name"] for side in ("members", "heldout") for row in rows[side]} == {""}
    assert len({row["sha256"] for side in ("members", "heldout") for row in rows[side]}) == 128
    assert not {row["label"] for row in rows["members"]} & {row["label"] for row in rows["heldout"]}
    # What ends a run, when images have changed or are gone, tells none either.
    settings = saved_config.from_config(saved_config.saved_config(workdir))
    changed = rows["members"][0]["id"]
    paths = sorted(folder.rglob("*.*"), key=lambda path: path.relative_to(folder).as_posix())
    paths = [path for path in paths if path.suffix in (".dcm", ".png")]
    scan(paths[changed], digits[500], 0)
    for break_it in (lambda: None, lambda: paths[changed].write_bytes(b""), paths[changed].unlink):
        break_it()
        stage_inputs.datasets.forget()
        with pytest.raises(InputError, match=r"split\.json") as caught:
            stage_inputs.load_split(settings, workdir, stream=True)
        assert FILE not in str(caught.value)


def test_images_alone_tell_neither_files_nor_patients(tmp_path, digits, said, capfd):
    sets = {"samples": digits[:30], "members": digits[20:60], "heldout": digits[60:110]}
    given = [f"--{name}={ward(tmp_path / name, images)}" for name, images in sets.items()]
    argv = ["evaluate", *given, f"--out={tmp_path / 'out'}", "--max-corrupt=2", PRIVATE]
    assert cli.audit_samples([*argv, "--config.evaluate.distribution=False"]) == 0
    assert holding(tmp_path / "out", FILE, PATIENT) == set()
    assert {path.suffix for path in (tmp_path / "out").iterdir()} >= {".csv", ".html", ".json", ".svg"}
    assert cli.audit_samples([*argv, "--max-corrupt=1"]) == 1
    scan(tmp_path / "samples" / f"{FILE}_wide.dcm", np.zeros((9, 8), np.uint8), 0)
    assert cli.audit_samples(argv) == 1
    told = said.text + "".join(capfd.readouterr())
    assert {word for word in (FILE, PATIENT) if word in told.lower()} == set()
    assert "left out the unreadable image number 0 (its pixels need 64 bytes" in told
    assert re.search(r"2 of the 32 images of \S+ can't be read, where 1 may be damaged: number 0 \(its pixels", told)
    assert re.search(r"number \d+ of --samples=\S+ is 8 x 8 pixels, but number \d+ of \S+ is 8 x 9;", told)
