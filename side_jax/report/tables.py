"""The page's tables, from results.json."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec import UnsetType

from side_jax.attacks.table import ATTACKS, get_attack
from side_jax.measure.records import (
    BestOfGeneration,
    Distribution,
    Interval,
    Membership,
    Operating,
    Quality,
    Rarefaction,
    Results,
    Row,
    Run,
)
from side_jax.memorization.metrics import METRICS
from side_jax.report import equal_calls, terms
from side_jax.report.matches import title_without_scale
from side_jax.report.page import model
from side_jax.report.phrases import percent, points, share


def explanation(results: Results, confidence: float) -> str:
    """What counts as a match, and how certain the figures are, in words."""
    data = results.dataset
    ends = {row.metric: row.band[1] for row in results.rows if row.level == "high"}
    listed = "; ".join(f"{name} below {end:.3g}: {METRICS[name].explanation}" for name, end in ends.items())
    text = (
        f"A match is, by each measure, {listed}. The held-out column is the same score against "
        f"{data.heldout_used:,} images that the model never saw; what matches there is chance. "
    )
    if data.heldout_used < data.members:
        text += (
            f"Of {data.members:,} members one is nearer by chance alone; the excess is of as many members as held-out "
            "images. "
        )
    if data.members_untested:
        text += (
            f"{data.members_untested:,} members nearly equal an image that was left out of the held-out ones; the "
            "excess and its p leave them out too. "
        )
    if data.member_near_pairs:
        pairs = f"{data.member_near_pairs:,} pair{'s' if data.member_near_pairs > 1 else ''} of members nearly equal"
        text += f"{pairs} each other; d1 / d2, and normalised L2 if there are many, do not see copies of these. "
    uncalibrated = [threshold for threshold in results.thresholds.values() if threshold.below is None]
    if uncalibrated:
        text += f"{uncalibrated[0].calibrated_on} held-out images are too few to calibrate a threshold. "
    return text + (
        f"Intervals hold with {100 * confidence:g}% confidence, by Wilson for rates, Newcombe for differences and a "
        "jackknife over images for UMS. UMS counts every member in the band of any image (the paper's), UMS nearest "
        "only nearest ones; compare both at equal numbers of images only."
    )


def tables(results: Results) -> list[model.Table]:
    """All tables, the most important first."""
    by_metric: dict[str, list[Row]] = {}
    for row in results.rows:
        by_metric.setdefault(row.metric, []).append(row)
    listed: list[model.Table] = []
    for metric, rows in by_metric.items():
        others = {name: _high(found) for name, found in by_metric.items() if name != metric} if not listed else {}
        listed.append(_attacks(metric, _high(rows), others, first=not listed))
    listed += [_fittest(results.best_of_generation)] if results.best_of_generation else []
    for metric, rows in by_metric.items():
        listed.append(_tests(metric, _high(rows)))
    for metric, rows in by_metric.items():
        others = [row for row in rows if row.level not in ("high", "calibrated")]
        if others:
            listed.append(_bands(metric, others))
    calibrated = [row for row in results.rows if row.level == "calibrated"]
    listed += [_calibrated(calibrated, results)] if calibrated else []
    listed += [_unseen(results.rarefaction)]
    listed += [_distributions(results.distribution)] if results.distribution else []
    return listed + ([_membership(results.membership, results.of_latents)] if results.membership else [])


def _high(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.level == "high"]


def _cell(text: str, sort: float | None = None, emphasis: str = "") -> model.Cell:
    return model.Cell(text=text, sort=sort, emphasis=emphasis)


def run_cells(run: Run, scaled: bool) -> list[model.Cell]:
    """The first cells of a row: its attack and, if asked for, its guidance scale."""
    scale = run.guidance_scale
    faint = "faint" if get_attack(run.attack).control else ""
    scales = [_cell(f"{scale:g}" if scale else "none", scale)] if scaled else []
    return [_cell(title_without_scale(run), emphasis=faint), *scales]


def has_scales(runs: Sequence[Run]) -> bool:
    """Whether a column shows the guidance scale."""
    return any(run.guidance_scale for run in runs)


def run_columns(scaled: bool) -> list[model.Column]:
    """The columns of run_cells."""
    return [model.Column(label="Attack"), *([terms.column("Scale")] if scaled else [])]


def p_cell(value: float | UnsetType) -> model.Cell:
    """The cell of a p-value; where there is none, it says so."""
    if isinstance(value, UnsetType):
        return _cell("none")
    return _cell("< 0.0001" if value < 1e-4 else f"{value:.4f}", value)


def _requests(count: int | UnsetType) -> model.Cell:
    return _cell("none", emphasis="faint") if isinstance(count, UnsetType) else _cell(f"{count:,}", count)


def _excess(row: Row) -> model.Cell:
    if isinstance(row.excess, UnsetType):
        return _cell("none")
    return _cell(f"{100 * row.excess:.2f} ({points(*row.excess_ci)})", row.excess)


def _with_interval(rate: float, interval: Interval) -> str:
    return f"{percent(rate)} ({percent(interval[0])} to {percent(interval[1])})"


class Quantity(NamedTuple):
    """A quantity of each run: its column and its cell."""

    label: str
    kind: str
    cell: Callable[[Row], model.Cell]


_CALLS = Quantity("Calls", "number", lambda row: _cell(f"{row.network_calls:,}", row.network_calls))
_REQUESTS = Quantity("Requests", "number", lambda row: _requests(row.requests))
_FOUND = (
    Quantity("Matched (AMS)", "rate", lambda row: _cell(share(row.members), row.ams, "strong")),
    Quantity("Held-out matched", "rate", lambda row: _cell(share(row.heldout), row.heldout_ams)),
    Quantity("Extracted", "number", lambda row: _cell(f"{row.unique:,}", row.unique, "strong")),
)
_CHANCE = (
    Quantity("Excess, points", "rate", _excess),
    Quantity("p, excess", "number", lambda row: p_cell(row.p_excess)),
    Quantity("UMS, all pairs", "rate", lambda row: _cell(_with_interval(row.ums, row.ums_ci), row.ums)),
    Quantity(
        "UMS, nearest",
        "rate",
        lambda row: _cell(_with_interval(row.ums_nearest, row.ums_nearest_ci), row.ums_nearest),
    ),
)
RATES = (*_FOUND, _CHANCE[0])  # what a run found, and what of it chance does not explain
_TESTED = (  # where runs are tested against the unguided one
    Quantity("p, more images", "number", lambda row: p_cell(row.p_more_images)),
    Quantity("p, more members", "number", lambda row: p_cell(row.p_more_members)),
)


def _beside(name: str, rows: list[Row]) -> Quantity:
    """The members that the same runs extract by another metric."""
    found = {row.key: row.unique for row in rows}
    return Quantity(f"by {name.replace('_', ' ')}", "number", lambda row: _cell(f"{found[row.key]:,}", found[row.key]))


def _attacks(metric: str, rows: list[Row], others: dict[str, list[Row]], first: bool) -> model.Table:
    """The attacks by one metric's nearest band.

    Args:
      metric: of the rows.
      rows: one for each run.
      others: rows of the same runs by other metrics, whose extracted members stand beside.
      first: whether what each attack is stands below it, once on a page.
    """
    known = any(not isinstance(row.network_calls, UnsetType) for row in rows)
    differ = any(not isinstance(row.requests, UnsetType) and row.requests > 1 for row in rows)
    costs = [_CALLS] * known + [_REQUESTS] * differ
    columns = [*costs, *_FOUND, *(_beside(name, of) for name, of in others.items())]
    several = len({row.guidance_scale for row in rows if row.guidance_scale}) > 1
    note = "Taking the best of several scales favours the guided attacks a little: read the whole table. " * several
    named = (ATTACKS[name] for name in dict.fromkeys(row.attack for row in rows) if name in ATTACKS)
    note += "; ".join(
        f"{one.name}: {one.description}{' (needs only an API)' if one.needs_api_only else ''}" for one in named
    )
    caption = f"{'Attacks' if has_scales(rows) else 'Matches'} by {metric} below {rows[0].band[1]:.3g}"
    ends = {name: of[0].band[1] for name, of in ({metric: rows} | others).items()}
    measures = "; ".join(f"{name} below {end:.3g}: {terms.measure(name)}" for name, end in ends.items())
    return _quantities(caption, rows, columns, f"Matches by {measures}. {note * first}".strip())


def _fittest(bests: Sequence[BestOfGeneration]) -> model.Table:
    """What a search itself would show: the fittest image of each generation."""
    cells = [
        (
            *run_cells(one, False),
            _cell(f"{one.images:,}", one.images),
            _cell(_with_interval(one.ams, one.ams_ci), one.ams, "strong"),
            _cell(_with_interval(one.heldout_ams, one.heldout_ams_ci), one.heldout_ams),
            _cell(f"{one.unique:,}", one.unique),
        )
        for one in bests
    ]
    labels = {"Images": "number", "Matched (AMS)": "rate", "Held-out matched": "rate", "Extracted": "number"}
    note = (
        "Of each generation the image that the attacker's classifier is surest of. The search chooses it without the "
        "members; its row above counts every image that it asked the model for. Images of a search descend from each "
        "other, so that the intervals of both rows are too narrow."
    )
    columns = (*run_columns(False), *(terms.column(label, kind) for label, kind in labels.items()))
    return model.Table(caption="The fittest image of each generation", columns=columns, rows=tuple(cells), note=note)


def _tests(metric: str, rows: list[Row]) -> model.Table:
    """The same runs against chance, and the paper's scores of different members; arguments as of _attacks."""
    tested = any(not isinstance(row.p_more_members, UnsetType) for row in rows)
    columns = [*_CHANCE, *(_TESTED if tested else ())]
    return _quantities(f"Against chance, and UMS, by {metric}", rows, columns)


