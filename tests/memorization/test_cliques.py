"""Cliques against the enumeration of all subsets, and on graphs whose cliques are known."""

import itertools

import numpy as np
import pytest

from side_jax.memorization import cliques
from side_jax.memorization.cliques import clique_sizes, components, degrees


def edges(*pairs):
    return np.asarray(pairs, np.int64).reshape(-1, 2)


def random_graph(rng, n, density):
    pairs = np.argwhere(np.triu(rng.random((n, n)) < density, 1))
    return pairs, rng.random(len(pairs))


def joined(n, pairs):
    matrix = np.eye(n, dtype=bool)
    matrix[pairs[:, 0], pairs[:, 1]] = matrix[pairs[:, 1], pairs[:, 0]] = True
    return matrix


def largest(n, pairs):
    """The size of the largest clique that holds each node, by looking at every subset."""
    matrix, best = joined(n, pairs), np.ones(n, np.int64)
    for size in range(2, n + 1):
        for subset in itertools.combinations(range(n), size):
            if matrix[np.ix_(subset, subset)].all():
                best[list(subset)] = size
    return best


def plain(n, pairs, distances):
    """Equations (1) and (2) by the letter."""
    matrix, distance = joined(n, pairs), np.full((n, n), np.inf)
    distance[pairs[:, 0], pairs[:, 1]] = distance[pairs[:, 1], pairs[:, 0]] = distances
    sizes = np.ones(n, np.int64)
    for i in range(n):
        clique = [i]
        for j in sorted(set(np.flatnonzero(matrix[i])) - {i}, key=lambda j: (distance[i, j], j)):
            if matrix[j, clique].all():
                clique.append(j)
        sizes[clique] = np.maximum(sizes[clique], len(clique))
    return sizes


def test_never_above_the_largest_and_mostly_equal():
    """A subset of a clique is a clique, so a size up to the largest is a true one's."""
    rng, equal = np.random.default_rng(0), []
    for _ in range(60):
        n, density = int(rng.integers(2, 9)), rng.uniform(0.1, 0.95)
        pairs, distances = random_graph(rng, n, density)
        sizes, best = clique_sizes(n, pairs, distances), largest(n, pairs)
        assert sizes.dtype == np.int64
        assert (sizes <= best).all()
        assert (sizes >= np.minimum(degrees(n, pairs) + 1, 2)).all()
        equal.extend(sizes == best)
    assert np.mean(equal) > 0.97


@pytest.mark.parametrize(("n", "density"), [(30, 0.2), (60, 0.6), (80, 0.95)])
def test_is_the_plain_walk(n, density):
    rng = np.random.default_rng(n)
    pairs, distances = random_graph(rng, n, density)
    distances = np.round(distances, 1)  # with ties
    np.testing.assert_array_equal(clique_sizes(n, pairs, distances), plain(n, pairs, distances))


def test_near_duplicates_of_points_in_space():
    """Chained clusters, joined below a distance: the components are larger than their cliques."""
    rng = np.random.default_rng(1)
    points = np.concatenate([rng.normal(3 * k, 1, (40, 2)) for k in range(4)] + [rng.uniform(50, 900, (40, 2))])
    distance = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1))
    pairs = np.argwhere(np.triu(distance < 2, 1))
    distances = distance[pairs[:, 0], pairs[:, 1]]
    sizes = clique_sizes(200, pairs, distances)
    np.testing.assert_array_equal(sizes, plain(200, pairs, distances))
    assert sizes.max() >= cliques.CLIQUE
    assert np.bincount(components(200, pairs)).max() > sizes.max()


def test_equals_the_largest_on_disjoint_cliques():
    rng = np.random.default_rng(2)
    expected = np.repeat([1, 1, 2, 3, 7, 10, 25], [1, 1, 2, 3, 7, 10, 25])
    owner = np.repeat(np.arange(7), [1, 1, 2, 3, 7, 10, 25])
    order = rng.permutation(len(owner))
    pairs = np.argwhere(np.triu(owner[order][:, None] == owner[order][None], 1))
    np.testing.assert_array_equal(clique_sizes(49, pairs, rng.random(len(pairs))), expected[order])


def test_by_hand():
    """0 is nearest to 1, which is in no clique with 2, 3 and 4; those find 0 from their side."""
    pairs = edges((0, 1), (2, 0), (0, 3), (4, 0), (2, 3), (3, 4), (2, 4), (5, 6))
    distances = np.asarray([0.1, 0.5, 0.5, 0.5, 0.4, 0.4, 0.4, 0.2])
    assert clique_sizes(8, pairs, distances).tolist() == [4, 2, 4, 4, 4, 2, 2, 1]
    assert degrees(8, pairs).tolist() == [4, 1, 3, 3, 3, 1, 1, 0]
    assert components(8, pairs).tolist() == [0, 0, 0, 0, 0, 5, 5, 7]
    # A path, a square and a square with one diagonal.
    path = edges((0, 1), (1, 2), (2, 3))
    assert clique_sizes(4, path, np.zeros(3)).tolist() == [2, 2, 2, 2]
    square = edges((0, 1), (1, 2), (2, 3), (3, 0))
    assert clique_sizes(4, square, np.zeros(4)).tolist() == [2, 2, 2, 2]
    assert clique_sizes(4, np.concatenate([square, edges((2, 0))]), np.zeros(5)).tolist() == [3, 3, 3, 3]


