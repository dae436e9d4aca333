"""Comparisons of made-up audits: every count against brute force, every status, and what is refused."""

import collections
import itertools

import numpy as np
import pytest
from made_audits import audit, sha
from msgspec import structs
from scipy import stats

from side_jax.errors import InputError
from side_jax.measure.records import Definition
from side_jax.memorization.metrics import METRICS, definition
from side_jax.memorization.statistics import intervals
from side_jax.report import comparison, comparison_page
from side_jax.report.comparison import LESS, MORE, RATES, SAME
from side_jax.report.page.render import render

MEMBERS, HELDOUT = [f"m{i}" for i in range(40)], [f"h{i}" for i in range(40)]
MANY = [f"h{i}" for i in range(400)]  # held-out images, which leave little doubt of the control
SEEKING = {"start": "side", "noise_level": 0.1, "rounds": 20}
RUNS = (
    ("unconditional", {}),
    ("side", {"scale": 10.0}),
    ("modes", SEEKING | {"scale": 10.0}),
    ("oracle", {"scale": 10.0}),
)


def compared(*folders):
    return comparison.compare([comparison.read(folder, folder.name) for folder in folders])


@pytest.fixture
def made(tmp_path):
    """Writes an audit into a folder of its name."""

    def make(name, extracted, held=(), members=MEMBERS, heldout=HELDOUT, **changes):
        (tmp_path / name).mkdir()
        return audit(tmp_path / name, members, heldout, extracted, held, **changes)

    return make


def test_counts_are_those_of_brute_force(made):
    """Three audits of different members, each with four runs, of which the last is of a control."""
    rng = np.random.default_rng(0)
    members, found = [], []
    for keep in (40, 33, 25):
        members.append([MEMBERS[i] for i in rng.permutation(40)[:keep]])
        found.append([rng.choice(members[-1], size, replace=False).tolist() for size in rng.integers(2, 9, 4)])
    held = [[HELDOUT[:k], HELDOUT[k : k + 2], (), HELDOUT[20:30]] for k in (1, 2, 3)]
    folders = [
        made(name, runs, false, members=of, runs=RUNS)
        for name, of, runs, false in zip("abc", members, found, held, strict=True)
    ]
    whole = compared(*folders)
    leaks = [set(itertools.chain(*runs[:3])) for runs in found]
    assert [len(one.rows) for one in whole.runs] == [3, 3, 3, 3]
    assert whole.extracted == tuple(frozenset(map(sha, one)) for one in leaks)
    assert whole.heldout == (3, 4, 5)
    for pair, (of, later) in zip(whole.pairs, list(zip(members, leaks, strict=True))[1:], strict=True):
        shared = set(members[0]) & set(of)
        counts = [
            sum((one in leaks[0], one in later) == cell for one in shared)
            for cell in ((True, True), (True, False), (False, True), (False, False))
        ]
        assert [pair.both, pair.only_first, pair.only_later, pair.neither] == counts
        assert pair.shared == len(shared)
        assert pair.alone == (40 - len(shared), len(of) - len(shared))
        assert pair.change.value == pytest.approx((counts[2] - counts[1]) / len(shared))
        both, first, second, neither = counts
        expected = intervals.paired_difference_interval(both, second, first, neither, 0.95)
        assert pair.change.interval == pytest.approx(expected)
    everywhere = set(members[0]) & set(members[1]) & set(members[2])
    often = [sum(one in found for found in leaks) for one in everywhere]
    assert whole.everywhere == (often.count(3), often.count(1) + often.count(2), often.count(0))
    header, *rows = comparison_page.member_rows(whole)
    assert header == ["sha256", "id", "name", "extracted_a", "extracted_b", "extracted_c"]
    listed = [name for name in members[0] if name in members[1] or name in members[2]]
    assert [row[:3] for row in rows] == [[sha(name), str(7 * members[0].index(name)), f"{name}.png"] for name in listed]
    for name, row in zip(listed, rows, strict=True):
        expected = [str(int(name in found)) if name in of else "" for of, found in zip(members, leaks, strict=True)]
        assert row[3:] == expected


def test_rates_of_each_run_and_their_change(made):
    runs = [[MEMBERS[:4], MEMBERS[:9]], [MEMBERS[:2], MEMBERS[:20]]]
    a, b = (made(name, of, runs=RUNS[:2]) for name, of in zip("ab", runs, strict=True))
    plain, side = compared(a, b).runs
    assert [row.ams for row in (*plain.rows, *side.rows)] == [0.04, 0.02, 0.09, 0.2]
    (change,) = side.changes
    assert change.value == pytest.approx(0.11)
    assert change.interval == pytest.approx(intervals.difference_interval((20, 9), (100, 100), 0.95))
    (row, later) = comparison_page.as_json(compared(a, b))["runs"][1]["audits"]
    assert (row["audit"], row["ams"], row["unique"], row["excess"]) == ("a", 0.09, 9, 0.09)
    assert (later["ams_change"], later["heldout_ams"]) == (pytest.approx(0.11), 0)
    said = comparison_page.findings(compared(a, b))
    assert "The highest rate of either is by SIDE at guidance scale 10: 9.00%" in said[1]
    assert "20.00% in b, +11.00 points (95% interval " in said[1]


