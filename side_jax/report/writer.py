"""Writes the report of an audit, of a model or of images alone."""

import dataclasses
import datetime
from pathlib import Path

from side_jax.data.sides import Side
from side_jax.measure.records import Results
from side_jax.report import convincing, defences, findings, matches, meaning, one_page, phrases
from side_jax.report.figures import Drawn, figures, opening
from side_jax.report.gallery import Fetch, gallery, sheet
from side_jax.report.page import model, render
from side_jax.report.tables import explanation, tables
from side_jax.report.verdict import verdict as verdict_of
from side_jax.settings import Report
from side_jax.workdir import files


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """The content of a report.

    Attributes:
      title: of the page.
      results: the content of results.json.
      directory: the folder of matches.csv and members.csv.
      members: the images that the model was trained on.
      heldout: images that it never saw.
      fetch: returns generated images.
      confidence: level of all intervals.
      report: the settings of the report.
      figures: figures beyond those that every audit has.
      notes: sentences about how the images were generated.
      provenance: (label, value) pairs.
      config: the whole config as text.
      facts: (label, value) pairs: what was audited, in a few words.
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
    facts: tuple[tuple[str, str], ...] = ()


def write(audit: Audit, directory: Path) -> list[str]:
    """Writes index.html, summary.pdf, each figure and, unless private, sheets of matches.

    Returns:
      The names of all files but index.html.
    """
    columns, private = matches.read(audit.directory / "matches.csv"), audit.report.private
    first, *others = opening(audit.results, audit.confidence), *figures(audit.results, columns), *audit.figures
    others = [figure for figure in others if not (private and figure.reveals)]
    made = datetime.datetime.now(datetime.UTC).date()
    page = _page(audit, columns, first, others, made)
    html, digest = render.render(page), files.file_digest(audit.directory / "results.json")
    written: dict[str, str | bytes] = {one_page.NAME: one_page.pdf(page, made, digest, audit.results.versions)}
    written |= {figure.file: figure.content for figure in (first, *others)}
    if not private:
        sides = audit.members, audit.heldout, audit.fetch
        best = matches.shown(phrases.headline(audit.results))
        written |= {f"matches_{row.key.name}.png": sheet(row, columns, *sides) for row in best}
    for name, content in written.items():
        with files.atomic(directory / name) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    with files.atomic(directory / "index.html", "w") as file:
        file.write(html)
    return list(written)


def _facts(audit: Audit, made: datetime.date) -> tuple[tuple[str, str], ...]:
    """The data, the images, and when and by whom it was made."""
    data, rows = audit.results.dataset, phrases.headline(audit.results)
    height, width, channels = data.image_shape
    colour = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    images = sum(row.n_generated for row in rows)
    runs = f" in {len(rows)} runs" if len(rows) > 1 else ""
    author = audit.report.author
    return (
        ("Data", f"{data.name}, {data.members:,} training images and {data.heldout_used:,} unseen ones"),
        ("Images", f"{height} x {width}, {colour}"),
        ("Looked at", f"{images:,} generated images{runs}"),
        ("Made", f"{made} by {author}" if author else f"{made}"),
    )


def _page(audit: Audit, columns: matches.Columns, first: Drawn, others: list[Drawn], made: datetime.date) -> model.Page:
    results, private = audit.results, audit.report.private
    status, tone, verdict = verdict_of(results, audit.confidence)
    sides = audit.members, audit.heldout, audit.fetch
    notes = [*audit.notes, explanation(results, audit.confidence)]
    if private:
        notes.append(
            "Pictures are blurred beyond recognition, and images are identified by number, in the CSV tables too; "
            "members.csv has the SHA-256 of each, which tells whoever holds an image that it is among them."
        )
    return model.Page(
        title=audit.title,
        status=status,
        tone=tone,
        verdict=verdict,
        facts=(*audit.facts, *_facts(audit, made)),
        paper=one_page.NAME,
        strip=convincing.strip(phrases.headline(results), columns, *sides, private=private),
        chart=first.on_page(),
        means=meaning.means(results, status, audit.confidence),
        sure=meaning.sure(results, status, audit.confidence),
        findings=tuple(findings.sentences(results, audit.confidence)),
        tables=tuple(tables(results)),
        figures=tuple(figure.on_page() for figure in others),
        gallery=gallery(
            phrases.headline(results),
            columns,
            audit.members,
            audit.heldout,
            audit.fetch,
            audit.directory,
            pairs=audit.report.pairs,
            private=private,
        ),
        notes=tuple(notes),
        lowers=defences.table(),
        provenance=audit.provenance,
        config=audit.config,
        private=private,
    )
