"""The page of an audit: its pictures against arithmetic, its size, its privacy and its escaping."""

import base64
import dataclasses
import hashlib
import html.parser
import io
import itertools
import json
import re

import numpy as np
import pytest
from pages import HOSTILE, SCORES, SHOWN, hostile_page, page, pairs, table
from PIL import Image
from sklearn.datasets import load_sample_images

from side_jax.report import one_page
from side_jax.report.page import model, pictures
from side_jax.report.page.render import render


def photos(n, seed=0):
    """Crops [n, 64, 64, 3] of two photographs."""
    rng = np.random.default_rng(seed)
    found = [image[y : y + 128 : 2, x : x + 128 : 2] for image in load_sample_images().images for y, x in
             rng.integers(0, (image.shape[0] - 128, image.shape[1] - 128), (-(-n // 2), 2))]  # fmt: skip
    return np.stack(found)[rng.permutation(len(found))[:n]]


def decoded(picture):
    data = base64.b64decode(picture.uri.partition(",")[2])
    return len(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


class Parsed(html.parser.HTMLParser):
    """The page's tags with their attributes and texts, as a parser that is not the browser's sees them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.inside = [], {}, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        drawn = any(tag == "svg" for tag, _ in self.tags)  # where a <title> is a text to hover
        self.inside = dict(attrs).get("id", "hover" if tag == "title" and drawn else tag)

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        self.texts[self.inside] = self.texts.get(self.inside, "") + data


@pytest.mark.parametrize(("h", "w", "c"), [(64, 64, 3), (28, 28, 1), (30, 45, 3)])
def test_blurring_leaves_sixteen_values_of_each_channel(h, w, c):
    """Images that share their block means, and nothing else, look the same to the last bit."""
    rng = np.random.default_rng(2)
    images = rng.integers(10, 246, (3, h, w, c), dtype=np.uint8)
    means = pictures.block_means(images)
    assert means.shape == (3, 4, 4, c)
    edges = [np.linspace(0, side, 5).astype(int) for side in (h, w)]
    shuffled, flat = images.copy(), np.empty_like(images)
    for i in range(4):
        for j in range(4):
            block = np.s_[:, edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]]
            pixels = images[block].reshape(3, -1, c)
            np.testing.assert_allclose(means[:, i, j], pixels.mean(1), atol=0.5 + 1e-9)
            shuffled[block] = rng.permuted(pixels, axis=1).reshape(images[block].shape)
            flat[block] = means[:, i, j][:, None, None]
    blurred = pictures.blurred(images)
    assert blurred.shape == images.shape
    assert not np.array_equal(blurred[0], blurred[1])
    np.testing.assert_array_equal(pictures.blurred(shuffled), blurred)
    np.testing.assert_array_equal(pictures.blurred(flat), blurred)


def test_difference_by_hand():
    first = np.array([[[[10, 20, 30], [0, 0, 0], [255, 0, 0]]]], np.uint8)
    second = np.array([[[[10, 20, 30], [3, 9, 1], [0, 0, 0]]]], np.uint8)
    for a, b in ((first, second), (second, first)):
        assert pictures.difference(a, b).tolist() == [[[[0] * 3, [36] * 3, [255] * 3]]]
    assert pictures.difference(first, second, gain=1)[0, 0, :, 0].tolist() == [0, 9, 255]


def test_strips_are_exact_where_that_fits():
    tiles = np.random.default_rng(3).integers(0, 256, (4, 16, 12, 3), dtype=np.uint8)
    picture = pictures.strip(tiles, private=False)
    size, got = decoded(picture)
    assert picture.reveals
    assert size <= pictures.PICTURE_BYTES
    assert got.shape == (16, 4 * 14 - 2, 3)
    for i, tile in enumerate(tiles):
        np.testing.assert_array_equal(got[:, 14 * i : 14 * i + 12], tile)
    assert (got[:, 12:14] == 255).all()
    grey = decoded(pictures.strip(tiles[..., :1], private=False))[1]
    np.testing.assert_array_equal(grey[:, :12], tiles[0, ..., :1].repeat(3, -1))


def test_strips_that_do_not_fit_are_compressed_then_halved():
    tiles = photos(4)
    size, got = decoded(pictures.strip(tiles, private=False))
    assert size <= pictures.PICTURE_BYTES
    error = got[:, :64].astype(float) - tiles[0]
    assert 10 * np.log10(255**2 / (error**2).mean()) > 28  # dB: what is compressed is still the image
    size, got = decoded(pictures.strip(tiles, private=False, limit=700))
    assert size <= 700
    assert got.shape[0] in (16, 32)


@pytest.mark.parametrize("kind", ["photographs", "noise"])
def test_a_thousand_pairs_are_less_than_ten_megabytes(kind):
    n = 40
    images = photos(3 * n) if kind == "photographs" else np.random.default_rng(4).integers(0, 256, (3 * n, 64, 64, 3))
    made, members, heldout = np.split(images.astype(np.uint8), 3)
    tiles = np.stack([made, members, heldout, pictures.difference(made, members)], axis=1)
    strips = [pictures.strip(four, private=False) for four in tiles]
    thousand = [
        dataclasses.replace(pair, name="a_long_name_of_a_member_" * 3, picture=strips[i % n])
        for i, pair in enumerate(pairs(1000))
    ]
    text = render(page(gallery=model.Gallery(scores=SCORES, pairs=tuple(thousand))))
    assert 4e6 < len(text.encode()) < 10e6


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: page(tone="red"), "page.tone must be one of"),
        (lambda: page(paper="https://example.org"), "page.paper must be the name of a file"),
        (lambda: page(verdict=("One.",)), "page.verdict must be two sentences"),
        (lambda: page(verdict=("One.", " ")), "must be text that is not empty"),
        (lambda: model.Column(label="a", kind="money"), "column.kind must be one of"),
        (lambda: model.Cell(text="a", emphasis="blink"), "cell.emphasis must be one of"),
        (lambda: model.Cell(text="a", sort=float("nan")), "cell.sort must be finite"),
        (lambda: model.Score(label="a", closer="lower"), "score.closer must be one of"),
        (lambda: pairs(1, values=(1.0, float("inf"))), "must be finite or None, got inf"),
        (lambda: model.Gallery(scores=SCORES, pairs=pairs(1, values=(1.0,))), "a pair's values must be 3, got 1"),
        (lambda: dataclasses.replace(table(), rows=((model.Cell(text="a"),),)), "must be 9, one a column, got 1"),
        (lambda: model.Picture(uri="https://example.org/a.png"), "picture.uri must be a base64"),
        (lambda: model.Picture(uri='data:image/png;base64,AA" onload="x'), "picture.uri must be a base64"),
        *(
            (lambda text=text: model.Drawing(svg=text), "drawing.svg must be an SVG of shapes")
            for text in (
                "<svg><path style='fill: red'/></svg>",
                "<svg><script>alert(1)</script></svg>",
                "<svg><path onload='alert(1)'/></svg>",
                "<svg><use href='https://example.org/#a'/></svg>",
                "<svg><!-- a name --></svg>",
                "<svg><image/></svg>",
            )
        ),
        (lambda: pictures.blurred(np.zeros((2, 4, 4, 3))), "must be uint8"),
        (lambda: pictures.strip(np.zeros((0, 4, 4, 3), np.uint8), private=True), "not empty"),
        (lambda: pictures.strip(photos(4), private=False, limit=10), "limit must be larger"),
        (lambda: pictures.difference(photos(2), photos(4)), "needs one shape"),
    ],
)
def test_refuses(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_private_page_holds_no_name_and_no_sharp_picture():
    tiles = photos(4)
    sharp, soft = (pictures.strip(tiles, private=private) for private in (False, True))
    gallery = model.Gallery(scores=SCORES, pairs=pairs(30, picture=soft))
    text = render(page(private=True, gallery=gallery, strip=None))
    assert "Private version" in text
    assert "Ada" in render(page(gallery=gallery))
    assert "Ada" not in text
    assert sharp.uri not in text
    for uri in set(re.findall(r"data:image/webp;base64,[A-Za-z0-9+/=]+", text)):
        _, got = decoded(model.Picture(uri=uri))
        shown = np.stack([got[:, i : i + 64] for i in (0, 66, 132, 198)]).astype(float)
        assert np.abs(shown - pictures.blurred(tiles)).mean() < 4 < np.abs(shown - tiles).mean()
    with pytest.raises(ValueError, match="the picture of pair 100 must be blurred"):
        page(private=True, gallery=model.Gallery(scores=SCORES, pairs=pairs(1, picture=sharp)))
    with pytest.raises(ValueError, match="the picture of Samples must be blurred"):
        page(private=True, figures=(model.Figure(heading="Samples", picture=sharp, alt="Faces"),))


def test_no_string_becomes_markup():
    """The tags of a page full of attacks are those of a page with harmless strings in their place."""
    hostile = hostile_page()

    def harmless(value):
        if dataclasses.is_dataclass(value) and not isinstance(value, model.Picture):
            fields = {field.name: harmless(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return type(value)(**fields)
        if isinstance(value, tuple):
            return tuple(harmless(one) for one in value)
        return f"safe {HOSTILE.index(value)}" if value in HOSTILE else value

    parsed, calm = Parsed(render(hostile)), Parsed(render(harmless(hostile)))
    assert [(tag, sorted(attrs)) for tag, attrs in parsed.tags] == [(tag, sorted(attrs)) for tag, attrs in calm.tags]
    entries = json.loads(parsed.texts["data"])["entries"]
    assert [entry["attack"] for entry in entries] == list(SHOWN * 4)
    assert not set("<>&'\u2028\u202e") & set(parsed.texts["data"])


def test_the_policy_names_the_script_and_the_style_and_nothing_is_fetched():
    text = render(page())
    parsed = Parsed(text)
    policy = next(attrs["content"] for tag, attrs in parsed.tags if "http-equiv" in attrs)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for tag in ("script", "style"):
        digest = hashlib.sha256(parsed.texts[tag].encode()).digest()
        assert rules[f"{tag}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    for tag, attrs in parsed.tags:
        assert not any(name.startswith("on") or name == "style" for name in attrs), tag
        assert attrs.get("src", "data:").startswith("data:")
        assert attrs.get("href", "#").startswith("#") or attrs["href"] == one_page.NAME
    assert not re.search(r"url\(|@import|https?:", parsed.texts["style"] + parsed.texts["script"])


def test_headings_are_in_order_and_every_id_is_there_once():
    parsed = Parsed(render(page()))
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    asked = [attrs[name] for _, attrs in parsed.tags for name in ("href", "aria-labelledby") if name in attrs]
    asked.remove(one_page.NAME)
    assert {one.removeprefix("#") for one in asked} <= set(ids)
    assert parsed.tags[0] == ("html", {"lang": "en"})
    assert parsed.texts["title"] == "Leaks: faces: how much comes out"
    assert parsed.texts["hover"] == "side: 20%"


def test_a_page_of_the_least_and_a_name_that_is_no_utf8():
    least = model.Page(title="a\udc80b", status="Not decided", tone="unsure", verdict=("One.", "Two."))
    text = render(least)
    assert "a\\udc80b" in text.encode().decode()  # which lone surrogates, and so names that are no UTF-8, refuse
    assert 'id="gallery"' not in text
    empty = render(page(gallery=model.Gallery(scores=(), pairs=()), tables=(), figures=()))
    assert "0 of 0 pairs" in empty
