"""Scores against cases worked out by hand, of every metric, band and reading."""

import numpy as np
import pytest

from side_jax.memorization.matching import joined, match, references
from side_jax.memorization.metrics import Cosine, DistanceRatio, NormalizedL2, Rmse, TiledL2

RMSE = Rmse(below=0.15)


def scores(images, among, metric, **options):
    """(matches, their score in the nearest band)."""
    (found,) = match(images, references(among, [metric]), [metric], **options)
    return found, found.score(metric.bands["high"])


def flat(*values):
    """Images of one flat value each."""
    return np.asarray(values, np.float32)[:, None, None, None] * np.ones((1, 2, 2, 1), np.float32)


def test_scores_by_hand():
    """Members at 0, 0.1 and 0.9; images at 0.04, 0.06, 0.45 and 0.95; a match is nearer than 0.15."""
    found, score = scores(flat(0.04, 0.06, 0.45, 0.95), flat(0.0, 0.1, 0.9), RMSE)
    np.testing.assert_allclose(found.value, [0.04, 0.04, 0.35, 0.05], atol=1e-6)
    assert found.nearest.tolist() == [0, 1, 1, 2]
    assert score.matched.tolist() == [True, True, False, True]
    assert score.extracted.tolist() == [1, 1, 1]
    assert score.hits.tolist() == [2, 2, 1]
    assert (score.ams, score.unique, score.ums, score.ums_nearest) == (0.75, 3, 0.75, 0.75)


def test_ums_counts_all_pairs_and_can_exceed_ams():
    """One image between two members matches once, but both members are in its band."""
    _, score = scores(flat(0.04, -0.9), flat(0.0, 0.1, 0.9), RMSE)
    assert (score.ams, score.unique, score.ums_nearest, score.ums) == (0.5, 1, 0.5, 1.0)


def test_bands_are_half_open_disjoint_and_cumulative():
    """One image at each distance; the last but one is at the very end of the farthest band."""
    metric = Rmse(below=0.25, factors=(2.0, 4.0))
    assert metric.bands == {
        "high": (0.0, 0.25),
        "mid": (0.25, 0.5),
        "low": (0.5, 1.0),
        "high to mid": (0.0, 0.5),
        "high to low": (0.0, 1.0),
    }
    images = flat(0.0, 0.125, 0.25, 0.375, 0.5, 1.0, 2.0)
    found = match(images, references(flat(0.0, 9.0), [metric]), [metric])[0]
    counts = {name: int(found.score(band).matched.sum()) for name, band in metric.bands.items()}
    assert counts == {"high": 2, "mid": 2, "low": 1, "high to mid": 4, "high to low": 5}


def test_a_nearer_match_leaves_a_farther_band_but_its_other_neighbours_enter_ums_there():
    """Peers' trap: by disjoint bands, AMS and all-pairs UMS of one band speak of different images."""
    metric = Rmse(below=0.1, factors=(3.0, 5.0))
    found = match(flat(0.05), references(flat(0.0, 0.25, 9.0), [metric]), [metric])[0]
    mid = found.score(metric.bands["mid"])
    assert (mid.ams, mid.ums, mid.ums_nearest) == (0.0, 1.0, 0.0)
    both = found.score(metric.bands["high to mid"])
    assert (both.ams, both.ums, both.ums_nearest) == (1.0, 2.0, 1.0)


def test_pairs_reach_to_a_limit_beyond_the_bands():
    (found,) = match(flat(0.0), references(flat(0.1, 0.4, 9.0), [RMSE]), [RMSE], limits={"rmse": 0.5})
    assert found.score((0.0, 0.5)).hits.tolist() == [1, 1, 0]
    assert found.incidence((0.2, 0.5)).tolist() == [[0, 1]]


