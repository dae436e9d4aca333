"""The pairs to look at first: the closest matches of different training images, each with its nearest unseen image."""

import itertools

import numpy as np

from side_jax.attacks.table import get_attack
from side_jax.data.sides import Side
from side_jax.measure.records import Row
from side_jax.report import contact_sheet, matches
from side_jax.report.gallery import Fetch, places
from side_jax.report.matches import Columns
from side_jax.report.page import model, pictures
from side_jax.report.verdict import attack_rows

MOST = 8


def strip(
    rows: list[Row], columns: Columns, members: Side, heldout: Side, fetch: Fetch, *, private: bool
) -> model.Strip | None:
    """The closest pairs of all attacks, of different members, at most MOST; None where there is nothing to compare.

    Matches that match no held-out image come first, by their dissimilarity to the member. Without a match, the closest
    pairs are shown as such.

    Args:
      rows: of results.json, the headline's.
      columns: matches.csv.
      members: what the model was trained on.
      heldout: what it never saw.
      fetch: the generated images.
      private: whether to blur pictures.
    """
    metric = rows[0].metric
    found: list[tuple[bool, float, Row, Columns, int]] = []  # (whether it is no match, dissimilarity, run, place in it)
    for row in attack_rows(rows):
        images = matches.select_run(columns, row)
        sure = (images[f"{metric}_member_match"] > 0) & ~(images[f"{metric}_heldout_match"] > 0)
        found += zip(
            ~sure, images[f"{metric}_member"], itertools.repeat(row), itertools.repeat(images), itertools.count()
        )
    found.sort(key=lambda one: one[:2])
    chosen: dict[int, tuple[bool, Row, Columns]] = {}
    for missed, _, row, images, i in found:
        if missed and any(not other for other, *_ in chosen.values()):
            break  # matches alone, if there are any
        member = int(images[f"{metric}_member_id"][i])
        if member not in chosen:
            chosen[member] = bool(missed), row, {name: column[[i]] for name, column in images.items()}
        if len(chosen) == MOST:
            break
    if not chosen:
        return None
    missed = all(other for other, *_ in chosen.values())
    heading = "The closest pairs: none is a match" if missed else "What came out"
    note = (
        f"Of all attacks, the generated images that are closest to different training images (by {metric}). Judge by "
        "eye whether the first two are one image; the third shows what chance alone resembles."
    )
    triples = tuple(_triple(row, image, metric, members, heldout, fetch, private) for _, row, image in chosen.values())
    return model.Strip(heading=heading, triples=triples, note=note)


def _triple(
    row: Row, image: Columns, metric: str, members: Side, heldout: Side, fetch: Fetch, private: bool
) -> model.Triple:
    index = image["index"].astype(np.int64)
    near = [
        side.images[places(side, image[f"{metric}_{name}_id"])]
        for side, name in ((members, "member"), (heldout, "heldout"))
    ]
    tiles = contact_sheet.visible(np.concatenate([fetch(row.key, index), *near]))
    return model.Triple(
        title=f"Training image {int(image[f'{metric}_member_id'][0])}",
        picture=pictures.strip(tiles, private=private),
        note=f"by {get_attack(row.attack).phrase}; dissimilarity {image[f'{metric}_member'][0]:.2f}, to the unseen "
        f"image {image[f'{metric}_heldout'][0]:.2f} (a match is below {row.band[1]:.3g})",
    )
