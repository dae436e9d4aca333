"""The report's figures: nothing lies on the data or is cut off, one colour an attack, ticks as numbers, true titles."""

import itertools
from collections import Counter
from xml.etree import ElementTree

import made_results
import matplotlib.pyplot as plt
import numpy as np
import pytest

from side_jax.attacks.table import ATTACKS, GREY, PALETTE
from side_jax.measure.records import Ahead, Fit, NoiseLevel
from side_jax.report import figures, look, plots, svg
from side_jax.report.page import model

SVG = "{http://www.w3.org/2000/svg}"
SCALES = (0.5, 3.0, 10.0, 100.0)


def row(attack, scale=0.0, **changes):
    low = changes.get("ams", 0.0)
    own = {"ams_ci": (0.8 * low, min(1.0, 1.2 * low + 0.01)), "heldout_ams_ci": (0.0, 0.01), "n_generated": 1024}
    return made_results.row(attack, scale, **own | changes)


def curve(attack, scale=0.0, found=30.0, last=1024, **changes):
    sizes = (*(size for size in (1, 4, 20, 300) if size < last), last)
    expected = tuple(found * size / last for size in sizes)
    fit = Fit(a=1.0, b=2.0, sizes=(*sizes, 10 * last), expected=(*expected, 1.5 * found))
    ahead = Ahead(
        factor=10, fit=1.5 * found, chao=1.2 * found, good_toulmin=made_results.rarefaction(attack).ahead.good_toulmin
    )
    changes = {"sizes": sizes, "expected": expected, "fit": fit, "ahead": ahead, "network_calls": 20} | changes
    return made_results.rarefaction(attack, scale, **changes)


ROWS = [row(name, scale, ams=0.01 * k, unique=k) for k, name in enumerate(ATTACKS) for scale in SCALES[:: 2 - k % 2]]
FIRST = [row("modes", ams=0.2), row("side", 10.0, ams=0.02), row("conditional_x0", 3.0, ams=0.02)]
FIRST += [row("unconditional", ams=0.0), row("side_random", 10.0), row("conditional_model", 10.0, ams=0.3)]
CURVES = [curve(one.attack, one.guidance_scale, 3 + 0.2 * k) for k, one in enumerate(FIRST)]
CONTROLS = [
    made_results.control(kind, strength, metric=metric, level=level, found=0.5, unit=unit)
    for kind, unit, strengths in (
        ("noise", "standard deviation, pixels in [-1, 1]", (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)),
        ("flip", "0 or 1", (0.0, 1.0)),
        ("recompression", "100 minus JPEG's quality", (5.0, 10.0, 25.0, 50.0, 75.0, 90.0)),
    )
    for strength in strengths
    for metric in ("normalized_l2", "rmse", "distance_ratio")
    for level in ("high", "calibrated")
]
STEPS = [{"step": 100 * k, "loss": 0.3 / k, "loss_by_timestep": [0.9 / k, 0.2 / k, 0.003 / k]} for k in range(1, 12)]
WATCHED = [
    {"step": 500 * k}
    | {key: 0.01 * k for key, *_ in plots._WATCHED}
    | {f"{key}_ci": [0.0, 0.02 * k] for key, *_ in plots._WATCHED}
    for k in range(1, 5)
]
LEVELS = [
    NoiseLevel(
        timestep=t,
        accuracy=0.5,
        loss=1.0,
        temperature=1.0,
        accuracy_ci=(0.4, 0.6),
        ece=0.1,
        ece_scaled=None if t else 0.2,
    )
    for t in (0, 100, 200, 999)
]
NEAR = np.random.default_rng(0).uniform(0.2, 2, (3, 2, 5000))
CLUSTERS = [plots.ClusterYield(cluster=k, images=20, matched=k % 7, members=k % 7) for k in range(300)]
DRAWN = {
    "opening": lambda: plots.opening(FIRST, [*CURVES[:-1], None], 64),
    "opening of little": lambda: plots.opening(
        FIRST, [curve("modes"), *(curve(r.attack, found=0.01) for r in FIRST[1:])], 64
    ),
    "opening of one": lambda: plots.opening(FIRST[:1], [curve("modes", last=20)], 64),
    "guidance": lambda: plots.guidance(ROWS),
    "rarefaction": lambda: plots.rarefaction(CURVES, 64),
    "rarefaction far below": lambda: plots.rarefaction(CURVES[:1], 50_000),
    "rarefaction of nothing": lambda: plots.rarefaction([curve("modes", found=0.0, last=1000)], 64),
    "network_calls": lambda: plots.network_calls([*CURVES[:-1], curve("modes", network_calls=400)], 64),
    "network_calls of four": lambda: plots.network_calls(
        [curve(r.attack, r.guidance_scale) for r in (FIRST[0], FIRST[1], FIRST[3], FIRST[4])], 64
    ),
    "similarity": lambda: plots.similarity(
        [(one, *pair) for one, pair in zip(FIRST, NEAR, strict=False)], "rmse", {"match": 0.8, "calibrated": None}
    ),
    "similarity of few": lambda: plots.similarity(
        [(FIRST[0], NEAR[0, 0, :5], NEAR[0, 1, :5])], "rmse", {"match": 0.8, "calibrated": 1.2}
    ),
    "sensitivity": lambda: plots.sensitivity(CONTROLS),
    "yields": lambda: plots.yields(CLUSTERS, "side"),
    "training": lambda: plots.training(STEPS, []),
    "training with the monitor": lambda: plots.training(STEPS, WATCHED),
    "classifiers": lambda: plots.noise_levels(
        {"side": LEVELS, "conditional": LEVELS}, {"side": 0.1, "conditional": 0.2}
    ),
}