def test_runs_of_other_numbers_of_images_are_left_out(made):
    a = made("a", [MEMBERS[:4], MEMBERS[:9]], runs=RUNS[:2])
    b = made("b", [MEMBERS[:4], MEMBERS[:9]], runs=(RUNS[0], RUNS[2]))
    whole = compared(a, b)
    assert [one.rows[0].attack for one in whole.runs] == ["unconditional"]
    assert whole.left_out == ("side_10", "modes_0.1x20_from_side_10")
    assert (whole.pairs[0].both, whole.pairs[0].neither) == (4, 36)
    assert "left out: side_10, modes_0.1x20_from_side_10." in render(comparison_page.page(whole))


# (extracted in the first, in the later, held-out matched in the first, in the later) -> status, reason
STATUSES = {
    "ten members less": (MEMBERS[:12], MEMBERS[:2], (), (), LESS, ""),
    "ten members more": (MEMBERS[:2], MEMBERS[:12], (), (), MORE, ""),
    "five, which is p = 1/16": (MEMBERS[:10], MEMBERS[:5], (), (), SAME, comparison.CHANCE),
    "six, which the control does not clear": (MEMBERS[:12], MEMBERS[:6], (), (), SAME, comparison.LIKENESS),
    "seven": (MEMBERS[:14], MEMBERS[:7], (), (), LESS, ""),
    "others, but as many": (MEMBERS[:10], MEMBERS[10:20], (), (), SAME, comparison.CHANCE),
    "the same": (MEMBERS[:10], MEMBERS[:10], (), (), SAME, comparison.CHANCE),
    "nothing in either": ((), (), (), (), SAME, comparison.CHANCE),
    "held-out images more, too": (MEMBERS[:15], MEMBERS[:38], (), HELDOUT[:15], SAME, comparison.LIKENESS),
    "held-out images a little more": (MEMBERS[:5], MEMBERS[:35], (), HELDOUT[:2], MORE, ""),
    "held-out images less, too": (MEMBERS[:35], MEMBERS[:20], HELDOUT[:15], (), SAME, comparison.LIKENESS),
    "as many members and held-out images": (MEMBERS[:2], MEMBERS[:30], (), HELDOUT[:29], SAME, comparison.OPEN),
}


@pytest.mark.parametrize("case", STATUSES)
def test_a_status_needs_a_test_a_leak_and_a_control(made, case):
    first, later, held, held_later, status, reason = STATUSES[case]
    a, b = made("a", first, held), made("b", later, held_later)
    whole = compared(a, b)
    (pair,) = whole.pairs
    assert (pair.status, pair.reason) == (status, reason)
    assert comparison_page.status(whole)[0] == status
    only_first, only_later = len(set(first) - set(later)), len(set(later) - set(first))
    discordant = only_first + only_later
    assert pair.p == pytest.approx(stats.binomtest(only_first, discordant).pvalue if discordant else 1)
    (one, two), text = comparison_page.reasons(whole), render(comparison_page.page(whole))
    assert f"Of 40 training images that both audits have, {len(first)} " in one
    words = {comparison.CHANCE: "chance may", comparison.OPEN: "alone is not", comparison.LIKENESS: "saw may have"}
    assert words.get(reason, "chance does not explain that") in one
    assert "two seeds of one recipe may differ" in two
    assert f'<p class="status">{status}</p>' in text


def simulated(rng, leaks, chance, times):
    """How often each status is said of two audits of one law, where both have the verdict Leaks.

    The expected number of images that a member brings out differs between members, and has the mean `leaks` in each
    audit; `chance` is that of any image, member or not.
    """
    found = collections.Counter()
    for _ in range(times):
        own = rng.gamma(0.3, 1 / 0.3, 64)
        members = [rng.poisson(own * leak + by) > 0 for leak, by in zip(leaks, chance, strict=True)]
        heldout = tuple(int((rng.poisson(by, 64) > 0).sum()) for by in chance)
        cells = collections.Counter(zip(*members, strict=True))
        counts = tuple(cells[cell] for cell in ((True, True), (True, False), (False, True), (False, False)))
        found[comparison.decide(counts, heldout, (64, 64), (True, True), 0.95)[0]] += 1
    return found


