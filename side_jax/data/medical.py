"""Reads scans: every frame of a DICOM file and every slice of a NIfTI volume is a picture, decoded on demand."""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import importlib
import io
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from side_jax.data.decode import MAX_PIXELS, MEDICAL, WHITE, Picture, check_regular, suffix_of
from side_jax.data.printable import short
from side_jax.data.stream import THREADS
from side_jax.errors import InputError

NO_IMAGE = "DICOM without an image"  # reports, plans and the like
PERCENTILES = (0.5, 99.5)  # of a volume, which become black and white
SAMPLED = 2**22  # voxels of a volume that its percentiles are taken of, evenly spaced
MAX_FRAMES = 2**16  # of one file
MAX_UNPACKED = 2**31  # bytes of a volume in a .nii.gz, which is unpacked as a whole
_RATIO = 1032  # what deflate can pack to one byte
_HEADER = 540  # bytes of the longest header of NIfTI
_DICOM = MEDICAL[:2]
_VALUES = ("WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleSlope", "RescaleIntercept")
_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
# All that is read of a header, so that nothing else of it can reach a message: neither a name nor a date of birth.
_ELEMENTS = (
    *("PatientID", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation", "VOILUTSequence", "ModalityLUTSequence"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *_VALUES,
    *_GROUPS,
)


class _UnreadableError(ValueError):
    """Says what is wrong with a file, in words that quote nothing of it but numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """What a file holds, as far as its header tells.

    Attributes:
      frames: number of its frames or slices; None: it is one picture; 0: it holds none.
      patient: SHA-256 of the patient's id in a DICOM file; "": none is in it.
    """

    frames: int | None = None
    patient: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scan:
    """A DICOM file's header.

    Attributes:
      header: pydicom's, of _ELEMENTS.
      packing: the name of its transfer syntax.
      left: number of bytes for pixels.
    """

    header: Any
    packing: str
    left: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Volume:
    """A NIfTI file's header.

    Attributes:
      spec: shape of two or three dimensions, type, position in the file, slope, intercept.
      needed: bytes of the file, unpacked.
    """

    spec: tuple[tuple[int, ...], np.dtype, int, float, float]
    needed: int

    @property
    def slices(self) -> int | None:
        """Their number; None: it has two dimensions."""
        return self.spec[0][2] if len(self.spec[0]) > 2 else None


class Scans:
    """Reads the scans among files; thread-safe."""

    def __init__(self, names: Sequence[str], file: Callable[[int], Path | io.BytesIO], where: str):
        """Opens nothing.

        Args:
          names: of the files.
          file: position in names -> a path, or what is in it; may raise anything for a damaged one.
          where: what sentences call the set.
        """
        self._names, self._where = names, where
        self._file = functools.lru_cache(THREADS)(file)
        self._opened = functools.lru_cache(THREADS)(self._open)  # pictures are read in order, so each is opened once
        self._voxels = functools.lru_cache(THREADS)(self._open_voxels)
        self._ends = functools.cache(lambda at: _ends(self._voxels(at)))

    def contents(self, at: int) -> Contents:
        """What the file at a position in `names` holds; one picture if it is damaged, which `read` tells.

        Raises:
          InputError: if the package that reads it is missing, or a decoder is, or a volume changes with time.
        """
        try:
            opened = self._opened(at)
        except InputError:
            raise
        except Exception:
            return Contents()
        if isinstance(opened, _Volume):
            return Contents(frames=opened.slices)
        frames = int(opened.header.get("NumberOfFrames") or 1) if "Rows" in opened.header else 0
        return Contents(frames=None if frames == 1 else frames, patient=_patient(opened.header))

    def read(self, at: int, frame: int) -> Picture:
        """Reads a frame or a slice, from 0; raises ValueError or OSError if it is damaged."""
        opened = self._opened(at)
        if isinstance(opened, _Volume):
            with _told("its voxels can't be read"):
                return _slice(self._voxels(at), frame, *self._ends(at))
        with self._stream(at) as file, _told(f"it can't be decoded as {opened.packing}"):
            return _frame(opened.header, frame, file)

    @contextlib.contextmanager
    def _stream(self, at: int) -> Iterator[IO[bytes]]:
        file = self._file(at)
        if not isinstance(file, Path):
            yield io.BytesIO(file.getvalue())  # one of its own for each thread, without a copy
            return
        check_regular(file)
        with file.open("rb") as opened:
            yield opened

    def _open(self, at: int) -> _Scan | _Volume:
        name = f"{self._names[at]} of {self._where}"
        if suffix_of(self._names[at]) in _DICOM:
            _require("pydicom", name)
            with self._stream(at) as file, _told("its DICOM header is damaged"):
                return _header(file, name)
        _require("nibabel", name)
        with self._stream(at) as file, _told("its NIfTI header is damaged"):
            return _volume(file, name, packed=self._packed(at))

    def _packed(self, at: int) -> bool:
        return suffix_of(self._names[at]).endswith(".gz")

    def _open_voxels(self, at: int) -> Any:
        """The voxels as nibabel's array, which reads what it is indexed by; what is packed is unpacked as a whole."""
        from nibabel.arrayproxy import ArrayProxy

        volume, source = self._opened(at), self._file(at)
        with self._stream(at) as file:
            if self._packed(at):
                source = _unpacked(file, volume.needed)
            elif not isinstance(source, Path):
                source = file
        return ArrayProxy(source, volume.spec, mmap=False)


@contextlib.contextmanager
def _told(otherwise: str) -> Iterator[None]:
    """Replaces what the packages say of a damaged file, which may quote it."""
    try:
        yield
    except (InputError, _UnreadableError):
        raise
    except Exception as error:  # untrusted bytes make their parsers raise nearly anything
        if isinstance(error, OSError) and error.errno:
            raise
        raise _UnreadableError(otherwise) from None


def _require(package: str, name: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError:
        raise InputError(f"{name} needs {package}; run `pip install 'side_jax[medical]'`.") from None
    _silence()


@functools.cache
def _silence() -> None:
    """Keeps what pydicom warns of, which may quote a header, out of logs."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")


def _size(file: IO[bytes]) -> int:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


# DICOM.


def _header(file: IO[bytes], name: str) -> _Scan:
    """Reads a header, without pixels.

    Raises:
      InputError: if nothing that is installed can unpack the pixels.
      _UnreadableError: if they can't be what the header says.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.pixels import get_decoder

    size = _size(file)
    try:
        read_preamble(file, force=False)
    except InvalidDicomError:
        raise _UnreadableError("it is no DICOM file") from None
    meta = read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, *_: tag.group > 2)
    syntax = pydicom.uid.UID(meta.TransferSyntaxUID)
    deflated = syntax == pydicom.uid.DeflatedExplicitVRLittleEndian  # pydicom would unpack it whole, whatever its size
    try:
        known = not deflated and get_decoder(syntax).is_available
    except NotImplementedError:
        known = False
    if not known:
        raise InputError(
            f"{name} is packed as {short(syntax.name)}, which nothing installed here unpacks; install a package that "
            "pydicom does this with, such as pylibjpeg or python-gdcm, or save such files without compression."
        )
    file.seek(0)
    header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_ELEMENTS))
    left = size - file.tell() - (8 if syntax.is_implicit_VR else 12)  # the element of the pixels has this before them
    scan = _Scan(header=header, packing=short(syntax.name), left=max(left, 0))
    if "Rows" in header:
        _check_pixels(scan, packed=syntax.is_encapsulated)
    return scan


