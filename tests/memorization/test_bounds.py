"""What makes neighbours fast and small: bounds that hold and are close, and memory that blocks bound."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_neighbors import BLOCKS, K, M, N, brute_force, hard, nearer

from side_jax.memorization.neighbors import bounds, distances, exact_search


def unsure(monkeypatch, search):
    """How many rows `search` compares again, and how many pairs it compares exactly."""
    rows, pairs = [0], [0]
    compare, keys = exact_search._compare, distances.Measure.keys

    def counted_compare(measure, few, *rest):
        rows[0] += len(few)
        return compare(measure, few, *rest)

    def counted_keys(measure, a, b):
        pairs[0] += len(a)
        return keys(measure, a, b)

    monkeypatch.setattr(exact_search, "_compare", counted_compare)
    monkeypatch.setattr(distances.Measure, "keys", counted_keys)
    search()
    return rows[0], pairs[0]


@pytest.mark.parametrize("measure", ["rmse", "cosine"])
def test_bounds_are_close(monkeypatch, measure):
    """Few pairs need float64: bounds that say nothing would also give right results, but slowly."""
    rng = np.random.default_rng(0)
    images, references = rng.normal(size=(100, 64)), 100 + rng.normal(size=(2000, 64))
    references -= 100 * (measure == "cosine")  # the centre makes up for a common offset
    images += references.mean()
    rows, pairs = unsure(monkeypatch, lambda: exact_search.nearest(images, references, 4, measure=measure))
    assert rows <= 5
    assert pairs < 100 * 8
    truth = nearer(brute_force(images, references, measure), measure)
    limit = float(nearer(np.quantile(truth, 0.1), measure))
    options = {"measure": measure}
    rows, pairs = unsure(monkeypatch, lambda: exact_search.pairs_below(images, references, limit, **options))
    assert 100 * 2000 / 10 <= pairs < 100 * 2000 * (1 / 10 + 1 / 1000)


def test_what_bfloat16_leaves_open_is_taken_anew(monkeypatch):
    """Images nearer to each other than bfloat16 tells apart."""
    images, references = hard("close together")
    references[0] = 30.0  # so that the centre is elsewhere
    rows, _ = unsure(monkeypatch, lambda: exact_search.nearest(images, references, K, **BLOCKS))
    assert rows == N
    _, index = exact_search.nearest(images, references, K, **BLOCKS)
    np.testing.assert_array_equal(index, np.argsort(brute_force(images, references), axis=1, kind="stable")[:, :K])


def points(rows, dtype, grid=1, scale=1.0):
    centre = np.full(rows.shape[1:], 0.25, np.float32)
    return bounds.points(rows, np.int32(len(rows)), centre, np.float32(scale), grid=grid, unit=False, dtype=dtype)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", ["normal", "duplicates", "close together", "mixed magnitudes", "zeros", "ties"])
def test_bounds_hold(name, dtype):
    """No pair is outside a limit that is its own distance."""
    images, references = hard(name)
    scale = 2.0**-60 if name == "mixed magnitudes" else 1.0
    for grid, width in ((1, 48), (2, 12)):
        truth = brute_force(images, references, "tiled_l2", grid) * width**0.5 * scale
        x, y = (points(side, dtype, grid, scale) for side in (images, references))
        for j in range(0, M, 7):
            limit = np.nextafter(truth[:, j].astype(np.float32), np.float32(2.0**61))
            assert np.asarray(bounds.within(x, y, limit))[:, j].all()


@pytest.mark.parametrize("together", [1, 3, 4])
def test_no_dropped_reference_lies_below_the_floor(together):
    """Groups of 4, of which up to 4 are nearer than all else: the fourth is dropped, and the floor lies below it."""
    rng = np.random.default_rng(together)
    images, references = rng.normal(size=(N, 8)).astype(np.float32), rng.normal(size=(80, 8)).astype(np.float32)
    near = 3 + 20 * np.arange(together)  # all of group 3
    references[near] = images[0] + 1e-3 * rng.normal(size=(together, 8))
    state = bounds.no_candidates(N, 10)
    for start in (0, 40):
        state = bounds.merge(
            state,
            points(images, jnp.bfloat16),
            points(references[start : start + 40], jnp.bfloat16),
            np.int32(start),
            group=2,
        )
    whole = bounds.merge(
        bounds.no_candidates(N, 10),
        points(images, jnp.bfloat16),
        points(references, jnp.bfloat16),
        np.int32(0),
        group=4,
    )
    truth = brute_force(images, references) * 8**0.5
    for found in (state, whole):
        lower, index, floor = (np.asarray(part) for part in found)
        assert (np.diff(lower, axis=1) >= 0).all()
        assert all(len(set(row)) == 10 for row in index.tolist())
        assert (bounds.least_merged(lower) <= np.take_along_axis(truth, index.astype(int), axis=1)).all()
        limit = bounds.least_merged(np.minimum(floor, lower[:, -1]))
        dropped = np.ones(truth.shape, bool)
        np.put_along_axis(dropped, index.astype(int), False, axis=1)
        assert (np.where(dropped, truth, np.inf) >= limit[:, None]).all()
    assert set(near[:3]) & set(np.asarray(whole.index)[0]) == set(near[:3]) if together < 4 else True
    assert (np.asarray(whole.floor)[0] < 1) == (together >= 3)


class Slices:
    """References of which only slices can be taken."""

    def __init__(self, array):
        self.array, self.largest, self.reads = array, 0, 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, part):
        assert isinstance(part, slice)
        got = self.array[part]
        self.largest, self.reads = max(self.largest, len(got)), self.reads + 1
        return got


@pytest.mark.parametrize("resident", [0, 2**31])
def test_memory_is_bounded_by_blocks(monkeypatch, resident):
    monkeypatch.setattr(distances, "RESIDENT_BYTES", resident)
    images, references = hard("one pixel")
    images, sliced = Slices(images), Slices(references)
    _, index = exact_search.nearest(images, sliced, K, **BLOCKS)
    pairs, _ = exact_search.pairs_below(images, sliced, 0.01, **BLOCKS)
    assert images.largest <= 6
    assert sliced.largest <= 32
    truth = brute_force(images.array, references)
    np.testing.assert_array_equal(index, np.argsort(truth, axis=1, kind="stable")[:, :K])
    np.testing.assert_array_equal(pairs, np.argwhere(truth < 0.01))


def test_few_jobs_are_taken_ahead():
    taken = []
    results = distances.in_threads(lambda job: job * job, ((taken.append(i) or i,) for i in range(100)))
    for done, result in enumerate(results, 1):
        assert result == (done - 1) ** 2
        assert len(taken) <= done + 8
    assert done == 100


def test_points_stay_on_the_device_only_where_there_is_room(monkeypatch):
    images, references = hard("normal")
    made = []
    real = distances.Measure.points
    monkeypatch.setattr(
        distances.Measure, "points", lambda measure, block, *rest: made.append(1) or real(measure, block, *rest)
    )
    exact_search.nearest(images, references, K, **BLOCKS)
    assert len(made) == 3 + 3  # blocks of images, of references
    made.clear()
    monkeypatch.setattr(distances, "RESIDENT_BYTES", M * 48 * 2 - 1)
    exact_search.nearest(images, references, K, **BLOCKS)
    assert len(made) == 3 + 3 * 3


def test_large_images_come_fewer_at_a_time(monkeypatch):
    monkeypatch.setattr(distances, "_BLOCK_NUMBERS", 48 * 5)
    assert distances.Images(np.zeros((M, 4, 4, 3)), 1024).size == 5
