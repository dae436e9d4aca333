"""What a comparison of audits says: a status, sentences, the page, and the same as JSON and as a table of members."""

from collections.abc import Iterator
from typing import Any

from side_jax.attacks.table import get_attack
from side_jax.measure import records
from side_jax.report import comparison, ending, terms
from side_jax.report.comparison import LESS, MORE, RATES, Comparison, Pair
from side_jax.report.page import model
from side_jax.report.phrases import listed, p_value, percent, points, run_phrase
from side_jax.report.tables import RATES as RATE_COLUMNS
from side_jax.report.tables import has_scales, p_cell, run_cells, run_columns
from side_jax.report.verdict import CALM, LEAKS

CAVEAT = "This compares these audits, and not the recipes behind them: two seeds of one recipe may differ as much."


def status(compared: Comparison) -> tuple[str, str]:
    """(status, tone of the page): of two audits that of the later one, of more how many leak less and more."""
    found, later = [pair.status for pair in compared.pairs], compared.audits[1:]
    counts = {"less": found.count(LESS), "more": found.count(MORE)}
    parts = [f"{n} leak{'s' * (n == 1)} {word}" for word, n in counts.items() if n]
    if len(found) > 1 and parts:
        said = f"Of {len(found)} later audits, {listed(parts)}"
    else:
        said = found[0] if len(set(found)) == 1 else comparison.SAME
    if MORE in found:
        return said, "alarm"
    calm = all(one == LESS for one in found) and all(audit.verdict[:2] == CALM for audit in later)
    return said, "calm" if calm else "unsure"


def reasons(compared: Comparison) -> tuple[str, str]:
    """Two sentences for people who read nothing else."""
    first, *later = compared.audits
    verdicts = f"The verdicts on each alone: {listed([f'{one.name} {one.verdict[0]!r}' for one in compared.audits])}."
    if len(later) > 1:
        pairs = "; ".join(f"{pair.later}: {pair.status.lower()}" for pair in compared.pairs)
        return f"Against {first.name}, {pairs}.", f"{verdicts} {CAVEAT}"
    (pair,) = compared.pairs
    if pair.status == RATES:
        return f"{_nothing_shared(first.name, pair)} {verdicts}", CAVEAT
    counts = (
        f"Of {_n(pair.shared, 'training image')} that both audits have, {pair.both + pair.only_first:,} "
        f"{'was' if pair.both + pair.only_first == 1 else 'were'} extracted in {first.name} and "
        f"{pair.both + pair.only_later:,} in {pair.later}"
    )
    return f"{counts}{_why(pair, first.name)}{_control(compared, pair)}", f"{verdicts} {CAVEAT}"


