"""The page's gallery: the closest pairs of every run."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from side_jax.attacks.table import Run
from side_jax.data.sides import Side
from side_jax.measure.records import Row
from side_jax.report import contact_sheet, matches, terms
from side_jax.report.matches import Columns
from side_jax.report.page import model, pictures

Fetch = Callable[[Run, np.ndarray], np.ndarray]  # (run, global indices [k]) -> images uint8 [k, h, w, c]
GROUPS = 24  # on a sheet
ORDER = "A card a member, with its closest image; sort by any score. A run shows its closest pairs, matches or not."


def gallery(
    rows: list[Row],
    columns: Columns,
    members: Side,
    heldout: Side,
    fetch: Fetch,
    directory: Path,
    *,
    pairs: int,
    private: bool,
) -> model.Gallery:
    """The closest pairs of each run, at most `pairs` in all.

    Args:
      rows: of results.json, the headline's.
      columns: matches.csv.
      members: what the model was trained on.
      heldout: what it never saw.
      fetch: the generated images.
      directory: that holds members.csv.
      pairs: the largest number of pairs.
      private: whether to blur pictures and leave names out.
    """
    headline = rows[0].metric
    metrics = [name.removesuffix("_member") for name in columns if name.endswith("_member")]
    kinds, evidence = _evidence(directory / "members.csv")
    scores = [model.Score(label=f"{name} to member", closer="smaller", help=terms.measure(name)) for name in metrics]
    scores.append(
        model.Score(label=f"{headline} to held-out", closer="smaller", help="the same for the nearest unseen image")
    )
    scores += [model.Score(label=f"member's {kind}", closer="smaller", help=terms.meaning(kind)) for kind in kinds]
    unknown = [None] * len(kinds)
    shown: list[model.Pair] = []
    for row in rows:
        closest = _closest(matches.select_run(columns, row), f"{headline}_member", pairs // len(rows))
        distances = [closest[f"{name}_member"] for name in metrics] + [closest[f"{headline}_heldout"]]
        drawn = _pictures(row, closest, members, heldout, fetch, private=private)
        for i, (picture, name) in enumerate(drawn):
            member = int(closest[f"{headline}_member_id"][i])
            label = int(closest["label"][i])
            shown.append(
                model.Pair(
                    index=int(closest["index"][i]),
                    attack=matches.title_without_scale(row),
                    scale=None if row.key.start else row.guidance_scale or None,
                    cluster=label if label >= 0 else None,
                    member=member,
                    name=name,
                    heldout=int(closest[f"{headline}_heldout_id"][i]),
                    values=(*(float(column[i]) for column in distances), *evidence.get(member, unknown)),
                    matched=bool(closest[f"{headline}_member_match"][i]),
                    picture=picture,
                    has_start=row.key.start_run is not None,
                )
            )
    shown.sort(key=lambda pair: pair.values[metrics.index(headline)])
    return model.Gallery(scores=tuple(scores), pairs=tuple(shown), note=ORDER)


def _closest(images: Columns, name: str, count: int) -> Columns:
    """The `count` images with the smallest values of a column, in order."""
    order = np.argsort(images[name], kind="stable")[:count]
    return {key: column[order] for key, column in images.items()}


def _pictures(
    row: Row, closest: Columns, members: Side, heldout: Side, fetch: Fetch, *, private: bool
) -> Iterator[tuple[model.Picture, str]]:
    """Yields (start, if any | generated | nearest member | nearest held-out | difference, the member's name)."""
    index = closest["index"].astype(np.int64)
    generated = zip(*(fetch(run, index) for run in _sources(row)), strict=True) if len(index) else ()
    near = [places(side, closest[f"{row.metric}_{name}_id"]) for side, name in _sides(members, heldout)]
    for images, member, other in zip(generated, *near, strict=True):
        tiles = np.stack([*images, members.images[member], heldout.images[other]])
        tiles = np.concatenate([tiles, pictures.difference(tiles[-3:-2], tiles[-2:-1])])
        tiles = contact_sheet.visible(tiles)
        yield pictures.strip(tiles, private=private), "" if private else members.names[member]


def _sources(row: Row) -> list[Run]:
    """The runs whose images are shown: the one that mode seeking started from, if any, and this one."""
    return [run for run in (row.key.start_run, row.key) if run]


def _sides(members: Side, heldout: Side) -> tuple[tuple[Side, str], ...]:
    """Both sides, with their names in the columns."""
    return (members, "member"), (heldout, "heldout")


def places(side: Side, ids: np.ndarray) -> list[int]:
    """The positions of the images with these ids."""
    places = dict(zip(side.ids.tolist(), range(len(side)), strict=True))
    return [places[int(i)] for i in ids]


def _evidence(path: Path) -> tuple[list[str], dict[int, list[float]]]:
    """The names of the membership scores, and each member's scores."""
    header, *rows = matches.table(path)
    fixed = ("side", "id", "name", "sha256")
    kinds = [name for name in header if name not in fixed and not name.startswith("extracted_")]
    cells = (dict(zip(header, row, strict=True)) for row in rows)
    return kinds, {int(c["id"]): [float(c[kind]) for kind in kinds] for c in cells if c["side"] == "members"}


def sheet(row: Row, columns: Columns, members: Side, heldout: Side, fetch: Fetch) -> bytes:
    """A PNG: start, if any | generated | nearest member | nearest held-out, the closest match of each extracted member.

    Args:
      row: the run, by the headline metric.
      columns: matches.csv.
      members: what the model was trained on.
      heldout: what it never saw.
      fetch: the generated images.
    """
    images, metric = matches.select_run(columns, row), row.metric
    order = np.argsort(images[f"{metric}_member"], kind="stable")
    order = order[images[f"{metric}_member_match"][order] > 0]
    # The closest of each member, as the order is stable.
    _, first = np.unique(images[f"{metric}_member_id"][order], return_index=True)
    chosen = order[np.sort(first)][:GROUPS]
    shape, sources = members.images.shape[1:], _sources(row)
    width = len(sources) + 2
    groups = np.full((1, width, *shape), 255, np.uint8)
    if len(chosen):
        index = images["index"][chosen].astype(np.int64)
        generated = [fetch(run, index) for run in sources]
        near = [
            side.images[places(side, images[f"{metric}_{name}_id"][chosen])] for side, name in _sides(members, heldout)
        ]
        groups = np.stack([*generated, *near], axis=1)
    strips = np.stack([np.asarray(contact_sheet.grid(group, columns=width)) for group in groups])
    strips = strips.reshape((*strips.shape[:3], -1))
    return contact_sheet.png(contact_sheet.grid(strips, 4, side=1, gap=10))
