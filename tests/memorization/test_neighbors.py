"""Neighbours and pairs against brute force in float64, scikit-learn and cases worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from side_jax.diffusion.pixel_range import to_float
from side_jax.memorization.neighbors import exact_search

MEASURES = [("rmse", 1), ("tiled_l2", 2), ("cosine", 1)]
N, M, K = 13, 70, 5
BLOCKS = {"block": 6, "reference_block": 32}  # neither divides its side


def brute_force(images, references, measure="rmse", grid=1):
    """Distances or similarities of all pairs, [n, m]."""
    a, b = (np.asarray(to_float(x) if x.dtype == np.uint8 else x, np.float64) for x in (images, references))
    if measure == "cosine":
        a, b = (x.reshape(len(x), -1) for x in (a, b))
        norms = np.sqrt((a**2).sum(-1))[:, None] * np.sqrt((b**2).sum(-1))[None]
        return np.divide((a[:, None] * b[None]).sum(-1), norms, out=np.zeros(norms.shape), where=norms > 0)
    squares = (a[:, None] - b[None]) ** 2
    if measure == "rmse":
        return np.sqrt(squares.reshape(len(a), len(b), -1).mean(-1))
    side = squares.shape[2] // grid  # images are square
    tiles = [
        squares[:, :, i : i + side, j : j + side]
        for i in range(0, side * grid, side)
        for j in range(0, side * grid, side)
    ]
    return np.sqrt(np.max([tile.reshape(len(a), len(b), -1).mean(-1) for tile in tiles], axis=0))


def nearer(truth, measure):
    """Smaller is nearer."""
    return -truth if measure == "cosine" else truth


def hard(name):
    """(images, references) on which expanded squares in float32 go wrong, or bounds tell nothing."""
    rng = np.random.default_rng(len(name))
    x, y = rng.normal(size=(N, 4, 4, 3)), rng.normal(size=(M, 4, 4, 3))
    if name == "duplicates":  # more of each than the device keeps
        y = y[rng.integers(0, 3, M)]
        x[::2] = y[: len(x[::2])]
    elif name == "zeros":
        x, y = 0 * x, 0 * y
    elif name == "some zeros":
        x[::2], y[::3] = 0, 0
    elif name == "huge":
        x, y = 1e30 * x, 1e30 * y
    elif name == "mixed magnitudes":
        x, y = (v * 10.0 ** rng.integers(-30, 31, (len(v), 1, 1, 1)) for v in (x, y))
    elif name == "subnormal":
        x, y = 1e-41 * x, 1e-41 * y
    elif name == "bright copies":
        y = 1000 + rng.integers(0, 3, y.shape) / 16
        x = y[:N].copy()
        x[:, 0, 0, 0] += 1 / 16
    elif name == "close together":
        x, y = 1 + 1e-5 * x, 1 + 1e-5 * y
    elif name == "one pixel":  # all references differ from each other in one pixel or two, by 1 of 255
        x, y = np.full(x.shape, 100, np.uint8), np.full(y.shape, 100, np.uint8)
        y.reshape(M, -1)[np.arange(M), rng.integers(0, 48, M)] += 1
        x.reshape(N, -1)[np.arange(N), rng.integers(0, 48, N)] += 1
    elif name == "ties":  # distances that are equal though the images are not
        x, y = rng.integers(-2, 3, x.shape) / 4, rng.integers(-2, 3, y.shape) / 4
    return (x, y) if x.dtype == np.uint8 else (x.astype(np.float32), y.astype(np.float32))


HARD = [
    *("normal", "duplicates", "zeros", "some zeros", "huge", "mixed magnitudes", "subnormal", "bright copies"),
    *("close together", "one pixel", "ties"),
]


@pytest.mark.parametrize(("measure", "grid"), MEASURES)
@pytest.mark.parametrize("name", HARD)
def test_nearest_is_brute_force(name, measure, grid):
    images, references = hard(name)
    truth = brute_force(images, references, measure, grid)
    order = np.argsort(nearer(truth, measure), axis=1, kind="stable")[:, :K]
    distances, index = exact_search.nearest(images, references, K, measure=measure, grid=grid, **BLOCKS)
    assert (distances.dtype, index.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(index, order)
    expected = np.take_along_axis(truth, order, axis=1)
    np.testing.assert_allclose(distances, expected, rtol=1e-7, atol=1e-7 if measure == "cosine" else 1e-45)


@pytest.mark.parametrize(("measure", "grid"), MEASURES)
@pytest.mark.parametrize("name", HARD)
def test_pairs_are_brute_force(name, measure, grid):
    """One limit or one for each image; limits are distances of pairs, so that the open end matters."""
    images, references = hard(name)
    truth, options = brute_force(images, references, measure, grid), {"measure": measure, "grid": grid, **BLOCKS}
    limits = np.random.default_rng(1).choice(truth.ravel(), N)
    pairs, _ = exact_search.pairs_below(images, references, limits, **options)
    expected = np.argwhere(nearer(truth, measure) < nearer(limits, measure)[:, None])
    np.testing.assert_array_equal(pairs, expected)
    limit = float(np.sort(truth.ravel())[truth.size // 3])
    pairs, value = exact_search.pairs_below(images, references, limit, **options)
    np.testing.assert_array_equal(pairs, np.argwhere(nearer(truth, measure) < nearer(limit, measure)))
    np.testing.assert_array_equal(value, truth[tuple(pairs.T)].astype(np.float32))
    own = brute_force(references, references, measure, grid)
    pairs, value = exact_search.pairs_below(references, references, limit, **options)
    np.testing.assert_array_equal(pairs, np.argwhere(np.triu(nearer(own, measure) < nearer(limit, measure), 1)))
    np.testing.assert_array_equal(value, own[tuple(pairs.T)].astype(np.float32))


# Each pair is compiled, and the two sides are cut into blocks each on its own.
@pytest.mark.parametrize(("block", "reference_block"), [(1, 70), (4, 9), (13, 100), (100, 9)])
def test_blocks_change_nothing(block, reference_block):
    images, references = hard("ties")
    expected = exact_search.nearest(images, references, K)
    got = exact_search.nearest(images, references, K, block, reference_block=reference_block)
    for one, other in zip(expected, got, strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_reference_can_be_asked_for():
    images, references = hard("ties")
    _, index = exact_search.nearest(images, references, M, **BLOCKS)
    np.testing.assert_array_equal(index, np.argsort(brute_force(images, references), axis=1, kind="stable"))


def test_many_references_of_many_numbers():
    """Groups of 32, and rows that both dtypes cut into chunks."""
    rng = np.random.default_rng(0)
    images, references = (rng.normal(size=(size, 2100)).astype(np.float32) for size in (9, 3000))
    images[3] = references[2999] + 0.5
    truth = cdist(images, references) / 2100**0.5
    distances, index = exact_search.nearest(images, references, 1)
    np.testing.assert_array_equal(index[:, 0], truth.argmin(axis=1))
    np.testing.assert_allclose(distances[:, 0], truth.min(axis=1), rtol=1e-6)
    limit = float(np.quantile(truth, 0.1))
    pairs, _ = exact_search.pairs_below(images, references, limit)
    np.testing.assert_array_equal(pairs, np.argwhere(truth < limit))


def test_the_nearest_may_all_be_in_one_group():
    """Where the device looks for no more than three: of 600 references, group 3 of 150 has every 150th."""
    rng = np.random.default_rng(0)
    images, references = (rng.normal(size=(size, 8)).astype(np.float32) for size in (1, 600))
    references[3::150] = images[0] + 0.01 * rng.normal(size=(4, 8))
    _, index = exact_search.nearest(images, references, 4)
    assert set(index[0]) == {3, 153, 303, 453}
    np.testing.assert_array_equal(index, np.argsort(cdist(images, references), axis=1)[:, :4])


@pytest.mark.parametrize("name", ["uint8", "uint8 references", "float16", "bfloat16", "float64", "big-endian", "jax"])
def test_other_arrays_give_what_float32_gives(name):
    rng = np.random.default_rng(0)
    images, references = rng.integers(0, 256, (N, 4, 4, 3), np.uint8), rng.integers(0, 256, (M, 4, 4, 3), np.uint8)
    if name == "uint8":
        given, floats = (images, references), (to_float(images), to_float(references))
    elif name == "uint8 references":
        given, floats = (to_float(images), references), (to_float(images), to_float(references))
    elif name == "jax":
        floats = to_float(images), to_float(references)
        given = tuple(map(jnp.asarray, floats))
    else:
        dtype = {"bfloat16": jnp.bfloat16, "big-endian": ">f4"}.get(name, name)
        given = tuple(to_float(side).astype(dtype) for side in (images, references))
        floats = tuple(side.astype(np.float32) for side in given)
    for measure, grid in MEASURES:
        options = {"measure": measure, "grid": grid, **BLOCKS}
        expected, got = (exact_search.nearest(*sides, K, **options) for sides in (floats, given))
        np.testing.assert_array_equal(got[1], expected[1])
        np.testing.assert_array_equal(got[0], expected[0])


def test_float64_is_compared_as_it_is():
    """Differences that float32 rounds away, or to several times what they are."""
    rng = np.random.default_rng(0)
    images, references = (1 + 1e-7 * rng.normal(size=(size, 4, 4, 3)) for size in (N, M))
    _, index = exact_search.nearest(images, references, K, **BLOCKS)
    np.testing.assert_array_equal(index, np.argsort(brute_force(images, references), axis=1, kind="stable")[:, :K])


def test_tiled_l2_by_hand():
    """One tile of 2 x 2 differs by 1, or one pixel of it by 3: 1 and 3 / 2; over the whole image 1 / 2 and 3 / 4."""
    image, references = np.zeros((1, 4, 4, 1)), np.zeros((3, 4, 4, 1))
    references[0, 0, 0] = 3
    references[1, 2:, 2:] = 1
    references[2] = 1.25  # everywhere: nearer by the worst tile, farther by the mean
    distances, index = exact_search.nearest(image, references, 3, measure="tiled_l2", grid=2)
    assert index.tolist() == [[1, 2, 0]]
    assert distances.tolist() == [[1, 1.25, 1.5]]
    distances, index = exact_search.nearest(image, references, 3)
    assert index.tolist() == [[1, 0, 2]]
    assert distances.tolist() == [[0.5, 0.75, 1.25]]


def test_a_grid_of_one_tile_is_the_rmse():
    images, references = hard("normal")
    expected = exact_search.nearest(images, references, K, **BLOCKS)
    got = exact_search.nearest(images, references, K, measure="tiled_l2", grid=1, **BLOCKS)
    np.testing.assert_array_equal(got, expected)


def test_cosine_by_hand():
    features = np.asarray([[0, 0], [0, -3], [5, 5], [-1, 0], [0.25, 0]], np.float32)
    similarity, index = exact_search.nearest(np.asarray([[2.0, 0], [0, 0]]), features, 5, measure="cosine")
    assert index.tolist() == [[4, 2, 0, 1, 3], [0, 1, 2, 3, 4]]
    np.testing.assert_allclose(similarity, [[1, 0.5**0.5, 0, 0, -1], [0] * 5], rtol=1e-7)
    pairs, similarity = exact_search.pairs_below(features, features, -0.5, measure="cosine")
    assert pairs.tolist() == [[0, 1], [0, 2], [0, 3], [0, 4], [1, 3], [1, 4], [2, 4]]
    np.testing.assert_allclose(similarity, [0, 0, 0, 0, 0, 0, 0.5**0.5], rtol=1e-7)


def test_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    images, references = rng.normal(size=(N, 48)), rng.normal(size=(M, 48))
    sides = images.reshape(N, 4, 4, 3), references.reshape(M, 4, 4, 3)
    found = NearestNeighbors(n_neighbors=K, radius=9.0, algorithm="brute").fit(references)
    expected, index = found.kneighbors(images)
    distances, got = exact_search.nearest(*sides, K, **BLOCKS)
    np.testing.assert_array_equal(got, index)
    np.testing.assert_allclose(distances * 48**0.5, expected, rtol=1e-6)
    graph = found.radius_neighbors_graph(images).toarray() > 0
    pairs, _ = exact_search.pairs_below(*sides, 9.0 / 48**0.5, **BLOCKS)
    assert 0 < graph.sum() < graph.size / 2
    np.testing.assert_array_equal(pairs, np.argwhere(graph))
    similarity, got = exact_search.nearest(*sides, K, measure="cosine", **BLOCKS)
    expected = cosine_similarity(images, references)
    np.testing.assert_array_equal(got, np.argsort(-expected, axis=1)[:, :K])
    np.testing.assert_allclose(similarity, -np.sort(-expected, axis=1)[:, :K], rtol=1e-6)


def test_limits_are_exact():
    """Distances 0.25, 0.5 and 0.75 of flat images: a pair at the limit is out."""
    images, references = np.zeros((2, 4)), np.asarray([0.25, 0.5, 0.75])[:, None] * np.ones((1, 4))
    assert exact_search.pairs_below(images, references, [0.5, 0.75])[0].tolist() == [[0, 0], [1, 0], [1, 1]]
    assert exact_search.pairs_below(images, references, np.inf)[0].shape == (6, 2)
    assert exact_search.pairs_below(images, references, -np.inf)[0].shape == (0, 2)
    assert exact_search.pairs_below(images, references, 0.5)[0].tolist() == [[0, 0], [1, 0]]
    assert exact_search.pairs_below(images, references, 0.0)[0].shape == (0, 2)


def test_no_images_have_no_neighbours():
    references = np.zeros((3, 4))
    distances, index = exact_search.nearest(references[:0], references, 2)
    assert distances.shape == index.shape == (0, 2)
    assert exact_search.pairs_below(references[:0], references, 1.0)[0].shape == (0, 2)
    assert exact_search.pairs_below(references, references[:0], 1.0)[0].shape == (0, 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("side", [0, 1])
def test_refuses_numbers_that_float32_does_not_have(bad, side):
    sides = [np.zeros((3, 4)), np.zeros((5, 4))]
    sides[side][-1, 2] = bad
    for search in (
        lambda: exact_search.nearest(*sides, 1),
        lambda: exact_search.pairs_below(*sides, 1.0, measure="cosine"),
    ):
        with pytest.raises(ValueError, match="images must be finite and within float32's range"):
            search()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"measure": "l1"}, "measure must be one of rmse, tiled_l2, cosine, got 'l1'"),
        ({"measure": "tiled_l2", "grid": 3}, r"a grid of 3 x 3 tiles must divide .* got \(4, 4, 1\)"),
        ({"measure": "tiled_l2", "grid": 0}, "a grid of 0 x 0 tiles"),
        ({"block": 0}, "a block must have 1 image or more, got 0"),
        ({"reference_block": -1}, "a block must have 1 image or more, got -1"),
        ({"k": 0}, "k must be between 1 and the 3 references, got 0"),
        ({"k": 4}, "k must be between 1 and the 3 references, got 4"),
    ],
)
def test_refuses_bad_arguments(options, said):
    images = np.zeros((3, 4, 4, 1))
    with pytest.raises(ValueError, match=said):
        exact_search.nearest(images, images, **({"k": 1} | options))


def test_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="differ in shape"):
        exact_search.pairs_below(np.zeros((2, 4)), np.zeros((2, 5)), 1.0)
    with pytest.raises(ValueError, match="images must be floating-point or uint8, got int64"):
        exact_search.nearest(np.zeros((2, 4), np.int64), np.zeros((2, 4)), 1)
    with pytest.raises(ValueError, match="a grid of 2 x 2 tiles"):
        exact_search.nearest(np.zeros((2, 4)), np.zeros((2, 4)), 1, measure="tiled_l2", grid=2)
    with pytest.raises(ValueError, match="NaN"):
        exact_search.pairs_below(np.zeros((2, 4)), np.zeros((2, 4)), [1.0, np.nan])