def _patient(header: Any) -> str:
    """SHA-256 of the bytes of the patient's id, which nothing decodes; "" if there is none."""
    element = header.get_item("PatientID")
    content = (element.value or b"").strip(b" \0") if element else b""
    return hashlib.sha256(content).hexdigest() if content else ""


def _check_pixels(scan: _Scan, packed: bool) -> None:
    """Raises _UnreadableError if the pixels can't be what the header says, before anything is allocated for them."""
    from pydicom.pixels.utils import get_expected_length

    header, frames = scan.header, int(scan.header.get("NumberOfFrames") or 1)
    if header.Rows * header.Columns > MAX_PIXELS:
        raise _UnreadableError(f"it claims more than {MAX_PIXELS} pixels")
    if not 0 < frames <= MAX_FRAMES:
        raise _UnreadableError(f"it claims {frames} frames, where 1 to {MAX_FRAMES} are read")
    needed = 8 * frames if packed else get_expected_length(header)
    if not 0 < needed <= scan.left:
        raise _UnreadableError(f"its pixels need {needed} bytes, but at most {scan.left} follow its header")


def _frame(header: Any, frame: int, file: IO[bytes]) -> Picture:
    """Decodes a frame: grey by its window or by all its bits, colours as RGB."""
    from pydicom.pixels import apply_color_lut, pixel_array

    values, kind = pixel_array(file, index=frame), header.PhotometricInterpretation
    if values.dtype.kind == "f":
        raise _UnreadableError("its grey values are floating-point numbers, which have no known range")
    own = _of_frame(header, frame)
    if kind in ("MONOCHROME1", "MONOCHROME2"):
        return (_windowed if _has_window(own) else _whole)(values, own, inverted=kind == "MONOCHROME1")
    bits = header.BitsStored
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, own)
        bits = 8 * values.dtype.itemsize
    if values.shape[2:] != (3,):
        raise _UnreadableError("its colours are neither grey, RGB, YBR nor a palette")
    return Picture(image=_eight_bits(values / (2**bits - 1)), deep_colour=bits > 8)


