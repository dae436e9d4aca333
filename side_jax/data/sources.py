"""Lists the images of a path: pictures in a folder or a ZIP, arrays, or rows of Parquet files; decoded on demand.

A path may be an id of the Hugging Face hub, whose files are downloaded first.
"""

import collections
import contextlib
import dataclasses
import functools
import io
import mimetypes
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from side_jax.data import hub_images, medical, parquet, safe_npz
from side_jax.data.decode import MEDICAL, Picture, pages, read_picture, suffix_of, suffixes
from side_jax.data.printable import short
from side_jax.data.stream import THREADS
from side_jax.errors import InputError
from side_jax.hub import repository

ARRAYS = (".npz", ".npy")
IMAGES, LABELS = ("images", "arr_0"), ("labels", "arr_1")  # names of arrays in an NPZ, the first that is there
TIFF = (".tif", ".tiff")
KINDS = "a folder or a ZIP of pictures, an NPZ, an NPY or a Parquet file"
INDEXES = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".lst", ".tfrecord", ".xlsx")
# Suffixes that reports may name, beside those of Pillow and of common types; others could be parts of names.
NAMED = (
    *(".npz", ".npy", ".mha", ".parquet", ".tfrecord", ".lmdb", ".mdb", ".pkl", ".pt", ".yaml", ".jsonl"),
    *(".heic", ".heif", ".jxl", ".exr", ".hdr", ".dng", ".cr2", ".nef", ".arw", ".raw", ".psd", ".svs", ".log", ".md"),
)
OTHER, HIDDEN, REDUCED = "of other kinds", "hidden", "thumbnail in a TIFF"
LINKED = "link to a folder that is read already"
RUN_FILE = "manifest.json"  # beside the shards of a run
MAX_ENTRY = 2**28  # bytes of one picture in a ZIP


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Pictures that are not decoded yet.

    Attributes:
      read: row -> picture of any size and mode; may raise anything for a damaged one. Thread-safe.
      labels: n values of one sortable type.
      names: n strings that identify the pictures.
      passed_over: number of files that are not read, by their kind: a suffix, or a word.
      array: all images, uint8 [n, h, w, c], if the source is one array; else None.
      patients: of scans, the SHA-256 of the patient's id, and "" where the file has none; (): there are no scans.
    """

    read: Callable[[int], Picture]
    labels: Sequence[Any] | np.ndarray
    names: Sequence[str]
    passed_over: Mapping[str, int] = dataclasses.field(default_factory=dict)
    array: np.ndarray | None = None
    patients: Sequence[str] = ()


def describe(flag: str, path: str) -> str:
    """Returns the name of a path in messages, such as --samples=out/samples."""
    return f"{flag}={short(path)}"


def check_path(path: str, flag: str) -> None:
    """Raises InputError if a path does not exist, or is neither a folder nor a file."""
    if not os.path.exists(path):
        raise InputError(f"{describe(flag, path)} does not exist; name {KINDS}.")
    if not os.path.isdir(path) and not os.path.isfile(path):
        raise InputError(f"{describe(flag, path)} is neither a folder nor a file; name {KINDS}.")


def hub_files(path: str, flag: str, revision: str = "") -> hub_images.Files:
    """Downloads what open_source reads of a repository of the hub.

    Args:
      path: an id of the hub.
      flag: the option or setting that named it, for messages.
      revision: the commit to read; "": that of the id's revision.

    Raises:
      InputError: if it can't be downloaded.
    """
    try:
        return hub_images.fetch(path, revision, ((*suffixes(), *ARRAYS), (parquet.SUFFIX,)))
    except InputError as error:
        raise InputError(f"{flag}: {error}") from None


def open_source(path: str, flag: str, orientation: str = "apply", revision: str = "") -> Source:
    """Lists the images of a path.

    A folder holds either picture files at any depth, in the order of their relative paths, where the first-level
    subfolder is the label (a class or an identity) and pictures directly in the folder share one; or NPZ and NPY files
    in the order of their paths; or the shards of a run. Scans are pictures too, see medical.py. A ZIP holds pictures
    likewise. The array of an NPZ is `images` or else `arr_0`, uint8 [n, h, w] or [n, h, w, c]; `labels` or `arr_1` are
    optional integers [n]. Every page of a TIFF is a picture. Of a folder without pictures and arrays, Parquet files are
    read, see parquet.open_rows. Links to folders are followed, each folder once. Hidden files are passed over.

    Args:
      path: of the folder or file, or an id of the hub.
      flag: the option or setting that named it, for messages.
      orientation: as of decode.Rules.
      revision: of an id of the hub, the commit to read; "": that of the id's revision.

    Raises:
      InputError: if the path does not exist, holds no image, mixes pictures and arrays, or holds an unusable array.
    """
    if repository.is_id(path):
        return _repository(path, flag, orientation, revision)
    check_path(path, flag)
    return _folder(path, flag, orientation) if os.path.isdir(path) else _file(path, flag, orientation)


def in_memory(images: np.ndarray, labels: np.ndarray | None = None) -> Source:
    """Pictures from uint8 [n, h, w] or [n, h, w, c], named by their position; without labels, all have the label 0."""
    images = images[..., None] if images.ndim == 3 else images
    return Source(
        read=lambda row: _picture(images[row]),
        labels=np.zeros(len(images), np.int64) if labels is None else labels,
        names=[str(row) for row in range(len(images))],
        array=images,
    )


def _picture(image: np.ndarray) -> Picture:
    if image.shape[2] == 3:
        return Picture(image=Image.fromarray(np.ascontiguousarray(image)))
    bands = tuple(Image.fromarray(band) for band in np.moveaxis(image, -1, 0))
    return Picture(image=bands if len(bands) > 1 else bands[0])


@functools.cache
def _known() -> frozenset[str]:
    return frozenset((*NAMED, *Image.registered_extensions(), *mimetypes.MimeTypes().types_map[True]))


def _kind(name: str) -> str:
    """The kind of a file that is not read: its suffix, if that is one that programs use."""
    return suffix if (suffix := suffix_of(name)) in _known() else OTHER


def _label(name: str) -> str:
    return name.partition("/")[0] if "/" in name else ""


# Folders, of this machine and of the hub.


def _folder(path: str, flag: str, orientation: str) -> Source:
    where = describe(flag, path)
    try:
        names, passed_over = _walk(path, flag)
    except RecursionError:  # before Python 3.12
        raise InputError(f"{where} has folders nested too deep to list; move the images higher.") from None
    return _listed(Path(path), names, passed_over, where, flag, orientation)


def _repository(path: str, flag: str, orientation: str, revision: str) -> Source:
    found = hub_files(path, flag, revision)
    if found.alone:
        return _file(str(found.folder / found.names[0]), flag, orientation)
    hidden = [any(part.startswith(".") for part in name.split("/")) for name in found.others]
    kinds = (HIDDEN if is_hidden else _kind(name) for name, is_hidden in zip(found.others, hidden, strict=True))
    return _listed(found.folder, list(found.names), collections.Counter(kinds), describe(flag, path), flag, orientation)


def _listed(
    root: Path, names: list[str], passed_over: collections.Counter[str], where: str, flag: str, orientation: str
) -> Source:
    """Lists the images in the files of a folder.

    Args:
      root: the folder.
      names: of the files, relative paths in order.
      passed_over: as of Source, of the other files; more are added.
      where: what sentences call the folder.
      flag: the option that named it.
      orientation: as of decode.Rules.
    """
    pictures = [name for name in names if suffix_of(name) in suffixes()]
    arrays = [name for name in names if suffix_of(name) in ARRAYS]
    shards = sorted(
        (name for name in arrays if name.startswith("shard_") and "/" not in name), key=lambda name: (len(name), name)
    )
    if shards:
        if pictures:
            raise InputError(f"{where} holds both shards and pictures; move one of them elsewhere.")
        passed_over.update(_kind(name) for name in names if name not in {*shards, RUN_FILE})
        found = _arrays([root / name for name in shards], flag, numbered=True)
        return dataclasses.replace(found, passed_over=passed_over)
    images = [name for name in arrays if _may_hold_images(root / name, flag, strict=not pictures)]
    if pictures and images:
        raise InputError(
            f"{where} holds both pictures and an array of images, {short(images[0])}; name that file, or move one of "
            "them elsewhere."
        )
    tables = [name for name in names if suffix_of(name) == parquet.SUFFIX]
    chosen = set(pictures or images or tables)
    passed_over.update(_kind(name) for name in names if name not in chosen)
    if images:
        return dataclasses.replace(_arrays([root / name for name in images], flag), passed_over=passed_over)
    if not pictures and tables:
        return dataclasses.replace(_rows(root, tables, where, orientation), passed_over=passed_over)
    if not pictures:
        raise InputError(
            f"{where} holds no image{_held(passed_over)}; NPZ, NPY, Parquet files and pictures of "
            f"{', '.join(suffixes())} are read."
        )
    return _pictures(pictures, lambda at: root / pictures[at], orientation, passed_over, where)


def _pictures(
    names: Sequence[str],
    file: Callable[[int], Path | io.BytesIO],
    orientation: str,
    passed_over: collections.Counter[str],
    where: str,
) -> Source:
    """Lists files of pictures, every page of a TIFF, every frame and slice of a scan.

    Args:
      names: of the files.
      file: position in names -> what `read_picture` takes; may raise anything for a damaged one.
      orientation: as of decode.Rules.
      passed_over: as of Source; thumbnails and scans without an image are added.
      where: what sentences call the set.
    """
    scans = medical.Scans(names, file, where)
    rows, titles, patients = [], [], []
    for at, name in enumerate(names):
        numbers, reduced, found = [0], 0, medical.Contents()
        if suffix_of(name) in TIFF:
            with contextlib.suppress(Exception):  # reading it later says what is wrong
                numbers, reduced = pages(file(at))
        elif suffix_of(name) in MEDICAL:
            found = scans.contents(at)
            numbers = [0] if found.frames is None else list(range(found.frames))
            passed_over[medical.NO_IMAGE] += not numbers
        passed_over[REDUCED] += reduced
        rows += [(at, number) for number in numbers]
        patients += [found.patient] * len(numbers)
        if found.frames is None:
            titles += [f"{name}#page={number + 1}" if number else name for number in numbers]
        else:
            titles += [f"{name}[{number}]" for number in numbers]
    if not rows:
        raise InputError(f"{where} holds no image{_held(+passed_over)}; give files that do.")

    def read(row: int) -> Picture:
        at, number = rows[row]
        if suffix_of(names[at]) in MEDICAL:
            return scans.read(at, number)
        return read_picture(file(at), number, orientation)

    return Source(
        read=read,
        labels=[_label(names[at]) for at, _ in rows],
        names=titles,
        passed_over=+passed_over,
        patients=patients if any(patients) else (),
    )


def _rows(root: Path, names: Sequence[str], where: str, orientation: str) -> Source:
    """Lists the rows of Parquet files; the arguments are as of parquet.open_rows."""
    read, labels, rows = parquet.open_rows(root, names, where, orientation)
    return Source(read=read, labels=labels, names=rows)


def _held(passed_over: Mapping[str, int]) -> str:
    """What is there instead, in brackets."""
    listed = ", ".join(f"{count} {short(kind)}" for kind, count in passed_over.items())
    return f" (but {listed})" if listed else ""


def _walk(root: str, flag: str) -> tuple[list[str], collections.Counter[str]]:
    """Returns (sorted relative paths of all files that are not hidden, number of others by their kind).

    Real folders come first, then links to folders that were not seen yet, so that a link adds what it alone reaches.
    A link to a folder that contains the root would bring other sets in, and is passed over.
    """
    passed_over: collections.Counter[str] = collections.Counter()
    names: list[str] = []
    above = {_identity(folder) for folder in (root, *map(str, Path(os.path.realpath(root)).parents))}
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise InputError(
            f"the folder {error.filename!r} (in {flag}) can't be listed ({error.strerror}); make it readable, or move "
            "it elsewhere."
        )

    starts = collections.deque([root])
    while starts:
        start = starts.popleft()
        if start != root and (_identity(start) in seen or _identity(start) in above):
            passed_over[LINKED] += 1
            continue
        for where, below, files in os.walk(start, onerror=refuse):
            seen.add(_identity(where))
            hidden = [name for name in (*below, *files) if name.startswith(".")]
            passed_over[HIDDEN] += len(hidden)
            kept = []
            for name in sorted(name for name in below if not name.startswith(".")):
                folder = os.path.join(where, name)
                if os.path.islink(folder):
                    starts.append(folder)  # os.walk itself does not follow it
                elif _identity(folder) in seen:
                    passed_over[LINKED] += 1
                else:
                    kept.append(name)
            below[:] = kept
            names += [Path(where, name).relative_to(root).as_posix() for name in files if not name.startswith(".")]
    return sorted(names), +passed_over


def _identity(folder: str) -> tuple[int, int]:
    """What is the same for all paths that lead to a folder."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


