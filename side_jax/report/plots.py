"""Figures for the report, drawn by matplotlib."""

import dataclasses
import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from side_jax.attacks.table import ATTACKS, PLAIN, get_attack
from side_jax.measure.records import Control, NoiseLevel, Rarefaction, Row
from side_jax.report import phrases
from side_jax.report.contact_sheet import visible

DPI = 200  # sharp on screens of two pixels a point
_COLOURS = {name: attack.colour for name, attack in ATTACKS.items()}
_BY_SCALE = {name: attack.colour for name, attack in ATTACKS.items() if attack.guided or name == PLAIN.name}


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


MEMBER, UNSEEN = "#d55e00", "#0072b2"  # of Okabe and Ito's palette, which people with any colour vision tell apart


def opening(rows: Sequence[Row], curves: Sequence[Rarefaction | None], members: int) -> bytes:
    """The share of images that match a member and a held-out image, with intervals; members against images: an SVG.

    Args:
      rows: of one metric and band, one for each run to show.
      curves: of the same runs.
      members: how many there are.
    """
    names = [textwrap.fill(phrases.run_phrase(row), 30) for row in rows]
    height = 1.3 + 0.62 * len(rows)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, max(3.2, height)), layout="constrained", width_ratios=(3, 2)
    )
    at = np.arange(len(rows))
    sides = (("training images", MEMBER, "o", -0.13), ("unseen images (control)", UNSEEN, "s", 0.13))
    for (label, colour, marker, shift), prefix in zip(sides, ("", "heldout_"), strict=True):
        shares = 100 * np.asarray([getattr(row, f"{prefix}ams") for row in rows])
        ends = 100 * np.asarray([getattr(row, f"{prefix}ams_ci") for row in rows])
        bars = np.abs(ends.T - shares)
        left.errorbar(shares, at + shift, xerr=bars, fmt=marker, color=colour, capsize=3, label=label, markersize=6)
    left.set_yticks(at, names, fontsize=9)
    left.invert_yaxis()
    left.set_xlim(left=0)
    left.set(xlabel="images that match, %")
    left.grid(axis="x", color="0.9")
    left.set_axisbelow(True)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    for row, curve, style in zip(rows, curves, itertools.cycle(("-", "--", ":", "-.")), strict=False):
        if curve is None:
            continue
        colour = "0.55" if get_attack(row.attack).control else MEMBER
        right.plot(curve.sizes, curve.expected, style, color=colour, linewidth=2)
        right.annotate(
            get_attack(row.attack).phrase,
            (curve.sizes[-1], curve.expected[-1]),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color="0.25",
        )
    right.margins(x=0.45)
    right.set_xlim(left=0)
    right.set_ylim(bottom=0)
    right.set(xlabel="images drawn", ylabel=f"training images found, of {members:,}")
    right.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def guidance(rows: Sequence[Row]) -> bytes:
    """AMS and extracted members against the guidance scale, with the held-out control dashed: a PNG.

    Args:
      rows: all of one metric and band.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for attack, colour in _BY_SCALE.items():
        runs = sorted((row for row in rows if row.attack == attack), key=lambda row: row.guidance_scale)
        if not runs:
            continue
        x = [row.guidance_scale for row in runs]
        matched = [100 * row.ams for row in runs], [100 * row.heldout_ams for row in runs]
        extracted = [row.unique for row in runs], [row.heldout_unique for row in runs]
        for axis, (y, control) in zip(axes, (matched, extracted), strict=True):
            if attack == PLAIN.name:
                axis.axhline(y[0], color=colour, label=attack)
                axis.axhline(control[0], color=colour, linestyle="--")
                continue
            axis.plot(x, y, color=colour, marker="o", label=attack)
            axis.plot(x, control, color=colour, marker=".", linestyle="--")
        if attack != PLAIN.name:
            low, high = ([100 * row.ams_ci[i] for row in runs] for i in (0, 1))
            axes[0].fill_between(x, low, high, color=colour, alpha=0.15)
    axes[0].set_ylabel("matched images (AMS), %")
    axes[1].set_ylabel("different members extracted")
    for axis in axes:
        axis.set_xlabel("guidance scale (dashed: held-out control)")
        axis.set_xscale("symlog", linthresh=1)
        axis.set_ylim(bottom=0)
        axis.legend()
    return _png(figure)


def training(metrics: list[dict[str, Any]], watched: list[dict[str, Any]]) -> bytes:
    """The loss, its profile over timesteps, and what the monitor saw, against the step: a PNG.

    Args:
      metrics: rows of train/metrics.jsonl.
      watched: rows of train/monitor.jsonl; may be empty.
    """
    figure, axes = plt.subplots(1, 5 if watched else 2, figsize=(17 if watched else 8, 3.2), layout="constrained")
    step = [row["step"] for row in metrics]
    axes[0].plot(step, [row["loss"] for row in metrics], color="0.3")
    axes[0].set_title("loss")
    profile = np.asarray([row["loss_by_timestep"] for row in metrics], float)
    for i, values in enumerate(profile.T):
        axes[1].plot(step, values, color=plt.get_cmap("viridis")(i / len(profile.T)))
    axes[1].set_title("loss by timestep: dark is least noisy")
    axes[0].set_yscale("log")
    axes[1].set_yscale("log")
    if watched:
        step = [row["step"] for row in watched]
        curves = (
            (axes[2], "matched", "tab:red", "members"),
            (axes[2], "modes_matched", "tab:brown", "members, at modes"),
            (axes[2], "modes_matched_heldout", "tab:brown", "held-out"),
            (axes[3], "copied", "tab:red", "members"),
            (axes[3], "copied_heldout", "tab:red", "held-out"),
            (axes[3], "modes_copied", "tab:brown", "members, at modes"),
            (axes[4], "closer", "tab:blue", "samples"),
        )
        for axis, key, colour, label in (one for one in curves if one[1] in watched[-1]):
            style = "--" if label == "held-out" else "-"
            axis.plot(step, [100 * row[key] for row in watched], style, color=colour, marker=".", label=label)
            low, high = ([100 * row[f"{key}_ci"][i] for row in watched] for i in (0, 1))
            axis.fill_between(step, low, high, color=colour, alpha=0.12)
        chance = 100 * watched[-1].get("closer_chance", 0.5)  # earlier versions compared equal numbers
        axes[4].axhline(chance, color="0.5", linestyle=":", label="chance")
        for axis, title in zip(
            axes[2:], ("samples that match, %", "with d1 / d2 < 1/3, %", "closer to members, %"), strict=True
        ):
            axis.set_title(title)
            axis.legend(*axis.get_legend_handles_labels())
    for axis in axes:
        axis.set_xlabel("step")
    return _png(figure)


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
            spine.set(color="tab:red" if hit else "0.8", linewidth=2 if hit else 0.8)
    return _png(figure)


def noise_levels(levels: Mapping[str, Sequence[NoiseLevel]], chance: Mapping[str, float]) -> bytes:
    """Accuracy and calibration of classifiers against the timestep of the noise on their input: a PNG.

    Args:
      levels: of each classifier.
      chance: the accuracy that is chance, in [0, 1], for each classifier.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for i, (name, curve) in enumerate(levels.items()):
        colour = _COLOURS.get(name, f"C{i}")
        t = [level.timestep for level in curve]
        low, high = 100 * np.asarray([level.accuracy_ci for level in curve]).T
        # An error that could not be scored (None) becomes NaN, which is not drawn.
        scaled = np.asarray([level.ece_scaled for level in curve], float)
        axes[0].plot(t, [100 * level.accuracy for level in curve], color=colour, marker=".", label=name)
        axes[0].fill_between(t, low, high, color=colour, alpha=0.15)
        axes[0].axhline(100 * chance[name], color=colour, linestyle=":")
        axes[1].plot(t, [level.ece for level in curve], color=colour, marker=".", label=name)
        axes[1].plot(t, scaled, color=colour, marker=".", linestyle="--")
    axes[0].set(xlabel="timestep (dotted: chance)", ylabel="accuracy, %", ylim=(0, 102))
    axes[1].set(xlabel="timestep (dashed: after temperature scaling)", ylabel="expected calibration error")
    axes[1].set_ylim(bottom=0)
    for axis in axes:
        axis.legend()
    return _png(figure)


