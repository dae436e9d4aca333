"""Scores beside their controls: what a row says of copies, of strangers, of nothing; and calibrated thresholds."""

import numpy as np
import pytest
from msgspec import UNSET

from side_jax.measure import positive_control, scoring
from side_jax.measure.records import Run
from side_jax.measure.scoring import Scorer
from side_jax.memorization.matching import match, references
from side_jax.memorization.metrics import DistanceRatio, NormalizedL2, Rmse
from side_jax.memorization.statistics import intervals
from side_jax.settings import Evaluate

METRICS = [
    Rmse(below=0.2, factors=(1.25, 1.5)),
    NormalizedL2(below=0.8, neighbors=4),
    DistanceRatio(),
]
N = 60
RUN = Run(attack="side", guidance_scale=10.0)


@pytest.fixture(scope="module")
def sides():
    """(members, held-out, fresh images): independent uniform noise, in which nothing is near anything."""
    rng = np.random.default_rng(0)
    return tuple(rng.integers(0, 256, (N, 6, 6, 1), np.uint8) for _ in range(3))


def copies(images, number=N):
    """Noised copies of the first images, over and over."""
    chosen = images[np.arange(number) % len(images)]
    return np.clip(chosen + np.random.default_rng(1).normal(0, 4, chosen.shape), 0, 255).astype(np.uint8)


def make(members, heldout, **options):
    settings = Evaluate(false_match_rate=0.05, **options)
    return Scorer(members, heldout, METRICS, settings, seed=0)


def rows(scorer, images, plain=None):
    matches = scoring.join([scorer.match(part) for part in np.array_split(images, 3)])
    return {(row.metric, row.level): row for row in scorer.rows(RUN, matches, plain)}, matches


def test_copies_of_members_are_an_excess_by_every_metric(sides):
    members, heldout, fresh = sides
    images = np.concatenate([copies(members[:10], 30), fresh[:30]])
    found, _ = rows(make(members, heldout), images)
    for metric in METRICS:
        row = found[metric.name, "high"]
        assert row.ams == row.excess == 0.5, metric.name
        assert (row.unique, row.ums_nearest) == (10, 10 / 60)
        assert row.heldout_ams == row.heldout_unique == 0
        assert row.heldout_ams_at_most == pytest.approx(3 / 60, rel=2e-3)
        assert row.ams_at_most is None
        assert 0.15 < row.excess_ci[0] < 0.5 < row.excess_ci[1] < 0.85  # 10 of 60 members take all
        assert row.p_excess <= 0.002 < row.p_deficit  # of 120 images 10 are matched, all of them members
        assert row.unique_excess == 10
        assert row.unique_excess_ci[0] < 10 < row.unique_excess_ci[1]
        assert row.ums_nearest_ci[0] < 10 / 60 < row.ums_nearest_ci[1]


def test_copies_of_held_out_images_are_a_negative_excess(sides):
    members, heldout, _ = sides
    found, _ = rows(make(members, heldout), copies(heldout[:10]))
    row = found["rmse", "high"]
    assert (row.ams, row.heldout_ams, row.excess, row.unique_excess, row.p_excess) == (0, 1, -1, -10, 1)
    assert row.p_deficit <= 0.002


def test_strangers_match_nothing_and_say_how_little_that_proves(sides):
    members, heldout, fresh = sides
    found, _ = rows(make(members, heldout), fresh)
    for row in found.values():
        if row.level != "calibrated":
            assert row.ams == row.heldout_ams == 0
            assert row.ams_ci[1] > 0.04
            assert row.ums_ci[1] > 0.04
            assert row.ams_at_most == intervals.zero_hits_bound(N, 0.95)


def test_the_control_is_of_equal_number(sides):
    """With a third as many held-out images, the excess is of as many members, on average."""
    members, heldout, _ = sides
    scorer = make(members, heldout[:20])
    assert scorer.sizes == {"members": 60, "heldout": 20, "both": 80}
    row = rows(scorer, copies(members))[0]["rmse", "high"]
    assert (row.ams, row.excess) == (1, pytest.approx(20 / 60))
    more = make(members[:20], heldout)
    assert more.sizes == {"members": 20, "heldout": 20, "both": 40}
    assert more.thresholds["rmse"].calibrated_on == 30  # all held-out images calibrate


