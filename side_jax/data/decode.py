"""Decodes a picture to a uint8 array: upright, 8 bits, cropped or squashed, area resize; and notes what it changed."""

import contextlib
import dataclasses
import functools
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from side_jax.settings import Data

# Kinds of pixels, and nothing executable: an EPS file is a program.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "SUN", "TIFF", "WEBP")
BY_NAME = "TGA"  # has no mark of its own at its beginning, so it is only tried where the file's name says so
MAX_PIXELS = 2**26  # for example 8192 x 8192; each copy in colour takes 256 MiB
WHITE = 65535  # of 16-bit grey
MEDICAL = (".dcm", ".dicom", ".nii", ".nii.gz")  # what medical.py reads
ORIENTATION, SUBFILE = 0x0112, 254  # tags of EXIF and TIFF

# PIL only warns about decompression bombs by default, and then decodes them. Its documentation recommends this filter.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """How a picture becomes an array; as the model's trainer did it, or nothing will match.

    Attributes:
      orientation: "apply": a picture is turned as its EXIF data says; "ignore": its pixels are taken as stored.
      fit: to another aspect ratio, "crop": the centre; "squash": the whole picture, without its aspect ratio.
      bit_range: the 16-bit grey value that becomes white, 255..65535; 0: 65535, or what the file says.
    """

    orientation: str = "apply"
    fit: str = "crop"
    bit_range: int = 0


def rules(data: Data) -> Rules:
    """The rules that the settings ask for."""
    return Rules(orientation=data.orientation, fit=data.fit, bit_range=data.bit_range)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded picture.

    Attributes:
      image: its pixels, turned if that was asked for. Of an array with other than 1 or 3 channels, one grey picture
        for each.
      rotated: whether its EXIF data says that it must be turned.
      animated: whether it has further frames, which are not read.
      deep_colour: whether its colours had 16 bits, of which PIL keeps the upper 8.
      white: the largest value that its file allows, where it is 16-bit grey.
      range: how values of a scan became grey: by the "window" of its file, by all its "bits", or by the "percentiles"
        of its volume; "": they are as stored.
      inverted: whether its file says that low values are white.
    """

    image: Image.Image | tuple[Image.Image, ...]
    rotated: bool = False
    animated: bool = False
    deep_colour: bool = False
    white: int = WHITE
    range: str = ""
    inverted: bool = False

    @property
    def first(self) -> Image.Image:
        """Its picture, or that of its first channel."""
        return self.image[0] if isinstance(self.image, tuple) else self.image

    @property
    def size(self) -> tuple[int, int]:
        """Its height and width."""
        return self.first.height, self.first.width


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What was changed in one picture.

    Attributes:
      rotated: as of Picture.
      animated: as of Picture.
      reshaped: whether it was cropped or squashed, since its aspect ratio is another one.
      largest: its largest value where it has 16 bits, on a scale of 0..65535; else None.
      range: as of Picture.
      inverted: as of Picture.
    """

    rotated: bool = False
    animated: bool = False
    reshaped: bool = False
    largest: int | None = None
    range: str = ""
    inverted: bool = False


@functools.cache
def _formats(by_name: bool = False) -> tuple[str, ...]:
    """The kinds that are read, of those that this PIL knows."""
    Image.init()
    kinds = (*FORMATS, BY_NAME) if by_name else FORMATS
    return tuple(kind for kind in kinds if kind in Image.OPEN)


@functools.cache
def suffixes() -> tuple[str, ...]:
    """The suffixes of the files that are read, in lower case."""
    kinds = (*_formats(by_name=True), "MPO")  # photographs with a preview; the JPEG decoder reads them
    pictures = (suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds)
    return tuple(sorted((*pictures, *MEDICAL)))


def suffix_of(name: str) -> str:
    """The suffix of a file's name in lower case; .nii.gz is one."""
    lower = name.lower()
    return next((suffix for suffix in MEDICAL if lower.endswith(suffix)), os.path.splitext(lower)[1])


def check_regular(file: Path) -> None:
    """Raises ValueError unless a path leads to a regular file: opening a pipe would wait for its writer."""
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise ValueError("it is not a regular file")


@contextlib.contextmanager
def _opened(file: Path | IO[bytes]) -> Iterator[Image.Image]:
    """Opens a picture of the known kinds; raises anything for a file that is none."""
    suffix = ""
    if isinstance(file, Path):
        suffix = file.suffix.lower()
        check_regular(file)
    formats = _formats(by_name=Image.registered_extensions().get(suffix) == BY_NAME)
    try:
        with Image.open(file, formats=formats) as picture:
            yield picture
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"it claims more than {MAX_PIXELS} pixels") from None