def _quantities(caption: str, rows: list[Row], columns: Sequence[Quantity], note: str = "") -> model.Table:
    scaled = has_scales(rows)
    return model.Table(
        caption=caption,
        columns=(
            *run_columns(scaled),
            *(terms.column(one.label, one.kind) for one in columns),
        ),
        rows=tuple((*run_cells(row, scaled), *(one.cell(row) for one in columns)) for row in rows),
        note=note,
    )


BAND_COLUMNS: dict[str, Callable[[Row], float]] = {
    "AMS": lambda row: row.ams,
    "UMS, all pairs": lambda row: row.ums,
    "UMS, nearest": lambda row: row.ums_nearest,
    "Held-out AMS": lambda row: row.heldout_ams,
    "Held-out UMS": lambda row: row.heldout_ums,
}


def _bands(metric: str, rows: list[Row]) -> model.Table:
    scaled = has_scales(rows)
    rates = (terms.column(label, "rate") for label in BAND_COLUMNS)
    columns = (*run_columns(scaled), model.Column(label="Band"), *rates)
    cells = [
        (
            *run_cells(row, scaled),
            _cell(f"{row.level} [{row.band[0]:.3g}, {row.band[1]:.3g})"),
            *(_cell(percent(rate(row)), rate(row)) for rate in BAND_COLUMNS.values()),
        )
        for row in rows
    ]
    note = "Bands mid and low are disjoint, as the paper's; those that begin at 0 are cumulative."
    return model.Table(caption=f"Farther bands of {metric}", columns=columns, rows=tuple(cells), note=note)