def test_calibrated_threshold_is_that_of_held_out_images_nearest_members(sides):
    """By brute force: the k-th of the distances of the held-out images that calibrate to their nearest members."""
    members, heldout, _ = sides
    scorer = make(members, heldout)
    flat = [side.reshape(N, -1) / 127.5 - 1 for side in (heldout, members)]
    nearest = np.sqrt(((flat[0][:, None] - flat[1][None]) ** 2).mean(-1)).min(1)
    calibration, test = intervals.halves(N, 0)
    expected = np.sort(nearest[calibration])[int(0.05 * 31) - 1]
    threshold = scorer.thresholds["rmse"]
    assert threshold.below == pytest.approx(expected, rel=1e-5)
    assert (threshold.calibrated_on, threshold.tested_on) == (30, 30)
    assert threshold.matched == (nearest[test] < expected * (1 - 1e-6)).sum()
    row = rows(scorer, copies(members))[0]["rmse", "calibrated"]
    assert row.band == (0, threshold.below)
    assert (row.ams, row.false_match_rate) == (1, 0.05)
    assert row.false_match_measured == threshold.matched / 30
    # At this wide a threshold several members are in the band of an image, which only all pairs count.
    assert row.ums >= row.ums_nearest


def test_images_of_one_person_calibrate_together(sides):
    members, heldout, _ = sides
    settings = Evaluate(metrics=("rmse",), false_match_rate=0.1)
    people = np.repeat([0, 1, 2], [20, 30, 10])
    groups = people + 3, people
    threshold = Scorer(members, heldout, METRICS[:1], settings, seed=0, groups=groups).thresholds["rmse"]
    calibration, test = intervals.halves(N, 0, people)
    assert (threshold.calibrated_on, threshold.tested_on) == (len(calibration), len(test))
    assert not set(people[calibration]) & set(people[test])


def test_too_few_held_out_images_calibrate_nothing(sides):
    members, heldout, _ = sides
    scorer = make(members, heldout[:20])
    assert scorer.thresholds["rmse"].below is None
    assert not [level for _, level in rows(scorer, copies(members))[0] if level == "calibrated"]


def test_a_run_is_compared_with_the_unguided_one_image_by_image(sides):
    """Plain: images 0..19 copy member i % 5. The run: images 10..49 copy member i % 10, so 5 members more."""
    members, heldout, fresh = sides
    scorer = make(members, heldout)
    plain, run = fresh.copy(), fresh.copy()
    plain[:20] = copies(members[:5], 20)
    run[10:50] = copies(members[:10], 40)
    plain_matches = rows(scorer, plain)[1]
    row = rows(scorer, run, plain_matches)[0]["rmse", "high"]
    assert row.p_more_images == pytest.approx(intervals.mcnemar(30, 10))
    assert row.p_more_members == pytest.approx(0.5**5)
    assert rows(scorer, run)[0]["rmse", "high"].p_more_images is UNSET
    # Images of a search descend from each other, so that they are no independent pairs.
    search = Run(attack="black_box", guidance_scale=0.0)
    from_there = Run(attack="modes", guidance_scale=0.0, start="black_box", noise_level=0.4, rounds=5)
    for one in (search, from_there):
        searched, *_ = scorer.rows(one, scorer.match(run), plain_matches)
        assert searched.p_more_images is UNSET
        assert searched.p_more_members == row.p_more_members
    assert rows(scorer, run[:30], plain_matches)[0]["rmse", "high"].p_more_images is UNSET  # not as many images


def test_what_is_left_to_find_is_estimated_from_the_images_of_a_run(sides):
    """Of 60 images each member of the first 10 is copied 6 times: nothing more is to be expected."""
    members, heldout, _ = sides
    scorer = make(members, heldout)
    curve = scorer.rarefied(RUN, rows(scorer, copies(members[:10]))[1])
    assert (curve.attack, curve.guidance_scale) == ("side", 10.0)
    assert curve.expected[-1] == pytest.approx(10)
    assert curve.sizes[-1] == 60
    assert curve.chao1.estimate == pytest.approx(10)
    assert curve.ahead.chao == pytest.approx(10)
    assert 10 <= curve.ahead.fit < N


