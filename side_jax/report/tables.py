"""The page's tables, from results.json."""

from typing import Any

from side_jax.attacks.table import ATTACKS, attack_of
from side_jax.report.findings import percent, points, share
from side_jax.report.page import model

Row = dict[str, Any]
EXPLAINED = {
    "normalized_l2": "pixel distance over alpha times the mean distance of the image, or of the member if so chosen, "
    "to its nearest members (Carlini et al. 2023)",
    "rmse": "root mean squared difference of pixels in [-1, 1]",
    "tiled_l2": "the largest such difference over the tiles of a grid (Carlini et al. 2023)",
    "distance_ratio": "nearest over second nearest distance (Yoon et al. 2023; Gu et al. 2023)",
    "cosine": "1 minus the cosine of features",
}


def explanation(results: dict[str, Any], confidence: float) -> str:
    """What counts as a match, and how sure the figures are, in words."""
    rows, data = results["rows"], results["dataset"]
    bands = {row["metric"]: row["band"][1] for row in rows if row["level"] == "high"}
    listed = "; ".join(f"{name} below {end:.3g}: {EXPLAINED[name]}" for name, end in bands.items())
    said = (
        f"A match is, by each measure, {listed}. The held-out column is the same score against "
        f"{data['heldout_used']:,} images that the model never saw; what matches there is chance. "
    )
    if data["heldout_used"] < data["members"]:
        said += (
            f"Of {data['members']:,} members one is nearer by chance alone; the excess and its p compare with as many "
            "members as held-out images. "
        )
    few = [found for found in results["thresholds"].values() if found["below"] is None]
    if few:
        said += f"{few[0]['calibrated_on']} held-out images are too few to calibrate a threshold. "
    return said + (
        f"Intervals hold with {100 * confidence:g}% confidence, by Wilson for rates, Newcombe for differences and a "
        "jackknife over images for UMS. UMS counts every member in the band of any image (the paper's), UMS nearest "
        "only nearest ones; compare both at equal numbers of images only."
    )


def _cell(text: str, sort: float | None = None, emphasis: str = "") -> model.Cell:
    return model.Cell(text=text, sort=sort, emphasis=emphasis)


def _who(row: Row, scaled: bool) -> list[model.Cell]:
    scale = row["guidance_scale"]
    faint = "faint" if attack_of(row["attack"]).control else ""
    scales = [_cell(f"{scale:g}" if scale else "none", scale)] if scaled else []
    return [_cell(row["attack"], emphasis=faint), *scales]


def _scaled(rows: list[Row]) -> bool:
    """Whether a column says the guidance scale."""
    return any(row["guidance_scale"] for row in rows)


def _of_whom(scaled: bool) -> list[model.Column]:
    return [model.Column(label="Attack"), *([model.Column(label="Scale", kind="number")] if scaled else [])]


def _p(value: float | None) -> model.Cell:
    if value is None:
        return _cell("none")
    return _cell("< 0.0001" if value < 1e-4 else f"{value:.4f}", value)


def tables(results: dict[str, Any]) -> list[model.Table]:
    """All of them, the most important first."""
    rows = results["rows"]
    found = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        own = [row for row in rows if row["metric"] == metric and row["level"] == "high"]
        found.append(_attacks(metric, own, explained=not found))
    for metric in dict.fromkeys(row["metric"] for row in rows):
        others = [row for row in rows if row["metric"] == metric and row["level"] not in ("high", "calibrated")]
        if others:
            found.append(_bands(metric, others))
    calibrated = [row for row in rows if row["level"] == "calibrated"]
    found += [_calibrated(calibrated, results)] if calibrated else []
    found += [_unseen(results["rarefaction"])]
    found += [_laws(results["distribution"])] if results["distribution"] else []
    return found + ([_membership(results["membership"])] if results.get("membership") else [])


