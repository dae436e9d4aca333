"""Turns matplotlib's figures into SVGs that may stand in a page: no style, no foreign id, and texts to hover."""

import io
import itertools
import json
import re
from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt

_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_TIPS = "tips:"
_DRAWN = ("path", "use")
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
# Of any element, what is kept beside what its style says.
_KEPT = ("d", "transform", "x", "y", "width", "height", "viewBox", "clip-path")


def tip(artist: Any, *texts: str) -> Any:
    """Has a browser show a text where the pointer rests on an artist, or a text for each of its points; returns it."""
    artist.set_gid(_TIPS + json.dumps(texts))
    return artist


def text(figure: Any, name: str) -> str:
    """The SVG of a figure, which is closed; the same figure gives the same text.

    Letters are drawn as paths, so that they look the same everywhere. What it says by `style` it says by attributes
    instead, which a page's content security policy allows, and its ids begin with `name`.

    Raises:
      ValueError: if an artist's texts are not as many as its points.
    """
    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    plt.close(figure)
    root = ElementTree.fromstring(buffer.getvalue())
    ids = itertools.count(1)
    used = {one[5:-1] for e in root.iter() if (one := e.get("clip-path", "")).startswith("url(#")}
    used |= {link[1:] for e in root.iter() if (link := e.get(_LINK))}
    names = {old: f"{name}_{next(ids)}" for e in root.iter() if (old := e.get("id")) in used}
    made = _element(root, names)
    made.set("stroke-linejoin", "round")  # what matplotlib's <style> says of all elements
    made.set("xmlns", _SVG[1:-1])
    clips = [
        (place, one) for place in made.iter() for one in place if one.tag == "defs" and one.find("clipPath") is not None
    ]
    for place, one in clips:  # before what they clip, as some readers want it
        place.remove(one)
        made.insert(0, one)
    return ElementTree.tostring(made, encoding="unicode")


def _element(old: ElementTree.Element, names: dict[str, str]) -> ElementTree.Element:
    """A copy of what is drawn, without namespaces, with its ids renamed."""
    said = dict(part.split(":", 1) for part in old.get("style", "").split(";") if ":" in part)
    made = ElementTree.Element(old.tag.removeprefix(_SVG), {k.strip(): _short(v.strip()) for k, v in said.items()})
    for key in _KEPT:
        if key in old.attrib:
            made.set(key, _short(old.attrib[key]))
    if made.get("clip-path"):
        made.set("clip-path", f"url(#{names[made.attrib['clip-path'][5:-1]]})")
    if _LINK in old.attrib:
        made.set("href", f"#{names[old.attrib[_LINK][1:]]}")
    if old.get("id") in names:
        made.set("id", names[old.attrib["id"]])
    for child in old:
        if child.tag.removeprefix(_SVG) not in ("metadata", "style"):
            inside = _element(child, names)
            if inside.tag not in ("g", "defs") or len(inside):
                made.append(inside)
    if old.get("id", "").startswith(_TIPS):
        _say(made, json.loads(old.attrib["id"].removeprefix(_TIPS)))
    return made


def _say(group: ElementTree.Element, texts: list[str]) -> None:
    """Puts a text into the group, or one into each of its marks, or else lines."""
    places = [group]
    if len(texts) > 1:
        hidden = {id(e) for defs in group.iter("defs") for e in defs.iter()}
        shown = [[e for e in group.iter(tag) if id(e) not in hidden] for tag in reversed(_DRAWN)]
        places = next((found for found in shown if len(found) == len(texts)), [])
    if not places:
        raise ValueError(f"there must be a text for each point, got {len(texts)}")
    for place, one in zip(places, texts, strict=True):
        title = ElementTree.Element("title")
        title.text = one
        place.insert(0, title)


def _short(value: str) -> str:
    """Numbers with two decimals, small ones with four digits: less than a hundredth of a point."""
    return _NUMBER.sub(lambda found: _rounded(float(found[0])), value).replace("\n", " ").strip()


def _rounded(number: float) -> str:
    return f"{round(number, 2):g}" if 1 <= abs(number) < 10_000 else f"{number:.4g}"
