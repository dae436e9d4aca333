"""Renders a page model as one HTML file, which needs no other file and no network."""

import base64
import hashlib
import re
from importlib import resources
from typing import Any

import jinja2

from side_jax.report.page.model import START, TRIPLE, Gallery, Page, Pair

# Control characters, marks that reverse text (as in "photo_gpj.exe"), and undecodable bytes of file names.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
PAIRS_A_PAGE = 24  # also those that stand in the page itself, for browsers without scripts


def render(page: Page) -> str:
    """The page as HTML.

    Every string is escaped, and characters that hide or reverse text are shown by their codes. A content security
    policy lets the browser run the page's own script, use its own style and show data: pictures, nothing else. Write it
    as UTF-8. A thousand pairs with pictures of pictures.PICTURE_BYTES make less than 10 MB.
    """
    anchor = resources.files("side_jax.report.page")
    style, script = (anchor.joinpath(f"page.{name}").read_text("utf-8") for name in ("css", "js"))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("side_jax", "report/page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: seen(value) if isinstance(value, str) and not hasattr(value, "__html__") else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    entries = _entries(page)
    return environment.get_template("page.html.j2").render(
        page=page,
        entries=entries,
        cards=_firsts(entries)[:PAIRS_A_PAGE],
        clusters=_clusters(page.gallery),
        a_page=PAIRS_A_PAGE,
        triple_tiles=TRIPLE,
        # The policy names the style and the script by their hashes, so both must stand in the page byte for byte.
        style=style,
        script=script,
        hashes={"style": _hash(style), "script": _hash(script)},
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def seen(text: str) -> str:
    """A text whose characters that hide or reverse text are shown by their codes."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _clusters(gallery: Gallery | None) -> list[int]:
    """The clusters that the gallery offers as a filter, ascending."""
    return sorted({pair.cluster for pair in gallery.pairs} - {None}) if gallery else []


def _entries(page: Page) -> list[dict[str, Any]]:
    """The data of each pair that the page holds."""
    return [_entry(pair, page) for pair in page.gallery.pairs] if page.gallery else []


def _firsts(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first entry of each member: a card a member, to which the script adds the others."""
    firsts: dict[str, dict[str, Any]] = {}
    for entry in entries:
        firsts.setdefault(entry["member"], entry)
    return list(firsts.values())


def _entry(pair: Pair, page: Page) -> dict[str, Any]:
    attack = seen(pair.attack)
    name = "" if page.private else seen(pair.name)  # removed here, so that it can't reach a private page
    facts = [
        ("Member", str(pair.member)),
        ("Held-out", "none" if pair.heldout is None else str(pair.heldout)),
        ("Attack", attack if pair.scale is None else f"{attack}, scale {pair.scale:g}"),
        ("Cluster", "none" if pair.cluster is None else str(pair.cluster)),
        *([("Member's name", name)] if name else []),
    ]
    scores = [
        (seen(score.label), "none" if value is None else f"{value:.{score.decimals}f}")
        for score, value in zip(page.gallery.scores, pair.values, strict=True)
    ]
    tiles = [seen(tile.label) for tile in (*([START] if pair.has_start else []), *page.gallery.tiles)]
    return {
        "title": f"Image {pair.index}",
        "alt": f"Image {pair.index}: {', '.join(tiles).lower()}",
        "tiles": tiles,
        "member": str(pair.member),
        "line": "; ".join([f"Image {pair.index}", facts[2][1], *(f"{label} {text}" for label, text in scores[:1])]),
        "matched": bool(pair.matched),
        "attack": attack,
        "cluster": None if pair.cluster is None else int(pair.cluster),
        "facts": facts,
        "scores": scores,
        "values": [None if value is None else float(value) for value in pair.values],
        "ids": [str(pair.index), str(pair.member), *([] if pair.heldout is None else [str(pair.heldout)]), name],
        "picture": pair.picture.uri,
    }
