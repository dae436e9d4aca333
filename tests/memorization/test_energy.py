"""The energy distance against its definition, under the null, and for other kinds of images; and the appearance."""

import numpy as np
import pytest

from side_jax.memorization.distribution.appearance import appearance
from side_jax.memorization.statistics.energy import energy


def definition(x, y):
    mean = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=-1).mean()  # noqa: E731
    return 2 * mean(x, y) - mean(x, x) - mean(y, y), 2 * mean(x, y)


def test_it_is_its_definition_minus_that_of_random_splits():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.normal(1, 1, size=(20, 4))
    value, first = definition(x, y)
    both, typical = np.concatenate([x, y]), []
    for _ in range(999):
        order = rng.permutation(50)
        typical.append(definition(both[order[:30]], both[order[30:]])[0])
    found = energy(x, y)
    assert found.share == pytest.approx((value - np.mean(typical)) / first, abs=2e-3)
    assert found.p == 1 / 1000


def test_p_is_uniform_under_the_null_by_points_and_by_groups():
    rng, points, groups = np.random.default_rng(0), [], []
    for seed in range(300):
        points.append(energy(*rng.normal(size=(2, 20, 3)), permutations=99, seed=seed).p)
        people = rng.normal(size=(12, 1, 3)) * 3 + rng.normal(size=(12, 5, 3))
        sides = people[:6].reshape(30, 3), people[6:].reshape(30, 3)
        of = np.repeat(np.arange(6), 5), np.repeat(np.arange(6, 12), 5)
        groups.append(energy(*sides, of, permutations=99, seed=seed).p)
    for found in (points, groups):
        for level in (0.05, 0.5):
            assert np.mean(np.asarray(found) <= level) == pytest.approx(level, abs=0.07)


def test_equal_sets_are_no_distance_apart():
    assert energy(np.ones((5, 2)), np.ones((4, 2))).share == 0


def photographs(rng, n):
    """Smooth shapes in 24x24 with some grain."""
    y, x = np.mgrid[:24, :24] / 24
    at = rng.uniform(0.3, 0.7, (2, n, 1, 1))
    shape = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / 0.05)
    return np.clip(60 + 150 * shape + rng.normal(0, 8, (n, 24, 24)), 0, 255).astype(np.uint8)[..., None]


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (lambda x, rng: x, None),
        (lambda x, rng: x * 0, 0.3),
        (lambda x, rng: 255 - x, 0.3),
        (lambda x, rng: rng.integers(0, 256, x.shape, np.uint8), 0.3),
        (lambda x, rng: x // 16, 0.1),
        (lambda x, rng: np.clip(x + rng.normal(0, 40, x.shape), 0, 255).astype(np.uint8), 0.1),
        (lambda x, rng: rng.permuted(x.reshape(len(x), -1), axis=1).reshape(x.shape), 0.1),
    ],
    ids=["same", "black", "inverted", "noise", "darker", "noisier", "shuffled pixels"],
)
def test_images_of_another_kind_look_different(change, least):
    rng = np.random.default_rng(0)
    first, second = photographs(rng, 80), change(photographs(rng, 80), rng)
    found = energy(appearance(first), appearance(second))
    if least is None:
        assert abs(found.share) < 0.02
        assert found.p > 0.01
    else:
        assert found.share > least
        assert found.p < 0.01


@pytest.mark.parametrize("shape", [(24, 24, 1), (5, 7, 3), (2, 1, 1), (1, 1, 3)])
def test_appearance_by_hand(shape):
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    found = appearance(images)
    rows, columns = (min(4, side) for side in shape[:2])
    assert found.shape == (3, 3 * rows * columns * shape[2])
    assert found.dtype == np.float32
    x = images / 127.5 - 1
    first = x[:, : shape[0] * 1 // rows or 1, : shape[1] * 1 // columns or 1]
    np.testing.assert_allclose(found[:, : shape[2]], first.mean((1, 2)), atol=1e-5)
    start = rows * columns * shape[2]
    np.testing.assert_allclose(found[:, start : start + shape[2]], first.std((1, 2)), atol=1e-3)
