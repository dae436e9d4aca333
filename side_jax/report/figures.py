"""The page's figures, drawn from results.json and matches.csv; each is a PNG of its own, too."""

import base64
import dataclasses
from collections.abc import Sequence

import numpy as np
from msgspec import UNSET

from side_jax.attacks.table import get_attack
from side_jax.measure.records import Control, Rarefaction, Results, Row
from side_jax.report import matches, phrases, plots, verdict
from side_jax.report.matches import Columns
from side_jax.report.page import model
from side_jax.report.plots import ClusterYield


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawn:
    """A figure.

    Attributes:
      name: the name of its file, without ".png".
      heading: its heading on the page.
      png: the PNG's bytes.
      alt: a text for readers who can't see it.
      note: the text below it.
      reveals: whether it shows images.
    """

    name: str
    heading: str
    png: bytes
    alt: str
    note: str = ""
    reveals: bool = False


def opening(results: Results, confidence: float) -> model.Figure:
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
    svg = plots.opening(best, [curves.get(row.key) for row in best], results.dataset.members)
    return model.Figure(
        heading=heading,
        picture=model.Picture(uri="data:image/svg+xml;base64," + base64.b64encode(svg).decode(), reveals=False),
        alt="Left: the share of images that match a training image, and that match an unseen image, for each attack, "
        "with intervals. Right: different training images found against the images drawn.",
        note=f"Of each attack the best scale. Bars: {100 * confidence:g}% intervals. Control: the share of the same "
        "images that match an unseen image, which chance alone does.",
    )


def figures(results: Results, columns: Columns) -> list[Drawn]:
    """The figures that every audit has.

    Args:
      results: of the audit.
      columns: matches.csv.
    """
    rows = phrases.headline(results)
    best = matches.shown(rows)
    titles = {matches.title(row) for row in best}
    curves = {title: one for one in results.rarefaction if (title := matches.title(one)) in titles}
    drawn = (
        _guidance(rows) if any(row.guidance_scale for row in rows) else None,
        _rarefaction(results, curves),
        _network_calls(results, curves),
        _similarity(results, columns, best),
        _yields(columns, best),
        _sensitivity(results.controls) if results.controls else None,
    )
    return [figure for figure in drawn if figure]


def _guidance(rows: list[Row]) -> Drawn:
    return Drawn(
        name="guidance",
        heading="How much does guidance add?",
        png=plots.guidance(rows),
        alt="Matched images and extracted members against the guidance scale, for each attack",
        note="Solid: members, with intervals. Dashed: the same score against held-out images.",
    )


def _rarefaction(results: Results, curves: dict[str, Rarefaction]) -> Drawn:
    note = (
        "Solid: the mean over all subsets of the images. Dashed: the fitted law, continued to ten times as many. "
        "Crosses: Chao's estimate there, a lower bound."
    )
    if not any(one.expected[-1] for one in curves.values()):
        note = "No member was found, so nothing can be continued; other members may come out of more images."
    return Drawn(
        name="rarefaction",
        heading="How much is left to find?",
        png=plots.rarefaction(curves, results.dataset.members),
        alt="Different members found against the number of generated images, and what more images would find",
        note=note,
    )


def _network_calls(results: Results, curves: dict[str, Rarefaction]) -> Drawn | None:
    """Members against calls of the network; None where calls are unknown or no run differs from the others."""
    calls = {one.network_calls for one in curves.values()}
    if UNSET in calls or len(calls) < 2:
        return None
    return Drawn(
        name="network_calls",
        heading="What do members cost?",
        png=plots.network_calls(curves, results.dataset.members),
        alt="Different members found against the calls of the model's network, for each attack",
        note="Calls for all images, with those of the images that mode seeking starts from. Training a classifier, and "
        "its own calls, are not counted.",
    )


def _similarity(results: Results, columns: Columns, best: list[Row]) -> Drawn:
    metric = best[0].metric
    values = {}
    for row in best[:3]:
        images = matches.select_run(columns, row)
        values[matches.title(row)] = images[f"{metric}_member"], images[f"{metric}_heldout"]
    marks = {"match": best[0].band[1], "calibrated": results.thresholds[metric].below}
    note = "Where the colours separate at the left, images are closer to training images than chance explains."
    if results.dataset.heldout_used < results.dataset.members:
        note += (
            " There are more members than held-out images, so by chance alone the nearest member is a little closer."
        )
    return Drawn(
        name="similarity",
        heading="How close are generated images to members, and to images never seen?",
        png=plots.similarity(values, metric, marks),
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
        heading="Which clusters extract members?",
        png=plots.yields(clusters, matches.title(row)),
        alt="Share of matched images of each cluster, and how many different members they are",
    )


def _sensitivity(controls: Sequence[Control]) -> Drawn:
    false = ", ".join(
        f"{control.metric} {phrases.percent(control.found)}"
        for control in controls
        if control.strength is None and control.level == "high"
    )
    return Drawn(
        name="sensitivity",
        heading="Would a copy be seen?",
        png=plots.sensitivity(controls),
        alt="Share of distorted copies of members that each measure matches with their original, by strength",
        note="Positive control: copies of members with growing distortion. A measure that misses distorted copies "
        f"can't exclude that the model produced some. Negative control, held-out images that match a member: {false}.",
    )
