"""The page's tables, figures and pictures from made-up results in which no two numbers are equal."""

import base64
import dataclasses
import io
import re
from pathlib import Path

import made_results
import numpy as np
import pytest
from msgspec import structs
from PIL import Image

from side_jax.data.sides import Side
from side_jax.measure import positive_control
from side_jax.measure.records import Ahead, Chao1, Fit, GoodToulmin, Membership, Run
from side_jax.memorization.matching import Matches
from side_jax.report import convincing, defences, findings, matches, plots, terms
from side_jax.report.figures import ClusterYield, Drawn, figures, opening, yields
from side_jax.report.gallery import gallery, sheet
from side_jax.report.tables import explanation, tables
from side_jax.report.writer import Audit, write
from side_jax.settings import Report

RUNS = (("unconditional", 0.0), ("side", 1.0), ("side", 10.0), ("side_random", 10.0))
LEVELS = {"high": (0.0, 0.8), "mid": (0.8, 1.0), "high to mid": (0.0, 1.0), "calibrated": (0.0, 0.6789)}
METRICS = ("normalized_l2", "rmse")


class Distinct:
    """Rates that are all different, and whose percentages differ in the two decimals shown."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        return self.count / 2048

    def interval(self):
        return self(), self()


def row(draw, attack, scale, metric, level):
    changes = {}
    for side in ("", "heldout_"):
        changes |= {f"{side}{name}": draw() for name in ("ams", "ums", "ums_nearest")}
        changes |= {f"{side}{name}_ci": draw.interval() for name in ("ams", "ums", "ums_nearest")}
        changes |= {f"{side}ams_at_most": None, f"{side}unique": 3000 + draw.count}
    changes |= {"excess": draw(), "excess_ci": draw.interval(), "p_excess": draw()}
    if attack != "unconditional":
        changes |= {"p_more_images": draw(), "p_more_members": draw()}
    if level == "calibrated":
        changes |= {"false_match_rate": 0.02, "false_match_measured": 0.1}
        changes["false_match_measured_ci"] = draw.interval()
    return made_results.row(attack, scale, metric=metric, level=level, band=LEVELS[level], n_generated=1234, **changes)


def rarefaction(draw, attack, scale):
    return made_results.rarefaction(
        attack,
        scale,
        sizes=(1, 20, 4000 + draw.count),
        expected=(0.5, 5.0, 100.0 + draw.count),
        fit=Fit(a=1.0, b=2.0, sizes=(1, 20, 40000), expected=(0.5, 5.5, 200.0 + draw.count)),
        chao1=Chao1(low=300.25 + draw.count, estimate=400.25 + draw.count, high=500.25 + draw.count),
        ahead=Ahead(
            factor=10,
            fit=600 + 100 * draw(),
            chao=700 + 100 * draw(),
            good_toulmin=GoodToulmin(expected=800 + 100 * draw(), smoothed=True, valid=attack == "side"),
        ),
    )


DISTANCES = (
    *("auth_pct", "auth_pct_heldout", "fld_gap"),
    *("frechet_members", "frechet_heldout", "frechet_members_heldout"),
)


@pytest.fixture
def results():
    draw = Distinct()
    distributions = [
        made_results.distribution(
            *run,
            **{name: 1000 * draw() for name in DISTANCES},
            c_t=-1000 * draw() if run[0] == "side" else None,
        )
        for run in RUNS
    ]
    at = (
        made_results.operating(0.01, note="it needs 99 images"),
        made_results.operating(0.1, true_positive_rate=draw(), true_positive_rate_ci=draw.interval(), called_heldout=3),
    )
    pia = made_results.quality(at, auc=draw(), auc_ci=draw.interval())
    rows = [row(draw, *run, metric, level) for run in RUNS for metric in METRICS for level in LEVELS]
    return made_results.results(
        rows,
        rarefaction=tuple(rarefaction(draw, *run) for run in RUNS),
        distribution=tuple(distributions),
        thresholds={name: made_results.threshold(below=0.6789, matched=k) for k, name in enumerate(METRICS, start=7)},
        membership=Membership(timestep=77, secmi_stride=5, pia=pia),
        controls=tuple(
            made_results.control(d, s, metric=m, level=level, found=draw())
            for d, s in (("held-out images", None), ("noise", 0.0), ("noise", 0.4), ("flip", 1.0))
            for m in METRICS
            for level in ("high", "calibrated")
        ),
    )


def alone(results):
    """The same of samples alone, without a guidance scale."""
    sections = {
        name: tuple(
            structs.replace(one, attack="samples") for one in getattr(results, name) if one.attack == "unconditional"
        )
        for name in ("rows", "rarefaction", "distribution")
    }
    return structs.replace(results, membership=None, **sections)


def keep(results, test):
    """Only some of the rows."""
    return structs.replace(results, rows=tuple(one for one in results.rows if test(one)))


def table(results, caption):
    (found,) = (one for one in tables(results) if one.caption == caption)
    return found


def column(of, label):
    """The cells under a label."""
    (i,) = (i for i, one in enumerate(of.columns) if one.label == label)
    return [cells[i] for cells in of.rows]


def texts(of, label):
    return [cell.text for cell in column(of, label)]


def rows_of(results, metric, level):
    return [one for one in results.rows if (one.metric, one.level) == (metric, level)]


def shares(rates, intervals):
    return [f"{100 * r:.2f}% ({100 * i[0]:.2f}% to {100 * i[1]:.2f}%)" for r, i in zip(rates, intervals, strict=True)]


def of_rows(rows, name):
    return shares([getattr(one, name) for one in rows], [getattr(one, f"{name}_ci") for one in rows])


def points(rows):
    return [f"{100 * r.excess:.2f} (+{100 * r.excess_ci[0]:.2f} to +{100 * r.excess_ci[1]:.2f})" for r in rows]


def test_tables_come_in_the_order_of_their_weight(results):
    assert [one.caption for one in tables(results)] == [
        "Attacks by normalized_l2 below 0.8",
        "Attacks by rmse below 0.8",
        "Against chance, and UMS, by normalized_l2",
        "Against chance, and UMS, by rmse",
        "Farther bands of normalized_l2",
        "Farther bands of rmse",
        "Calibrated thresholds",
        "How much is left to find?",
        "Distributions compared: overfitting and quality",
        "Membership scores",
    ]
    few = keep(results, lambda one: (one.metric, one.level) == ("rmse", "high"))
    assert [one.caption for one in tables(structs.replace(few, distribution=(), membership=None))] == [
        "Attacks by rmse below 0.8",
        "Against chance, and UMS, by rmse",
        "How much is left to find?",
    ]


def test_the_best_of_several_scales_is_warned_of_where_there_are_several(results):
    caption = "Attacks by normalized_l2 below 0.8"
    assert "best of several scales" in table(results, caption).note
    assert "best of several scales" not in table(keep(results, lambda one: one.guidance_scale != 1), caption).note


@pytest.mark.parametrize("metric", METRICS)
def test_every_number_of_the_attacks(results, metric):
    found, rows = table(results, f"Attacks by {metric} below 0.8"), rows_of(results, metric, "high")
    assert texts(found, "Attack") == ["unconditional", "side", "side", "side_random"]
    assert [cell.emphasis for cell in column(found, "Attack")] == ["", "", "", "faint"]
    assert texts(found, "Scale") == ["none", "1", "10", "10"]
    tests = table(results, f"Against chance, and UMS, by {metric}")
    for of, label, name in (
        (found, "Matched (AMS)", "ams"),
        (found, "Held-out matched", "heldout_ams"),
        (tests, "UMS, all pairs", "ums"),
        (tests, "UMS, nearest", "ums_nearest"),
    ):
        assert texts(of, label) == of_rows(rows, name)
        assert [cell.sort for cell in column(of, label)] == [getattr(r, name) for r in rows]
    assert texts(tests, "Attack") == texts(found, "Attack")
    assert texts(tests, "Excess, points") == points(rows)
    assert texts(found, "Extracted") == [f"{r.unique:,}" for r in rows]
    assert texts(tests, "p, excess") == [f"{r.p_excess:.4f}" for r in rows]
    assert texts(tests, "p, more images") == ["none", *(f"{r.p_more_images:.4f}" for r in rows[1:])]
    assert texts(tests, "p, more members") == ["none", *(f"{r.p_more_members:.4f}" for r in rows[1:])]
    assert [c.sort for c in column(tests, "p, more images")] == [None, *(r.p_more_images for r in rows[1:])]
    first = metric == METRICS[0]  # what explains the columns and the attacks is there once on a page
    assert ("best of several scales" in found.note) == first
    assert ("side_random: control: SIDE with random pseudo-labels" in found.note) == first
    assert all(one.help for table in (found, tests) for one in table.columns[1:])
    beside = {name: texts(found, f"by {name.replace('_', ' ')}") for name in METRICS[1:] if first}
    assert beside == {name: [f"{r.unique:,}" for r in rows_of(results, name, "high")] for name in beside}


def test_mode_seeking_has_its_start_its_rounds_and_its_calls():
    seeking = {"start": "side", "noise_level": 0.1, "rounds": 20, "network_calls": 30}
    rows = [made_results.row("unconditional", network_calls=20), made_results.row("modes", 10.0, **seeking)]
    curves = (
        made_results.rarefaction("unconditional", network_calls=20, expected=(0.5, 10.0)),
        made_results.rarefaction("modes", 10.0, **seeking, expected=(1.0, 31.0)),
    )
    results = made_results.results(rows, rarefaction=curves)
    found = table(results, "Attacks by rmse below 0.8")
    assert texts(found, "Attack") == ["unconditional", "modes from side, scale 10, noise 0.1, 20 rounds"]
    assert texts(found, "Calls") == ["20", "30"]
    left = table(results, "How much is left to find?")
    assert texts(left, "Found at 2,000 calls") == ["10.0", f"{1 + 30 * (2000 / 30 - 1) / 99:.1f}"]


def test_requests_stand_beside_calls_where_some_attack_makes_several_for_an_image():
    plain = made_results.row("unconditional", network_calls=20, requests=1)
    by_api = {"start": "unconditional", "last_steps": 2, "rounds": 5, "network_calls": 30, "requests": 6}
    rows = [plain, made_results.row("side", 10.0, network_calls=20), made_results.row("black_box_modes", **by_api)]
    found = table(made_results.results(rows), "Attacks by rmse below 0.8")
    assert texts(found, "Attack")[-1] == "black_box_modes from unconditional, last 2 steps, 5 rounds"
    assert texts(found, "Requests") == ["1", "none", "6"]
    assert [part.endswith(" (needs only an API)") for part in found.note.split("; ")[-3:]] == [True, False, True]
    without = table(made_results.results(rows[:2]), "Attacks by rmse below 0.8")
    assert "Requests" not in {one.label for one in without.columns}


def test_zero_hits_are_a_bound_and_small_p_values_are_small(results):
    first = structs.replace(results.rows[0], ams=0.0, ams_at_most=0.0123, heldout_ams_at_most=0.0456, p_excess=0.00009)
    changed = structs.replace(results, rows=(first, *results.rows[1:]))
    found = table(changed, "Attacks by normalized_l2 below 0.8")
    assert texts(found, "Matched (AMS)")[0] == "0 (at most 1.23%)"
    assert texts(found, "Held-out matched")[0] == "0 (at most 4.56%)"
    tests = table(changed, "Against chance, and UMS, by normalized_l2")
    assert texts(tests, "p, excess")[0] == "< 0.0001"
    assert column(tests, "p, excess")[0].sort == 0.00009


def test_samples_alone_have_no_columns_without_a_number(results):
    found = table(alone(results), "Matches by normalized_l2 below 0.8")
    labels = [one.label for one in found.columns]
    assert labels[0] == "Attack"
    assert not {"Scale", "p, more images", "p, more members"} & set(labels)
    assert found.note.startswith("Matches by normalized_l2 below")
    assert all("none" not in [cell.text for cell in cells] for cells in found.rows)
    for other in tables(alone(results)):
        assert "Scale" not in [one.label for one in other.columns]


def test_every_number_of_the_farther_bands(results):
    found = table(results, "Farther bands of rmse")
    rows = [r for r in results.rows if r.metric == "rmse" and r.level in ("mid", "high to mid")]
    assert texts(found, "Band") == ["mid [0.8, 1)", "high to mid [0, 1)"] * 4
    for label, name in (
        ("AMS", "ams"),
        ("UMS, all pairs", "ums"),
        ("UMS, nearest", "ums_nearest"),
        ("Held-out AMS", "heldout_ams"),
        ("Held-out UMS", "heldout_ums"),
    ):
        assert texts(found, label) == [f"{100 * getattr(r, name):.2f}%" for r in rows]
        assert [cell.sort for cell in column(found, label)] == [getattr(r, name) for r in rows]


def test_every_number_of_the_calibrated_thresholds(results):
    found = table(results, "Calibrated thresholds")
    rows = [r for r in results.rows if r.level == "calibrated"]
    assert texts(found, "Measure") == list(METRICS) * 4
    assert texts(found, "Threshold") == ["0.6789"] * 8
    assert texts(found, "Matched (AMS)") == of_rows(rows, "ams")
    assert texts(found, "Held-out matched") == of_rows(rows, "heldout_ams")
    assert texts(found, "Excess, points") == points(rows)
    assert texts(found, "Extracted") == [f"{r.unique:,}" for r in rows]
    assert "at most 2.00% of cases: on 45 held-out images" in found.note
    for k, metric in enumerate(METRICS, start=7):
        low, high = rows_of(results, metric, "calibrated")[-1].false_match_measured_ci
        assert f"{metric} {k} of 46 ({100 * low:.2f}% to {100 * high:.2f}%)" in found.note
    assert "near duplicates" not in found.note
    dropped = made_results.dataset(heldout=180, heldout_equal_dropped=5, heldout_near_dropped=15)
    note = table(structs.replace(results, dataset=dropped), "Calibrated thresholds").note
    assert "Of 200 held-out images, 20 (10.00%) were, and were left out" in note


def test_every_number_of_what_is_left(results):
    found, rows = table(results, "How much is left to find?"), results.rarefaction
    assert texts(found, "Images") == [f"{r.sizes[-1]:,}" for r in rows]
    assert texts(found, "Found") == [f"{r.expected[-1]:.0f}" for r in rows]
    assert texts(found, "Fitted law at 10 times") == [f"{r.ahead.fit:.1f}" for r in rows]
    assert texts(found, "Chao at 10 times") == [f"{r.ahead.chao:.1f}" for r in rows]
    chao = [r.chao1 for r in rows]
    total = [f"{c.estimate:.1f} ({c.low:.0f} to {c.high:.0f})" for c in chao]
    assert texts(found, "Chao's total, at least") == total
    beyond = [", beyond its range", "", "", ", beyond its range"]
    toulmin = [f"{r.ahead.good_toulmin.expected:.1f}{b}" for r, b in zip(rows, beyond, strict=True)]
    assert texts(found, "Good-Toulmin at 10 times") == toulmin


def test_every_number_of_the_distributions(results):
    found, rows = table(results, "Distributions compared: overfitting and quality"), results.distribution
    labels = {
        "auth_pct": "AuthPct",
        "auth_pct_heldout": "AuthPct, held-out",
        "fld_gap": "FLD-style gap",
        "frechet_members": "Frechet to members",
        "frechet_heldout": "Frechet to held-out",
        "frechet_members_heldout": "Members to held-out",
    }
    for name, label in labels.items():
        assert texts(found, label) == [f"{getattr(r, name):.3g}" for r in rows]
    values = [r.c_t.value for r in rows]
    assert texts(found, "C_T") == ["none", f"{values[1]:.3g}", f"{values[2]:.3g}", "none"]
    assert "rough" not in found.note
    fewer = (made_results.distribution(*RUNS[0], heldout=89), *rows[1:])
    assert "Held-out images are fewer" in table(structs.replace(results, distribution=fewer), found.caption).note


def test_every_number_of_membership(results):
    found, pia = table(results, "Membership scores"), results.membership.pia
    low, high = pia.auc_ci
    assert texts(found, "Score") == ["pia"]
    assert texts(found, "AUC") == [f"{pia.auc:.3f} ({low:.3f} to {high:.3f})"]
    assert texts(found, "True positives at 1%") == ["not known"]
    (rate,) = shares([pia.at[1].true_positive_rate], [pia.at[1].true_positive_rate_ci])
    assert texts(found, "True positives at 10%") == [f"{rate}; 3 of 45 false"]
    assert "at timestep 77" in found.note
    assert found.note.endswith(" Not known: it needs 99 images.")
    assert "on 45 held-out images" in found.note


def test_the_explanation_is_of_these_measures_and_sets(results):
    text = explanation(results, 0.9)
    assert "normalized_l2 below 0.8: pixel distance over alpha" in text
    assert "rmse below 0.8: root mean squared" in text
    assert "against 90 images that the model never saw" in text
    assert "Intervals hold with 90% confidence, by Wilson for rates, Newcombe for differences and a jackknife" in text
    assert "by chance alone" not in text
    assert "calibrate" not in text
    none = made_results.threshold(below=None, calibrated_on=15)
    fewer = {"dataset": made_results.dataset(heldout_used=30), "thresholds": results.thresholds | {"rmse": none}}
    text = explanation(structs.replace(results, **fewer), 0.9)
    assert "against 30 images that the model never saw" in text
    assert "Of 90 members one is nearer by chance alone" in text
    assert "15 held-out images are too few to calibrate a threshold" in text


CSV = """run,attack,guidance_scale,index,label,rmse_member,rmse_member_id,rmse_member_match,rmse_heldout,\
rmse_heldout_id,rmse_heldout_match
unconditional,unconditional,0.0,0,-1,0.5,12,0,0.6,21,0
unconditional,unconditional,0.0,1,-1,0.1,11,1,0.7,22,0
unconditional,unconditional,0.0,2,-1,0.05,11,1,0.8,21,0
side_10,side,10.0,0,4,0.3,13,1,0.9,22,0
side_10,side,10.0,1,4,0.2,12,1,0.15,22,1
side_10,side,10.0,2,7,0.9,12,0,0.95,21,0
side_10,side,10.0,3,4,0.25,12,1,0.65,21,0
"""
GREYS = {"members": (40, 50, 60), "heldout": (70, 80)}


@pytest.fixture
def found(tmp_path):
    (tmp_path / "matches.csv").write_text(CSV, encoding="utf-8")
    (tmp_path / "members.csv").write_text(
        "side,id,name,sha256,loss,pia,extracted_side_10\nmembers,11,ada,x,0.5,1.5,2\nmembers,12,bea,x,0.25,2.5,2\n"
        "members,13,cle,x,0.125,3.5,1\nheldout,11,dan,x,9,9,\nheldout,12,eve,x,9,9,\n",
        encoding="utf-8",
    )
    return matches.read(tmp_path / "matches.csv")


def side(name, first, names):
    greys = np.asarray(GREYS[name], np.uint8)
    images = np.broadcast_to(greys[:, None, None, None], (len(greys), 8, 8, 1))
    return Side(images=images, ids=first + np.arange(len(greys)), names=names, digests=names)


MEMBERS, HELDOUT = side("members", 11, ("ada", "bea", "cle")), side("heldout", 21, ("dan", "eve"))
ROWS = [made_results.row("unconditional", ams=0.5), made_results.row("side", 10.0, ams=0.6)]


def fetch(run, index):
    """Image i of plain sampling has the grey 100 + i, of SIDE 200 + i."""
    assert run.name in ("unconditional", "side_10")
    grey = np.asarray(index, np.uint8) + (100 if run.attack == "unconditional" else 200)
    return np.broadcast_to(grey[:, None, None, None].astype(np.uint8), (len(grey), 8, 8, 1))


def test_matches_are_read_by_column_and_by_run(found):
    assert found["attack"].tolist() == ["unconditional"] * 3 + ["side"] * 4
    assert found["rmse_member"].dtype == np.float64
    own = matches.select_run(found, ROWS[1])
    assert own["label"].tolist() == [4, 4, 7, 4]
    assert own["rmse_member_id"].tolist() == [13, 12, 12, 12]
    assert len(matches.select_run(found, Run(attack="side", guidance_scale=1.0))["index"]) == 0


def test_runs_have_titles_file_names_and_an_order():
    rows = [
        made_results.row(attack, scale, ams=ams)
        for attack, scale, ams in (
            ("side_random", 1.0, 0.9),
            ("unconditional", 0.0, 0.1),
            ("side", 1.0, 0.2),
            ("side", 2.5, 0.3),
            ("conditional", 2.5, 0.05),
        )
    ]
    shown = [(row.attack, row.guidance_scale) for row in matches.shown(rows)]
    assert shown == [("side", 2.5), ("unconditional", 0.0), ("conditional", 2.5), ("side_random", 1.0)]
    assert [matches.title(row) for row in rows[:2]] == ["side_random, scale 1", "unconditional"]
    assert [row.key.name for row in rows[1:4]] == ["unconditional", "side_1", "side_2.5"]


def test_yields_of_clusters_by_hand(found):
    """Cluster 4 guided images 0, 1 and 3, of members 13, 12 and 12; cluster 7 image 2, which matches none."""
    assert yields(found, ROWS[1]) == [
        ClusterYield(cluster=4, images=3, matched=3, members=2),
        ClusterYield(cluster=7, images=1, matched=0, members=0),
    ]
    assert yields(found, ROWS[0]) == []


def drawn(results, **changes):
    """The figures, for matches of each run."""
    runs = list(dict.fromkeys((r.attack, r.guidance_scale) for r in results.rows))
    names = list(dict.fromkeys(r.key.name for r in results.rows))
    rng, n = np.random.default_rng(0), 20
    columns = {
        "run": np.repeat(names, n),
        "attack": np.repeat([attack for attack, _ in runs], n),
        "guidance_scale": np.repeat([scale for _, scale in runs], n),
        "label": np.where(np.repeat([scale for _, scale in runs], n) > 0, np.tile(np.arange(n) % 3, len(runs)), -1),
    }
    for name in ("member", "heldout"):
        columns[f"normalized_l2_{name}"] = rng.uniform(0, 2, n * len(runs))
        columns[f"normalized_l2_{name}_id"] = rng.integers(0, 9, n * len(runs))
        columns[f"normalized_l2_{name}_match"] = rng.integers(0, 2, n * len(runs))
    return {one.name: one for one in figures(results, columns | changes)}


def test_figures_are_pictures_and_say_what_they_show(results):
    found = drawn(results)
    assert list(found) == ["guidance", "rarefaction", "similarity", "yields", "sensitivity"]
    for name, one in found.items():
        assert one.file == f"{name}.svg"
        assert not one.reveals
        assert one.on_page().picture.svg == one.content
    false = [r for r in results.controls if r.strength is None and r.level == "high"]
    listed = ", ".join(f"{r.metric} {100 * r.found:.2f}%" for r in false)
    assert found["sensitivity"].note.endswith(f"held-out images that match a member: {listed}.")
    assert found["similarity"].note.endswith("than chance explains.")
    assert found["rarefaction"].note.startswith("Solid: the mean")


def test_figures_without_guidance_controls_or_hits(results):
    results = alone(results)
    empty = structs.replace(results.rarefaction[0], expected=(0.0, 0.0, 0.0))
    dataset = made_results.dataset(heldout_used=30)
    results = structs.replace(results, controls=(), rarefaction=(empty,), dataset=dataset)
    found = drawn(results)
    assert list(found) == ["rarefaction", "similarity"]
    assert found["rarefaction"].note.startswith("No member was found")
    assert "There are more members than held-out images" in found["similarity"].note


@pytest.fixture
def quick(monkeypatch):
    """Charts take most of the time; here all are one small drawing."""
    for name in ("guidance", "rarefaction", "similarity", "yields", "sensitivity"):
        monkeypatch.setattr(plots, name, lambda *_: "<svg xmlns='http://www.w3.org/2000/svg'><path/></svg>")


def test_the_best_guided_attack_has_its_clusters_shown(results, quick):
    assert "yields" in drawn(results)
    labels = np.full(20 * len(RUNS), -1)
    assert "yields" not in drawn(results, label=labels)
    assert "yields" not in drawn(keep(results, lambda one: one.attack != "side"))  # controls have none


def strip(pair, count=4):
    """The tiles of a pair's picture: the grey in the middle of each."""
    _, _, data = pair.picture.uri.partition("base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape == (8, count * 8 + (count - 1) * 2)
    return [int(pixels[4, 4 + 10 * i]) for i in range(count)]


def test_the_gallery_shows_the_closest_of_each_run(found, tmp_path):
    shown = gallery(ROWS, found, MEMBERS, HELDOUT, fetch, tmp_path, pairs=5, private=False)
    labels = ["rmse to member", "rmse to held-out", "member's loss", "member's pia"]
    assert [score.label for score in shown.scores] == labels
    assert [score.closer for score in shown.scores] == ["smaller"] * 4
    pairs = [(p.attack, p.scale, p.index, p.member, p.name, p.heldout, p.cluster, p.matched) for p in shown.pairs]
    assert pairs == [  # two of each run, since five pairs are for two runs; the closest first
        ("unconditional", None, 2, 11, "ada", 21, None, True),
        ("unconditional", None, 1, 11, "ada", 22, None, True),
        ("side", 10.0, 1, 12, "bea", 22, 4, True),
        ("side", 10.0, 3, 12, "bea", 21, 4, True),
    ]
    values = [(0.05, 0.8, 0.5, 1.5), (0.1, 0.7, 0.5, 1.5), (0.2, 0.15, 0.25, 2.5), (0.25, 0.65, 0.25, 2.5)]
    assert [p.values for p in shown.pairs] == values
    # Generated, member, held-out, and four times their difference, at most white.
    tiles = [[102, 40, 70, 248], [101, 40, 80, 244], [201, 50, 80, 255], [203, 50, 70, 255]]
    np.testing.assert_allclose([strip(p) for p in shown.pairs], tiles, atol=2)
    assert all(p.picture.reveals for p in shown.pairs)


SEEKING = made_results.row("modes", start="unconditional", noise_level=0.1, rounds=20, ams=0.5)


@pytest.fixture
def sought(found):
    """The matches of plain sampling, those of mode seeking from it, and a fetch of either's images."""
    own = {name: column.copy() for name, column in matches.select_run(found, ROWS[0]).items()}
    own["run"] = np.full(3, SEEKING.key.name)
    columns = {name: np.concatenate([found[name], own[name]]) for name in found}

    def fetch_any(run, index):
        return fetch(run.start_run, index) + 20 if run.rounds else fetch(run, index)

    return columns, fetch_any


def test_a_mode_stands_beside_the_image_that_it_started_from(sought, tmp_path, found):
    columns, fetch_any = sought
    shown = gallery([SEEKING], columns, MEMBERS, HELDOUT, fetch_any, tmp_path, pairs=1, private=False)
    (pair,) = shown.pairs
    assert pair.attack == "modes from unconditional, noise 0.1, 20 rounds"
    assert (pair.scale, pair.has_start) == (None, True)
    # Start 102, mode 122, member 40, held-out 70, and the difference at most white.
    np.testing.assert_allclose(strip(pair, 5), [102, 122, 40, 70, 255], atol=2)
    assert [tile.label for tile in shown.all_tiles][:2] == ["Start", "Generated"]
    with Image.open(io.BytesIO(sheet(SEEKING, columns, MEMBERS, HELDOUT, fetch_any))) as picture:
        pixels = np.asarray(picture)
    across = np.flatnonzero(np.diff((pixels < 255)[len(pixels) // 2].astype(int)) == 1) + 1
    assert [int(pixels[len(pixels) // 2, x + 20]) for x in across] == [102, 122, 40, 70]


def test_the_first_pairs_are_the_closest_matches_of_different_members(found):
    """Image 1 of SIDE is nearer to member 12, but it matches a held-out image too."""
    shown = convincing.strip(ROWS, found, MEMBERS, HELDOUT, fetch, private=False)
    assert shown.heading == "What came out"
    assert [one.title for one in shown.triples] == ["Training image 11", "Training image 12", "Training image 13"]
    tiles = [[102, 40, 70], [203, 50, 70], [200, 60, 80]]  # generated, member, held-out
    np.testing.assert_allclose([strip(one, 3) for one in shown.triples], tiles, atol=2)
    assert shown.triples[1].note == ("by SIDE; dissimilarity 0.25, to the unseen image 0.65 (a match is below 0.8)")
    private = convincing.strip(ROWS, found, MEMBERS, HELDOUT, fetch, private=True)
    assert not any(one.picture.reveals for one in private.triples)


def test_without_a_match_the_closest_pairs_are_shown_as_such(found):
    nothing = found | {"rmse_member_match": np.zeros(7)}
    shown = convincing.strip(ROWS, nothing, MEMBERS, HELDOUT, fetch, private=False)
    assert shown.heading == "The closest pairs: none is a match"
    assert [one.title for one in shown.triples] == [f"Training image {i}" for i in (11, 12, 13)]
    assert strip(shown.triples[1], 3)[0] == pytest.approx(201, abs=2)  # now image 1 of SIDE is as good as any
    control = made_results.row("side_random", 10.0, ams=0.9)
    assert convincing.strip([control, ROWS[0]], nothing, MEMBERS, HELDOUT, fetch, private=False).triples == (
        convincing.strip(ROWS[:1], nothing, MEMBERS, HELDOUT, fetch, private=False).triples
    )


def test_the_chart_to_look_at_first_names_the_strongest_attack(results):
    best = [made_results.row("side", 10.0, ams=0.125, heldout_ams=0.01), made_results.row("unconditional")]
    curves = tuple(made_results.rarefaction(one.attack, one.guidance_scale) for one in best)
    shown = opening(made_results.results(best, rarefaction=curves), 0.95)
    assert shown.heading == "12.50% of the images by SIDE match a training image, 1.00% an unseen one"
    assert shown.file == "opening.svg"
    assert not shown.reveals
    again = opening(made_results.results(best, rarefaction=curves), 0.95)
    assert again == shown  # to the byte
    nothing = opening(made_results.results(best[1:], rarefaction=curves[1:]), 0.95)
    assert nothing.heading == "No attack's images match a training image"


def test_the_gallery_shows_pairs_that_do_not_match_too(found, tmp_path):
    shown = gallery(ROWS, found, MEMBERS, HELDOUT, fetch, tmp_path, pairs=1000, private=False)
    assert len(shown.pairs) == 7
    assert [p.index for p in shown.pairs if not p.matched] == [0, 2]
    assert [p.values[0] for p in shown.pairs] == [0.05, 0.1, 0.2, 0.25, 0.3, 0.5, 0.9]


def test_a_private_gallery_has_no_names_and_blurred_pictures(found, tmp_path):
    shown = gallery(ROWS, found, MEMBERS, HELDOUT, fetch, tmp_path, pairs=1000, private=True)
    assert {p.name for p in shown.pairs} == {""}
    assert not any(p.picture.reveals for p in shown.pairs)
    assert [p.member for p in shown.pairs] == [11, 11, 12, 12, 13, 12, 12]


def test_the_sheet_has_the_closest_match_of_each_extracted_member(found):
    """Of SIDE: image 1 for member 12 (closer than 3), image 0 for member 13; each enlarged six times."""
    with Image.open(io.BytesIO(sheet(ROWS[1], found, MEMBERS, HELDOUT, fetch))) as picture:
        pixels = np.asarray(picture)
    assert pixels.ndim == 2
    dark = pixels < 255
    across = np.flatnonzero(np.diff(dark[len(dark) // 2].astype(int)) == 1) + 1  # where a tile begins
    assert [int(pixels[len(pixels) // 2, x + 20]) for x in across] == [201, 50, 80, 200, 60, 80]


def test_a_sheet_without_a_match_is_blank(found):
    found["rmse_member_match"][:] = 0
    with Image.open(io.BytesIO(sheet(ROWS[1], found, MEMBERS, HELDOUT, fetch))) as picture:
        assert picture.getextrema() == (255, 255)


def test_a_sheet_is_no_longer_than_24(found):
    many = 40
    columns = {name: np.resize(column, many) for name, column in matches.select_run(found, ROWS[1]).items()}
    columns |= {"rmse_member_id": np.arange(many), "rmse_member_match": np.ones(many), "index": np.arange(many)}
    columns["rmse_member"] = np.arange(many)[::-1] / many
    members = dataclasses.replace(MEMBERS, ids=np.arange(many), images=np.full((many, 8, 8, 1), 30, np.uint8))
    asked = []
    sheet(ROWS[1], columns, members, HELDOUT, lambda *asks: asked.append(asks[1].tolist()) or fetch(*asks))
    assert asked == [list(range(39, 15, -1))]


@pytest.mark.parametrize("private", [False, True])
def test_a_private_page_lacks_what_shows_images(results, found, tmp_path, quick, private):
    shown = ("unconditional", 0.0), ("side", 10.0)
    sections = {
        name: tuple(one for one in getattr(results, name) if (one.attack, one.guidance_scale) in shown)
        for name in ("rows", "rarefaction")
    }
    results = keep(structs.replace(results, **sections), lambda one: (one.metric, one.level) == ("rmse", "high"))
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 90).save(buffer, format="PNG")
    (tmp_path / "results.json").write_text("{}")
    audit = Audit(
        title="A title",
        results=results,
        directory=tmp_path,
        members=MEMBERS,
        heldout=HELDOUT,
        fetch=fetch,
        confidence=0.95,
        report=Report(private=private),
        figures=(
            Drawn(name="samples", heading="Images of wards", content=buffer.getvalue(), alt="Images", reveals=True),
        ),
    )
    names = write(audit, tmp_path / "page")
    common = ["opening", "guidance", "rarefaction", "similarity", "yields", "sensitivity"]
    common = ["summary.pdf", *(f"{name}.svg" for name in common)]
    assert names == common + ([] if private else ["samples.png", "matches_side_10.png", "matches_unconditional.png"])
    assert {path.name for path in (tmp_path / "page").iterdir()} == {*names, "index.html"}
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert ("Images of wards" in text, "Private version" in text) == (not private, private)
    assert bool(re.search(r"\b(ada|bea|cle)\b", text)) != private


def test_what_was_left_out_is_counted():
    sets = {"samples": 5000, "members": 90, "heldout": 80}
    sets = {name: made_results.image_set(count) for name, count in sets.items()}
    data = {"heldout": 80, "heldout_used": 80, "heldout_equal_dropped": 0, "heldout_near_dropped": 0}
    results = made_results.results([made_results.row("samples")], sets=sets, dataset=made_results.dataset(**data))
    plain = "Compared: 5,000 samples, 90 members, 80 held-out images."
    assert findings.account(results, 0.05) == plain
    data = {"heldout": 120, "heldout_used": 90, "heldout_equal_dropped": 6, "heldout_near_dropped": 7}
    sets = {
        "samples": made_results.image_set(5000, repeats=11, damaged=1),
        "members": made_results.image_set(90, repeats=12, damaged=2),
        "heldout": made_results.image_set(120, repeats=13, damaged=4),
    }
    results = structs.replace(results, sets=sets, dataset=made_results.dataset(**data))
    assert findings.account(results, 0.25) == (
        "Compared: 5,000 samples, 90 members, 90 held-out images. Samples that repeat an earlier one: 11. Left out, "
        "members that equal another: 12. Left out, held-out images that equal another: 13. Left out, held-out images "
        "that equal a member: 6. Left out, held-out images nearer than 0.25 (RMSE) to a member: 7. Left out, damaged "
        "files: 7. The control is 90 of 120 held-out images, drawn at random; all set thresholds."
    )


class Fixed:
    """A scorer to which every image is close to member 0."""

    def against_members(self, images):
        n = len(images)
        near = {"nearest": np.zeros(n, np.int64), "pairs": np.zeros((0, 2), np.int64), "pair_value": np.zeros(0)}
        yield "rmse", "high", (0.0, 0.5), Matches(value=np.full(n, 0.1), num_references=4, **near)


def test_a_copy_that_is_taken_for_another_image_is_not_found():
    """Of four members copied only the copy of member 0 is; what a held-out image matches does not matter."""
    grey = np.full((4, 8, 8, 1), 90, np.uint8)
    rows = positive_control.sensitivity(Fixed(), grey, grey[:3], 0.95)
    assert {(row.images, row.found) for row in rows if row.strength is not None} == {(4, 0.25)}
    assert [(row.images, row.found) for row in rows if row.strength is None] == [(3, 1.0)]
    strengths = [row.strength for row in rows if row.distortion == "noise"]
    assert strengths == list(positive_control.DISTORTIONS["noise"][1])


def test_what_lowers_extraction_is_as_measured():
    """The figures of the page's last table are those of the table in the documentation."""
    text = (Path(__file__).parents[2] / "docs" / "results_defences.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if " | " in line]
    found = {}
    for name, _, distance, _, _, _, members, *_ in rows[1:]:
        count, share = re.fullmatch(r"([\d.]+) \((\d+)%\)", members).groups()
        found[name] = float(count), int(share), float(distance)
    for name, (count, of, distance) in defences.MEASURED.items():
        assert found[name] == (count, round(100 * count / of), distance)
    table = defences.table()
    assert len(table.rows) == len(defences.MEASURED)
    assert table.rows[0][1].text == "29.7 of 64 (46%)"


def test_every_number_of_a_table_is_explained_below_it(results):
    """And every explanation is of a column, or of a membership score, that some table has."""
    made = [*tables(results), defences.table()]
    for table in made:
        bare = {one.label for one in table.columns if one.kind != "text" and not one.help}
        assert bare <= {"Images", "Members that mode seeking extracts"}  # which say it themselves
    labels = {one.label for table in made for one in table.columns} | {"loss", "secmi", "pia"}
    labels |= {"Calls", "Found at 20 calls", "Requests"}  # of runs whose calls and requests are known
    assert {terms.meaning(label) for label in labels} >= set(terms.TERMS.values())
