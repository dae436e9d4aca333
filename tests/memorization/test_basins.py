"""Basins against cases by hand and against a slow implementation of the same rule."""

import numpy as np
import pytest

from side_jax.memorization.basins import basins, expected_modes


def slow(n, pairs):
    """The rule, word for word: again and again, the image with the most near duplicates that are left."""
    near = np.zeros((n, n), bool)
    near[pairs[:, 0], pairs[:, 1]] = near[pairs[:, 1], pairs[:, 0]] = True
    left, label, centres = np.ones(n, bool), np.full(n, -1), []
    while left.any():
        degree = np.where(left, (near & left).sum(axis=1), -1)
        centre = int(degree.argmax())
        basin = left & (near[centre] | (np.arange(n) == centre))
        label[basin], left = len(centres), left & ~basin
        centres.append(centre)
    return centres, label


@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.3, 1.0])
def test_it_is_the_greedy_rule(share):
    rng, n = np.random.default_rng(0), 60
    every = np.stack(np.triu_indices(n, 1), axis=1)
    pairs = every[rng.random(len(every)) < share]
    found, (centres, label) = basins(n, pairs), slow(n, pairs)
    assert found.centre.tolist() == centres
    assert found.label.tolist() == label.tolist()
    assert found.size.tolist() == np.bincount(label).tolist()
    assert (np.diff(found.size) <= 0).all()


def test_a_chain_does_not_join_two_modes():
    """0 - 1 - 2 - 3 - 4 - 5: three basins of two or three, and not one of six."""
    chain = np.stack([np.arange(5), np.arange(1, 6)], axis=1)
    found = basins(6, chain)
    assert found.size.tolist() == [3, 2, 1] or found.size.tolist() == [3, 3]
    assert found.centre[0] == 1
    assert found.label[[0, 1, 2]].tolist() == [0, 0, 0]


def test_more_starts_reach_the_modes_that_there_are():
    """Of 300 equally likely modes, 600 starts leave some unseen; ten times as many reach all, which is predicted."""
    drawn = np.random.default_rng(0).integers(0, 300, 600)
    size = np.sort(np.bincount(drawn, minlength=300))[::-1]
    seen = size[size > 0]
    assert 240 < len(seen) < 280
    assert expected_modes(seen, 1) == len(seen)
    assert abs(expected_modes(seen, 10) - 300) < 20
    assert expected_modes(np.ones(5, np.int64), 2) <= 10


def test_images_without_near_duplicates_are_basins_of_their_own():
    found = basins(3, np.empty((0, 2), np.int64))
    assert (found.centre.tolist(), found.size.tolist(), found.label.tolist()) == ([0, 1, 2], [1, 1, 1], [0, 1, 2])
    assert basins(0, np.empty((0, 2), np.int64)).size.tolist() == []
    with pytest.raises(ValueError, match=r"ids in 0\.\.2, got 0 to 3"):
        basins(3, np.asarray([[0, 3]]))