def _of_frame(header: Any, frame: int) -> Any:
    """A header with the window and the scale that a frame of an enhanced multi-frame image has of its own."""
    from pydicom import Dataset

    own = Dataset()
    own.update(header)
    own.set_original_encoding(*header.original_encoding)
    for groups, at in zip(_GROUPS, (0, frame), strict=True):
        group = (header.get(groups) or [])[at : at + 1]
        for name in ("FrameVOILUTSequence", "PixelValueTransformationSequence"):
            for item in group[0].get(name) or () if group else ():
                own.update(item)
    for name in _VALUES:
        if name in own and own[name].is_empty:
            del own[name]
    return own


def _has_window(header: Any) -> bool:
    return bool(header.get("VOILUTSequence")) or ("WindowCenter" in header and "WindowWidth" in header)


def _stored(header: Any) -> tuple[int, int]:
    """The smallest and the largest value that the bits allow."""
    half = 2 ** (header.BitsStored - 1)
    return (-half, half - 1) if header.PixelRepresentation else (0, 2 * half - 1)


def _modality_top(header: Any) -> int | None:
    """The largest value of the table that stored values go through, which begins at 0; None: there is no table."""
    table = header.get("ModalityLUTSequence")
    return 2 ** table[0].LUTDescriptor[2] - 1 if table else None


def _windowed(values: np.ndarray, header: Any, *, inverted: bool) -> Picture:
    """Grey by the first window or table that the file has."""
    from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

    values = apply_modality_lut(values, header)
    if header.get("VOILUTSequence"):
        values = apply_voi(np.round(values).astype(np.int64), header)
        low, high = 0, 2 ** header.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:
        top = _modality_top(header)
        low, high = _stored(header) if top is None else (0, top)
        if "RescaleSlope" in header and "RescaleIntercept" in header:
            low, high = (header.RescaleSlope * end + header.RescaleIntercept for end in (low, high))
        values = apply_windowing(values, header)  # from low to high
    if low == high:
        raise _UnreadableError("its rescaling makes all values equal")
    unit = (values - float(low)) / float(high - low)
    return Picture(image=_eight_bits(1 - unit if inverted else unit), range="window", inverted=inverted)


def _whole(values: np.ndarray, header: Any, *, inverted: bool) -> Picture:
    """Grey by all values that the bits allow, from black to white."""
    from pydicom.pixels import apply_modality_lut

    white = _modality_top(header)
    if white is not None:
        values = apply_modality_lut(values, header).astype(np.int64)
    else:
        low, high = _stored(header)
        values, white = values.astype(np.int64) - low, high - low
        inverted = inverted != (header.get("RescaleSlope", 1) < 0)
    values = np.clip(white - values if inverted else values, 0, white)
    deep = 255 < white <= WHITE
    image = Image.fromarray(values.astype(np.uint16)) if deep else _eight_bits(values / white)
    told = header.PhotometricInterpretation == "MONOCHROME1"
    return Picture(image=image, white=white if deep else WHITE, range="" if white == 255 else "bits", inverted=told)


