"""Small pictures for people: grids of images as PNG."""

import base64
import io

import numpy as np
from PIL import Image


def visible(images: np.ndarray) -> np.ndarray:
    """Images uint8 [..., c] as people can see them: grey or RGB as they are, others by the mean of their channels."""
    if images.shape[-1] in (1, 3):
        return images
    return np.round(images.mean(axis=-1, keepdims=True)).astype(np.uint8)


def grid(images: np.ndarray, columns: int, side: int = 48, gap: int = 2) -> Image.Image:
    """Tiles uint8 images [n, h, w, c] row by row; each is enlarged by whole factors to about `side` pixels."""
    images = visible(images)
    n, h, w, c = images.shape
    factor = max(1, round(side / max(h, w)))
    tiles = images.repeat(factor, axis=1).repeat(factor, axis=2)
    th, tw, rows = h * factor + gap, w * factor + gap, -(-n // columns)
    canvas = np.full((rows * th + gap, columns * tw + gap, c), 255, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = gap + (i // columns) * th, gap + (i % columns) * tw
        canvas[y : y + h * factor, x : x + w * factor] = tile
    return Image.fromarray(canvas.squeeze(-1) if c == 1 else canvas)


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file's bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def data_uri(png_bytes: bytes) -> str:
    """A PNG as a data: URI, so that a page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(png_bytes).decode()