@pytest.fixture(params=DRAWN)
def figure(request, monkeypatch):
    """Each figure as matplotlib has it, drawn once, so that everything has its place."""
    kept = []
    monkeypatch.setattr(svg, "text", lambda one, name: kept.append(one) or "")
    DRAWN[request.param]()
    kept[0].canvas.draw()
    yield kept[0]
    plt.close(kept[0])


def ticks(axis):
    """The labels of an axis that are drawn: matplotlib keeps others, which lie outside of what is seen."""
    low, high = sorted(axis.get_view_interval())
    return [one.label1 for one in axis.get_major_ticks() if low - 1e-9 <= one.get_loc() <= high * (1 + 1e-9) + 1e-9]


def texts(figure):
    axes = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    hidden = {one for axis in axes for one in axis.get_ticklabels(which="both")} - {
        one for axis in axes for one in ticks(axis)
    }
    return [
        one for one in figure.findobj(plt.Text) if one.get_visible() and one.get_text().strip() and one not in hidden
    ]


def box_of(text):
    return plt.Text.get_window_extent(text)  # of the letters alone, without an arrow


def test_no_legend_lies_on_the_axes(figure):
    for legend in [*figure.legends, *(axis.get_legend() for axis in figure.axes if axis.get_legend())]:
        box = legend.get_window_extent()
        assert [axis for axis in figure.axes if box.overlaps(axis.get_window_extent())] == []
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1


def test_every_text_can_be_read_and_none_is_cut_off(figure):
    for one in texts(figure):
        assert one.get_fontsize() >= 7, one
        box = box_of(one)
        assert box.x0 >= -1, one
        assert box.y0 >= -1, one
        assert box.x1 <= figure.bbox.x1 + 1, one
        assert box.y1 <= figure.bbox.y1 + 1, one
    assert figure.get_size_inches()[0] == look.WIDTH
    assert all(line.get_linewidth() >= 1 for axis in figure.axes for line in axis.lines)


def test_no_two_labels_overlap(figure):
    """Ticks of one axis, and the names of curves."""
    for axis in figure.axes:
        names = [one for one in axis.texts if one.arrow_patch]
        assert all(box_of(one).y0 > axis.get_window_extent().y0 - 9 for one in names)
        for labels in (ticks(axis.xaxis), ticks(axis.yaxis), names):
            boxes = [box_of(one).padded(-0.5) for one in labels if one.get_text() and one.get_visible()]
            assert [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])] == []


def test_ticks_are_numbers_as_they_are(figure):
    said = [one.get_text() for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for one in ticks(axis)]
    assert len(said) > 4
    assert not [one for one in said if "$" in one or "^" in one or "e+" in one or "e-" in one]


def test_ticks_of_counts_are_at_the_counts(monkeypatch):
    kept = []
    monkeypatch.setattr(svg, "text", lambda one, name: kept.append(one) or "")
    for last, ticks in (
        (1024, ["1", "4", "16", "64", "256", "1,024", "10,240"]),
        (900, ["1", "10", "100", "900", "9,000"]),
    ):
        plots.rarefaction([curve("modes", last=last)], 64)
        axis = kept[-1].axes[0]
        assert [one.get_text() for one in axis.get_xticklabels()] == ticks
    plots.network_calls([curve("modes"), curve("side", network_calls=10)], 64)
    kept[-1].canvas.draw()
    assert [one.get_text() for one in kept[-1].axes[0].get_xticklabels()] == ["10", "100", "1,000", "10,240", "20,480"]
    plots.guidance(ROWS)
    for axis in kept[-1].axes:
        assert [one.get_text() for one in axis.get_xticklabels()] == ["0.5", "3", "10", "100"]


def test_categories_are_no_curves(monkeypatch):
    """Attacks, clusters, and copies of two kinds: no line joins their points."""
    kept = []
    monkeypatch.setattr(svg, "text", lambda one, name: kept.append(one) or "")
    plots.opening(FIRST, CURVES, 64)
    plots.sensitivity(CONTROLS)
    for axis in (kept[0].axes[0], kept[1].axes[1]):
        assert axis.lines
        assert {line.get_linestyle() for line in axis.lines} == {"None"}


def test_each_attack_has_a_colour_and_a_mark_of_its_own():
    looks = [(one.colour, one.marker) for one in ATTACKS.values()]
    assert set(Counter(looks).values()) == {1}
    assert {colour for colour, _ in looks} <= {*PALETTE, GREY}