def _calibrated(rows: list[Row], results: Results) -> model.Table:
    rates, scaled = ("Matched (AMS)", "Held-out matched", "Excess, points"), has_scales(rows)
    columns = (
        *run_columns(scaled),
        model.Column(label="Measure"),
        terms.column("Threshold"),
        *(terms.column(label, "rate") for label in rates),
        terms.column("Extracted"),
    )
    cells = [
        (
            *run_cells(row, scaled),
            _cell(row.metric),
            _cell(f"{row.band[1]:.4g}", row.band[1]),
            _cell(share(row.members), row.ams, "strong"),
            _cell(share(row.heldout), row.heldout_ams),
            _excess(row),
            _cell(f"{row.unique:,}", row.unique),
        )
        for row in rows
    ]
    thresholds = results.thresholds
    listed = "; ".join(
        f"{name} {thresholds[name].matched} of {thresholds[name].tested_on} "
        f"({percent(row.false_match_measured_ci[0])} to {percent(row.false_match_measured_ci[1])})"
        for name, row in {row.metric: row for row in rows}.items()
    )
    note = (
        "Thresholds calibrated so that an image of the same kind, which the model never saw, matches a member in at "
        f"most {percent(rows[0].false_match_rate)} of cases: on {next(iter(thresholds.values())).calibrated_on} "
        f"held-out images. Of the other held-out images match: {listed}."
    )
    data = results.dataset
    dropped = (data.heldout_equal_dropped, data.heldout_near_dropped)
    left_out = sum(count for count in dropped if not isinstance(count, UnsetType))
    if left_out:
        every = left_out + data.heldout
        note += (
            f" This holds for images that are no near duplicates of members. Of {every:,} held-out images, "
            f"{left_out:,} ({percent(left_out / every)}) were, and were left out; a fresh image that is one matches, "
            "whatever the model did."
        )
    return model.Table(caption="Calibrated thresholds", columns=columns, rows=tuple(cells), note=note)