# Files of arrays.


def _may_hold_images(file: Path, flag: str, *, strict: bool) -> bool:
    """Whether a file of arrays in a folder is meant to be read, and not, say, an array of labels or statistics.

    Args:
      file: an NPZ or NPY.
      flag: the option that named the folder.
      strict: whether an unusable array of three or more dimensions counts too, so that it will be refused and not
        passed over.

    Raises:
      InputError: if strict, and the file is damaged.
    """
    where = f"the file {describe(flag, str(file))}"
    try:
        name = None if safe_npz.is_npy(file, where) else _image_name(file, where)
        if name == "":
            return False
        shape, dtype = safe_npz.header(file, where, name)
    except InputError:
        if strict:
            raise
        return False
    return len(shape) >= 3 and (strict or dtype == np.uint8)


def _image_name(file: Path, where: str) -> str:
    """The name of the array of images in an NPZ; "" if it has none."""
    names = safe_npz.names(file, where)
    return next((name for name in IMAGES if name in names), "")


def _image_array(file: Path, where: str) -> tuple[str | None, tuple[int, ...]]:
    """Returns (name of the array of images in an NPZ, None for an NPY; its shape), from the header alone.

    Raises:
      InputError: if there is none, or it is no array of images.
    """
    name = None
    if not safe_npz.is_npy(file, where):
        name = _image_name(file, where)
        if not name:
            names = short(", ".join(safe_npz.names(file, where))) or "none"
            raise InputError(
                f"{where} has no array `images` or `arr_0`, but {names}; save it with np.savez(path, images=...)."
            )
    return name, safe_npz.image_shape(file, where, name)


