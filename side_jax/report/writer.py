"""From what an audit found to the page that shows it, for any source of images."""

import dataclasses
from pathlib import Path

from side_jax.data.sides import Side
from side_jax.measure.records import Results
from side_jax.report import contact_sheet, findings, matches
from side_jax.report.figures import Drawn, figures
from side_jax.report.gallery import Fetch, gallery, sheet
from side_jax.report.page import model, render
from side_jax.report.tables import explanation, tables
from side_jax.settings import Report
from side_jax.workdir import files


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """All that a page is made from.

    Attributes:
      title: of the page.
      results: what it measured.
      directory: that holds matches.csv and members.csv.
      members: what the model was trained on.
      heldout: what it never saw.
      fetch: the generated images.
      confidence: of intervals.
      report: how to show them.
      figures: more of them than every audit has.
      notes: how the images were made.
      provenance: (label, value).
      config: as text.
    """

    title: str
    results: Results
    directory: Path
    members: Side
    heldout: Side
    fetch: Fetch
    confidence: float
    report: Report
    figures: tuple[Drawn, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()
    config: str = ""


def write(audit: Audit, directory: Path) -> list[str]:
    """Writes index.html, every figure and, unless private, sheets of matches as PNG; returns the names of the PNGs."""
    columns, private = matches.read(audit.directory / "matches.csv"), audit.report.private
    drawn = [*figures(audit.results, columns), *audit.figures]
    drawn = [figure for figure in drawn if not (private and figure.reveals)]
    html = render.render(_page(audit, columns, drawn))
    pngs = {figure.name: figure.png for figure in drawn}
    if not private:
        sides = audit.members, audit.heldout, audit.fetch
        best = matches.shown(findings.headline(audit.results))
        pngs |= {f"matches_{matches.slug(row)}": sheet(row, columns, *sides) for row in best}
    for name, png in pngs.items():
        with files.atomic(directory / f"{name}.png") as file:
            file.write(png)
    with files.atomic(directory / "index.html", "w") as file:
        file.write(html)
    return [f"{name}.png" for name in pngs]


def _page(audit: Audit, columns: matches.Columns, drawn: list[Drawn]) -> model.Page:
    results, private = audit.results, audit.report.private
    status, tone, verdict = findings.verdict(results, audit.confidence)
    notes = [*audit.notes, explanation(results, audit.confidence)]
    if private:
        notes.append(
            "Pictures are blurred beyond recognition, and images are called by their numbers alone. The tables beside "
            "this page hold names: pass on the page without them."
        )
    return model.Page(
        title=audit.title,
        status=status,
        tone=tone,
        verdict=verdict,
        findings=tuple(findings.sentences(results, audit.confidence)),
        tables=tuple(tables(results)),
        figures=tuple(
            model.Figure(
                heading=figure.heading,
                picture=model.Picture(uri=contact_sheet.data_uri(figure.png), reveals=figure.reveals),
                alt=figure.alt,
                note=figure.note,
            )
            for figure in drawn
        ),
        gallery=gallery(
            findings.headline(results),
            columns,
            audit.members,
            audit.heldout,
            audit.fetch,
            audit.directory,
            pairs=audit.report.pairs,
            private=private,
        ),
        notes=tuple(notes),
        provenance=audit.provenance,
        config=audit.config,
        private=private,
    )