def _eight_bits(unit: np.ndarray) -> Image.Image:
    """A picture of values in 0..1; NaN is 0."""
    return Image.fromarray(np.round(np.clip(np.nan_to_num(unit), 0, 1) * 255).astype(np.uint8))


# NIfTI.


def _volume(file: IO[bytes], name: str, *, packed: bool) -> _Volume:
    """Reads a header, and no voxel.

    Raises:
      InputError: if it has more than three dimensions.
      _UnreadableError: if the voxels can't be what the header says.
    """
    size = _size(file)
    header = _nifti_header((gzip.GzipFile(fileobj=file) if packed else file).read(_HEADER))
    shape, dtype, start = tuple(map(int, header.get_data_shape())), header.get_data_dtype(), header.get_data_offset()
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        raise InputError(
            f"{name} has {len(shape)} dimensions ({' x '.join(map(str, shape))}), where pictures and volumes are read; "
            "save each of its volumes as a file of its own."
        )
    if len(shape) < 2 or min(shape) < 1 or dtype.kind not in "iuf":
        raise _UnreadableError("its voxels are not real numbers in two or three dimensions")
    if math.prod(shape[:2]) > MAX_PIXELS or math.prod(shape[2:]) > MAX_FRAMES:
        raise _UnreadableError(f"it claims slices of more than {MAX_PIXELS} pixels, or more than {MAX_FRAMES} of them")
    needed = start + math.prod(shape) * dtype.itemsize
    if needed > (size * _RATIO if packed else size):
        raise _UnreadableError(f"its header promises {needed} bytes, but the file has {size}")
    if packed and needed > MAX_UNPACKED:
        raise _UnreadableError(f"it has {needed} bytes unpacked, more than {MAX_UNPACKED}: save it as .nii")
    slope, intercept = header.get_slope_inter()
    scale = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    return _Volume(spec=(shape, dtype, start, *scale), needed=needed)


def _unpacked(file: IO[bytes], needed: int) -> io.BytesIO:
    content = gzip.GzipFile(fileobj=file).read(needed)
    if len(content) < needed:
        raise _UnreadableError(f"its header promises {needed} bytes, but it unpacks to {len(content)}")
    return io.BytesIO(content)


def _nifti_header(content: bytes) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    for kind in (Nifti1Header, Nifti2Header):
        length = kind.sizeof_hdr
        if length in (int.from_bytes(content[:4], order) for order in ("little", "big")) and len(content) >= length:
            header = kind(content[:length], check=False)
            if header["magic"].item()[:3] == kind.single_magic[:3] and header.get_data_offset() >= length:
                return header
    raise _UnreadableError("it is no NIfTI file of one part")


def _numbers(voxels: Any, k: int) -> np.ndarray:
    """A slice along the third axis, float64 [h, w]."""
    return np.asarray(voxels[:, :, k] if len(voxels.shape) > 2 else voxels[:, :], np.float64)


def _ends(voxels: Any) -> tuple[float, float]:
    """The PERCENTILES of a volume's numbers; of about SAMPLED of them if there are more."""
    step = -(-math.prod(voxels.shape) // SAMPLED)
    slices = range(math.prod(voxels.shape[2:]))
    values = np.concatenate([_numbers(voxels, k).ravel("K")[::step] for k in slices])
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, PERCENTILES) if values.size else (0.0, 0.0)
    return float(low), float(high)


def _slice(voxels: Any, k: int, low: float, high: float) -> Picture:
    """A slice, from black at `low` to white at `high`."""
    values = np.nan_to_num(_numbers(voxels, k), nan=low, posinf=high, neginf=low)
    unit = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return Picture(image=_eight_bits(unit), range="percentiles")
