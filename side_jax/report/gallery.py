"""The page's gallery: the closest pairs of every run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from side_jax.data.sides import Side
from side_jax.report import contact_sheet, matches
from side_jax.report.matches import Columns, Row
from side_jax.report.page import model, pictures

# (attack, guidance scale, global indices [k]) -> images uint8 [k, h, w, c].
Fetch = Callable[[str, float, np.ndarray], np.ndarray]
TRIPLES = 24  # on a sheet
ORDER = "Closest first; sort by any score. A run shows its closest pairs, whether they match or not."


def gallery(
    rows: list[Row],
    found: Columns,
    members: Side,
    heldout: Side,
    fetch: Fetch,
    directory: Path,
    *,
    pairs: int,
    private: bool,
) -> model.Gallery:
    """Up to `pairs` pairs in all, the closest of each run.

    Args:
      rows: of results.json, the headline's.
      found: matches.csv.
      members: what the model was trained on.
      heldout: what it never saw.
      fetch: the generated images.
      directory: that holds members.csv.
      pairs: at most so many.
      private: whether to blur, and to leave names out.
    """
    headline = rows[0]["metric"]
    metrics = [name.removesuffix("_member") for name in found if name.endswith("_member")]
    kinds, evidence = _evidence(directory / "members.csv")
    scores = [model.Score(label=f"{name} to member", closer="smaller") for name in metrics]
    scores.append(model.Score(label=f"{headline} to held-out", closer="smaller"))
    scores += [model.Score(label=f"member's {kind}", closer="smaller", help="membership evidence") for kind in kinds]
    places = [dict(zip(side.ids.tolist(), range(len(side)), strict=True)) for side in (members, heldout)]
    shown = []
    for row in rows:
        own = matches.of(found, row)
        order = np.argsort(own[f"{headline}_member"], kind="stable")[: pairs // len(rows)]
        index = own["index"][order].astype(np.int64)
        made = fetch(row["attack"], row["guidance_scale"], index) if len(index) else []
        near = [own[f"{headline}_{side}_id"][order].astype(np.int64) for side in ("member", "heldout")]
        for j, i in enumerate(order):
            at = [place[int(ids[j])] for place, ids in zip(places, near, strict=True)]
            tiles = np.stack([made[j], members.images[at[0]], heldout.images[at[1]]])
            apart = pictures.difference(tiles[:1], tiles[1:2])
            values = [float(own[f"{name}_member"][i]) for name in metrics] + [float(own[f"{headline}_heldout"][i])]
            shown.append(
                model.Pair(
                    index=int(index[j]),
                    attack=row["attack"],
                    scale=row["guidance_scale"] or None,
                    cluster=int(own["label"][i]) if own["label"][i] >= 0 else None,
                    member=int(near[0][j]),
                    name="" if private else members.names[at[0]],
                    heldout=int(near[1][j]),
                    values=(*values, *evidence.get(int(near[0][j]), [None] * len(kinds))),
                    matched=bool(own[f"{headline}_member_match"][i]),
                    picture=pictures.strip(np.concatenate([tiles, apart]), private=private),
                )
            )
    shown.sort(key=lambda pair: pair.values[metrics.index(headline)])
    return model.Gallery(scores=tuple(scores), pairs=tuple(shown), note=ORDER)


def _evidence(path: Path) -> tuple[list[str], dict[int, list[float]]]:
    """The kinds of membership evidence, and each member's."""
    header, *rows = matches.table(path)
    fixed = ("side", "id", "name", "sha256")
    kinds = [name for name in header if name not in fixed and not name.startswith("extracted_")]
    cells = (dict(zip(header, row, strict=True)) for row in rows)
    return kinds, {int(c["id"]): [float(c[kind]) for kind in kinds] for c in cells if c["side"] == "members"}


def sheet(row: Row, found: Columns, members: Side, heldout: Side, fetch: Fetch) -> bytes:
    """A PNG for people: generated | nearest member | nearest held-out, the closest match of each extracted member.

    Args:
      row: of results.json, the run.
      found: matches.csv.
      members: what the model was trained on.
      heldout: what it never saw.
      fetch: the generated images.
    """
    own, metric = matches.of(found, row), row["metric"]
    order = np.argsort(own[f"{metric}_member"], kind="stable")
    order = order[own[f"{metric}_member_match"][order] > 0]
    _, first = np.unique(
        own[f"{metric}_member_id"][order], return_index=True
    )  # the closest of each, as order is stable
    chosen = order[np.sort(first)][:TRIPLES]
    shape = members.images.shape[1:]
    triples = np.full((1, 3, *shape), 255, np.uint8)
    if len(chosen):
        made = fetch(row["attack"], row["guidance_scale"], own["index"][chosen].astype(np.int64))
        near = [
            side.images[[np.flatnonzero(side.ids == i)[0] for i in own[f"{metric}_{name}_id"][chosen]]]
            for name, side in (("member", members), ("heldout", heldout))
        ]
        triples = np.stack([made, *near], axis=1)
    strips = np.stack([np.asarray(contact_sheet.grid(triple, columns=3)) for triple in triples])
    strips = strips.reshape((*strips.shape[:3], shape[-1]))
    return contact_sheet.png(contact_sheet.grid(strips, 4, side=1, gap=10))
