"""The report on one sheet of A4, as a PDF, for those who file paper: what the page says first."""

import base64
import dataclasses
import datetime
import io
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
from fpdf import FPDF
from fpdf.enums import Align, MethodReturnValue, XPos, YPos
from PIL import Image

from side_jax.report.page import model
from side_jax.report.page.render import seen

NAME = "summary.pdf"
MARGIN, WIDTH, HEIGHT = 14, 182, 269  # mm, of A4
FONT = "DejaVu"  # matplotlib's; it has Latin, Greek, Cyrillic and more
ACROSS, GAP = 4, 4  # pairs in a row, and mm between them
# The steps that make the sheet shorter: the scale of everything, and the longest text and list.
STEPS = ((1.0, 9999, 99), (0.92, 9999, 99), (0.85, 9999, 99), (0.8, 600, 8), (0.8, 250, 6), (0.75, 110, 4))
_TONES = {"alarm": (163, 32, 26), "calm": (28, 98, 69), "unsure": (122, 75, 0)}  # as on the page
_INK, _SOFT = (27, 34, 48), (84, 93, 108)
_POINT = 0.3528  # mm


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Text:
    """A paragraph: its size in points, whether it is bold, its colour, and the space above it in mm."""

    text: str
    size: float = 9
    bold: bool = False
    colour: tuple[int, int, int] = _INK
    above: float = 1.2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Pictures:
    """A row of pictures, or a drawing, from left to right: each with its place, mm wide and high, and its label."""

    each: tuple[tuple[Any, float, float, str, str], ...]  # (picture, width, height, text for who can't see, label)
    above: float = 2


def pdf(page: model.Page, made: datetime.date, digest: str, versions: dict[str, str]) -> bytes:
    """One page: the verdict, the facts, the first figure, the first pairs, what it means and how sure it is.

    A private page's has no pictures of images. What does not fit is set smaller, then cut; the last line says where the
    rest is. The same page of the same day gives the same bytes.

    Args:
      page: what the page says.
      made: the day.
      digest: SHA-256 of results.json.
      versions: of the libraries.
    """
    sheet = FPDF(format="A4")
    sheet.set_auto_page_break(False)
    sheet.set_margin(MARGIN)
    sheet.c_margin = 0  # so that texts and pictures begin at one line
    sheet.set_creation_date(datetime.datetime.combine(made, datetime.time(), datetime.UTC))
    sheet.set_lang("en")
    sheet.set_title(seen(f"{page.status}: {page.title}"))
    sheet.set_producer("side_jax")
    for style, name in (("", "DejaVuSans.ttf"), ("B", "DejaVuSans-Bold.ttf")):
        sheet.add_font(FONT, style, Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)
    try:
        _fill(sheet, page, digest, versions)
        level = logging.getLogger("fontTools").level
        logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells how it makes fonts smaller
        content = bytes(sheet.output())
        logging.getLogger("fontTools").setLevel(level)
        return content
    finally:
        for font in sheet.fonts.values():
            font.ttfont.close()  # which fpdf2 leaves open


def _fill(sheet: FPDF, page: model.Page, digest: str, versions: dict[str, str]) -> None:
    """Draws everything, as large as one page allows."""
    sheet.add_page()
    for i, (scale, longest, most) in enumerate(STEPS):
        blocks = list(_blocks(page, digest, versions, longest, most))
        if _height(sheet, blocks, scale) <= HEIGHT or i == len(STEPS) - 1:
            break
    for block in blocks:
        _draw(sheet, block, scale)


def _blocks(
    page: model.Page, digest: str, versions: dict[str, str], longest: int, most: int
) -> Iterator[_Text | _Pictures]:
    """What the sheet holds, from top to bottom."""
    cut = [False]

    def short(text: str, limit: int = longest) -> str:
        text = re.sub(r"\s+", " ", seen(text)).strip()
        cut[0] |= len(text) > limit
        return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"

    def some(texts: tuple[Any, ...]) -> tuple[Any, ...]:
        cut[0] |= len(texts) > most
        return texts[:most]

    yield _Text(text=short(page.title), colour=_SOFT, above=0)
    yield _Text(text=short(page.status, 60), size=19, bold=True, colour=_TONES[page.tone], above=1.5)
    for sentence in page.verdict:
        yield _Text(text=short(sentence), size=10.5)
    facts = "  ·  ".join(f"{short(label, 60)}: {short(value)}" for label, value in some(page.facts))
    if facts:
        yield _Text(text=facts, size=8, colour=_SOFT, above=2)
    if page.chart:
        yield _Text(text=short(page.chart.heading), size=10.5, bold=True, above=3.5)
        yield _chart(page.chart)
        yield _Text(text=short(page.chart.note), size=7.5, colour=_SOFT)
    if page.strip and not page.private:
        yield _Text(text=short(page.strip.heading), size=10.5, bold=True, above=3.5)
        tiles = f"In each, from left to right: {', '.join(model.TRIPLE).lower()}. "
        yield _Text(text=tiles + short(page.strip.note), size=7.5, colour=_SOFT)
        yield from _pairs(page.strip)
    if page.private:
        yield _Text(text="Private version: images are neither shown nor named.", colour=_SOFT, above=3)
    for heading, sentences in (("What this means", page.means), ("How sure this is", page.sure)):
        if sentences:
            yield _Text(text=heading, size=10.5, bold=True, above=3.5)
        yield from (_Text(text=short(sentence), size=8.5) for sentence in some(sentences))
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    rest = "Shortened to one page: the page has the rest" if cut[0] else "The page has the rest"
    last = f"{rest} (index.html). SHA-256 of results.json: {digest}. {short(libraries)}."
    yield _Text(text=last, size=7, colour=_SOFT, above=3.5)