def rarefaction(curves: Mapping[str, Rarefaction], members: int) -> bytes:
    """Different members found against the number of images, and what more would find: a PNG.

    Args:
      curves: of the runs to show, by their titles.
      members: how many there are.
    """
    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    highest = 0.0
    for i, (title, curve) in enumerate(curves.items()):
        colour = _COLOURS.get(curve.attack, f"C{i}")
        total, last = curve.expected[-1], curve.sizes[-1]
        highest = max(highest, curve.fit.expected[-1], curve.ahead.chao)
        axes.plot(curve.fit.sizes, curve.fit.expected, color=colour, linestyle="--", linewidth=1)
        axes.plot(curve.sizes, curve.expected, color=colour, label=title, linewidth=2.2)
        axes.plot([last], [total], "o", color=colour)
        if total:
            axes.plot([last * curve.ahead.factor], [curve.ahead.chao], "x", color=colour)
    if members > 4 * highest > 0:  # the line would flatten all curves
        axes.plot([], [], " ", label=f"all members: {members:,}, far above")
    else:
        axes.axhline(members, color="0.6", linestyle=":", label=f"all members: {members:,}")
    axes.set(
        xscale="log", xlabel="generated images (dashed: the fitted law; crosses: Chao's bound)", ylabel="members found"
    )
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return _png(figure)


