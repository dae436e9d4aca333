"""What a command prints at its end: the verdict and the findings, as text for people or as JSON for programs."""

import json
from collections.abc import Sequence
from pathlib import Path

from msgspec import UnsetType

from side_jax.measure.records import Results, Row
from side_jax.report import one_page
from side_jax.report.findings import sentences
from side_jax.report.phrases import headline
from side_jax.report.verdict import verdict

# Of a row of results.json, what the JSON holds.
_FIELDS = ("attack", "guidance_scale", "n_generated", "ams", "ams_ci", "heldout_ams", "heldout_ams_ci", "excess")
_FIELDS += ("excess_ci", "p_excess", "unique", "network_calls")


def text(results: Results, confidence: float, page: Path, failures: Sequence[str] = ()) -> str:
    """The verdict, the findings, what the gate says, and the paths of the page and of the sheet beside it."""
    status, _, reasons = verdict(results, confidence)
    said = conclusion(status, reasons, sentences(results, confidence), page, failures)
    return f"{said}\nOne page to print: {page.with_name(one_page.NAME)}"


def conclusion(
    status: str, reasons: Sequence[str], findings: Sequence[str], page: object, failures: Sequence[str] = ()
) -> str:
    """The same of anything that has a page."""
    lines = [f"  {i}. {sentence}" for i, sentence in enumerate(findings, start=1)]
    lines += [f"Fails: {failure}" for failure in failures]
    return "\n".join(["", f"{status}. {' '.join(reasons)}", *lines, f"Report: {page}"])


def as_json(results: Results, confidence: float, page: object, failures: Sequence[str] = ()) -> str:
    """The same as JSON, with a row for each attack by the headline measure. Rates are fractions in [0, 1]."""
    status, _, reasons = verdict(results, confidence)
    rows = headline(results)
    content = {
        "verdict": status,
        "reasons": list(reasons),
        "findings": sentences(results, confidence),
        "failed": bool(failures),
        "failures": list(failures),
        "metric": rows[0].metric,
        "below": rows[0].band[1],
        "confidence": confidence,
        "members": results.dataset.members,
        "heldout": results.dataset.heldout_used,
        "attacks": [attack(row) for row in rows],
        "report": str(page),
        "versions": results.versions,
    }
    return json.dumps(content, indent=2)


def attack(row: Row) -> dict[str, object]:
    """The figures of a row that programs get."""
    values = {name: getattr(row, name) for name in _FIELDS}
    return {"run": row.key.name} | {name: value for name, value in values.items() if not isinstance(value, UnsetType)}
