"""The permutation test against all subsets, against the null, and for its power."""

import itertools

import numpy as np
import pytest

from side_jax.memorization.statistics.permutation import permutation_test


def test_it_is_the_share_of_subsets_with_as_many_matches():
    hits, is_member = np.asarray([5, 0, 3, 1, 0, 2, 0, 4]), np.asarray([1, 0, 1, 0, 0, 1, 0, 0], bool)
    subsets = list(itertools.combinations(hits, 3))
    expected = np.mean([sum(subset) >= 10 for subset in subsets])
    assert permutation_test(hits, is_member, 20_000) == pytest.approx(expected, abs=0.01)


def test_it_is_below_its_level_as_often_as_its_level_under_the_null():
    """Also where few references take most of the matches, which makes a test of images alone reject far too often."""
    rng = np.random.default_rng(0)
    p = []
    for seed in range(1000):
        hits = rng.poisson(np.exp(rng.normal(0, 2, 60)))
        is_member = rng.permutation(60) < 30
        p.append(permutation_test(hits, is_member, 199, seed))
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.asarray(p) <= level) == pytest.approx(level, abs=0.04)


def test_copies_of_members_are_found_and_of_held_out_images_are_not():
    is_member = np.arange(40) < 20
    hits = np.where(is_member, np.arange(40) % 4, 0)
    assert permutation_test(hits, is_member) < 0.001
    assert permutation_test(hits, ~is_member) == 1


def test_no_match_at_all_shows_nothing():
    assert permutation_test(np.zeros(8, int), np.arange(8) < 4) == 1


@pytest.mark.parametrize("members", [0, 8])
def test_a_side_without_references_is_an_error(members):
    with pytest.raises(ValueError, match="both sides must have references"):
        permutation_test(np.ones(8, int), np.arange(8) < members)
