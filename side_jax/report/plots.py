"""Figures for the report, drawn by matplotlib: curves, points and bars as SVG, sheets of images as PNG."""

import dataclasses
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from side_jax.attacks.table import ATTACKS, MODES, PALETTE, PLAIN, get_attack
from side_jax.measure.records import Control, NoiseLevel, Rarefaction, Row
from side_jax.report import look, phrases, svg
from side_jax.report.contact_sheet import visible
from side_jax.report.look import styled

DPI = 200  # of sheets: sharp on screens of two pixels a point
MOST_CLUSTERS = 40  # bars of one figure, so that their numbers can be read


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterYield:
    """The images that one cluster guided, and their matches.

    Attributes:
      cluster: its number.
      images: number of images that it guided.
      matched: how many of them match a member.
      members: how many different members they match.
    """

    cluster: int
    images: int
    matched: int
    members: int


@styled
def opening(rows: Sequence[Row], curves: Sequence[Rarefaction | None], members: int) -> str:
    """The share of images that match a member and a held-out image, with intervals; members against images: an SVG.

    Args:
      rows: of one metric and band, one for each run to show.
      curves: of the same runs.
      members: how many there are.
    """
    figure, axes = look.panels(1, 2, max(2.6, 1 + 0.56 * len(rows)), width_ratios=(5, 4))
    left, right = axes[0]
    for i, row in enumerate(rows):
        _point(left, row, i - 0.14, heldout=False, across=True)
        _point(left, row, i + 0.14, heldout=True, across=True)
    left.set_yticks(range(len(rows)), [textwrap.fill(phrases.run_phrase(row), 34) for row in rows])
    left.invert_yaxis()
    left.set_xlim(left=0)
    left.set(xlabel="images that match, %")
    left.grid(axis="x")
    ends = []
    for row, curve in zip(rows, curves, strict=True):
        if curve is None:
            continue
        style, name = look.mark(row.attack), get_attack(row.attack).phrase
        (line,) = right.plot(curve.sizes, curve.expected, color=style["color"])
        svg.tip(line, f"{name}: {curve.expected[-1]:,.0f} training images found in {curve.sizes[-1]:,} images")
        right.plot(curve.sizes[-1:], curve.expected[-1:], **style, clip_on=False)
        ends.append((curve.sizes[-1], curve.expected[-1], textwrap.fill(name, 20), style["color"]))
    last = max((curve.sizes[-1] for curve in curves if curve), default=1)
    right.set_xlim(0, last)
    right.set_ylim(0, max(1.0, *(1.05 * end[1] for end in ends), 1.0))
    look.counts_to(right.xaxis, last)
    look.whole(right.yaxis)
    look.label_ends(right, ends)
    right.set(xlabel="images drawn", ylabel=f"training images found, of {members:,}")
    look.legend(figure, look.sides())
    return svg.text(figure, "opening")


def _point(axis: Any, row: Row, at: float, *, heldout: bool, across: bool = False) -> None:
    """The share of a run's images that match, with its interval, beside or above the place `at`."""
    side, what = (row.heldout, "an unseen image") if heldout else (row.members, "a training image")
    style = look.mark(row.attack)
    style |= {"markerfacecolor": "white"} if heldout else {}
    low, high = (100 * end for end in side.ams_ci)
    value = 100 * side.ams
    bar = [[max(0, value - low)], [max(0, high - value)]]
    places, bars = ((value, at), {"xerr": bar}) if across else ((at, value), {"yerr": bar})
    drawn = axis.errorbar(
        *([one] for one in places), **bars, linestyle="", elinewidth=1.2, capsize=2.5, clip_on=False, **style
    )
    said = f"{phrases.run_phrase(row)}: {phrases.share(side)} of {row.n_generated:,} images match {what}"
    for artist in (drawn.lines[0], *drawn.lines[2]):
        svg.tip(artist, said)