@pytest.mark.parametrize("name", DRAWN)
def test_drawings_are_the_same_each_time_and_may_stand_in_a_page(name):
    text = DRAWN[name]()
    assert text == DRAWN[name]()
    assert len(text) < 150_000
    model.Drawing(svg=text)  # no style, script, or link
    root = ElementTree.fromstring(text)
    assert root.get("viewBox").startswith("0 0 648 ")
    ids = [one.get("id") for one in root.iter() if one.get("id")]
    used = [one.get("href")[1:] for one in root.iter() if one.get("href")]
    used += [one.get("clip-path")[5:-1] for one in root.iter() if one.get("clip-path")]
    assert set(used) == set(ids)
    assert len(set(ids)) == len(ids)
    prefix = name.partition(" ")[0]
    assert all(one.startswith(f"{prefix}_") for one in ids)


def titles(text):
    return [one.text for one in ElementTree.fromstring(text).iter(f"{SVG}title")]


def test_points_say_what_they_are():
    sides = {"ams": 0.125, "ams_ci": (0.1, 0.15), "ams_at_most": None, "heldout_ams_at_most": 0.003}
    rows = [row("side", 10.0, **sides)]
    found = titles(plots.opening(rows, [curve("side", 10.0, found=13.0)], 64))
    side = "SIDE at guidance scale 10: "
    assert set(found) == {
        f"{side}12.50% (10.00% to 15.00%) of 1,024 images match a training image",
        f"{side}0 (at most 0.30%) of 1,024 images match an unseen image",
        "SIDE: 13 training images found in 1,024 images",
    }
    assert titles(plots.guidance(rows)).count(f"{side}0 unseen images") == 1
    said = titles(plots.yields(CLUSTERS[:3], "side"))
    assert said == [f"cluster {k}: {k} of 20 images match, {k} members" for k in (2, 1, 0)]
    said = titles(plots.sensitivity(CONTROLS))
    assert "rmse, noise 0.05: 50.00%" in said
    assert len(said) == len(CONTROLS)


def test_a_text_for_each_point_or_none():
    figure, axis = plt.subplots()
    svg.tip(axis.plot([1, 2, 3], [1, 2, 3], marker="o")[0], "one", "two")
    with pytest.raises(ValueError, match="a text for each point, got 2"):
        svg.text(figure, "wrong")


def test_what_a_text_says_is_no_markup():
    figure, axis = plt.subplots()
    svg.tip(axis.plot([1], [1], marker="o")[0], "<script>alert('1 & 2')</script>")
    axis.set_title("--><script>")
    text = svg.text(figure, "hostile")
    assert "<script" not in text
    assert titles(text) == ["<script>alert('1 & 2')</script>"]


@pytest.mark.parametrize(
    ("rows", "heading"),
    [
        (
            [row("unconditional", ams=0.01, ams_ci=(0.0, 0.02)), row("side", 3.0, ams=0.1, ams_ci=(0.05, 0.2))],
            "SIDE at guidance scale 3 raises the share of images that match from 1.00% to 10.00%",
        ),
        (
            [row("unconditional", ams=0.01, ams_ci=(0.0, 0.06)), row("side", 3.0, ams=0.1, ams_ci=(0.05, 0.2))],
            "Guidance changes little: 10.00% of the images match at best, 1.00% of plain sampling",
        ),
        (
            [row("unconditional", ams=0.5, ams_ci=(0.4, 0.6)), row("side", 3.0, ams=0.1, ams_ci=(0.05, 0.2))],
            "No guidance helps: 10.00% of the images match at best, 50.00% of plain sampling",
        ),
        (
            [
                row("side_random", 3.0, ams=0.9),  # a control is no attack
                row("modes", 3.0, ams=0.9, start="side", noise_level=0.1, rounds=5),  # and this is not guided itself
                row("side", 3.0, ams=0.1),
                row("unconditional", ams=0.09, ams_ci=(0.0, 0.5)),
            ],
            "Guidance changes little: 10.00% of the images match at best, 9.00% of plain sampling",
        ),
        ([row("side", 3.0, ams=0.1)], "SIDE at guidance scale 3: 10.00% of the images match"),
    ],
)
def test_the_title_of_guidance_says_no_more_than_its_numbers(rows, heading):
    assert figures._guidance_heading(rows) == heading


def test_titles_by_hand():
    results = made_results.results(FIRST[:2], dataset=made_results.dataset(members=64))
    own = [curve("modes", found=40.0, network_calls=40), curve("unconditional", found=8.0)]
    heading = "Mode seeking finds 40 of 64 members in 1,024 images, and about 48 or more in 10,240"
    assert figures._rarefaction(results, own).heading == heading
    assert figures._rarefaction(results, [curve("side", found=0.0)]).heading == "No member is found in 1,024 images"
    calls = "For 20,480 calls of the network mode seeking finds 20 members, plain sampling 8"
    assert figures._network_calls(results, own).heading == calls
    copies = [made_results.control("noise", at, found=found) for at, found in ((0.0, 1.0), (0.1, 0.5), (0.2, 0.4))]
    seen = f"{copies[0].metric} recognises most copies in 1 of 2 kinds and strengths of change"
    assert figures._sensitivity(copies).heading == seen