def _array_labels(file: Path, where: str, images: str | None, count: int) -> np.ndarray:
    """The labels of the images in a file; 0 where it has none."""
    label = None
    if images is not None:
        label = LABELS[IMAGES.index(images)]
        label = label if label in safe_npz.names(file, where) else None
    labels = np.zeros(count, np.int64) if label is None else safe_npz.read(file, where, label)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"`{label}` in {where} has the type {labels.dtype} and the shape {labels.shape}, but must be integers of "
            f"the shape ({count},), one for each image."
        )
    return labels


def _arrays(files: list[Path], flag: str, *, numbered: bool = False) -> Source:
    """Lists the images of several files, one after the other.

    Args:
      files: NPZ or NPY.
      flag: the option that named them.
      numbered: whether they are shards of a run, which have an `index` and together hold images 0..n-1 in order.
    """
    ends, found, labels = [0], [], []
    for file in files:
        where = f"the {'shard' if numbered else 'file'} {describe(flag, str(file))}"
        if numbered and not {"images", "index"} <= set(safe_npz.names(file, where)):
            raise InputError(f"{where} has no `images` or no `index`; move files that are not shards elsewhere.")
        name, shape = _image_array(file, where)
        if numbered:
            expected = range(ends[-1], ends[-1] + shape[0])
            if not np.array_equal(safe_npz.read(file, where, "index"), np.asarray(expected)):
                raise InputError(
                    f"{where} does not hold images {expected.start} to {expected.stop - 1}, which come next; finish "
                    "the run that writes these shards."
                )
        found.append((file, where, name))
        labels.append(_array_labels(file, where, None if numbered else name, shape[0]))
        ends.append(ends[-1] + shape[0])

    @functools.lru_cache(maxsize=THREADS)  # images are read in order, so each file is unpacked about once
    def load(number: int) -> np.ndarray:
        images = safe_npz.read_images(*found[number])
        return images[..., None] if images.ndim == 3 else images

    def read(row: int) -> Picture:
        number = int(np.searchsorted(ends, row, side="right")) - 1
        return _picture(load(number)[row - ends[number]])

    names = [str(row) for row in range(ends[-1])]
    array = load(0) if len(files) == 1 else None
    return Source(read=read, labels=np.concatenate(labels), names=names, array=array)