def _unseen(rarefactions: Sequence[Rarefaction]) -> model.Table:
    factor, scaled, budget = rarefactions[0].ahead.factor, has_scales(rarefactions), equal_calls.budget(rarefactions)
    equal = (f"Found at {budget:,} calls",) if budget else ()
    labels = (
        "Images",
        "Found",
        *equal,
        f"Fitted law at {factor} times",
        f"Chao at {factor} times",
        "Chao's total, at least",
    )
    columns = (
        *run_columns(scaled),
        *(terms.column(label) for label in labels),
        terms.column(f"Good-Toulmin at {factor} times", "text"),
    )
    cells = []
    for one in rarefactions:
        ahead, chao, toulmin = one.ahead, one.chao1, one.ahead.good_toulmin
        interval = f" ({chao.low:.0f} to {chao.high:.0f})"
        cells.append(
            (
                *run_cells(one, scaled),
                _cell(f"{one.sizes[-1]:,}", one.sizes[-1]),
                _cell(f"{one.expected[-1]:.0f}", one.expected[-1], "strong"),
                *([_cell(f"{(found := equal_calls.found(one, budget)):.1f}", found)] if budget else []),
                _cell(f"{ahead.fit:.1f}", ahead.fit),
                _cell(f"{ahead.chao:.1f}", ahead.chao),
                _cell(f"{chao.estimate:.1f}{interval}", chao.estimate),
                _cell(f"{toulmin.expected:.1f}" + ("" if toulmin.valid else ", beyond its range"), toulmin.expected),
            )
        )
    note = f"Members found, and what {factor} times as many images would find by three estimates."
    return model.Table(caption="How much is left to find?", columns=columns, rows=tuple(cells), note=note)


DISTRIBUTION_COLUMNS: dict[str, Callable[[Distribution], float | None]] = {
    "AuthPct": lambda one: one.auth_pct,
    "AuthPct, held-out": lambda one: one.auth_pct_heldout,
    "C_T": lambda one: one.c_t.value,
    "FLD-style gap": lambda one: one.fld_gap,
    "Frechet to members": lambda one: one.frechet_members,
    "Frechet to held-out": lambda one: one.frechet_heldout,
    "Members to held-out": lambda one: one.frechet_members_heldout,
}


def _distributions(distributions: Sequence[Distribution]) -> model.Table:
    scaled = has_scales(distributions)
    numbers = (terms.column(label) for label in DISTRIBUTION_COLUMNS)
    cells = []
    for one in distributions:
        values = [value(one) for value in DISTRIBUTION_COLUMNS.values()]
        cells.append((*run_cells(one, scaled), *(_cell("none" if v is None else f"{v:.3g}", v) for v in values)))
    note = (
        "In the space of the features. They stand beside extraction and don't replace it: they miss copying that is "
        "rare."
    )
    if distributions[0].n.heldout < distributions[0].n.members:
        note += " Held-out images are fewer than members, so that AuthPct's control is a rough one."
    return model.Table(
        caption="Distributions compared: overfitting and quality",
        columns=(*run_columns(scaled), *numbers),
        rows=tuple(cells),
        note=note,
    )


def _operating_cell(point: Operating, quality: Quality) -> model.Cell:
    """The true positive rate at one false positive rate."""
    if point.true_positive_rate is None or point.true_positive_rate_ci is None:
        return _cell("not known", emphasis="faint")
    text = _with_interval(point.true_positive_rate, point.true_positive_rate_ci)
    return _cell(f"{text}; {point.called_heldout:,} of {quality.evaluation:,} false", point.true_positive_rate)


def _membership(membership: Membership, latent: bool) -> model.Table:
    qualities = membership.scores
    first = next(iter(qualities.values()))
    columns = (
        model.Column(label="Score", help="; ".join(f"{name}: {terms.meaning(name)}" for name in qualities)),
        terms.column("AUC"),
        *(terms.column(f"True positives at {100 * point.false_positive_rate:g}%", "rate") for point in first.at),
    )
    cells = tuple(
        (
            _cell(name),
            _cell(f"{quality.auc:.3f} ({quality.auc_ci[0]:.3f} to {quality.auc_ci[1]:.3f})", quality.auc),
            *(_operating_cell(point, quality) for point in quality.at),
        )
        for name, quality in qualities.items()
    )
    note = (
        f"By the model itself, at timestep {membership.timestep}. Thresholds are fixed on {first.calibration} held-out "
        "images, rates of false positives measured on the others."
    )
    note += " The model scores latents of the images." if latent else ""
    missing = dict.fromkeys(point.note for quality in qualities.values() for point in quality.at if point.note)
    note += "".join(f" Not known: {reason}." for reason in missing)
    return model.Table(caption="Membership scores", columns=columns, rows=cells, note=note)