def _chart(figure: model.Figure) -> _Pictures:
    """The first figure, as wide as the sheet unless that is too high."""
    if isinstance(figure.picture, model.Drawing):
        svg = re.sub("<title>[^<]*</title>", "", figure.picture.svg)  # paper has no pointer
        *_, wide, high = map(float, ElementTree.fromstring(svg).attrib["viewBox"].split())
        picture: Any = io.BytesIO(svg.encode())
    else:
        picture = _image(figure.picture)
        wide, high = picture.size
    width = min(WIDTH, 80 * wide / high)
    return _Pictures(each=((picture, width, width * high / wide, seen(figure.alt), ""),))


def _pairs(strip: model.Strip) -> Iterator[_Pictures]:
    """The pairs in rows."""
    width = (WIDTH - (ACROSS - 1) * GAP) / ACROSS
    for start in range(0, len(strip.triples), ACROSS):
        row = strip.triples[start : start + ACROSS]
        images = [_image(one.picture) for one in row]
        sizes = [min(width, 22 * image.width / image.height) for image in images]
        yield _Pictures(
            each=tuple(
                (image, size, size * image.height / image.width, seen(one.title), seen(one.title)[:40])
                for image, size, one in zip(images, sizes, row, strict=True)
            )
        )


def _image(picture: model.Picture) -> Image.Image:
    """A picture whose pixels stay sharp where a reader of PDFs would blur them."""
    image = Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2])))
    image = image.convert("L" if image.mode in ("L", "1") else "RGB")
    factor = max(1, 360 // image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _paragraph(sheet: FPDF, block: _Text, scale: float, **options: Any) -> Any:
    """Sets a paragraph at the sheet's place; characters that the font lacks are shown by their codes."""
    size = block.size * scale
    sheet.set_font(FONT, "B" if block.bold else "", size)
    sheet.set_text_color(*block.colour)
    known = sheet.fonts[sheet.current_font.fontkey].cmap
    text = "".join(one if ord(one) in known else f"\\u{ord(one):04x}" for one in block.text)
    return sheet.multi_cell(
        WIDTH, size * _POINT * 1.3, text, align=Align.L, new_x=XPos.LMARGIN, new_y=YPos.NEXT, **options
    )


def _height(sheet: FPDF, blocks: list[_Text | _Pictures], scale: float) -> float:
    """The height of everything, in mm."""
    total = 0.0
    for block in blocks:
        total += block.above * scale
        if isinstance(block, _Text):
            total += _paragraph(sheet, block, scale, dry_run=True, output=MethodReturnValue.HEIGHT)
        else:
            total += _row_height(block, scale)
    return total


def _row_height(block: _Pictures, scale: float) -> float:
    return scale * (max(one[2] for one in block.each) + 3.5 * any(one[4] for one in block.each))


def _draw(sheet: FPDF, block: _Text | _Pictures, scale: float) -> None:
    sheet.set_xy(MARGIN, sheet.get_y() + block.above * scale)
    if isinstance(block, _Text):
        _paragraph(sheet, block, scale)
        return
    top, x = sheet.get_y(), float(MARGIN)
    for picture, width, height, alt, label in block.each:
        sheet.image(picture, x, top, scale * width, scale * height, alt_text=alt)
        if label:
            sheet.set_xy(x, top + scale * height + 0.5)
            sheet.set_font(FONT, "", 6.5 * scale)
            sheet.set_text_color(*_SOFT)
            sheet.cell(scale * width, 3 * scale, label)
        x += scale * (width + GAP) if len(block.each) == 1 else scale * WIDTH / ACROSS + scale * GAP / ACROSS
    sheet.set_xy(MARGIN, top + _row_height(block, scale))
