"""The permutation test against all subsets, against the null, and for its power."""

import itertools

import numpy as np
import pytest

from side_jax.memorization.statistics import permutation


def permutation_test(*arguments, **options):
    """Of the two, the p-value that members are matched more often."""
    return permutation.permutation_test(*arguments, **options)[0]


def test_it_is_the_share_of_subsets_with_as_many_matches():
    hits, is_member = np.asarray([5, 0, 3, 1, 0, 2, 0, 4]), np.asarray([1, 0, 1, 0, 0, 1, 0, 0], bool)
    subsets = list(itertools.combinations(hits, 3))
    expected = np.mean([sum(subset) >= 10 for subset in subsets])
    assert permutation_test(hits, is_member, permutations=20_000) == pytest.approx(expected, abs=0.01)


def test_it_is_below_its_level_as_often_as_its_level_under_the_null():
    """Also where few references take most of the matches, which makes a test of images alone reject far too often."""
    rng = np.random.default_rng(0)
    p = []
    for seed in range(1000):
        hits = rng.poisson(np.exp(rng.normal(0, 2, 60)))
        is_member = rng.permutation(60) < 30
        p.append(permutation_test(hits, is_member, permutations=199, seed=seed))
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.asarray(p) <= level) == pytest.approx(level, abs=0.04)


def test_groups_change_sides_as_a_whole():
    """Against all choices of as many groups, whose sizes differ: the sum is of what exceeds the mean of a reference."""
    groups = np.asarray([3, 3, 3, 8, 8, 1, 1, 1, 1, 5])
    hits, is_member = np.asarray([4, 0, 1, 2, 0, 1, 0, 0, 3, 2]), np.isin(groups, [3, 5])
    sums = {group: (hits[groups == group] - hits.mean()).sum() for group in np.unique(groups)}
    observed = sums[3] + sums[5]
    expected = np.mean([a + b >= observed - 1e-9 for a, b in itertools.combinations(sums.values(), 2)])
    assert permutation_test(hits, is_member, groups, 20_000) == pytest.approx(expected, abs=0.01)
    with pytest.raises(ValueError, match="every group must be on one side"):
        permutation_test(hits, np.arange(10) < 4, groups)


def test_people_who_look_alike_are_no_evidence_where_whole_people_are_split():
    """All ten images of a few people match: as images this looks certain, as people it is chance."""
    rng, alarms = np.random.default_rng(2), np.zeros(2)
    groups = np.repeat(np.arange(20), 10)
    for seed in range(200):
        hits = rng.poisson(np.repeat(np.exp(rng.normal(0, 2, 20)), 10))
        is_member = np.repeat(rng.permutation(20) < 10, 10)
        alarms += [permutation_test(hits, is_member, of, 199, seed) <= 0.05 for of in (groups, None)]
    assert alarms[0] < 0.1 * 200 < alarms[1]


def test_copies_of_members_are_found_and_of_held_out_images_are_not():
    is_member = np.arange(40) < 20
    hits = np.where(is_member, np.arange(40) % 4, 0)
    assert permutation_test(hits, is_member) < 0.001
    assert permutation_test(hits, ~is_member) == 1


def test_the_other_p_value_is_that_of_exchanged_sides():
    hits, is_member = np.asarray([5, 0, 3, 1, 0, 2, 0, 4]), np.arange(8) < 3
    more, fewer = permutation.permutation_test(hits, is_member, permutations=20_000)
    other = permutation.permutation_test(hits, ~is_member, permutations=20_000, seed=1)
    assert (more, fewer) == pytest.approx(other[::-1], abs=0.015)
    assert more + fewer > 1  # both count ties


def test_no_match_at_all_shows_nothing():
    assert permutation_test(np.zeros(8, int), np.arange(8) < 4) == 1


@pytest.mark.parametrize("members", [0, 8])
def test_a_side_without_references_is_an_error(members):
    with pytest.raises(ValueError, match="both sides must have references"):
        permutation_test(np.ones(8, int), np.arange(8) < members)