def pages(file: Path | IO[bytes]) -> tuple[list[int], int]:
    """The numbers of a TIFF's pages, and how many more it has that are only smaller versions (thumbnails).

    A file that can't be read has one page; reading that says what is wrong.
    """
    reduced = []
    try:
        with _opened(file) as picture:
            for page in range(getattr(picture, "n_frames", 1)):
                picture.seek(page)
                reduced.append(bool(getattr(picture, "tag_v2", {}).get(SUBFILE, 0) & 1))
    except Exception:  # damaged files make decoders raise nearly anything
        return [0], 0
    full = [page for page, small in enumerate(reduced) if not small] or [0]
    return full, len(reduced) - len(full)


def read_picture(file: Path | IO[bytes], page: int = 0, orientation: str = "apply") -> Picture:
    """Decodes a picture completely. Of an animation, returns the first frame.

    Args:
      file: a path or an open file.
      page: of a TIFF, from 0.
      orientation: as of Rules.

    Raises:
      Exception: of many types, from PIL's decoders, if the file is damaged, is not a regular file, has a content that
        is not in FORMATS, or has more than MAX_PIXELS.
    """
    with _opened(file) as picture:
        if page:
            picture.seek(page)
        if picture.width * picture.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        deep_colour = len(picture.getbands()) > 2 and any(";16" in str(tile[3]) for tile in picture.tile)
        picture.load()  # PIL is lazy; without this, a truncated file would fail much later
        rotated = picture.getexif().get(ORIENTATION, 1) in range(2, 9)
        image = ImageOps.exif_transpose(picture) if orientation == "apply" else picture.copy()
        animated = False
        if picture.format != "TIFF":
            with contextlib.suppress(Exception):  # a damaged further frame does not matter
                animated = getattr(picture, "n_frames", 1) > 1
        return Picture(image=image, rotated=rotated, animated=animated, deep_colour=deep_colour)


def convert(picture: Picture, shape: tuple[int, int, int], rules: Rules) -> tuple[np.ndarray, Facts]:
    """Returns (the picture as uint8 [h, w, c], 0..255; what was changed in it).

    Where the aspect ratio differs, the centre is cropped, or the whole picture squashed. An odd margin puts the crop
    one pixel closer to the top left. Then it is resized by area (box filter); smaller pictures are enlarged without
    interpolation. Colour becomes grey by the luma of ITU-R 601. Grey becomes three equal channels. Transparency is
    dropped.

    Args:
      picture: of any mode but floating point.
      shape: (h, w, c), with c = 1 (grey), 3 (colour), or as many as the picture's array has.
      rules: how.

    Raises:
      ValueError: if the grey values are floating-point numbers, or outside 0..65535 or rules.bit_range, or the channels
        are not c.
    """
    height, width, channels = shape
    bands = picture.image if isinstance(picture.image, tuple) else None
    if channels not in (1, 3) or bands:
        if channels != len(bands or (None,)):
            raise ValueError(f"it has {len(bands) if bands else '1 or 3'} channels, not {channels}")
        grey, facts = zip(*(convert(Picture(image=band), (height, width, 1), rules) for band in bands), strict=True)
        return np.concatenate(grey, axis=-1), facts[0]
    image, largest = _eight_bits(picture, rules)
    image = image.convert("L" if channels == 1 else "RGB")
    scale = min(image.width / width, image.height / height)
    reshaped = image.width * height != image.height * width
    box = None
    if reshaped and rules.fit == "crop":
        wide, high = round(width * scale), round(height * scale)
        left, top = (image.width - wide) // 2, (image.height - high) // 2
        box = (left, top, left + wide, top + high)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BOX, box=box)
    array = np.asarray(image, np.uint8).reshape(shape)
    if picture.deep_colour:
        largest = 257 * int(array.max())
    facts = Facts(
        rotated=picture.rotated,
        animated=picture.animated,
        reshaped=reshaped,
        largest=largest,
        range=picture.range,
        inverted=picture.inverted,
    )
    return array, facts


def _eight_bits(picture: Picture, rules: Rules) -> tuple[Image.Image, int | None]:
    """Converts 16-bit grey to 8 bits; returns its largest value too. PIL's own conversion clips at 255: white scans."""
    image = picture.image
    if image.mode == "F":
        raise ValueError(
            "its grey values are floating-point numbers, which have no known range: save it in 8 or 16 bits"
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        values, white = np.asarray(image), min(rules.bit_range or WHITE, picture.white)
        if values.min() < 0 or values.max() > WHITE:
            raise ValueError("its grey values are outside 0..65535")
        if values.max() > white:
            raise ValueError(f"its largest grey value is {values.max()}, above data.bit_range = {white}")
        largest = int(values.max()) * WHITE // picture.white
        return Image.fromarray(np.round(values * (255 / white)).astype(np.uint8)), largest
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA"), None  # PIL warns if it goes to RGB directly
    return image, None
