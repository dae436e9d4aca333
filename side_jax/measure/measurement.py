"""Measures sets of generated images, from whatever source: every figure of results.json, and the tables beside it.

matches.csv has a row for each generated image, members.csv one for each member and held-out image.
"""

import csv
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from side_jax.attacks.table import PLAIN
from side_jax.data.sides import Side
from side_jax.measure import positive_control, scoring
from side_jax.measure.scoring import Embed, Found, Scorer
from side_jax.memorization.distribution import summary
from side_jax.settings import Evaluate
from side_jax.workdir import files

FEATURES = 2**27  # numbers that the features of one run may hold; of more images, the first are used


Name = tuple[str, float]  # attack and guidance scale

# Of each run, its images in parts: images uint8 [n, h, w, c], index int64 [n], label int32 [n].
Runs = Iterable[tuple[Name, Iterable[dict[str, np.ndarray]]]]


def measure(
    directory: Path,
    runs: Runs,
    members: Side,
    heldout: Side,
    scorer: Scorer,
    settings: Evaluate,
    *,
    embed: Embed | None,
    evidence: dict[str, dict[str, np.ndarray]],
    seed: int,
) -> dict[str, Any]:
    """Scores every run; writes matches.csv and members.csv.

    Args:
      directory: of the tables.
      runs: plain sampling before those that are tested against it.
      members: what the model was trained on.
      heldout: what it never saw; of more than members, the first are the control, and members.csv has all.
      scorer: of the same members and held-out images.
      settings: what to compute.
      embed: features for AuthPct, C_T, the FLD gap and Frechet distances; None: these are not computed.
      evidence: {"members" or "heldout": {name: float [m]}}, for members.csv.
      seed: of what is drawn at random.

    Returns:
      Parts of results.json: metrics, rows, rarefaction, thresholds, controls, distribution.
    """
    rows, seen, laws, extracted = [], [], [], {}
    sides = [embed(side.images[: len(members)]) for side in (members, heldout)] if embed else []
    plain: Found | None = None
    with files.atomic(directory / "matches.csv", "w") as file:
        table = csv.writer(file)
        table.writerow(_header(scorer.metrics))
        for name, parts in runs:
            found, features = [], []
            for made in parts:
                embedded = None
                if embed and sum(map(np.size, features)) < FEATURES:
                    embedded = embed(made["images"])
                    features.append(embedded)
                found.append(scorer.match(made["images"], embedded))
                _write_matches(table, name, made, found[-1], members, heldout, scorer)
            whole = scoring.join(found)
            run = {"attack": name[0], "guidance_scale": name[1]}
            rows += [run | row for row in scorer.rows(whole, plain)]
            seen.append(run | scorer.seen(whole))
            extracted[name] = scorer.headline(whole).extracted
            if embed:
                laws.append(run | summary.summary(np.concatenate(features), *sides, seed=seed))
            plain = whole if name[0] == PLAIN.name else plain
    _write_members(directory / "members.csv", members, heldout, evidence, extracted)
    tested = {}
    if settings.controls:
        copied, fresh = (side.images[: settings.control_images] for side in (members, heldout))
        tested = {"controls": positive_control.sensitivity(scorer, copied, fresh, settings.confidence)}
    thresholds = {name: dataclasses.asdict(found) for name, found in scorer.thresholds.items()}
    found = {"metrics": scorer.definitions, "rows": rows, "rarefaction": seen, "distribution": laws}
    return found | {"thresholds": thresholds, "controls": []} | tested


def _header(metrics: list[str]) -> list[str]:
    columns = ["attack", "guidance_scale", "index", "label"]
    for name in metrics:
        columns += [f"{name}_member", f"{name}_member_id", f"{name}_member_match"]
        columns += [f"{name}_heldout", f"{name}_heldout_id", f"{name}_heldout_match"]
    return columns


def _write_matches(
    table: Any, name: Name, made: dict[str, np.ndarray], found: Found, members: Side, heldout: Side, scorer: Scorer
) -> None:
    matched = {
        side: [m.score(band).matched for m, band in zip(found[side], scorer.bands, strict=True)] for side in found
    }
    for i in range(len(made["index"])):
        row = [*name, made["index"][i], made["label"][i]]
        for j in range(len(scorer.metrics)):
            for side, images in (("members", members), ("heldout", heldout)):
                one = found[side][j]
                row += [f"{one.value[i]:.6g}", images.ids[one.nearest[i]], int(matched[side][j][i])]
        table.writerow(row)


def _write_members(
    path: Path,
    members: Side,
    heldout: Side,
    evidence: dict[str, dict[str, np.ndarray]],
    extracted: dict[Name, np.ndarray],
) -> None:
    """A row for each image: its membership evidence and, of members, how many images of each run extract it."""
    kinds = list(evidence.get("members", {}))
    with files.atomic(path, "w") as file:
        table = csv.writer(file)
        runs = [f"extracted_{attack}_{scale:g}" for attack, scale in extracted]
        table.writerow(["side", "id", "name", "sha256", *kinds, *runs])
        for title, side in (("members", members), ("heldout", heldout)):
            for i in np.argsort(side.ids, kind="stable"):
                scores = [f"{evidence[title][kind][i]:.6g}" for kind in kinds]
                counts = [int(count[i]) for count in extracted.values()] if title == "members" else [""] * len(runs)
                table.writerow([title, side.ids[i], side.names[i], side.digests[i], *scores, *counts])