def test_every_metric_sees_the_positive_control_and_not_the_negative_one(sides):
    members, heldout, _ = sides
    scorer = make(members, heldout)
    found = positive_control.sensitivity(scorer, members[:30], heldout, 0.95)
    at = {(row.distortion, row.strength, row.metric): row for row in found if row.level == "high"}
    for metric in METRICS:
        for distortion, strength in (("noise", 0.0), ("noise", 0.02), ("noise", 0.05), ("crop", 0.0), ("flip", 0.0)):
            assert at[distortion, strength, metric.name].found == 1, (metric.name, distortion)
        assert at["recompression", 5.0, metric.name].found > 0.9
        assert at["held-out images", None, metric.name].found == 0
        # Pixels of noise have no left and right: flipped copies are not seen, and the row says so.
        assert at["flip", 1.0, metric.name].found == 0
        by_strength = [at["noise", s, metric.name].found for s in positive_control.DISTORTIONS["noise"][1]]
        assert by_strength == sorted(by_strength, reverse=True)
    assert {row.level for row in found} == {"high", "calibrated"}


def test_distortions_are_what_they_say():
    """On a picture: noise has its deviation, a crop enlarges the middle, a mirror swaps sides, JPEG blurs."""
    ramp = np.broadcast_to(np.linspace(60, 190, 32).astype(np.uint8)[None, None, :, None], (4, 32, 32, 3))
    noise = positive_control.noised(ramp, 0.1).astype(float) - ramp
    assert noise.std() == pytest.approx(12.75, rel=0.03)
    np.testing.assert_array_equal(positive_control.flipped(ramp, 1.0), ramp[:, :, ::-1])
    np.testing.assert_array_equal(positive_control.flipped(ramp, 0.0), ramp)
    cut = positive_control.cropped(ramp, 0.5).astype(float)
    assert cut[0, 0, -1, 0] - cut[0, 0, 0, 0] == pytest.approx(65, abs=4)  # half of the ramp's range
    np.testing.assert_array_equal(positive_control.cropped(ramp, 0.0), ramp)
    for worse, better in ((90.0, 50.0), (50.0, 5.0)):
        textured = positive_control.noised(ramp, 0.3)
        lost = [
            np.abs(positive_control.recompressed(textured, s).astype(float) - textured).mean() for s in (worse, better)
        ]
        assert lost[0] > lost[1] > 0
    grey = ramp[..., :1]
    assert {
        change(grey, s).shape
        for change, s, _ in ((c, max(ss), u) for c, ss, u in positive_control.DISTORTIONS.values())
    } == {grey.shape}


def test_both_sides_as_one_are_those_of_a_search_among_all(sides):
    """By brute force among members and held-out images together, of which every other neighbour counts."""
    members, heldout, fresh = sides
    images = np.concatenate([copies(members[:10], 20), copies(heldout[:5], 10), fresh[:30]])
    found = {one.name: of for one, of in zip(METRICS, make(members, heldout).match(images)["both"], strict=True)}
    x, y = (of.reshape(len(of), -1) / 127.5 for of in (images, np.concatenate([members, heldout])))
    distance = np.sqrt(((x[:, None] - y[None]) ** 2).mean(-1))
    near = np.sort(distance, axis=1)
    expected = {
        "rmse": near[:, 0],
        "normalized_l2": near[:, 0] / (0.5 * near[:, [0, 2, 4, 6]].mean(1)),
        "distance_ratio": near[:, 0] / near[:, 2],
    }
    for name, one in found.items():
        np.testing.assert_array_equal(one.nearest, distance.argmin(1))
        np.testing.assert_allclose(one.value, expected[name], rtol=1e-4)