@styled
def guidance(rows: Sequence[Row]) -> str:
    """AMS and extracted members for each guidance scale that was used, with the held-out control hollow: an SVG.

    Args:
      rows: all of one metric and band.
    """
    names = [
        name
        for name, attack in ATTACKS.items()
        if (attack.guided or name == PLAIN.name) and any(row.attack == name for row in rows)
    ]
    rows = [row for row in rows if row.attack in names]
    scales = sorted({row.guidance_scale for row in rows})
    figure, axes = look.panels(1, 2, 3.2)
    for i, name in enumerate(names):
        runs = sorted((row for row in rows if row.attack == name), key=lambda row: row.guidance_scale)
        shift = 0 if name == PLAIN.name else 0.1 * (i - len(names) / 2)  # so that no interval hides another
        at = np.asarray([scales.index(row.guidance_scale) for row in runs]) + shift
        style = look.mark(name)
        for heldout in (True, False):
            side = [row.heldout if heldout else row.members for row in runs]
            own = look.unseen(style) if heldout else style
            places = at + 0.05 * heldout
            axes[0, 0].plot(places, [100 * one.ams for one in side], **own | {"marker": ""})
            for row, place in zip(runs, places, strict=True):
                _point(axes[0, 0], row, place, heldout=heldout)
            (line,) = axes[0, 1].plot(places, [one.unique for one in side], **own, clip_on=False)
            what = "unseen images" if heldout else "training images"
            said = [f"{phrases.run_phrase(row)}: {one.unique:,} {what}" for row, one in zip(runs, side, strict=True)]
            svg.tip(line, *said)
    axes[0, 0].set_ylabel("images that match (AMS), %")
    axes[0, 1].set_ylabel("different training images found")
    look.whole(axes[0, 1].yaxis)
    for axis in axes[0]:
        axis.set_xlabel("guidance scale")
        axis.set_xticks(range(len(scales)), [f"{scale:g}" if scale else "none" for scale in scales])
        axis.set_xlim(-0.5, len(scales) - 0.5)
        axis.set_ylim(bottom=0)
        axis.grid(axis="y")
    look.legend(figure, [*(look.key(get_attack(name).phrase, **look.mark(name)) for name in names), *look.sides()])
    return svg.text(figure, "guidance")


_WATCHED = (  # of the monitor: its panel, the attack whose colour it has, and whether it is the control
    ("matched", 0, PLAIN.name, False),
    ("matched_heldout", 0, PLAIN.name, True),
    ("modes_matched", 0, MODES.name, False),
    ("modes_matched_heldout", 0, MODES.name, True),
    ("copied", 1, PLAIN.name, False),
    ("copied_heldout", 1, PLAIN.name, True),
    ("modes_copied", 1, MODES.name, False),
    ("modes_copied_heldout", 1, MODES.name, True),
    ("closer", 2, PLAIN.name, False),
)


@styled
def training(metrics: list[dict[str, Any]], watched: list[dict[str, Any]]) -> str:
    """The loss, its profile over timesteps, and what the monitor saw, against the step: an SVG.

    Args:
      metrics: rows of train/metrics.jsonl.
      watched: rows of train/monitor.jsonl; may be empty.
    """
    figure, axes = look.panels(2 if watched else 1, 6 if watched else 2, 5.1 if watched else 3)
    if watched:  # three panels above two
        grid = axes[0, 0].get_gridspec()
        for axis in axes.flat:
            axis.remove()
        places = [grid[0, 0:3], grid[0, 3:6], grid[1, 0:2], grid[1, 2:4], grid[1, 4:6]]
        shown = [figure.add_subplot(place) for place in places]
    else:
        shown = list(axes[0])
    step = [row["step"] for row in metrics]
    shown[0].plot(step, [row["loss"] for row in metrics], color=look.SOFT, linewidth=1.2)
    shown[0].set_title("loss")
    profile = np.asarray([row["loss_by_timestep"] for row in metrics], float)
    shades = plt.get_cmap("cividis")(np.linspace(0, 0.9, profile.shape[1]))
    for values, shade in zip(profile.T, shades, strict=True):
        shown[1].plot(step, values, color=shade, linewidth=1.2)
    shown[1].set_title("loss by timestep, from least noise (dark) to most (light)")
    for axis in shown[:2]:
        axis.set_yscale("log")
        look.plain_log(axis.yaxis)
    if watched:
        _watched(figure, shown[2:], watched)
    for axis in shown:
        axis.set_xlabel("training step")
        look.whole(axis.xaxis)
    return svg.text(figure, "training")


