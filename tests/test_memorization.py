"""Nearest neighbours against brute force in float64, scores against cases worked out by hand."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from side_jax.memorization import neighbors
from side_jax.memorization.metrics import Metric, difference_interval, match, wilson_interval

RMSE = Metric(name="rmse", band=(0.0, 0.15))


def brute_force(images, references):
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (images, references))
    return np.sqrt(((a[:, None] - b[None]) ** 2).mean(-1))


@pytest.mark.parametrize("block", [1, 7, 256])
def test_nearest_is_brute_force(block):
    rng = np.random.default_rng(0)
    images, references = rng.uniform(-1, 1, (30, 4, 4, 3)), rng.uniform(-1, 1, (50, 4, 4, 3))
    distances, index = neighbors.nearest(images, references, 5, block)
    expected = brute_force(images, references)
    np.testing.assert_array_equal(index, np.argsort(expected, axis=1, kind="stable")[:, :5])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :5], rtol=1e-5)


def test_nearest_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    images, references = rng.normal(size=(20, 6, 6, 1)), rng.normal(size=(40, 6, 6, 1))
    expected, index = NearestNeighbors(n_neighbors=3).fit(references.reshape(40, -1)).kneighbors(images.reshape(20, -1))
    distances, got = neighbors.nearest(images, references, 3)
    np.testing.assert_array_equal(got, index)
    np.testing.assert_allclose(distances * 6, expected, rtol=1e-5)


def test_near_copies_of_bright_images_keep_their_tiny_distance():
    """Where |a|^2 - 2ab + |b|^2 in float32 would return noise."""
    reference = np.full((3, 8, 8, 1), 1000.0)
    reference[1:] += [[[[1.0]]], [[[2.0]]]]
    copies = reference.copy()
    copies[:, 0, 0, 0] += 1 / 16
    distances, index = neighbors.nearest(copies, reference, 1)
    assert index[:, 0].tolist() == [0, 1, 2]
    np.testing.assert_allclose(distances[:, 0], 1 / 128, rtol=1e-4)


def test_duplicates_and_zeros_tie_to_the_lower_index():
    references = np.zeros((4, 2, 2, 1))
    references[2] = 1.0
    distances, index = neighbors.nearest(np.zeros((1, 2, 2, 1)), references, 4)
    assert index.tolist() == [[0, 1, 3, 2]]
    assert distances.tolist() == [[0, 0, 0, 1]]


def test_within_is_the_union_over_images():
    rng = np.random.default_rng(2)
    images, references = rng.uniform(-1, 1, (25, 3, 3, 1)), rng.uniform(-1, 1, (60, 3, 3, 1))
    low, high = rng.uniform(0.3, 0.5, 25), rng.uniform(0.5, 0.6, 25)
    expected = brute_force(images, references)
    expected = ((expected >= low[:, None]) & (expected < high[:, None])).any(0)
    assert 0 < expected.sum() < 60
    np.testing.assert_array_equal(neighbors.within(images, references, low, high, block=4), expected)


def test_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="differ in shape"):
        neighbors.nearest(np.zeros((2, 4, 4, 1)), np.zeros((2, 4, 4, 3)), 1)
    with pytest.raises(ValueError, match="k must be between 1 and the 2 references"):
        neighbors.nearest(np.zeros((2, 4, 4, 1)), np.zeros((2, 4, 4, 1)), 3)


def flat(*values):
    """Images of one flat value each."""
    return np.asarray(values, np.float32)[:, None, None, None] * np.ones((1, 2, 2, 1), np.float32)


def test_scores_by_hand():
    """Members at 0, 0.1 and 0.9; images at 0.04, 0.06, 0.45 and 0.95; a match is nearer than 0.15."""
    scored = match(flat(0.04, 0.06, 0.45, 0.95), flat(0.0, 0.1, 0.9), [RMSE])[0]
    np.testing.assert_allclose(scored.value, [0.04, 0.04, 0.35, 0.05], atol=1e-6)
    assert scored.nearest.tolist() == [0, 1, 1, 2]
    assert scored.matched.tolist() == [True, True, False, True]
    assert scored.ams == 0.75
    assert scored.unique == 3
    assert scored.ums == 0.75


def test_ums_counts_all_pairs_and_can_exceed_ams():
    """One image between two members matches once, but both members are in its band."""
    scored = match(flat(0.04, -0.9), flat(0.0, 0.1, 0.9), [RMSE])[0]
    assert scored.ams == 0.5
    assert scored.unique == 1
    assert scored.ums == 1.0


def test_bands_are_half_open():
    scored = match(flat(0.25, 0.5), flat(0.0, 4.0), [Metric(name="rmse", band=(0.25, 0.5))])[0]
    assert scored.matched.tolist() == [True, False]


def test_normalized_l2_by_hand():
    """Distances 0.1, 0.3 and 0.8 to the three neighbours: 0.1 / (0.5 * 0.4) = 0.5."""
    metric = Metric(name="normalized_l2", band=(0.0, 0.6), num_neighbors=3, alpha=0.5)
    scored = match(flat(0.1), flat(0.0, 0.4, 0.9, 5.0), [metric])[0]
    np.testing.assert_allclose(scored.value, [0.5], rtol=1e-5)
    assert scored.in_band.tolist() == [True, False, False, False]


def test_normalized_l2_lies_in_zero_to_one_over_alpha():
    rng = np.random.default_rng(3)
    images, references = rng.uniform(-1, 1, (40, 3, 3, 1)), rng.uniform(-1, 1, (40, 3, 3, 1))
    metric = Metric(name="normalized_l2", band=(0.0, 1.0), num_neighbors=10, alpha=0.5)
    value = match(images, references, [metric])[0].value
    assert value.min() >= 0
    assert value.max() <= 2
    exact = match(references[:5], references, [metric])[0]
    assert exact.value.tolist() == [0] * 5
    assert exact.ams == 1


def test_distance_ratio_by_hand_and_with_duplicates():
    metric = Metric(name="distance_ratio", band=(0.0, 1 / 3))
    scored = match(flat(0.1, 0.4), flat(0.0, 0.9), [metric])[0]
    np.testing.assert_allclose(scored.value, [0.1 / 0.8, 0.4 / 0.5], rtol=1e-5)
    assert scored.matched.tolist() == [True, False]
    # Two exact copies among the members: 0 / 0 says nothing, so it is no match.
    assert match(flat(0.0), flat(0.0, 0.0, 1.0), [metric])[0].ams == 0


def test_metrics_see_copies_and_not_strangers():
    """The positive control (noised copies of members) and the negative one (other images)."""
    rng = np.random.default_rng(4)
    members, others = rng.uniform(-1, 1, (60, 8, 8, 1)), rng.uniform(-1, 1, (60, 8, 8, 1))
    copies = members + 0.05 * rng.normal(size=members.shape)
    metrics = [
        RMSE,
        Metric(name="normalized_l2", band=(0.0, 0.8), num_neighbors=10),
        Metric(name="distance_ratio", band=(0.0, 1 / 3)),
    ]
    for seen, unseen in zip(match(copies, members, metrics), match(others, members, metrics), strict=True):
        assert seen.ams == 1
        assert seen.unique == 60
        assert unseen.ams == 0


def test_wilson_interval():
    """Against the formula (Wilson 1927), and never [0, 0]."""
    z, n, hits = 1.959964, 200, 7
    p = hits / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5 / (1 + z**2 / n)
    np.testing.assert_allclose(wilson_interval(hits, n, 0.95), (centre - half, centre + half), rtol=1e-6)
    low, high = wilson_interval(0, 1024, 0.95)
    assert low == 0
    assert 0.003 < high < 0.004


def test_difference_interval():
    """Newcombe 1998, table II: 56 of 70 against 48 of 80 and 9 of 10 against 3 of 10, by his method 10."""
    np.testing.assert_allclose(difference_interval((56, 48), (70, 80), 0.95), (0.0524, 0.3339), atol=5e-5)
    np.testing.assert_allclose(difference_interval((9, 3), (10, 10), 0.95), (0.1705, 0.8090), atol=5e-5)
    np.testing.assert_allclose(difference_interval((5, 0), (56, 29), 0.95), (-0.0381, 0.1926), atol=5e-5)
