"""The content of an audit's page: sentences, tables, figures, the gallery of pairs and the provenance.

Frozen dataclasses that validate themselves, so that every page that can be built can be rendered. Strings are shown
literally: none is markup, and none is trusted.
"""

import dataclasses
import math
import re
from typing import ClassVar
from xml.etree import ElementTree

TONES = ("alarm", "calm", "unsure")  # of the verdict's status
KINDS = ("text", "number", "rate")  # of a column; numbers and rates are right-aligned
EMPHASES = ("", "strong", "faint", *TONES)  # of a cell
CLOSER = ("smaller", "larger")  # which values of a score mean closer

_SVG, _SHAPES = "{http://www.w3.org/2000/svg}", ("svg", "g", "defs", "clipPath", "path", "rect", "use", "title")
_DATA_URI = re.compile(r"data:image/(png|webp|jpeg);base64,[A-Za-z0-9+/]+=*")


def _check(ok: bool, name: str, value: object, must: str) -> None:
    if not ok:
        raise ValueError(f"{name} must be {must}, got {value!r}")


def _filled(name: str, text: object) -> None:
    _check(isinstance(text, str) and bool(text.strip()), name, text, "text that is not empty")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture inside the page.

    Attributes:
      uri: a data: URI of a PNG, WebP or JPEG.
      reveals: whether it shows images in detail, which no private page may; False for charts and blurred images.
    """

    uri: str
    reveals: bool = True

    def __post_init__(self):
        _check(
            _DATA_URI.fullmatch(self.uri) is not None, "picture.uri", self.uri[:40], "a base64 data: URI of an image"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """A chart as part of the page: an SVG whose shapes need no style, and whose titles are shown where a pointer rests.

    It never shows images. Its ids must be no other drawing's.
    """

    svg: str
    reveals: ClassVar[bool] = False

    def __post_init__(self):
        found = [] if "<!" in self.svg or "<?" in self.svg else list(ElementTree.fromstring(self.svg).iter())
        allowed = all(
            one.tag.removeprefix(_SVG) in _SHAPES
            and not any(name.startswith("on") or name == "style" for name in one.attrib)
            and one.get("href", "#").startswith("#")
            for one in found
        )
        _check(bool(found) and allowed, "drawing.svg", self.svg[:40], "an SVG of shapes and titles alone")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A column: its label, one of KINDS, and what it means, listed below the table where not empty."""

    label: str
    kind: str = "text"
    help: str = ""

    def __post_init__(self):
        _filled("column.label", self.label)
        _check(self.kind in KINDS, "column.kind", self.kind, f"one of {', '.join(KINDS)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell.

    Attributes:
      text: the text shown.
      sort: the number it is sorted by. Cells without one come last; a text column is sorted by its texts.
      emphasis: one of EMPHASES.
    """

    text: str
    sort: float | None = None
    emphasis: str = ""

    def __post_init__(self):
        _check(self.sort is None or math.isfinite(self.sort), "cell.sort", self.sort, "finite or None")
        _check(self.emphasis in EMPHASES, "cell.emphasis", self.emphasis, f"one of {', '.join(EMPHASES)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table, sortable by each column; a first column of kind text holds the row headers."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self):
        _filled("table.caption", self.caption)
        _check(bool(self.columns), "table.columns", self.columns, "at least one")
        for row in self.rows:
            _check(len(row) == len(self.columns), "a row's cells", len(row), f"{len(self.columns)}, one a column")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart or a sheet of images, with its heading, a text for readers who can't see it, and a note."""

    heading: str
    picture: Picture | Drawing
    alt: str
    note: str = ""

    def __post_init__(self):
        _filled("figure.heading", self.heading)
        _filled("figure.alt", self.alt)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """A score of every pair: its label, which values are closer (one of CLOSER), decimals shown, and what it means.

    For a membership score, `closer` tells which values indicate a member.
    """

    label: str
    closer: str
    decimals: int = 3
    help: str = ""

    def __post_init__(self):
        _filled("score.label", self.label)
        _check(self.closer in CLOSER, "score.closer", self.closer, f"one of {', '.join(CLOSER)}")
        _check(0 <= self.decimals <= 12, "score.decimals", self.decimals, "between 0 and 12")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A generated image beside its nearest member and held-out image.

    Attributes:
      index: of the generated image in its attack's run.
      attack: the attack that generated it.
      scale: its guidance scale; None without guidance.
      cluster: the pseudo-label that guided it; None without one.
      member: id of the nearest member.
      name: the member's name; a private page leaves it out.
      heldout: id of the nearest held-out image; None where there is none.
      values: one for each of the gallery's scores; None for a score that was not computed.
      matched: whether it counts as a match.
      picture: the tiles side by side, from page.pictures.strip.
      has_start: whether the picture begins with the tile START.
    """

    index: int
    attack: str
    scale: float | None
    cluster: int | None
    member: int
    name: str = ""
    heldout: int | None
    values: tuple[float | None, ...]
    matched: bool
    picture: Picture
    has_start: bool = False

    def __post_init__(self):
        _filled("pair.attack", self.attack)
        for value in (self.scale, *self.values):
            _check(value is None or math.isfinite(value), "a pair's scale or value", value, "finite or None")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
    """A part of every pair's picture: its label, and an explanation if it needs one."""

    label: str
    help: str = ""

    def __post_init__(self):
        _filled("tile.label", self.label)


START = Tile(label="Start", help="the image from which mode seeking came to the generated one")
TILES = (
    Tile(label="Generated"),
    Tile(label="Nearest member"),
    Tile(label="Nearest held-out"),
    Tile(
        label="Difference",
        help="of the generated image and the nearest member: the largest of the channels, four times as bright; black "
        "is equal, and 64 levels of 255 or more are white",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gallery:
    """The pairs in their initial order, their scores, and the labels of their pictures' tiles."""

    scores: tuple[Score, ...]
    pairs: tuple[Pair, ...]
    tiles: tuple[Tile, ...] = TILES
    note: str = ""

    @property
    def all_tiles(self) -> tuple[Tile, ...]:
        """The tiles of the page, with START if a pair has it."""
        return (START, *self.tiles) if any(pair.has_start for pair in self.pairs) else self.tiles

    def __post_init__(self):
        _check(bool(self.tiles), "gallery.tiles", self.tiles, "at least one")
        for pair in self.pairs:
            _check(len(pair.values) == len(self.scores), "a pair's values", len(pair.values), f"{len(self.scores)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Triple:
    """A generated image beside its nearest member and held-out image, to look at first.

    Attributes:
      title: which images these are.
      picture: TRIPLE's tiles side by side, from page.pictures.strip.
      note: how near they are.
    """

    title: str
    picture: Picture
    note: str = ""

    def __post_init__(self):
        _filled("triple.title", self.title)


TRIPLE = ("Generated", "Training image", "Nearest unseen image")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strip:
    """Triples under a heading."""

    heading: str
    triples: tuple[Triple, ...]
    note: str = ""

    def __post_init__(self):
        _filled("strip.heading", self.heading)
        _check(bool(self.triples), "strip.triples", self.triples, "at least one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """The page.

    Attributes:
      title: of the page and its first heading.
      status: the verdict in a word or three, such as "Leaks".
      tone: one of TONES, the status's colour.
      verdict: two sentences for people who read nothing else.
      facts: (label, value): what was audited, on which data, when and by whom.
      paper: the name of a PDF of one sheet that lies beside the page; "" if there is none.
      strip: the pairs to look at first.
      chart: the one figure to look at first.
      means: what the verdict means, in plain words.
      sure: how sure the verdict is, and what it can't see.
      findings: further sentences, numbered.
      tables: the first ones are open, the others are folded.
      open_tables: how many are open.
      figures: folded.
      notes: sentences to know before relying on the results.
      lowers: what lowers extraction: a table, and what to know about it; None: there is none.
      provenance: (label, value), such as hashes, versions and the command.
      config: the whole config as text.
      private: blurred pictures and bare ids only. Names in `gallery` are left out and pictures that reveal refused; the
        sentences, tables, provenance and config are shown as given, so they must hold no name or path of an image.
    """

    title: str
    status: str
    tone: str
    verdict: tuple[str, str]
    facts: tuple[tuple[str, str], ...] = ()
    paper: str = ""
    strip: Strip | None = None
    chart: Figure | None = None
    means: tuple[str, ...] = ()
    sure: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    open_tables: int = 1
    figures: tuple[Figure, ...] = ()
    gallery: Gallery | None = None
    notes: tuple[str, ...] = ()
    lowers: Table | None = None
    provenance: tuple[tuple[str, str], ...] = ()
    config: str = ""
    private: bool = False

    def __post_init__(self):
        _filled("page.title", self.title)
        _filled("page.status", self.status)
        _check(self.tone in TONES, "page.tone", self.tone, f"one of {', '.join(TONES)}")
        _check(not re.search("[^a-z_.]", self.paper), "page.paper", self.paper, "the name of a file beside the page")
        _check(len(self.verdict) == 2, "page.verdict", self.verdict, "two sentences")
        for sentence in self.verdict:
            _filled("a sentence of page.verdict", sentence)
        figures = (*self.figures, *([self.chart] if self.chart else []))
        pictures = [(figure.heading, figure.picture) for figure in figures]
        pictures += [(triple.title, triple.picture) for triple in (self.strip.triples if self.strip else ())]
        pictures += [(f"pair {pair.index}", pair.picture) for pair in (self.gallery.pairs if self.gallery else ())]
        for where, picture in pictures:
            _check(not (self.private and picture.reveals), f"the picture of {where}", "one that reveals", "blurred")