# Single files.


def _file(path: str, flag: str, orientation: str) -> Source:
    file, where = Path(path), f"the file {describe(flag, path)}"
    suffix = suffix_of(file.name)
    if suffix in INDEXES:
        raise InputError(f"{where} is a list or a table, not images; name {KINDS} that holds the images themselves.")
    if suffix == parquet.SUFFIX:
        return _rows(file.parent, [file.name], describe(flag, path), orientation)
    if suffix in suffixes() and suffix not in (*TIFF, *MEDICAL):
        raise InputError(f"{where} is a single picture; name the folder that holds it.")
    if suffix in suffixes():
        return _pictures([file.name], lambda _: file, orientation, collections.Counter(), describe(flag, path))
    if not safe_npz.is_npy(file, where) and not safe_npz.names(file, where):
        archive = zipfile.ZipFile(file)  # open as long as its pictures are read
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if any(suffix_of(entry.filename) in suffixes() for entry in entries):
            return _archive(archive, entries, orientation, describe(flag, path))
    return _arrays([file], flag)


def _archive(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], orientation: str, where: str) -> Source:
    """Lists the pictures of a ZIP, which sentences call `where`; nothing is unpacked to disk."""
    passed_over: collections.Counter[str] = collections.Counter()
    pictures: list[zipfile.ZipInfo] = []

    def content(at: int) -> io.BytesIO:
        entry = pictures[at]
        if entry.compress_type not in safe_npz.RATIOS:
            raise ValueError("its compression method is not one of a plain ZIP")
        if entry.flag_bits & 1:
            raise ValueError("it is encrypted")
        packed = entry.compress_size * safe_npz.RATIOS[entry.compress_type]
        if entry.file_size > min(packed, MAX_ENTRY):
            raise ValueError(f"it claims {entry.file_size} bytes, more than its packed size or {MAX_ENTRY} allow")
        try:
            return io.BytesIO(archive.read(entry))
        except Exception:  # untrusted bytes make zipfile and zlib raise nearly anything, with the entry's name
            raise ValueError("its entry in the ZIP is damaged") from None

    for entry in sorted(entries, key=lambda entry: entry.filename):
        suffix = suffix_of(entry.filename)
        if any(part.startswith(".") or part == "__MACOSX" for part in entry.filename.split("/")):
            passed_over[HIDDEN] += 1
        elif suffix not in suffixes():
            passed_over[_kind(entry.filename)] += 1
        else:
            pictures.append(entry)
    return _pictures([entry.filename for entry in pictures], content, orientation, passed_over, where)
