"""Folders of made-up audits, whose tables agree with their results.json: for tests of what reads several."""

import csv

from made_results import dataset, matched, results
from msgspec import structs

from side_jax.measure import records
from side_jax.measure.measurement import extracted_column


def sha(name):
    """Of a made-up image."""
    return f"{name}".rjust(64, "0")


def audit(folder, members, heldout, extracted, matched_heldout=(), *, n=100, runs=(("samples", {}),), **changes):
    """Writes results.json, members.csv and matches.csv; returns the folder.

    Args:
      folder: to write to.
      members: names of images.
      heldout: names of images.
      extracted: of each run, the members that one image each matches; a list of names stands for that of one run.
      matched_heldout: likewise of held-out images.
      n: images of each run.
      runs: of each run, its attack and the other fields that identify it.
      **changes: of the results; `data` are those of the dataset, `rows` those of every row.
    """
    per_run = [extracted] if len(runs) == 1 else extracted
    held = [matched_heldout] if len(runs) == 1 else matched_heldout or [()] * len(runs)
    rows, of_rows = [], changes.pop("rows", {})
    for (attack, fields), found, false in zip(runs, per_run, held, strict=True):
        row = matched(attack, len(found), held=len(false), n=n, **{"scale": 0.0} | fields)
        rows.append(structs.replace(row, unique=len(found), heldout_unique=len(false), **of_rows))
    sizes = {"members": len(members), "heldout": len(heldout), "heldout_used": len(heldout)}
    changes |= {"dataset": dataset(**sizes | changes.pop("data", {}))}
    records.write(folder / "results.json", results(rows, **changes))
    with (folder / "members.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(["side", "id", "name", "sha256", *map(extracted_column, rows)])
        for i, name in enumerate(members):
            table.writerow(["members", 7 * i, f"{name}.png", sha(name), *(int(name in found) for found in per_run)])
        for i, name in enumerate(heldout):
            table.writerow(["heldout", 1000 + i, f"{name}.png", sha(name), *[""] * len(rows)])
    metric = rows[0].metric
    sides = [f"{metric}_{side}{end}" for side in ("member", "heldout") for end in ("", "_id", "_match")]
    with (folder / "matches.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(["run", "attack", "guidance_scale", "index", "label", *sides])
        for row, found, false in zip(rows, per_run, held, strict=True):
            for i in range(n):
                near = [7 * members.index(found[i]), 1] if i < len(found) else [0, 0]
                far = [1000 + heldout.index(false[i]), 1] if i < len(false) else [1000, 0]
                table.writerow([row.key.name, row.attack, row.guidance_scale, i, -1, 0.5, *near, 0.5, *far])
    return folder