def _n(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _nothing_shared(first: str, pair: Pair) -> str:
    return f"{first} and {pair.later} have no member in common, so that only their rates are compared."


def _why(pair: Pair, first: str) -> str:
    """Why a pair has its status; the end of a sentence."""
    p, leakier = p_value(pair.p), pair.later if pair.only_later > pair.only_first else first
    return {
        comparison.CHANCE: f"; chance may explain that (McNemar, {p}).",
        comparison.OPEN: f" ({p}), but the verdict on {leakier} alone is not 'Leaks': what was extracted there is no "
        "proof of a leak.",
        comparison.LIKENESS: f" ({p}), but images that the models never saw may have changed as much",
        "": f"; chance does not explain that (McNemar, {p}), and images that the models never saw changed less",
    }[pair.reason]


def _control(compared: Comparison, pair: Pair) -> str:
    """The figures of the control, where they decide; the end of a sentence."""
    if pair.reason in (comparison.CHANCE, comparison.OPEN):
        return ""
    return f": {listed(_heldout(compared))} were matched."


def _heldout(compared: Comparison) -> list[str]:
    """How many held-out images attacks matched in each audit."""
    return [
        f"{matched:,} of {one.results.dataset.heldout_used:,} in {one.name}"
        for one, matched in zip(compared.audits, compared.heldout, strict=True)
    ]


def findings(compared: Comparison) -> list[str]:
    """The figures of each later audit against the first, and what stands in the way of comparing them."""
    first, text = compared.audits[0], []
    level = f"{100 * compared.confidence:g}%"
    for i, (pair, later) in enumerate(zip(compared.pairs, compared.audits[1:], strict=True), start=1):
        text.append(f"{later.name} against {first.name}: {pair.status.lower()}. {_paired(pair, first.name, level)}")
        attacks = [one for one in compared.runs if not get_attack(one.rows[0].attack).control]
        one = max(attacks, key=lambda one: max(one.rows[0].ams, one.rows[i].ams))
        text.append(
            f"The highest rate of either is by {run_phrase(one.rows[0])}: {percent(one.rows[0].ams)} of the images "
            f"match a member in {first.name} and {percent(one.rows[i].ams)} in {later.name}, "
            f"{100 * one.changes[i - 1].value:+.2f} points ({level} interval {points(*one.changes[i - 1].interval)})."
        )
        text += _unlike(pair, first.name)
    text.append(f"Control: of images that the models never saw, the same attacks matched {listed(_heldout(compared))}.")
    if len(compared.pairs) > 1 and any(compared.everywhere):
        counts = compared.everywhere
        text.append(
            f"Of {_n(sum(counts), 'member')} that all audits have, {counts[0]:,} were extracted in all, "
            f"{counts[1]:,} in some and {counts[2]:,} in none."
        )
    return text + _near(compared)


def _paired(pair: Pair, first: str, level: str) -> str:
    if pair.change is None:
        return _nothing_shared(first, pair)
    return (
        f"Of {_n(pair.shared, 'member')} that both have, {pair.both:,} were extracted in both, {pair.only_first:,} "
        f"only in {first}, {pair.only_later:,} only in {pair.later} and {pair.neither:,} in neither: "
        f"{100 * pair.change.value:+.2f} points ({level} interval {points(*pair.change.interval)}; McNemar, "
        f"{p_value(pair.p)})."
    )


def _unlike(pair: Pair, first: str) -> list[str]:
    """How the members of two audits differ."""
    names, text = (first, pair.later), []
    if pair.shared and any(pair.alone):
        said = listed([f"{_n(n, 'member')} of {name} alone" for n, name in zip(pair.alone, names, strict=True) if n])
        text.append(f"Left out of what is compared by member: {said}.")
    for n, name, other in zip(pair.crossed, names, reversed(names), strict=True):
        if n:
            text.append(
                f"{_n(n, 'member')} of {name} {'is a held-out image' if n == 1 else 'are held-out images'} of {other}: "
                "of these the audits ask different questions, and their rates and verdicts are not alike."
            )
    return text


def _near(compared: Comparison) -> list[str]:
    """A sentence if members that nearly equal each other differ in number."""
    counts = {one.name: one.results.dataset.member_near_pairs for one in compared.audits}
    if len(set(counts.values())) == 1:
        return []
    said = listed([f"{count:,} in {name}" for name, count in counts.items()])
    return [
        f"Pairs of members that nearly equal each other: {said}. A generated image counts for its nearest member "
        "alone, and measures that divide by other distances do not see copies of such members: what leaks in the "
        "audit with more pairs may be understated."
    ]


def page(compared: Comparison) -> model.Page:
    """The page."""
    said, tone = status(compared)
    provenance = []
    for one in compared.audits:
        provenance.append((f"{one.name}, SHA-256 of results.json", one.digest))
        if one.results.target:
            provenance.append((f"{one.name}, SHA-256 of the weights", one.results.target.ema_sha256))
    tables = (_audits(compared), *([_pairs(compared)] if compared.shared else []), _runs(compared))
    return model.Page(
        title=f"{listed([one.name for one in compared.audits])} compared",
        status=said,
        tone=tone,
        verdict=reasons(compared),
        findings=tuple(findings(compared)),
        tables=tables,
        open_tables=len(tables),
        notes=tuple(_notes(compared)),
        provenance=(*provenance, *records.versions().items()),
    )


def _text(text: str, emphasis: str = "") -> model.Cell:
    return model.Cell(text=text, emphasis=emphasis)


def _count(n: int, emphasis: str = "") -> model.Cell:
    return model.Cell(text=f"{n:,}", sort=n, emphasis=emphasis)


def _change(change: comparison.Change) -> model.Cell:
    return model.Cell(text=f"{100 * change.value:+.2f} ({points(*change.interval)})", sort=change.value)


def _numbers(labels: dict[str, str]) -> list[model.Column]:
    """Columns of numbers: their labels, and what they mean."""
    return [model.Column(label=label, kind="number", help=text) for label, text in labels.items()]


def _audits(compared: Comparison) -> model.Table:
    numbers = _numbers(
        {
            "Members": "images that the model was trained on",
            "Extracted": "members that are the nearest of a match by any attack below, controls apart",
            "Held-out": "images that it never saw, as the control",
            "Held-out matched": "of these, those that are the nearest of a match by the same attacks",
        }
    )
    rows = [
        (
            _text(one.name),
            _text(one.verdict[0], one.verdict[1]),
            _count(one.results.dataset.members),
            _count(len(extracted), "strong"),
            _count(one.results.dataset.heldout_used),
            _count(heldout),
        )
        for one, extracted, heldout in zip(compared.audits, compared.extracted, compared.heldout, strict=True)
    ]
    columns = (model.Column(label="Audit"), model.Column(label="Verdict", help="on this audit alone"), *numbers)
    return model.Table(caption="The audits", columns=columns, rows=tuple(rows))


def _pairs(compared: Comparison) -> model.Table:
    first = compared.audits[0].name
    numbers = _numbers(
        {
            "Shared": "members that both audits have",
            "In both": "of these, those extracted in both",
            f"Only in {first}": "",
            "Only in this": "in the audit of the row",
            "In neither": "",
        }
    )
    columns = (
        model.Column(label="Audit"),
        model.Column(label="Status"),
        *numbers,
        model.Column(
            label="Change, points", kind="rate", help=f"of the share extracted, from {first} (Newcombe, paired)"
        ),
        model.Column(label="p", kind="number", help="McNemar's exact test of no change, both directions"),
    )
    rows = [
        (
            _text(pair.later),
            _text(pair.status, "strong"),
            *(_count(n) for n in (pair.shared, pair.both, pair.only_first, pair.only_later, pair.neither)),
            _text("none") if pair.change is None else _change(pair.change),
            p_cell(pair.p),
        )
        for pair in compared.pairs
    ]
    return model.Table(caption=f"Members extracted, against {first}", columns=columns, rows=tuple(rows))


def _beside(rates: list[Any], change: Any) -> list[Any]:
    """The columns, or the cells, of rates, with the change of the first one beside it."""
    return [rates[0], change, *rates[1:]]


def _runs(compared: Comparison) -> model.Table:
    """A row for each audit of each run."""
    every = [one.rows[0] for one in compared.runs]
    scaled, first = has_scales(every), compared.audits[0].name
    columns = (
        *run_columns(scaled),
        model.Column(label="Audit"),
        *_beside(
            [terms.column(one.label, one.kind) for one in RATE_COLUMNS],
            model.Column(label="Change, points", kind="rate", help=f"of AMS, from {first} (Newcombe, independent)"),
        ),
    )
    rows = [
        (
            *run_cells(row, scaled),
            _text(audit.name),
            *_beside([one.cell(row) for one in RATE_COLUMNS], _text("") if change is None else _change(change)),
        )
        for run in compared.runs
        for audit, row, change in zip(compared.audits, run.rows, (None, *run.changes), strict=True)
    ]
    caption = f"Rates by {every[0].metric} below {every[0].band[1]:.3g}"
    numbers = sorted({row.n_generated for row in every})
    images = f"{numbers[0]:,}" + f" to {numbers[-1]:,}" * (len(numbers) > 1)
    note = f"Every audit has as many generated images of a run as the others: {images}."
    return model.Table(caption=caption, columns=columns, rows=tuple(rows), note=note)


def _notes(compared: Comparison) -> Iterator[str]:
    yield (
        "Members are known by the SHA-256 of their pixels. compare.csv lists those that are shared, and whether each "
        "audit extracted them."
    )
    yield (
        f"An audit leaks less or more than {compared.audits[0].name} if McNemar's test is significant at "
        f"{100 * compared.confidence:g}% confidence, corrected for the number of later audits; if the audit that leaks "
        f"more has the verdict {LEAKS[0]!r}; and if held-out images did not change alike. Else no difference is shown."
    )
    if compared.left_out:
        yield f"Not in every audit with the same number of images, and left out: {', '.join(compared.left_out)}."
    levels = {one.name: one.confidence for one in compared.audits}
    if len(set(levels.values())) > 1:
        said = listed([f"{100 * level:g}% in {name}" for name, level in levels.items()])
        yield f"The audits' own intervals hold with different confidence, {said}; the greatest is used here."
    if any(len({row.network_calls for row in one.rows}) > 1 for one in compared.runs):
        yield "Some runs took different numbers of calls of the network in different audits."


def as_json(compared: Comparison) -> dict[str, Any]:
    """The content of compare.json. Rates are fractions in [0, 1]."""
    said, _ = status(compared)
    first = compared.runs[0].rows[0]
    return {
        "status": said,
        "reasons": list(reasons(compared)),
        "findings": findings(compared),
        "metric": first.metric,
        "below": first.band[1],
        "confidence": compared.confidence,
        "audits": [
            {
                "name": one.name,
                "verdict": one.verdict[0],
                "reasons": list(one.verdict[2]),
                "members": one.results.dataset.members,
                "extracted": len(extracted),
                "heldout": one.results.dataset.heldout_used,
                "heldout_matched": heldout,
                "results_sha256": one.digest,
            }
            for one, extracted, heldout in zip(compared.audits, compared.extracted, compared.heldout, strict=True)
        ],
        "runs": [
            {"control": get_attack(one.rows[0].attack).control, "audits": _rates(compared, one)}
            | {"run": one.rows[0].key.name}
            for one in compared.runs
        ],
        "left_out": list(compared.left_out),
        "pairs": [_pair(pair) for pair in compared.pairs],
        "members": dict(zip(("in_all", "in_some", "in_none"), compared.everywhere, strict=True)),
        "versions": records.versions(),
    }


def _rates(compared: Comparison, one: comparison.ComparedRun) -> list[dict[str, Any]]:
    rows = [{"audit": audit.name} | ending.attack(row) for audit, row in zip(compared.audits, one.rows, strict=True)]
    for row, change in zip(rows[1:], one.changes, strict=True):
        row |= {"ams_change": change.value, "ams_change_ci": change.interval}
    return rows


def _pair(pair: Pair) -> dict[str, Any]:
    value, interval = pair.change or (None, None)
    return {
        "audit": pair.later,
        "status": pair.status,
        "shared": pair.shared,
        "both": pair.both,
        "only_first": pair.only_first,
        "only_later": pair.only_later,
        "neither": pair.neither,
        "change": value,
        "change_ci": interval,
        "p": pair.p,
        "only_members_of_first": pair.alone[0],
        "only_members_of_later": pair.alone[1],
        "first_members_held_out_in_later": pair.crossed[0],
        "later_members_held_out_in_first": pair.crossed[1],
    }


def member_rows(compared: Comparison) -> Iterator[list[str]]:
    """compare.csv: its header, then a row for each member that the first audit shares with a later one.

    1: it was extracted, 0: it was not, nothing: the audit has no such member.
    """
    first = compared.audits[0]
    yield ["sha256", "id", "name", *(f"extracted_{one.name}" for one in compared.audits)]
    for sha256 in compared.shared:
        member = first.members[sha256]
        found = [
            str(int(sha256 in extracted)) if sha256 in one.members else ""
            for one, extracted in zip(compared.audits, compared.extracted, strict=True)
        ]
        yield [sha256, member.id, member.name, *found]