@pytest.mark.parametrize(
    ("leaks", "chance", "right", "least"),
    [
        ((0.5, 0.5), (0.0, 0.0), SAME, 0.95),
        ((0.5, 0.5), (0.1, 0.1), SAME, 0.95),
        ((0.5, 0.5), (0.05, 0.6), SAME, 0.97),  # by McNemar's test alone, 4%
        ((1.0, 0.25), (0.0, 0.0), LESS, 0.75),
        ((0.25, 1.0), (0.0, 0.0), MORE, 0.75),
    ],
)
def test_how_often_a_status_is_right(leaks, chance, right, least):
    found = simulated(np.random.default_rng(0), leaks, chance, 300)
    assert found[right] >= 300 * least


def test_the_tone_is_calm_only_where_the_later_audit_is_cleared(made):
    a, b, c = made("a", MEMBERS[:20]), made("b", MEMBERS[:8]), made("c", ())
    assert comparison_page.status(compared(a, b)) == (LESS, "unsure")
    assert comparison_page.status(compared(a, c)) == (LESS, "calm")
    assert comparison_page.status(compared(b, a)) == (MORE, "alarm")
    assert comparison_page.status(compared(a, b, c)) == ("Of 2 later audits, 2 leak less", "unsure")


def test_the_level_is_divided_by_the_number_of_later_audits(made):
    """p = 1/32: enough against one audit, not against the best of two."""
    a, b, c = (made(name, MEMBERS[:n], heldout=MANY) for name, n in (("a", 12), ("b", 6), ("c", 12)))
    assert [pair.status for pair in compared(a, b).pairs] == [LESS]
    whole = compared(a, b, c)
    assert [pair.status for pair in whole.pairs] == [SAME, SAME]
    assert whole.pairs[0].p == pytest.approx(1 / 32)
    assert comparison_page.status(whole) == (SAME, "unsure")
    d, e = (made(name, MEMBERS[:n], heldout=MANY) for name, n in (("d", 2), ("e", 40)))
    whole = compared(a, d, c, e)
    assert comparison_page.status(whole) == ("Of 3 later audits, 1 leaks less and 1 leaks more", "alarm")
    one, _ = comparison_page.reasons(whole)
    assert one == "Against a, d: leaks less; c: no difference shown; e: leaks more."
    said = " ".join(comparison_page.findings(whole))
    assert "Of 40 members that all audits have, 2 were extracted in all, 38 in some and 0 in none." in said


def test_the_greatest_confidence_counts(made):
    """It stands in no file: the Wilson interval of a rate determines it."""
    wide = {"ams_ci": intervals.wilson_interval(6, 100, 0.99)}
    a, b = made("a", MEMBERS[:12], heldout=MANY), made("b", MEMBERS[:6], heldout=MANY, rows=wide)
    assert comparison.read(a, "a").confidence == 0.95
    whole = compared(a, b)
    assert whole.confidence == 0.99
    assert whole.pairs[0].reason == comparison.CHANCE
    assert "different confidence, 95% in a and 99% in b" in " ".join(comparison_page.page(whole).notes)


def test_before_and_after_deduplication(made):
    """The members that went are left out of the pairs, and near duplicates are named."""
    a = made("a", MEMBERS[:14], data={"member_near_pairs": 5})
    b = made("b", [*MEMBERS[10:12], "new"], members=[*MEMBERS[10:], "new"])
    (pair,) = compared(a, b).pairs
    assert (pair.both, pair.only_first, pair.only_later, pair.neither) == (2, 2, 0, 26)
    assert pair.alone == (10, 1)
    said = " ".join(comparison_page.findings(compared(a, b)))
    assert "Left out of what is compared by member: 10 members of a alone and 1 member of b alone." in said
    assert "nearly equal each other: 5 in a and 0 in b." in said
    assert "held-out image" not in said
    assert "nearly equal" not in " ".join(comparison_page.findings(compared(b, b)))


def test_members_that_are_held_out_images_elsewhere_are_counted(made):
    a = made("a", MEMBERS[:4])
    b = made("b", MEMBERS[:4], members=[*MEMBERS[:30], "h0"], heldout=[*HELDOUT[1:], *MEMBERS[30:33]])
    whole = compared(a, b)
    assert whole.pairs[0].crossed == (3, 1)
    said = " ".join(comparison_page.findings(whole))
    assert "3 members of a are held-out images of b: of these the audits ask different questions" in said
    assert "1 member of b is a held-out image of a" in said


def test_without_a_common_member_only_rates_are_compared(made):
    a = made("a", MEMBERS[:20])
    b = made("b", (), members=[f"n{i}" for i in range(20)])
    whole = compared(a, b)
    (pair,) = whole.pairs
    assert (pair.status, pair.change, pair.p, pair.shared) == (RATES, None, 1.0, 0)
    assert comparison_page.status(whole) == (RATES, "unsure")
    first, _ = comparison_page.reasons(whole)
    assert first.startswith("a and b have no member in common, so that only their rates are compared.")
    page = comparison_page.page(whole)
    assert [table.caption.partition(" by")[0] for table in page.tables] == ["The audits", "Rates"]
    assert list(comparison_page.member_rows(whole))[1:] == []
    assert comparison_page.as_json(whole)["pairs"][0]["change"] is None
    render(page)