def test_a_walk_that_misses():
    """Triangle 0-1-2, each of whose images has a nearer neighbour that ends its walk: a lower bound, as said."""
    pairs = edges((0, 1), (1, 2), (0, 2), (0, 3), (1, 4), (2, 5))
    assert clique_sizes(6, pairs, np.asarray([2.0, 2, 2, 1, 1, 1])).tolist() == [2] * 6
    assert clique_sizes(6, pairs, np.asarray([1.0, 1, 1, 2, 2, 2])).tolist() == [3, 3, 3, 2, 2, 2]


def test_ties_go_to_the_lower_id():
    """Image 0 is as near to 1 and 2 (a pair with it each) as to 3 and 4 (a triangle)."""
    pairs = edges((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (3, 4), (2, 5), (2, 6), (5, 6))
    assert clique_sizes(7, pairs, np.zeros(9)).tolist() == [3] * 7
    # Exact duplicates, at distance 0, are neighbours as others are.
    low = clique_sizes(4, edges((3, 0), (1, 0), (2, 1), (2, 3)), np.zeros(4))
    assert low.tolist() == [2, 2, 2, 2]


def test_order_and_orientation_of_pairs_change_nothing():
    rng = np.random.default_rng(3)
    pairs, distances = random_graph(rng, 40, 0.5)
    expected = clique_sizes(40, pairs, distances)
    order, swapped = rng.permutation(len(pairs)), pairs.copy()
    swapped[::2] = swapped[::2, ::-1]
    np.testing.assert_array_equal(clique_sizes(40, swapped[order], distances[order]), expected)
    np.testing.assert_array_equal(clique_sizes(40, pairs, np.exp(distances)), expected)
    np.testing.assert_array_equal(clique_sizes(40, pairs.astype(np.int32), distances.astype(np.float32)), expected)


def test_a_small_cache_changes_nothing(monkeypatch):
    pairs, distances = random_graph(np.random.default_rng(4), 60, 0.7)
    expected = clique_sizes(60, pairs, distances)
    monkeypatch.setattr(cliques, "CACHE", 0)
    np.testing.assert_array_equal(clique_sizes(60, pairs, distances), expected)


def test_a_planted_clique_in_a_large_dense_component():
    """Its 100 images are nearest to each other, so that each of them finds it."""
    rng, n = np.random.default_rng(5), 1000
    inside = np.isin(np.arange(n), rng.permutation(n)[:100])
    edge = rng.random((n, n)) < np.where(inside[:, None] == inside[None], np.where(inside, 1, 0.3), 0.01)
    pairs = np.argwhere(np.triu(edge, 1))
    sizes = clique_sizes(n, pairs, rng.random(len(pairs)) + ~inside[pairs].all(axis=1))
    assert len(set(components(n, pairs))) == 1
    assert (sizes[inside] == 100).all()
    # Among 900 images joined with probability 0.3, cliques of 15 are expected in less than one graph of a million.
    assert sizes[~inside].max() < 15


def test_components_by_repeated_spreading():
    rng = np.random.default_rng(6)
    for density in (0.005, 0.02, 0.05):
        pairs, _ = random_graph(rng, 80, density)
        label = np.arange(80)
        for _ in range(80):
            np.minimum.at(label, pairs.ravel(), label[pairs[:, ::-1].ravel()])
        got = components(80, pairs)
        assert got.dtype == np.int64
        np.testing.assert_array_equal(got, label)
        np.testing.assert_array_equal(degrees(80, pairs), joined(80, pairs).sum(axis=1) - 1)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_without_pairs(n):
    assert clique_sizes(n, edges(), np.zeros(0)).tolist() == [1] * n
    assert degrees(n, edges()).tolist() == [0] * n
    assert components(n, edges()).tolist() == list(range(n))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (np.zeros((3, 3), np.int64), r"pairs must be integers \[p, 2\], got int64 \[3, 3\]"),
        (np.zeros((3, 2)), r"pairs must be integers \[p, 2\], got float64 \[3, 2\]"),
        (edges((0, 4)), r"pairs must hold ids in 0\.\.3, got 0 to 4"),
        (edges((-1, 2)), r"pairs must hold ids in 0\.\.3, got -1 to 2"),
        (edges((0, 1), (2, 2)), "each unordered pair of different images once"),
        (edges((0, 1), (1, 0)), "each unordered pair of different images once"),
    ],
)
def test_refuses_what_is_no_graph(pairs, message):
    for function in (degrees, components, lambda n, pairs: clique_sizes(n, pairs, np.zeros(len(pairs)))):
        with pytest.raises(ValueError, match=message):
            function(4, pairs)


def test_refuses_other_distances():
    for distances in (np.zeros(1), np.zeros((2, 1)), np.asarray([0, np.nan])):
        with pytest.raises(ValueError, match="distances must be one number for each of the 2 pairs"):
            clique_sizes(3, edges((0, 1), (1, 2)), distances)
