"""Decodes a picture to a uint8 array: upright, 8 bits, centre crop, area resize."""

import os
import stat
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # nothing executable: an EPS file is a program
MAX_PIXELS = 2**26  # for example 8192 x 8192; each copy in colour takes 256 MiB

# PIL only warns about decompression bombs by default, and then decodes them. Its documentation recommends this filter.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def read_picture(file: Path | IO[bytes]) -> Image.Image:
    """Decodes a picture completely and applies its EXIF orientation. Of an animation, returns the first frame.

    Raises:
      Exception: of many types, from PIL's decoders, if the file is damaged, is not a regular file, has a content that
        is not in FORMATS, or has more than MAX_PIXELS.
    """
    if isinstance(file, Path) and not stat.S_ISREG(os.stat(file).st_mode):
        raise ValueError("it is not a regular file")  # opening a pipe would wait for its writer
    try:
        with Image.open(file, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            picture.load()  # PIL is lazy; without this, a truncated file would fail much later
            return ImageOps.exif_transpose(picture)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"it claims more than {MAX_PIXELS} pixels") from None


def as_array(picture: Image.Image, channels: int) -> np.ndarray:
    """Converts the whole picture to uint8 [h, w, channels], 0..255, with the colour rules of fit_image.

    Raises:
      ValueError: as in fit_image.
    """
    array = np.asarray(_eight_bits(picture).convert("L" if channels == 1 else "RGB"), np.uint8)
    return array.reshape(picture.height, picture.width, channels)


def fit_image(picture: Image.Image, size: int, channels: int) -> np.ndarray:
    """Crops the centre square and resizes it by area (box filter): uint8 [size, size, channels], 0..255.

    An odd margin puts the crop one pixel closer to the top left. Smaller squares are enlarged without interpolation.
    Colour becomes grey by the luma of ITU-R 601. Grey becomes three equal channels. Transparency is dropped. 16-bit
    grey is scaled from 0..65535 to 0..255, so 12-bit scans that use only 0..4095 come out dark: rescale them first.

    Args:
      picture: of any mode but floating point.
      size: height and width of the result.
      channels: 1 (grey) or 3 (colour).

    Raises:
      ValueError: if the grey values are floating-point numbers, or outside 0..65535.
    """
    picture = _eight_bits(picture).convert("L" if channels == 1 else "RGB")
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    small = picture.resize((size, size), Image.Resampling.BOX, box=box)
    return np.asarray(small, np.uint8).reshape(size, size, channels)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Converts 16-bit grey to 8 bits. PIL's own conversion clips at 255, which would turn a scan white."""
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
