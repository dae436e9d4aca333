"""One picture to a uint8 array: decoded, upright, in 8 bits, cropped to the centre and resized by area."""

import os
import stat
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # no others: an EPS, for one, is a program
MAX_PIXELS = 2**26  # such as 8192 x 8192, of which every copy takes 256 MiB in colour

# The way that PIL documents: else a file that claims even more would be decoded, after a warning.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def read_picture(file: Path | IO[bytes]) -> Image.Image:
    """Decodes a picture wholly, turned as its EXIF orientation says; of an animation, the first frame.

    Raises:
      Exception: of many types, as PIL's decoders do, if the file is damaged, no file, not of FORMATS by its content, or
        has more than MAX_PIXELS.
    """
    if isinstance(file, Path) and not stat.S_ISREG(os.stat(file).st_mode):
        raise ValueError("it is no regular file")  # opening a pipe would wait for whoever writes to it
    try:
        with Image.open(file, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            picture.load()  # PIL is lazy: without it, a truncated file would fail much later
            return ImageOps.exif_transpose(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"it claims more than {MAX_PIXELS} pixels") from None


def as_array(picture: Image.Image, channels: int) -> np.ndarray:
    """The whole picture as uint8 [h, w, channels], 0..255, with the colours that fit_image gives it.

    Raises:
      ValueError: as fit_image does.
    """
    array = np.asarray(_eight_bits(picture).convert("L" if channels == 1 else "RGB"), np.uint8)
    return array.reshape(picture.height, picture.width, channels)


def fit_image(picture: Image.Image, size: int, channels: int) -> np.ndarray:
    """Crops the centre square and resizes it by area (box filter): uint8 [size, size, channels], 0..255.

    The crop of an odd margin is nearer to the top left. A square smaller than `size` is enlarged to blocks. Colour
    becomes grey by the luma of ITU-R 601; grey becomes three equal channels; transparency is dropped. Grey of 16 bits
    keeps its full range (0..65535 to 0..255), so 12-bit scans that use only 0..4095 come out dark: rescale them first.

    Args:
      picture: of any mode but floating point.
      size: height and width of the result.
      channels: 1 (grey) or 3 (colour).

    Raises:
      ValueError: if its grey values are floating-point numbers, or outside 0..65535.
    """
    picture = _eight_bits(picture).convert("L" if channels == 1 else "RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    small = picture.resize((size, size), Image.Resampling.BOX, box=box)
    return np.asarray(small, np.uint8).reshape(size, size, channels)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """PIL's own conversion clips grey of 16 bits at 255, which would turn a scan white."""
    if picture.mode == "F":
        raise ValueError(
            "its grey values are floating-point numbers, which have no known range: save it in 8 or 16 bits"
        )
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its grey values are outside 0..65535")
        return Image.fromarray(np.round(values / 257).astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        return picture.convert("RGBA")  # PIL warns if it goes to RGB directly
    return picture