def _watched(figure: Any, axes: Sequence[Any], rows: list[dict[str, Any]]) -> None:
    """What the monitor saw, with intervals."""
    step = [row["step"] for row in rows]
    for key, panel, attack, control in (one for one in _WATCHED if one[0] in rows[-1]):
        style = look.mark(attack) | {"markersize": 3.5}
        values = [100 * row[key] for row in rows]
        (line,) = axes[panel].plot(step, values, **look.unseen(style) if control else style)
        svg.tip(line, *(f"step {at:,}: {value:.2f}%" for at, value in zip(step, values, strict=True)))
        if not control:
            low, high = ([100 * row[f"{key}_ci"][i] for row in rows] for i in (0, 1))
            axes[panel].fill_between(step, low, high, color=style["color"], alpha=0.12, linewidth=0)
    chance = 100 * rows[-1].get("closer_chance", 0.5)  # earlier versions compared equal numbers
    axes[2].axhline(chance, color=look.SOFT, linestyle=":", linewidth=1.2)
    titles = ("samples that match, %", "samples with d1/d2 < 1/3, %", "samples closer to members, %")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
        axis.grid(axis="y")
    entries = [look.key("plain samples", **look.mark(PLAIN.name))]
    if "modes_matched" in rows[-1]:
        entries.append(look.key("the modes that they lead to", **look.mark(MODES.name)))
    entries += [*look.sides(), look.key(f"chance, {chance:.0f}%", color=look.SOFT, linestyle=":")]
    look.legend(figure, entries)


def clusters(images: np.ndarray, features: np.ndarray, result: dict[str, Any], *, rows: int = 5) -> bytes:
    """Images of the most and of the least cohesive clusters that are not empty, a row for each: a PNG.

    Args:
      images: uint8 [n, h, w, c], grey or RGB.
      features: float32 [n, d].
      result: of clustering.pseudo_labels.
      rows: of the most, and as many of the least cohesive; all clusters where there are no more than twice as many.
    """
    columns = 10
    order = np.argsort(-result["cohesion"], kind="stable")
    order = order[result["status"][order] != "empty"]
    shown = order if len(order) <= 2 * rows else np.concatenate([order[:rows], order[-rows:]])
    ratio = images.shape[1] / images.shape[2]
    size = (8, len(shown) * (0.8 * ratio + 0.3) + 0.4)
    figure, axes = plt.subplots(len(shown), 1, figsize=size, layout="constrained", squeeze=False)
    figure.suptitle("Clusters from most to least cohesive: the images nearest to the centroid", fontsize=10)
    for axis, k in zip(axes[:, 0], shown, strict=True):
        members = np.flatnonzero(result["cluster"] == k)
        nearest = members[np.argsort(-(features[members] @ result["centroids"][k]), kind="stable")]
        for i, image in enumerate(visible(images[nearest[:columns]])):
            image = image.squeeze(-1) if image.shape[-1] == 1 else image
            axis.imshow(image, cmap="gray", vmin=0, vmax=255, extent=(i, i + 0.95, 0, 0.95 * ratio))
        axis.set(xlim=(0, columns), ylim=(0, ratio), aspect="equal")
        axis.axis("off")
        text = f"cluster {k}: cohesion {result['cohesion'][k]:.3f}, images: {len(members)}, {result['status'][k]}"
        axis.set_title(text, loc="left", fontsize=9, pad=2)
    return _png(figure)