def test_normalized_l2_around_the_generated_image_by_hand():
    """Distances 0.1, 0.3 and 0.8 to the three neighbours: 0.1 / (0.5 * 0.4) = 0.5; the second is at 1.5."""
    metric = NormalizedL2(below=0.6, factors=(3.0,), neighbors=3, alpha=0.5)
    found, score = scores(flat(0.1), flat(0.0, 0.4, 0.9, 5.0), metric)
    np.testing.assert_allclose(found.value, [0.5], rtol=1e-5)
    assert score.hits.tolist() == [1, 0, 0, 0]
    assert found.score(metric.bands["mid"]).hits.tolist() == [0, 1, 0, 0]


def test_normalized_l2_around_the_member_by_hand():
    """The matched member's own neighbours are at 0.4 and 0.9: 0.1 / (0.5 * 0.65); member 1's yardstick is 0.45."""
    metric = NormalizedL2(below=0.6, factors=(3.0,), neighbors=2, alpha=0.5, around="member")
    found, score = scores(flat(0.1), flat(0.0, 0.4, 0.9, 5.0), metric)
    np.testing.assert_allclose(found.value, [0.1 / (0.5 * 0.65)], rtol=1e-5)
    assert score.hits.tolist() == [1, 0, 0, 0]
    # 0.3 / (0.5 * (0.4 + 0.5) / 2) = 1.33, in [0.6, 1.8); member 2 is at 0.8 / (0.5 * (0.5 + 0.9) / 2) = 2.29.
    assert found.score(metric.bands["mid"]).hits.tolist() == [0, 1, 0, 0]


def test_normalized_l2_around_a_member_with_copies():
    """A copy of the member counts among its neighbours, the member itself never does."""
    metric = NormalizedL2(below=0.6, neighbors=2, alpha=0.5, around="member")
    among = references(flat(0.0, 0.0, 0.4), [metric])
    np.testing.assert_allclose(among.prepared["normalized_l2"], [0.1, 0.1, 0.2], rtol=1e-5)
    same = references(flat(0.0, 0.0, 0.0, 0.0), [metric])
    assert same.prepared["normalized_l2"].tolist() == [0] * 4
    assert match(flat(0.2), same, [metric])[0].value.tolist() == [0]


def test_normalized_l2_lies_in_zero_to_one_over_alpha():
    rng = np.random.default_rng(3)
    images, among = (rng.uniform(-1, 1, (size, 4, 4, 1)).astype(np.float32) for size in (16, 30))
    metric = NormalizedL2(below=1.0, neighbors=4, alpha=0.5)
    value = scores(images, among, metric)[0].value
    assert value.min() >= 0
    assert value.max() <= 2
    exact, score = scores(among[:5], among, metric)
    assert exact.value.tolist() == [0] * 5
    assert score.ams == 1


def test_tiled_l2_is_that_of_the_worst_tile():
    """One of four tiles differs by 0.4; the RMSE over the image is 0.2."""
    member = np.zeros((1, 4, 4, 1), np.float32)
    image = member.copy()
    image[0, :2, 2:] = 0.4
    tiled, plain = TiledL2(below=0.5, grid=2), Rmse(below=0.5)
    found = match(image, references(member.repeat(2, axis=0), [tiled, plain]), [tiled, plain])
    np.testing.assert_allclose([one.value[0] for one in found], [0.4, 0.2], rtol=1e-5)
    assert found[0].score((0.0, 0.5)).hits.tolist() == [1, 1]
    assert found[0].score((0.0, 0.3)).ams == 0


def test_cosine_is_of_features_alone():
    metric = Cosine(above=0.6)
    features = np.asarray([[1.0, 0.0], [0.5, 0.75**0.5]], np.float32)
    among = references(flat(0.0, 0.0), [metric], features)
    (found,) = match(flat(5.0, 7.0), among, [metric], features=np.asarray([[2.0, 0.0], [-1.0, 0.0]], np.float32))
    np.testing.assert_allclose(found.value, [0.0, 1.5], atol=1e-6)
    assert found.nearest.tolist() == [0, 1]
    assert found.score((0.0, 0.4)).hits.tolist() == [1, 0]  # the second is at 0.5
    assert found.score((0.0, 0.4)).ams == 0.5


