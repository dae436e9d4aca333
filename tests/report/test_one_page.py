"""The report on one sheet: one page whatever it says, its sentences as text, no picture of a private audit."""

import dataclasses
import datetime
import io
import re

import pypdf
import pytest
from pages import HOSTILE, drawing, hostile_page, page, strip

from side_jax.report import one_page
from side_jax.report.page import model

DAY, DIGEST = datetime.date(2026, 3, 1), "9f86d081" * 8
VERSIONS = {"side_jax": "0.1.0", "jax": "0.10.2"}


def made(of):
    """The sheet's only page, its text without breaks of lines, and its images."""
    content = one_page.pdf(of, DAY, DIGEST, VERSIONS)
    (only,) = pypdf.PdfReader(io.BytesIO(content)).pages
    assert [float(side) for side in only.mediabox[2:]] == pytest.approx([595.28, 841.89], abs=0.1)  # A4
    return content, re.sub(r"\s+", " ", only.extract_text()), list(only.images)


def test_says_what_the_page_says_first():
    one = page()
    _, text, images = made(one)
    said = [one.title, one.status, *one.verdict, one.chart.heading, one.strip.heading, *one.means, *one.sure]
    said += [f"{label}: {value}" for label, value in one.facts]
    said += ["What this means", "How sure this is", DIGEST, "side_jax 0.1.0, jax 0.10.2"]
    said += ["The page has the rest (index.html)."]
    assert [sentence for sentence in said if sentence not in text] == []
    assert [text.index(sentence) for sentence in said[:5]] == sorted(text.index(sentence) for sentence in said[:5])
    assert len(images) == len({one.picture.uri for one in one.strip.triples})
    assert "side: 20%" not in text  # what the first figure shows to a pointer


def test_the_same_day_gives_the_same_bytes():
    assert made(page())[0] == made(page())[0]
    reader = pypdf.PdfReader(io.BytesIO(made(page())[0]))
    assert reader.metadata.creation_date == datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)
    assert reader.metadata.title == "Leaks: faces: how much comes out"


def test_a_private_sheet_has_no_pictures():
    private = page(private=True)
    _, text, images = made(private)
    assert images == []
    assert private.strip.heading not in text
    assert not any(triple.title in text for triple in private.strip.triples)
    assert "images are neither shown nor named" in text
    assert private.verdict[0] in text


@pytest.mark.parametrize(
    "long",
    [
        {"means": ("A long sentence of many words. " * 12,) * 4, "sure": ("And another one. " * 20,) * 9},
        {"title": "a_name_without_a_space" * 200, "facts": (("Model", "/a/path" * 500),) * 30},
        {"verdict": ("Very many words. " * 500, "W" * 9000), "status": "Leaks " * 50},
        {"chart": model.Figure(heading="Long " * 300, picture=drawing("a"), alt="a", note="Longer " * 600)},
        {"strip": dataclasses.replace(strip(), note="So " * 2000, heading="What " * 900)},
    ],
)
def test_what_is_too_long_is_cut_and_said_to_be(long):
    _, text, _ = made(page(**long))
    assert "Shortened to one page: the page has the rest (index.html)." in text
    assert DIGEST in text
    assert made(page())[1].count("Shortened") == 0


def test_all_too_long_at_once_is_one_page():
    text = "Words and words. " * 300
    every = dict.fromkeys(("means", "sure"), (text,) * 12) | {"title": text, "status": text, "verdict": (text, text)}
    every["facts"] = ((text, text),) * 12
    every["strip"] = strip(title=text, heading=text, below=text)
    every["chart"] = model.Figure(heading=text, picture=drawing("a"), alt=text, note=text)
    sheet, _, _ = made(page(**every))
    lowest = []
    only = pypdf.PdfReader(io.BytesIO(sheet)).pages[0]
    only.extract_text(visitor_text=lambda said, _, matrix, *__: lowest.append(matrix[5]) if said.strip() else None)
    assert min(lowest) > 30  # points above the lower edge: nothing runs over it


def test_any_name_prints_and_none_hides_or_reverses_text():
    _, text, _ = made(page(facts=(("Made", "by Łucja Ωmega Żółć, Дарья, 漢"),)))
    assert "by Łucja Ωmega Żółć, Дарья, \\u6f22" in text
    _, text, _ = made(hostile_page())
    assert "\u202e" not in text
    assert HOSTILE[0] in text