def _attacks(metric: str, rows: list[Row], explained: bool) -> model.Table:
    """Of one metric's nearest band; `explained` says what the columns are, once on a page."""
    scaled, tested = _scaled(rows), any("p_more_images" in row for row in rows)
    columns = [
        ("Matched (AMS)", "rate", "share of generated images that match a member"),
        ("Held-out matched", "rate", "the same against images that the model never saw"),
        ("Excess, points", "rate", "members minus held-out, equally many of each"),
        ("p, excess", "number", "that no more images match members than as many held-out images (McNemar)"),
        ("Extracted", "number", "different members that are the nearest of a match"),
        ("UMS, all pairs", "rate", "members in the band of any image, over images"),
        ("UMS, nearest", "rate", "members that are the nearest of a match, over images"),
    ]
    if tested:
        columns += [
            ("p, more images", "number", "that as many match without guidance (McNemar, by image)"),
            ("p, more members", "number", "the same by member"),
        ]
    cells = [
        (
            *_who(row, scaled),
            _cell(share(row), row["ams"], "strong"),
            _cell(share(row, "heldout_"), row["heldout_ams"]),
            _excess(row),
            _p(row["p_excess"]),
            _cell(f"{row['unique']:,}", row["unique"], "strong"),
            _cell(_spread(row["ums"], row["ums_ci"]), row["ums"]),
            _cell(_spread(row["ums_nearest"], row["ums_nearest_ci"]), row["ums_nearest"]),
            *([_p(row.get("p_more_images")), _p(row.get("p_more_members"))] if tested else []),
        )
        for row in rows
    ]
    several = len({row["guidance_scale"] for row in rows if row["guidance_scale"]}) > 1
    note = "Taking the best of several scales favours the guided attacks a little: read the whole table. " * several
    note += "; ".join(
        f"{name}: {ATTACKS[name].says}" for name in dict.fromkeys(r["attack"] for r in rows) if name in ATTACKS
    )
    return model.Table(
        caption=f"{'Attacks' if scaled else 'Matches'} by {metric} below {rows[0]['band'][1]:.3g}",
        columns=(
            *_of_whom(scaled),
            *(model.Column(label=label, kind=kind, help=text * explained) for label, kind, text in columns),
        ),
        rows=tuple(cells),
        note=note,
    )


def _excess(row: Row) -> model.Cell:
    return _cell(f"{100 * row['excess']:.2f} ({points(*row['excess_ci'])})", row["excess"])


def _spread(rate: float, interval: list[float]) -> str:
    return f"{percent(rate)} ({percent(interval[0])} to {percent(interval[1])})"


def _bands(metric: str, rows: list[Row]) -> model.Table:
    labels = ("AMS", "UMS, all pairs", "UMS, nearest", "Held-out AMS", "Held-out UMS")
    scaled = _scaled(rows)
    rates = (model.Column(label=label, kind="rate") for label in labels)
    columns = (*_of_whom(scaled), model.Column(label="Band"), *rates)
    keys = ("ams", "ums", "ums_nearest", "heldout_ams", "heldout_ums")
    cells = [
        (
            *_who(row, scaled),
            _cell(f"{row['level']} [{row['band'][0]:.3g}, {row['band'][1]:.3g})"),
            *(_cell(percent(row[key]), row[key]) for key in keys),
        )
        for row in rows
    ]
    note = "Bands mid and low are disjoint, as the paper's; those that begin at 0 are cumulative."
    return model.Table(caption=f"Farther bands of {metric}", columns=columns, rows=tuple(cells), note=note)


def _calibrated(rows: list[Row], results: dict[str, Any]) -> model.Table:
    rates, scaled = ("Matched (AMS)", "Held-out matched", "Excess, points"), _scaled(rows)
    columns = (
        *_of_whom(scaled),
        model.Column(label="Measure"),
        model.Column(label="Threshold", kind="number"),
        *(model.Column(label=label, kind="rate") for label in rates),
        model.Column(label="Extracted", kind="number"),
    )
    cells = [
        (
            *_who(row, scaled),
            _cell(row["metric"]),
            _cell(f"{row['band'][1]:.4g}", row["band"][1]),
            _cell(share(row), row["ams"], "strong"),
            _cell(share(row, "heldout_"), row["heldout_ams"]),
            _excess(row),
            _cell(f"{row['unique']:,}", row["unique"]),
        )
        for row in rows
    ]
    measured = {row["metric"]: row for row in rows}
    thresholds = results["thresholds"]
    listed = "; ".join(
        f"{name} {thresholds[name]['matched']} of {thresholds[name]['tested_on']} "
        f"({percent(row['false_match_measured_ci'][0])} to {percent(row['false_match_measured_ci'][1])})"
        for name, row in measured.items()
    )
    note = (
        "Thresholds calibrated so that an image of the same kind, which the model never saw, matches a member in at "
        f"most {percent(rows[0]['false_match_rate'])} of cases: on {next(iter(thresholds.values()))['calibrated_on']} "
        f"held-out images. Of the other held-out images match: {listed}."
    )
    return model.Table(caption="Calibrated thresholds", columns=columns, rows=tuple(cells), note=note)


