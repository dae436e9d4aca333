"""Made-up pages of audits, for tests."""

import base64
import dataclasses
import io

import numpy as np
from PIL import Image

from side_jax.report.page import model, pictures

HOSTILE = (
    "<img src=x onerror=window.hacked=1>",
    "</script><script>window.hacked=1</script>",
    "<!--<script>",
    "\"' onmouseover='window.hacked=1",
    "a\u202egpj.exe\u2028line",
    "{{ 7 * 7 }}&lt;b&gt;",
    "javascript:window.hacked=1",
)
SHOWN = tuple(text.replace("\u202e", "\\u202e").replace("\u2028", "\\u2028") for text in HOSTILE)


def dot(colour=90):
    return pictures.strip(np.full((4, 8, 8, 3), colour, np.uint8), private=True)


def pairs(n=60, **changes):
    rng = np.random.default_rng(1)
    scores = np.round(rng.uniform(0, 1, (n, 3)), 3)
    attacks = ("unconditional", "side", "conditional")
    made = [
        model.Pair(
            index=100 + i,
            attack=attacks[i % 3],
            scale=None if i % 3 == 0 else 10.0,
            cluster=None if i % 3 == 0 else i % 11,
            member=5000 + 7 * i,
            name=f"Ada_{i}.jpg",
            heldout=9000 + i,
            values=(scores[i, 0], scores[i, 1], None if i % 4 == 0 else scores[i, 2]),
            matched=i % 5 < 2,
            picture=dot(i % 256),
        )
        for i in range(n)
    ]
    return tuple(dataclasses.replace(pair, **changes) for pair in made)


SCORES = (
    model.Score(label="rmse", closer="smaller", help="of pixels"),
    model.Score(label="SSCD", closer="larger"),
    model.Score(label="membership", closer="larger", decimals=1),
)
RATES = {"side": 0.2, "unconditional": 0.03, "side_random": None, "conditional": 0.1}


def table(caption="Attacks", width=9):
    columns = [model.Column(label="Attack"), model.Column(label="AMS", kind="rate", help="share that matches")]
    columns += [model.Column(label=f"Column {i}", kind="number") for i in range(width - 2)]
    rows = [
        (
            model.Cell(text=name),
            model.Cell(
                text="none" if rate is None else f"{100 * rate:.2f}%", sort=rate, emphasis="alarm" if rate else ""
            ),
            *(model.Cell(text=f"{i + 10}.00% to {i + 20}.00%", sort=i) for i in range(width - 2)),
        )
        for name, rate in RATES.items()
    ]
    return model.Table(caption=caption, columns=tuple(columns), rows=tuple(rows), note="Read all of it.")


def chart():
    buffer = io.BytesIO()
    Image.new("RGB", (1000, 300), "white").save(buffer, format="PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return model.Picture(uri=uri, reveals=False)


def drawing(name):
    """An SVG with a mark to hover."""
    return model.Drawing(
        svg='<svg xmlns="http://www.w3.org/2000/svg" width="648pt" height="216pt" viewBox="0 0 648 216">'
        f'<path d="M 9 9 L 90 90" id="{name}-1" stroke="#000000"><title>side: 20%</title></path></svg>'
    )


def strip(title="Training image 7", note="near", heading="What came out", below="Judge by eye."):
    triples = tuple(model.Triple(title=title, picture=dot(i), note=note) for i in range(8))
    return model.Strip(heading=heading, triples=triples, note=below)


def page(**changes):
    base = {
        "title": "faces: how much comes out",
        "status": "Leaks",
        "tone": "alarm",
        "verdict": ("Of 60 images 24 are copies.", "None is a copy of what it never saw."),
        "facts": (("Model", "trained here"), ("Made", "today")),
        "paper": "summary.pdf",
        "strip": strip(),
        "chart": model.Figure(heading="A third came out", picture=drawing("first"), alt="Bars", note="Of each."),
        "means": ("Treat it as the data.", "Train it anew."),
        "sure": ("One in twenty.", "Mirrored copies are missed."),
        "findings": ("One.", "Two."),
        "tables": (table(), table("The same again", 3)),
        "figures": (model.Figure(heading="Yield", picture=chart(), alt="A line that rises", note="Dashed: control."),),
        "gallery": model.Gallery(scores=SCORES, pairs=pairs(), note="All of them."),
        "notes": ("Only these were asked.",),
        "lowers": table("What helped elsewhere", 3),
        "provenance": (("Checkpoint", "9f86d081" * 8), ("Command", "side-jax --config=a.py")),
        "config": '{"a": 1}\n' * 5,
    }
    return model.Page(**base | changes)


def hostile_page():
    """Every string that a page takes is an attack on it."""
    texts = iter(HOSTILE * 20)
    cells = tuple(tuple(model.Cell(text=next(texts)) for _ in range(2)) for _ in range(3))
    columns = (model.Column(label=next(texts), help=next(texts)), model.Column(label=next(texts), kind="rate"))
    bad = [dataclasses.replace(pair, name=text, attack=text) for pair, text in zip(pairs(28), HOSTILE * 4, strict=True)]
    scores = tuple(model.Score(label=next(texts), closer="smaller", help=next(texts)) for _ in range(3))
    tiles = tuple(model.Tile(label=next(texts), help=next(texts)) for _ in range(4))
    return page(
        title=next(texts),
        status=next(texts),
        verdict=(next(texts), next(texts)),
        facts=tuple((text, text) for text in HOSTILE),
        strip=strip(next(texts), next(texts), next(texts), next(texts)),
        chart=model.Figure(heading=next(texts), picture=chart(), alt=next(texts), note=next(texts)),
        means=HOSTILE,
        sure=HOSTILE,
        findings=HOSTILE,
        tables=(model.Table(caption=next(texts), columns=columns, rows=cells, note=next(texts)),),
        figures=(model.Figure(heading=next(texts), picture=chart(), alt=next(texts), note=next(texts)),),
        gallery=model.Gallery(scores=scores, pairs=tuple(bad), tiles=tiles, note=next(texts)),
        notes=HOSTILE,
        lowers=model.Table(caption=next(texts), columns=columns, rows=cells, note=next(texts)),
        provenance=tuple((text, text) for text in HOSTILE),
        config="\n".join(HOSTILE),
    )