def test_a_verdict_of_each_audit_is_in_the_first_table(made):
    a, b = made("a", MEMBERS[:20]), made("b", ())
    table = comparison_page.page(compared(a, b)).tables[0]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["a", "Leaks", "40", "20", "40", "0"],
        ["b", "No leak found", "40", "0", "40", "0"],
    ]
    assert [row[1].emphasis for row in table.rows] == ["alarm", "calm"]
    assert "<details" not in render(comparison_page.page(compared(a, b)))  # all tables are open


def test_other_costs_of_a_run_are_said(made):
    a, b = made("a", (), rows={"network_calls": 20}), made("b", (), rows={"network_calls": 50})
    assert "different numbers of calls of the network" in " ".join(comparison_page.page(compared(a, b)).notes)
    assert "calls" not in " ".join(comparison_page.page(compared(a, a)).notes)


NEIGHBOURS = Definition(**definition(METRICS["normalized_l2"]()))
REFUSED = {
    "another metric": (
        {},
        {"rows": {"metric": "tiled_l2"}},
        "(headline metric of a: metric rmse",
        "of b: metric tiled",
    ),
    "another threshold": (
        {},
        {"rows": {"band": (0.0, 0.1)}},
        "of a: below 0.8; of b: below 0.1); evaluate one of them",
    ),
    "other neighbours": (
        {"rows": {"metric": "normalized_l2"}, "metrics": (NEIGHBOURS,)},
        {
            "rows": {"metric": "normalized_l2"},
            "metrics": (structs.replace(NEIGHBOURS, num_neighbors=50),),
        },
        "num_neighbors 10; of b: num_neighbors 50",
    ),
    "another shape": ({}, {"data": {"image_shape": (8, 8, 3)}}, "a compared images of 8 x 8 x 1", "b of 8 x 8 x 3"),
    "another number of images": ({}, {"n": 99}, "no attack was run in all", "a: samples (100); b: samples (99)"),
    "another attack": ({}, {"runs": (("side", {"scale": 1.0}),)}, "a: samples (100); b: side_1 (100)"),
    "a control alone": (
        {"runs": (("oracle", {"scale": 1.0}),)},
        {"runs": (("oracle", {"scale": 1.0}),)},
        "no attack was run in all audits",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_compared_is_refused(made, case):
    first, later, *words = REFUSED[case]
    a, b = made("a", MEMBERS[:4], **first), made("b", MEMBERS[:4], **later)
    with pytest.raises(InputError) as refused:
        compared(a, b)
    for word in words:
        assert word in str(refused.value)


def test_farther_bands_need_not_be_alike(made):
    other = (structs.replace(Definition(**definition(METRICS["rmse"]())), factors=(7.0, 8.0)),)
    assert compared(made("a", MEMBERS[:4]), made("b", MEMBERS[:4], metrics=other)).pairs[0].both == 4


DAMAGED = {
    "a table is missing": (lambda a, b: (a / "members.csv").unlink(), "members.csv is missing; evaluate a again"),
    "matches are missing": (lambda a, b: (a / "matches.csv").unlink(), "matches.csv is missing"),
    "a table is empty": (lambda a, b: (a / "members.csv").write_text(""), "are damaged, or not of one audit"),
    "a column is missing": (
        lambda a, b: (a / "members.csv").write_text((a / "members.csv").read_text().replace("extracted_", "found_")),
        "are damaged, or not of one audit; evaluate a again.",
    ),
    "members of another audit": (
        lambda a, b: (a / "members.csv").write_bytes((b / "members.csv").read_bytes()),
        "not of one audit",
    ),
    "matches of another audit": (
        lambda a, b: (a / "matches.csv").write_bytes((b / "matches.csv").read_bytes()),
        "not of one audit",
    ),
    "results of a later version": (
        lambda a, b: (a / "results.json").write_text(
            (a / "results.json").read_text().replace('"attack": "samples"', '"attack": "telepathy"')
        ),
        "has the attack 'telepathy', which this version does not know",
    ),
    "results that are none": (lambda a, b: (a / "results.json").write_text("{}"), "results.json is"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_audits_are_refused(made, case):
    a, b = made("a", MEMBERS[:4], HELDOUT[:2]), made("b", MEMBERS[:3], HELDOUT[:1])
    damage, words = DAMAGED[case]
    damage(a, b)
    with pytest.raises(InputError) as refused:
        compared(a, b)
    assert words in str(refused.value)