@pytest.mark.parametrize("around", ["generated", "member"])
def test_as_many_images_match_a_member_among_both_sides_as_among_members(around):
    """Copies of various quality, around the threshold; without thinning fewer would."""
    rng = np.random.default_rng(0)
    members, heldout = (rng.normal(0, 40, (150, 3, 2, 1)) for _ in range(2))
    made = members[np.arange(900) % 150] + rng.uniform(0, 40, (900, 1, 1, 1)) * rng.normal(size=(900, 3, 2, 1))
    made, members, heldout = (np.clip(of + 127, 0, 255).astype(np.uint8) for of in (made, members, heldout))
    metrics = [NormalizedL2(below=0.8, around=around), DistanceRatio()]
    found = Scorer(members, heldout, metrics, Evaluate(), seed=0).match(made)
    for metric, alone, both in zip(metrics, found["members"], found["both"], strict=True):
        expected = alone.score(metric.bands["high"]).matched.sum()
        assert (both.score(metric.bands["high"]).matched & (both.nearest < 150)).sum() == pytest.approx(
            expected, rel=0.1
        )
        if around == "generated":
            (plain,) = match(made, references(np.concatenate([members, heldout]), [metric]), [metric])
            assert plain.score(metric.bands["high"]).matched.sum() < 0.95 * expected


def test_members_that_nearly_equal_images_left_out_are_not_tested(sides):
    """Every image matches such a member: a share of 1, and no excess."""
    members, heldout, _ = sides
    settings = Evaluate(false_match_rate=0.05)
    shared = np.arange(N) < 5
    found, _ = rows(Scorer(members, heldout, METRICS, settings, seed=0, shared=shared), copies(members[:5]))
    row = found["rmse", "high"]
    assert (row.ams, row.unique, row.excess, row.unique_excess, row.p_excess) == (1, 5, 0, 0, 1)
    nothing, _ = rows(Scorer(members, heldout, METRICS, settings, seed=0, shared=np.ones(N, bool)), copies(members[:5]))
    assert nothing["rmse", "high"].p_excess is UNSET


def test_people_are_tested_as_people(sides):
    """Ten images of one member match: certain as images, a coin flip as one of few people."""
    members, heldout, _ = sides
    settings, people = Evaluate(false_match_rate=0.05), np.repeat(np.arange(3), 20)
    of = {None: None, "people": (people, people + 3)}
    p = {
        name: rows(Scorer(members, heldout, METRICS, settings, seed=0, groups=groups), copies(members[:10]))[0]
        for name, groups in of.items()
    }
    assert p[None]["rmse", "high"].p_excess < 0.01
    assert p["people"]["rmse", "high"].p_excess == pytest.approx(0.5, abs=0.03)


def test_what_attacks_extract_together_is_counted_once(sides):
    """Members 0 to 9 and 5 to 14, of which 5 are the same; and two held-out images, which chance would match too."""
    members, heldout, fresh = sides
    scorer = make(members, heldout)
    runs = [
        np.concatenate([copies(members[:10], 20), fresh[:40]]),
        np.concatenate([copies(members[5:15], 20), copies(heldout[:2], 10), fresh[:10]]),
    ]
    found = [scorer.headline(scorer.match(images)) for images in runs]
    both = scorer.together(found)
    assert (both.runs, both.images, both.unique, both.heldout_unique) == (2, 100, 15, 2)
    assert both.unique_excess == 13
    assert both.unique_excess_ci[0] < 13 < both.unique_excess_ci[1]
    alone = scorer.together(found[:1])
    row = scorer.rows(RUN, scorer.match(runs[0]), None)[0]
    assert (alone.unique_excess, alone.unique_excess_ci) == (row.unique_excess, row.unique_excess_ci)


def test_together_says_nothing_of_chance_where_nothing_can_be_tested(sides):
    members, heldout, _ = sides
    scorer = Scorer(members, heldout, METRICS, Evaluate(), seed=0, shared=np.ones(N, bool))
    both = scorer.together([scorer.headline(scorer.match(copies(members[:5])))] * 2)
    assert both.unique == 5
    assert both.unique_excess is UNSET