def _unseen(rows: list[Row]) -> model.Table:
    factor, scaled = rows[0]["ahead"]["factor"], _scaled(rows)
    labels = ("Images", "Found", f"Fitted law at {factor} times", f"Chao at {factor} times", "Chao's total, at least")
    columns = (
        *_of_whom(scaled),
        *(model.Column(label=label, kind="number") for label in labels),
        model.Column(label=f"Good-Toulmin at {factor} times"),
    )
    cells = []
    for row in rows:
        ahead, chao = row["ahead"], row["chao1"]
        toulmin = ahead["good_toulmin"]
        interval = f" ({chao['low']:.0f} to {chao['high']:.0f})"
        cells.append(
            (
                *_who(row, scaled),
                _cell(f"{row['sizes'][-1]:,}", row["sizes"][-1]),
                _cell(f"{row['expected'][-1]:.0f}", row["expected"][-1], "strong"),
                _cell(f"{ahead['fit']:.1f}", ahead["fit"]),
                _cell(f"{ahead['chao']:.1f}", ahead["chao"]),
                _cell(f"{chao['estimate']:.1f}{interval}", chao["estimate"]),
                _cell(
                    f"{toulmin['expected']:.1f}" + ("" if toulmin["valid"] else ", beyond its range"),
                    toulmin["expected"],
                ),
            )
        )
    note = (
        f"Members found, and what {factor} times as many images would find by three estimates. The fitted law is the "
        "paper's expectation with a beta distribution of the members' chances to come out; Chao's total is a lower "
        "bound of what unlimited sampling finds; Good and Toulmin's estimate has a range beyond which it should not be "
        "relied on."
    )
    return model.Table(caption="How much is left to find?", columns=columns, rows=tuple(cells), note=note)


def _laws(rows: list[Row]) -> model.Table:
    labels = {
        "auth_pct": (
            "AuthPct",
            "percentage of images farther from their nearest member than that one is from the next; low: copying",
        ),
        "auth_pct_heldout": ("AuthPct, held-out", "the same against held-out images, as its control"),
        "c_t": ("C_T", "far below 0: copying, far above: underfitting (Meehan et al. 2020)"),
        "fld_gap": ("FLD-style gap", "the more negative, the more overfit (after Jiralerspong et al. 2023)"),
        "frechet_members": ("Frechet to members", "Frechet distance of the images to members; lower is closer in law"),
        "frechet_heldout": ("Frechet to held-out", "the same to held-out images"),
        "frechet_members_heldout": ("Members to held-out", "Frechet distance of the two sets: the floor"),
    }
    scaled = _scaled(rows)
    numbers = (model.Column(label=name, kind="number", help=text) for name, text in labels.values())
    cells = []
    for row in rows:
        values = [row[key]["value"] if key == "c_t" else row[key] for key in labels]
        cells.append((*_who(row, scaled), *(_cell("none" if v is None else f"{v:.3g}", v) for v in values)))
    note = "In the space of the features. Companions of extraction, no substitutes: they miss copying that is rare."
    if rows[0]["n"]["heldout"] < rows[0]["n"]["members"]:
        note += " Held-out images are fewer than members, so that AuthPct's control is a rough one."
    return model.Table(
        caption="Laws compared: overfitting and quality",
        columns=(*_of_whom(scaled), *numbers),
        rows=tuple(cells),
        note=note,
    )


def _membership(found: dict[str, Any]) -> model.Table:
    kinds = [name for name, value in found.items() if isinstance(value, dict)]
    rates = [at["false_positive_rate"] for at in found[kinds[0]]["at"]]
    columns = (
        model.Column(label="Evidence"),
        model.Column(label="AUC", kind="number"),
        *(model.Column(label=f"True positives at {100 * rate:g}%", kind="rate") for rate in rates),
    )
    cells = []
    for kind in kinds:
        one = found[kind]
        row = [_cell(kind), _cell(f"{one['auc']:.3f} ({one['auc_ci'][0]:.3f} to {one['auc_ci'][1]:.3f})", one["auc"])]
        for at in one["at"]:
            known = at["true_positive_rate"] is not None
            text = _spread(at["true_positive_rate"], at["true_positive_rate_ci"]) if known else "not known"
            text += f"; {at['called_heldout']:,} of {one['evaluation']:,} false" if known else ""
            row.append(_cell(text, at["true_positive_rate"], "" if known else "faint"))
        cells.append(tuple(row))
    note = (
        f"By the model itself, at timestep {found['timestep']}: denoising loss, SecMI's t-error, PIA. Thresholds are "
        f"fixed on {found[kinds[0]]['calibration']} held-out images, rates of false positives measured on the others."
    )
    lacking = dict.fromkeys(at["note"] for kind in kinds for at in found[kind]["at"] if at["note"])
    note += "".join(f" Not known: {one}." for one in lacking)
    return model.Table(caption="Membership evidence", columns=columns, rows=tuple(cells), note=note)