def test_distance_ratio_by_hand_and_with_duplicates():
    metric = DistanceRatio()
    found, score = scores(flat(0.1, 0.4), flat(0.0, 0.9), metric)
    np.testing.assert_allclose(found.value, [0.1 / 0.8, 0.4 / 0.5], rtol=1e-5)
    assert score.matched.tolist() == [True, False]
    assert score.ums == score.ums_nearest == 0.5
    # Two exact copies among the members: 0 / 0 says nothing, so it is no match.
    assert scores(flat(0.0), flat(0.0, 0.0, 1.0), metric)[1].ams == 0


METRICS = [
    Rmse(below=0.15, factors=(1.25, 1.5)),
    NormalizedL2(below=0.8, factors=(1.25,), neighbors=10),
    TiledL2(below=0.3, grid=2),
    DistanceRatio(),
    Cosine(above=0.6),
]


def features(images):
    return images.reshape(len(images), -1)


@pytest.mark.parametrize("around", ["generated", "member"])
def test_parts_joined_are_the_whole(around):
    rng = np.random.default_rng(5)
    members = rng.uniform(-1, 1, (30, 4, 4, 1)).astype(np.float32)
    images = members[rng.integers(0, 30, 16)] + 0.2 * rng.normal(size=(16, 4, 4, 1)).astype(np.float32)
    metrics = [METRICS[0], NormalizedL2(below=0.8, factors=(1.5,), neighbors=4, around=around)]
    among = references(members, metrics)
    whole = match(images, among, metrics)
    parts = [match(part, among, metrics) for part in (images[:7], images[7:8], images[8:])]
    for metric, one, *pieces in zip(metrics, whole, *parts, strict=True):
        together = joined(pieces)
        np.testing.assert_array_equal(together.nearest, one.nearest)
        np.testing.assert_allclose(together.value, one.value, rtol=1e-5)
        for band in metric.bands.values():
            ours, theirs = together.score(band), one.score(band)
            np.testing.assert_array_equal(ours.hits, theirs.hits)
            np.testing.assert_array_equal(ours.extracted, theirs.extracted)
            assert sorted(map(tuple, together.incidence(band))) == sorted(map(tuple, one.incidence(band)))


def test_metrics_see_copies_and_not_strangers():
    """The positive control (noised copies of members) and the negative one (other images), by every metric."""
    rng = np.random.default_rng(4)
    members, others = (rng.uniform(-1, 1, (60, 8, 8, 1)).astype(np.float32) for _ in range(2))
    copies = members + 0.05 * rng.normal(size=members.shape).astype(np.float32)
    among = references(members, METRICS, features(members))
    seen, unseen = (match(images, among, METRICS, features=features(images)) for images in (copies, others))
    for metric, of_copies, of_others in zip(METRICS, seen, unseen, strict=True):
        score = of_copies.score(metric.bands["high"])
        assert (score.ams, score.unique) == (1, 60), metric.name
        assert of_others.score(metric.bands["high"]).ams == 0, metric.name


def test_around_members_the_nearest_is_the_one_of_the_smallest_value():
    """By brute force; for some images it is not the nearest member by RMSE."""
    rng = np.random.default_rng(3)
    members = (
        rng.normal(size=(40, 1, 1, 1)) + rng.normal(size=(40, 4, 4, 1)) * rng.uniform(0.05, 1, (40, 1, 1, 1))
    ) / 4
    images = rng.normal(size=(60, 4, 4, 1)) / 4
    members, images = (np.clip(one, -1, 1).astype(np.float32) for one in (members, images))
    metric = NormalizedL2(below=0.9, neighbors=3, around="member")
    (found,) = match(images, references(members, [metric]), [metric])
    flat = [one.reshape(len(one), -1).astype(np.float64) for one in (images, members)]
    distance, among = (np.sqrt(((a[:, None] - flat[1][None]) ** 2).mean(-1)) for a in flat)
    value = distance / (0.5 * np.sort(among, axis=1)[:, 1:4].mean(1))
    assert (value.argmin(1) != distance.argmin(1)).sum() > 5
    np.testing.assert_array_equal(found.nearest, value.argmin(1))
    np.testing.assert_allclose(found.value, value.min(1), rtol=1e-5)
