"""The page's figures, drawn from results.json and matches.csv; each is a file of its own, too."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from msgspec import UNSET

from side_jax.attacks.table import PLAIN, get_attack
from side_jax.measure.records import Control, Rarefaction, Results, Row
from side_jax.report import contact_sheet, equal_calls, matches, phrases, plots, verdict
from side_jax.report.matches import Columns
from side_jax.report.page import model
from side_jax.report.plots import ClusterYield


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """A figure.

    Attributes:
      name: the name of its file, without the ending.
      heading: its heading on the page: what it shows, in words with numbers.
      content: the text of an SVG, or the bytes of a PNG.
      alt: a text for readers who can't see it.
      note: the text below it.
      reveals: whether it shows images.
    """

    name: str
    heading: str
    content: str | bytes
    alt: str
    note: str = ""
    reveals: bool = False

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.name}.{'svg' if isinstance(self.content, str) else 'png'}"

    def on_page(self) -> model.Figure:
        """The figure as the page has it."""
        if isinstance(self.content, str):
            picture: model.Picture | model.Drawing = model.Drawing(svg=self.content)
        else:
            picture = model.Picture(uri=contact_sheet.data_uri(self.content), reveals=self.reveals)
        return model.Figure(heading=self.heading, picture=picture, alt=self.alt, note=self.note)


def opening(results: Results, confidence: float) -> Drawn:
    """The one figure to look at first: the share matched by each attack beside the control, and members found.

    Args:
      results: of the audit.
      confidence: of the intervals.
    """
    best = matches.shown(phrases.headline(results))
    curves = {one.key: one for one in results.rarefaction}
    strongest = max(verdict.attack_rows(best), key=lambda row: row.ams)
    if strongest.ams:
        heading = (
            f"{phrases.percent(strongest.ams)} of the images by {get_attack(strongest.attack).phrase} match a training "
            f"image, {phrases.percent(strongest.heldout_ams)} an unseen one"
        )
    else:
        heading = "No attack's images match a training image"
    return Drawn(
        name="opening",
        heading=heading,
        content=plots.opening(best, [curves.get(row.key) for row in best], results.dataset.members),
        alt="Left: the share of images that match a training image, and that match an unseen image, for each attack, "
        "with intervals. Right: different training images found against the images drawn.",
        note=f"Of each attack the best scale. Bars: {100 * confidence:g}% intervals. Control: the share of the same "
        "images that match an unseen image, which chance alone does.",
    )


def figures(results: Results, columns: Columns) -> list[Drawn]:
    """The figures that every audit has, but the first.

    Args:
      results: of the audit.
      columns: matches.csv.
    """
    rows = phrases.headline(results)
    best = matches.shown(rows)
    keys = [row.key for row in best]
    curves = sorted((one for one in results.rarefaction if one.key in keys), key=lambda one: keys.index(one.key))
    drawn = (
        _guidance(rows) if any(get_attack(row.attack).guided for row in rows) else None,
        _rarefaction(results, curves),
        _network_calls(results, curves),
        _similarity(results, columns, best),
        _yields(columns, best),
        _sensitivity(results.controls) if results.controls else None,
    )
    return [figure for figure in drawn if figure]


def _sentence(text: str) -> str:
    """Begins with a capital letter, as headings do."""
    return text[:1].upper() + text[1:]


def _guidance(rows: list[Row]) -> Drawn:
    return Drawn(
        name="guidance",
        heading=_guidance_heading(rows),
        content=plots.guidance(rows),
        alt="Images that match and training images found for each guidance scale, of each attack",
        note="The same score against unseen images is the control: what chance matches. Bars: intervals.",
    )


def _guidance_heading(rows: list[Row]) -> str:
    """The best guided attack that an attacker could run beside plain sampling; a change only if intervals are apart."""
    guided = [row for row in rows if get_attack(row.attack).guided]  # not mode seeking from guided images
    strongest = max([row for row in guided if not get_attack(row.attack).control] or guided, key=lambda row: row.ams)
    name, plain = _sentence(phrases.run_phrase(strongest)), phrases.best(rows, PLAIN.name)
    share = phrases.percent(strongest.ams)
    if plain is None:
        return f"{name}: {share} of the images match"
    others = phrases.percent(plain.ams)
    if strongest.ams_ci[0] > plain.ams_ci[1]:
        return f"{name} raises the share of images that match from {others} to {share}"
    if strongest.ams_ci[1] < plain.ams_ci[0]:
        return f"No guidance helps: {share} of the images match at best, {others} of plain sampling"
    return f"Guidance changes little: {share} of the images match at best, {others} of plain sampling"


def _rarefaction(results: Results, curves: Sequence[Rarefaction]) -> Drawn:
    note = (
        "Solid: the mean over all subsets of the images. Dashed: the fitted law, continued to ten times as many. "
        "Crosses: Chao's estimate there, a lower bound."
    )
    most = max(curves, key=lambda one: one.expected[-1])
    drawn, total = most.sizes[-1], results.dataset.members
    heading = (
        f"{_sentence(phrases.run_phrase(most))} finds {most.expected[-1]:,.0f} of {total:,} members in {drawn:,} "
        f"images, and about {min(most.ahead.chao, total):,.0f} or more in {most.ahead.factor * drawn:,}"
    )
    if not any(one.expected[-1] for one in curves):
        note = "No member was found, so nothing can be continued; other members may come out of more images."
        heading = f"No member is found in {drawn:,} images"
    return Drawn(
        name="rarefaction",
        heading=heading,
        content=plots.rarefaction(curves, total),
        alt="Different members found against the number of generated images, and what more images would find",
        note=note,
    )


def _network_calls(results: Results, curves: Sequence[Rarefaction]) -> Drawn | None:
    """Members against calls of the network; None where calls are unknown or no run differs from the others."""
    calls = {one.network_calls for one in curves}
    if UNSET in calls or len(calls) < 2:
        return None
    budget = min(one.network_calls * one.sizes[-1] for one in curves)
    own = [one for one in curves if not get_attack(one.attack).control] or curves
    best = max(own, key=lambda one: equal_calls.found(one, budget))
    heading = (
        f"For {budget:,} calls of the network {phrases.run_phrase(best)} finds {equal_calls.found(best, budget):,.0f} "
        "members"
    )
    plain = next((one for one in curves if one.attack == PLAIN.name and one is not best), None)
    if plain:
        heading += f", plain sampling {equal_calls.found(plain, budget):,.0f}"
    return Drawn(
        name="network_calls",
        heading=heading,
        content=plots.network_calls(curves, results.dataset.members),
        alt="Different members found against the calls of the model's network, for each attack",
        note="Calls for all images, with those of the images that mode seeking starts from. Training a classifier "
        "or adapters, and a classifier's own calls, are not counted.",
    )


def _similarity(results: Results, columns: Columns, best: list[Row]) -> Drawn:
    metric, values = best[0].metric, []
    for row in best[:3]:
        images = matches.select_run(columns, row)
        values.append((row, images[f"{metric}_member"], images[f"{metric}_heldout"]))
    marks = {"match": best[0].band[1], "calibrated": results.thresholds[metric].below}
    note = "Where the filled bars stand out at the left, images are closer to training images than chance explains."
    if results.dataset.heldout_used < results.dataset.members:
        note += (
            " There are more members than held-out images, so by chance alone the nearest member is a little closer."
        )
    row, members, heldout = values[0]
    nearer = float(np.mean(members < heldout))
    return Drawn(
        name="similarity",
        heading=f"{phrases.percent(nearer)} of the images by {phrases.run_phrase(row)} are closer to a training image "
        "than to every unseen one",
        content=plots.similarity(values, metric, marks),
        alt="Histograms of the distance to the nearest member and to the nearest held-out image, with thresholds",
        note=note,
    )


def yields(columns: Columns, row: Row) -> list[ClusterYield]:
    """The matches of each cluster that guided images of a run; empty without guidance by clusters."""
    images = matches.select_run(columns, row)
    found = []
    for cluster in np.unique(images["label"][images["label"] >= 0]).astype(int).tolist():
        inside = images["label"] == cluster
        hit = inside & (images[f"{row.metric}_member_match"] > 0)
        members = len(np.unique(images[f"{row.metric}_member_id"][hit]))
        counts = {"images": int(inside.sum()), "matched": int(hit.sum()), "members": members}
        found.append(ClusterYield(cluster=cluster, **counts))
    return found


def _yields(columns: Columns, best: list[Row]) -> Drawn | None:
    guided = [row for row in best if row.guidance_scale and not get_attack(row.attack).control]
    data_free = [row for row in guided if get_attack(row.attack).data_free]
    row = next(iter(data_free or guided), None)
    clusters = yields(columns, row) if row else []
    if row is None or not clusters:
        return None
    return Drawn(
        name="yields",
        heading=f"{_sentence(phrases.run_phrase(row))}: images of {sum(one.matched > 0 for one in clusters):,} of "
        f"{len(clusters):,} clusters match a member",
        content=plots.yields(clusters, row.attack),
        alt="Share of matched images of each cluster, and how many different members they are",
        note=f"The {plots.MOST_CLUSTERS} clusters with the largest shares."
        if len(clusters) > plots.MOST_CLUSTERS
        else "",
    )


def _sensitivity(controls: Sequence[Control]) -> Drawn:
    false = ", ".join(
        f"{control.metric} {phrases.percent(control.found)}"
        for control in controls
        if control.strength is None and control.level == "high"
    )
    return Drawn(
        name="sensitivity",
        heading=_sensitivity_heading(controls),
        content=plots.sensitivity(controls),
        alt="Share of distorted copies of members that each measure matches with their original, by strength",
        note="Positive control: copies of members with growing distortion. A measure that misses distorted copies "
        f"can't exclude that the model produced some. Negative control, held-out images that match a member: {false}.",
    )


def _sensitivity_heading(controls: Sequence[Control]) -> str:
    """How many kinds of changed copies the first measure recognises for the most part."""
    metric = controls[0].metric
    copies = [one for one in controls if one.metric == metric and one.level == "high" and one.strength]
    seen = sum(one.found >= 0.5 for one in copies)
    return f"{metric} recognises most copies in {seen} of {len(copies)} kinds and strengths of change"