def modes(images: np.ndarray, counts: Sequence[int], matched: Sequence[bool]) -> bytes:
    """Distinct modes in order, each with how many images came to it; a red frame where it matches a member: a PNG.

    Args:
      images: uint8 [k, h, w, c], grey or RGB, k at least 1.
      counts: of each mode.
      matched: whether each matches a member.
    """
    across = min(12, len(images))
    down = -(-len(images) // across)
    figure, axes = plt.subplots(down, across, figsize=(0.85 * across + 0.2, 1.1 * down + 0.1), squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - 0.2 / (down + 0.2), hspace=0.35, wspace=0.12)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, count, hit in zip(axes.flat, visible(images), counts, matched, strict=False):
        image = image.squeeze(-1) if image.shape[-1] == 1 else image
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        axis.set_title(f"{count:,}", fontsize=8, pad=2)
        axis.axis("on")
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(color=PALETTE[1] if hit else "0.8", linewidth=2 if hit else 0.8)
    return _png(figure)


@styled
def noise_levels(levels: Mapping[str, Sequence[NoiseLevel]], chance: Mapping[str, float]) -> str:
    """Accuracy and calibration of classifiers against the timestep of the noise on their input: an SVG.

    Args:
      levels: of each classifier.
      chance: the accuracy that is chance, in [0, 1], for each classifier.
    """
    figure, axes = look.panels(1, 2, 3.2)
    left, right = axes[0]
    for i, (name, curve) in enumerate(levels.items()):
        style = look.mark(name, i)
        t = [level.timestep for level in curve]
        low, high = 100 * np.asarray([level.accuracy_ci for level in curve]).T
        # An error that could not be scored (None) becomes NaN, which is not drawn.
        scaled = np.asarray([level.ece_scaled for level in curve], float)
        (line,) = left.plot(t, [100 * level.accuracy for level in curve], **style)
        svg.tip(line, *(f"{name}, timestep {one.timestep}: {phrases.percent(one.accuracy)}" for one in curve))
        left.fill_between(t, low, high, color=style["color"], alpha=0.12, linewidth=0)
        left.axhline(100 * chance[name], color=style["color"], linestyle=":", linewidth=1.2)
        right.plot(t, [level.ece for level in curve], **style)
        right.plot(t, scaled, **look.unseen(style))
    left.set(ylabel="accuracy, % (dotted: chance)", ylim=(0, 102))
    right.set(ylabel="expected calibration error", ylim=(0, None))
    for axis in (left, right):
        axis.set_xlabel("timestep of the noise")
        axis.grid(axis="y")
        look.ticks_at(axis.xaxis, _apart([level.timestep for level in next(iter(levels.values()))]))
    after = {"color": look.SOFT, "marker": "o"}
    look.legend(
        figure,
        [
            *(look.key(name, **look.mark(name, i)) for i, name in enumerate(levels)),
            look.key("after temperature scaling", **look.unseen(after)),
        ],
    )
    return svg.text(figure, "classifiers")


def _apart(values: Sequence[float], least: float = 0.08) -> list[float]:
    """Those of ascending values that are further than a share of their range from the one before, and the last."""
    kept = [values[0]]
    for value in values[1:]:
        if value - kept[-1] >= least * (values[-1] - values[0]):
            kept.append(value)
    if kept[-1] != values[-1]:
        kept[-1 if len(kept) > 1 else len(kept) :] = [values[-1]]
    return kept


@styled
def rarefaction(curves: Sequence[Rarefaction], members: int) -> str:
    """Different members found against the number of images, and what more would find: an SVG.

    Args:
      curves: of the runs to show.
      members: how many there are.
    """
    figure, axes = look.panels(1, 1, 3.2)
    axis = axes[0, 0]
    highest, entries = 0.0, []
    for i, curve in enumerate(curves):
        style, name = look.mark(curve.attack, i), phrases.run_phrase(curve)
        total, last = curve.expected[-1], curve.sizes[-1]
        highest = max(highest, curve.fit.expected[-1], curve.ahead.chao)
        axis.plot(curve.fit.sizes, curve.fit.expected, color=style["color"], linestyle=(0, (3, 2)), linewidth=1.2)
        (line,) = axis.plot(curve.sizes, curve.expected, color=style["color"])
        (end,) = axis.plot([last], [total], **style)
        for artist in (line, end):
            svg.tip(artist, f"{name}: {total:,.0f} members in {last:,} images")
        if total:
            ahead = last * curve.ahead.factor
            (cross,) = axis.plot([ahead], [curve.ahead.chao], "x", color=style["color"], markersize=7)
            svg.tip(cross, f"{name}: in {ahead:,} images at least about {curve.ahead.chao:,.0f} members (Chao)")
        entries.append(look.key(name, **style))
    entries.append(look.key("fitted law, continued", color=look.SOFT, linestyle=(0, (3, 2)), linewidth=1.2))
    if highest:
        entries.append(look.key("Chao's lower bound", color=look.SOFT, marker="x", linestyle=""))
    _all_members(axis, entries, members, highest)
    last = max(curve.sizes[-1] for curve in curves)
    axis.set(xscale="log", xlabel="generated images", ylabel="different training images found")
    look.counts_on_log(axis.xaxis, last, {curve.sizes[-1] * curve.ahead.factor for curve in curves})
    look.legend(figure, entries)
    return svg.text(figure, "rarefaction")


def _all_members(axis: Any, entries: list[Any], members: int, highest: float) -> None:
    """The number of all members: a line, unless that would flatten all curves. The axis starts at 0."""
    if members > 4 * highest > 0:
        entries.append(look.key(f"all members: {members:,}, far above", linestyle="", color=look.SOFT))
    else:
        axis.axhline(members, color=look.SOFT, linestyle=":", linewidth=1.2)
        entries.append(look.key(f"all members: {members:,}", color=look.SOFT, linestyle=":", linewidth=1.2))
    axis.set_ylim(bottom=0)
    axis.grid(axis="y")
    look.whole(axis.yaxis)


@styled
def network_calls(curves: Sequence[Rarefaction], members: int) -> str:
    """Different members found against the calls of the model's network that the images took: an SVG.

    Args:
      curves: of the runs to show, each with its calls.
      members: how many there are.
    """
    figure, axes = look.panels(1, 1, 3.2)
    axis, entries = axes[0, 0], []
    for i, curve in enumerate(curves):
        calls, style = np.asarray(curve.sizes) * curve.network_calls, look.mark(curve.attack, i)
        name = phrases.run_phrase(curve)
        (line,) = axis.plot(calls, curve.expected, color=style["color"])
        (end,) = axis.plot(calls[-1:], curve.expected[-1:], **style)
        for artist in (line, end):
            svg.tip(artist, f"{name}: {curve.expected[-1]:,.0f} members for {calls[-1]:,} calls")
        entries.append(look.key(name, **style))
    axis.set(xscale="log", xlabel="calls of the model's network, in all")
    axis.set(ylabel=f"different training images found, of {members:,}", ylim=(0, None))
    axis.grid(axis="y")
    look.whole(axis.yaxis)
    totals = sorted({curve.sizes[-1] * curve.network_calls for curve in curves})
    powers = [10**k for k in range(9) if min(curve.network_calls for curve in curves) <= 10**k < totals[0] / 2]
    look.ticks_at(axis.xaxis, [*powers, *(one for k, one in enumerate(totals) if not k or one > 1.7 * totals[k - 1])])
    look.legend(figure, entries)
    return svg.text(figure, "network_calls")


@styled
def similarity(
    values: Sequence[tuple[Row, np.ndarray, np.ndarray]], metric: str, thresholds: Mapping[str, float | None]
) -> str:
    """Histograms of the nearest member's and the nearest held-out image's value, with the thresholds: an SVG.

    Args:
      values: of each run to show, with [n] to members and [n] to held-out images.
      metric: what they are.
      thresholds: by name; None is left out.
    """
    figure, axes = look.panels(1, len(values), 2.9, sharey=True)
    top = max(float(np.percentile(np.concatenate(pair), 99.5)) for _, *pair in values)
    marks = {name: at for name, at in thresholds.items() if at is not None}
    edges = np.linspace(0, max([top, *marks.values()]) * 1.02 or 1.0, 50)
    highest = 0
    for axis, (row, *pair) in zip(axes[0], values, strict=True):
        seen, unseen = (np.histogram(np.clip(one, 0, edges[-1]), edges)[0] for one in pair)
        highest = max(highest, seen.max(), unseen.max())
        axis.stairs(seen, edges, fill=True, color=look.mark(row.attack)["color"], alpha=0.55, linewidth=0)
        axis.stairs(unseen, edges, color="0.15", linewidth=1.2)
        for at, style in zip(marks.values(), ("-", (0, (3, 2))), strict=False):
            axis.axvline(at, color=look.SOFT, linestyle=style, linewidth=1)
        axis.set_title(textwrap.fill(phrases.run_phrase(row), int(110 / len(values))))
        axis.set(xlabel=f"{metric} (further left is closer)")
    axes[0, 0].set_ylabel("generated images")
    if highest > 20:
        axes[0, 0].set_yscale("symlog", linthresh=10)
        powers = [10**k for k in range(2, 9) if 10**k < 0.6 * highest]
        look.ticks_at(axes[0, 0].yaxis, [0, 5, 10, *powers, int(highest)])
    else:
        look.whole(axes[0, 0].yaxis)
    styles = zip(marks.items(), ("-", (0, (3, 2))), strict=False)
    entries = [
        plt.Rectangle((0, 0), 1, 1, color=look.SOFT, alpha=0.55, label="filled: nearest training image"),
        look.key("line: nearest unseen image (control)", color="0.15", linewidth=1.2),
        *(look.key(f"{name} below {at:.3g}", color=look.SOFT, linestyle=s, linewidth=1) for (name, at), s in styles),
    ]
    look.legend(figure, entries)
    return svg.text(figure, "similarity")


@styled
def sensitivity(controls: Sequence[Control]) -> str:
    """The share of distorted copies that each metric sees, against the strength: an SVG."""
    kinds = list(dict.fromkeys(control.distortion for control in controls if control.strength is not None))
    metrics = list(dict.fromkeys(control.metric for control in controls))
    figure, axes = look.panels(1, len(kinds), 3, sharey=True)
    levels = {control.level for control in controls}
    marks = {metric: {"color": PALETTE[i % 7], "marker": "o^sDPvX"[i % 7]} for i, metric in enumerate(metrics)}
    for axis, kind in zip(axes[0], kinds, strict=True):
        own = [one for one in controls if one.distortion == kind]
        for i, (metric, style) in enumerate(marks.items()):
            for level in sorted(levels, reverse=True):
                curve = [one for one in own if (one.metric, one.level) == (metric, level)]
                if not curve:
                    continue
                x, y = [one.strength for one in curve], [100 * one.found for one in curve]
                shape = {}
                if len(x) <= 2:  # two kinds of copies and nothing between them; points side by side
                    shape, x = {"linestyle": ""}, [one + 0.12 * (i - (len(marks) - 1) / 2) for one in x]
                look_of = look.unseen(style) if level == "calibrated" else style
                (line,) = axis.plot(x, y, **look_of | shape, clip_on=False)
                said = (f"{metric}, {kind} {one.strength:g}: {phrases.percent(one.found)}" for one in curve)
                svg.tip(line, *said)
        strengths = sorted({one.strength for one in own})
        look.ticks_at(axis.xaxis, _apart(strengths, 0.16))
        axis.set(title=kind, xlabel=own[0].unit.replace(", ", ",\n", 1), ylim=(0, 103))
        axis.grid(axis="y")
        if len(strengths) == 2:
            axis.set_xlim(strengths[0] - 0.5, strengths[1] + 0.5)
    axes[0, 0].set_ylabel("copies matched with their original, %")
    entries = [look.key(name, **style) for name, style in marks.items()]
    if "calibrated" in levels:
        entries.append(look.key("at the calibrated threshold", **look.unseen({"color": look.SOFT, "marker": "o"})))
    look.legend(figure, entries)
    return svg.text(figure, "sensitivity")


@styled
def yields(clusters: Sequence[ClusterYield], attack: str) -> str:
    """Matched images and different members of each cluster that guided, most first, MOST_CLUSTERS at most: an SVG.

    Args:
      clusters: one entry for each cluster.
      attack: that they guided.
    """
    figure, axes = look.panels(1, 1, 2.8)
    axis = axes[0, 0]
    shown = sorted(clusters, key=lambda one: (-one.matched / one.images, one.cluster))[:MOST_CLUSTERS]
    heights = [100 * one.matched / one.images for one in shown]
    bars = axis.bar(range(len(shown)), heights, width=0.7, color=look.mark(attack)["color"])
    for one, height, bar in zip(shown, heights, bars, strict=True):
        said = f"cluster {one.cluster}: {one.matched:,} of {one.images:,} images match, {one.members:,} members"
        svg.tip(bar, said)
        if one.members:
            axis.annotate(f"{one.members:,}", (bar.get_x() + 0.35, height), ha="center", va="bottom", fontsize=8)
    axis.set_xticks(range(len(shown)), [str(one.cluster) for one in shown], fontsize=8 if len(shown) < 32 else 7)
    axis.set(ylabel="images that match, %", xlabel="cluster (above its bar: different training images found)")
    axis.set_ylim(0, max([*heights, 1]) * 1.1)
    axis.margins(x=0.01)
    axis.grid(axis="y")
    return svg.text(figure, "yields")


@styled
def theorem(results: dict[str, Any]) -> bytes:
    """The divergence's difference against |D_i|, for each epsilon, and where the theorem is misread: a PNG.

    Args:
      results: of commands/closed_form.py.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    rows = [row for row in results["rows"] if row["label"] is None]
    colours = plt.get_cmap("cividis")

    def curve(axis: Any, own: list[dict[str, Any]], place: float, **style: Any) -> None:
        x, y, bar = np.asarray([[row[key] for key in ("size", "difference", "deviation")] for row in own]).T
        axis.errorbar(x * 1.04**place, y, bar, marker="o", markersize=4, capsize=2, **style)  # side by side

    epsilons = results["settings"]["epsilons"]
    for i, epsilon in enumerate(epsilons):
        own = [row for row in rows if row["case"] == "informative" and row["epsilon"] == epsilon]
        colour = colours(0.9 * i / max(1, len(epsilons) - 1))
        curve(
            axes[0], own, i - (len(epsilons) - 1) / 2, color=colour, linewidth=0, elinewidth=1.2, label=f"{epsilon:g}"
        )
        axes[0].axhline(own[0]["limit_at_epsilon"], color=colour, linestyle=":", linewidth=1)
    limit, entropy = results["limits"]["mean"], results["entropy"]
    axes[0].axhline(limit, color=PALETTE[1], label=f"limit, {limit:.3f}")
    axes[0].set_title("informative labels, models $p_i$ and $p$")
    shown = (
        ("fitted", "random labels, models fitted to $D_i$ and to $D$", PALETTE[0]),
        ("held", "informative labels, models that hold their images", PALETTE[4]),
        ("held_random", "random labels, models that hold their images", PALETTE[3]),
    )
    for i, (case, label, colour) in enumerate(shown):
        curve(axes[1], [row for row in rows if row["case"] == case], i - 1, color=colour, linewidth=0.8, label=label)
    axes[1].axhline(0, color="0.5", linewidth=0.8, label="the theorem's limit for random labels, 0")
    axes[1].axhline(limit, color=PALETTE[1], label=f"its limit for informative labels, {limit:.3f}")
    axes[1].axhline(-entropy, color="0.3", linestyle="--", label=f"minus the labels' entropy, {-entropy:.3f}")
    axes[1].set_title("what the theorem does not say")
    for axis in axes:
        axis.set(xscale="log", xlabel="$|D_i|$ (bars: deviation of one data set)")
        look.ticks_at(axis.xaxis, sorted({row["size"] for row in rows}))
    axes[0].set_ylabel("difference of divergences, nats")
    columns = {"fontsize": 8, "title_fontsize": 8, "ncols": 3}
    own = r"left, by $\epsilon$ (dotted: its own limit)"
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", title=own, **columns | {"ncols": 6})
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside upper left", title="right", **columns)
    return _png(figure)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # No software version or date inside the file: the same results give the same bytes.
    figure.savefig(buffer, dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