def network_calls(curves: Mapping[str, Rarefaction], members: int) -> bytes:
    """Different members found against the calls of the model's network that the images took: a PNG.

    Args:
      curves: of the runs to show, by their titles; each with its calls.
      members: how many there are.
    """
    figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
    for i, (title, curve) in enumerate(curves.items()):
        colour, calls = _COLOURS.get(curve.attack, f"C{i}"), np.asarray(curve.sizes) * curve.network_calls
        axes.plot(calls, curve.expected, color=colour, label=title, linewidth=2.2)
        axes.plot(calls[-1:], curve.expected[-1:], "o", color=colour)
    axes.set(xscale="log", xlabel="calls of the model's network, in all", ylabel=f"members found, of {members:,}")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return _png(figure)


def similarity(
    values: dict[str, tuple[np.ndarray, np.ndarray]], metric: str, thresholds: dict[str, float | None]
) -> bytes:
    """Histograms of the nearest member's and the nearest held-out image's value, with the thresholds: a PNG.

    Args:
      values: of each run to show, ([n] to members, [n] to held-out images).
      metric: what they are.
      thresholds: by name; None is left out.
    """
    size = (4.4 * len(values) + 2.2, 3.4)
    figure, axes = plt.subplots(1, len(values), figsize=size, layout="constrained", squeeze=False)
    top = max(float(np.percentile(np.concatenate(pair), 99.5)) for pair in values.values())
    marks = {name: at for name, at in thresholds.items() if at is not None}
    edges = np.linspace(0, max([top, *marks.values()]) * 1.02 or 1.0, 60)
    for axis, (name, (members, heldout)) in zip(axes[0], values.items(), strict=True):
        shown = ((members, "tab:red", "nearest member"), (heldout, "tab:blue", "nearest held-out image"))
        highest = 0
        for distances, colour, label in shown:
            counts, *_ = axis.hist(np.clip(distances, 0, edges[-1]), edges, color=colour, alpha=0.45, label=label)
            highest = max(highest, counts.max())
        for (label, at), style in zip(marks.items(), ("-", "--"), strict=False):
            axis.axvline(at, color="0.1", linestyle=style, linewidth=1, label=f"{label}: {at:.3g}")
        axis.set(title=name, xlabel=f"{metric}: closer is further left", ylabel="generated images")
        if highest > 20:
            axis.set_yscale("symlog", linthresh=10)
            axis.yaxis.set_major_formatter(ticker.ScalarFormatter())
        else:
            axis.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    figure.legend(*axes[0][-1].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return _png(figure)


def sensitivity(controls: Sequence[Control]) -> bytes:
    """The share of distorted copies that each metric sees, against the strength: a PNG."""
    kinds = list(dict.fromkeys(control.distortion for control in controls if control.strength is not None))
    metrics = list(dict.fromkeys(control.metric for control in controls))
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.6 * len(kinds), 3.4), layout="constrained", sharey=True)
    for axis, kind in zip(np.atleast_1d(axes), kinds, strict=True):
        for i, metric in enumerate(metrics):
            for level, style in (("high", "-"), ("calibrated", ":")):
                curve = [one for one in controls if (one.distortion, one.metric, one.level) == (kind, metric, level)]
                if curve:
                    x, y = [one.strength for one in curve], [100 * one.found for one in curve]
                    label = metric + (" (calibrated)" if level == "calibrated" else "")
                    axis.plot(x, y, style, color=f"C{i}", marker=".", label=label)
        unit = next(control.unit for control in controls if control.distortion == kind)
        axis.set(title=kind, xlabel=unit, ylim=(-3, 103))
    figure.axes[0].set_ylabel("copies matched with their original, %")
    figure.legend(*figure.axes[-1].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return _png(figure)


def yields(clusters: Sequence[ClusterYield], name: str) -> bytes:
    """Matched images and different members of each cluster that guided, most first: a PNG.

    Args:
      clusters: one entry for each cluster.
      name: of the run.
    """
    figure, axis = plt.subplots(figsize=(9, 3.2), layout="constrained")
    ordered = sorted(clusters, key=lambda one: (-one.matched / one.images, one.cluster))
    at = np.arange(len(ordered))
    heights = [100 * one.matched / one.images for one in ordered]
    axis.bar(at, heights, color="tab:blue")
    axis.set(ylabel="matched images, %", xlabel="cluster (above its bar: different members)", title=name, xticks=at)
    axis.set_xticklabels([str(one.cluster) for one in ordered], fontsize=6, rotation=90)
    for i, (one, height) in enumerate(zip(ordered, heights, strict=True)):
        if one.members:
            axis.annotate(str(one.members), (i, height), ha="center", va="bottom", fontsize=6)
    return _png(figure)


def theorem(results: dict[str, Any]) -> bytes:
    """The divergence's difference against |D_i|, for each epsilon, and where the theorem is misread: a PNG.

    Args:
      results: of commands/closed_form.py.
    """
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    rows = [row for row in results["rows"] if row["label"] is None]
    colours = plt.get_cmap("viridis")

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
    axes[0].axhline(limit, color="tab:red", label=f"limit, {limit:.3f}")
    axes[0].set_title("informative labels, models $p_i$ and $p$")
    shown = (
        ("fitted", "random labels, models fitted to $D_i$ and to $D$", "tab:blue"),
        ("held", "informative labels, models that hold their images", "tab:orange"),
        ("held_random", "random labels, models that hold their images", "tab:purple"),
    )
    for i, (case, label, colour) in enumerate(shown):
        curve(axes[1], [row for row in rows if row["case"] == case], i - 1, color=colour, linewidth=0.8, label=label)
    axes[1].axhline(0, color="0.5", linewidth=0.8, label="the theorem's limit for random labels, 0")
    axes[1].axhline(limit, color="tab:red", label=f"its limit for informative labels, {limit:.3f}")
    axes[1].axhline(-entropy, color="0.3", linestyle="--", label=f"minus the labels' entropy, {-entropy:.3f}")
    axes[1].set_title("what the theorem does not say")
    for axis in axes:
        axis.set(xscale="log", xlabel="$|D_i|$ (bars: deviation of one data set)")
    axes[0].set_ylabel("difference of divergences, nats")
    axes[0].legend(fontsize=8, title=r"$\epsilon$ (dotted: its own limit)", title_fontsize=8)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.suptitle(results["settings"]["name"], fontsize=10)
    return _png(figure)


def _svg(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # Letters are drawn as paths, so that they look the same everywhere; no date, and names that do not change.
    with plt.rc_context({"svg.fonttype": "path", "svg.hashsalt": "side_jax"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    return buffer.getvalue()


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # No software version or date inside the file: the same results give the same bytes.
    figure.savefig(buffer, dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
