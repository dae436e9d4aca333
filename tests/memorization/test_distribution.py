"""Distributional measures against closed forms, brute force in float64, scipy, and simulations of known truth."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import linalg, stats
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from side_jax.memorization.distribution import c_t_statistic
from side_jax.memorization.distribution.auth_pct import auth_pct
from side_jax.memorization.distribution.c_t_statistic import c_t
from side_jax.memorization.distribution.feature_rows import subsample
from side_jax.memorization.distribution.fld_density_gap import fld_gap
from side_jax.memorization.distribution.frechet import frechet_distance
from side_jax.memorization.distribution.summary import summary


@pytest.fixture(autouse=True)
def one_thread():
    """k-means of a few rows would spend its time on waiting for threads, where tests share the processor."""
    with threadpool_limits(1):
        yield


def law(seed, *sizes, d=16):
    """Sets of float32 rows of one correlated Gaussian.

    The search for neighbours is compiled for each number of rows, a multiple of 8, and of features: many tests have
    40 members and 17 to 24 or 33 to 40 others.
    """
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) * np.linspace(0.1, 1, d)
    return [(rng.normal(size=(n, d)) @ mixing).astype(np.float32) for n in sizes]


def copies(members, noise=0.1, seed=99):
    rng = np.random.default_rng(seed)
    return (members + noise * members.std(axis=0) * rng.normal(size=members.shape)).astype(np.float32)


def rotation(d, seed=5):
    return stats.ortho_group.rvs(d, random_state=seed)


# AuthPct


def test_auth_pct_by_hand():
    """Members 0, 1 and 3: from 0.4 the nearest is 0, whose other is 1 away; from 5 it is 3, whose other is 2 away."""
    members = np.array([[0.0], [1.0], [3.0]])
    assert auth_pct(np.array([[0.4]]), members) == 0
    assert auth_pct(np.array([[5.0]]), members) == 0  # 2 < 2 is false
    assert auth_pct(np.array([[5.1]]), members) == 100
    assert auth_pct(np.array([[0.4], [5.1], [-1.5], [3.0]]), members) == 50


def test_auth_pct_is_brute_force():
    generated, members = law(0, 39, 40)
    across, within = (cdist(rows, members.astype(np.float64)) for rows in (generated, members))
    np.fill_diagonal(within, np.inf)
    expected = np.mean([within[row.argmin()].min() < row.min() for row in across])
    assert 0.3 < expected < 0.9
    np.testing.assert_allclose(auth_pct(generated, members), 100 * expected, rtol=1e-6)


def test_duplicates_hide_their_near_copies_from_auth_pct():
    """What the docstring warns of: the other member is at 0, so only an exact copy is no further."""
    (members,) = law(1, 40)
    near = copies(members, 0.01)
    assert auth_pct(near, members) == 0
    assert auth_pct(near, np.concatenate([members, members])) == 100
    assert auth_pct(members, np.concatenate([members, members])) == 0


# C_T


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_z_score_is_scipys_with_and_without_ties(decimals):
    rng = np.random.default_rng(2)
    generated, heldout = rng.gamma(2, 0.9, 37).round(decimals), rng.gamma(2, 1, 53).round(decimals)
    arguments = {"method": "asymptotic", "use_continuity": False, "alternative": "less"}
    p = stats.mannwhitneyu(generated, heldout, **arguments).pvalue
    np.testing.assert_allclose(c_t_statistic.z_score(generated, heldout), stats.norm.ppf(p), rtol=1e-6)


def test_z_score_of_equal_distances_is_no_evidence():
    assert c_t_statistic.z_score(np.zeros(30), np.zeros(20)) == 0


def test_c_t_is_an_independent_computation():
    """U by counting pairs, distances by scipy, shares by hand."""
    members, heldout, generated = law(3, 40, 24, 37)
    partition = KMeans(4, n_init=10, random_state=7).fit(members)
    near_h, near_g = (cdist(rows, members).min(axis=1) for rows in (heldout, generated))
    total = weight = 0
    for cell in range(4):
        h, g = near_h[partition.predict(heldout) == cell], near_g[partition.predict(generated) == cell]
        n, m = len(h), len(g)
        u = (g[:, None] > h).sum()
        total += n / 24 * (u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12)
        weight += n / 24
    scored = c_t(members, heldout, generated, cells=4, minimum=1, seed=7)
    assert scored.used == 4
    np.testing.assert_allclose(weight, 1)
    np.testing.assert_allclose(scored.value, total, rtol=1e-5)


def test_c_t_is_standard_normal_under_the_null():
    """One cell, 100 repetitions: mean and deviation within three standard errors."""
    z = np.array([c_t(*law(seed, 40, 35, 40), cells=1).value for seed in range(100)])
    assert abs(z.mean()) < 3 / 100**0.5
    assert abs(z.std() - 1) < 3 / 200**0.5


def test_c_t_weighs_the_cells_kept_by_their_share_of_held_out():
    """Three far clusters: copied, noise, and one with too few generated images."""
    rng = np.random.default_rng(4)

    def place(at, n, spread=1.0):
        return (at + spread * rng.normal(size=(n, 2))).astype(np.float32)

    members = np.concatenate([place(at, 50) for at in (0, 100, 200)])
    heldout = np.concatenate([place(0, 60), place(100, 20), place(200, 20)])
    generated = np.concatenate([copies(members[:48], 1e-4), place(100, 40, 8), place(200, 9)])
    scored = c_t(members, heldout, generated, minimum=10)
    left_out, noise, copied = sorted(scored.cells, key=lambda cell: (cell.generated, cell.heldout))
    assert (left_out.z, left_out.share, left_out.generated) == (None, 0.2, 9)
    assert (noise.share, copied.share, scored.used) == (0.2, 0.6, 2)
    assert copied.z < -5
    assert noise.z > 5
    np.testing.assert_allclose(scored.value, (0.6 * copied.z + 0.2 * noise.z) / 0.8)
    kept = c_t(members, heldout, generated, minimum=9)
    assert kept.used == 3


def test_c_t_without_a_cell_is_none():
    members, heldout, generated = law(5, 40, 23, 19)
    scored = c_t(members, heldout, generated)
    assert (scored.value, scored.used, len(scored.cells)) == (None, 0, 3)
    assert sum(cell.share for cell in scored.cells) == pytest.approx(1)
    assert sum(cell.generated for cell in scored.cells) == 19


def test_a_cell_without_held_out_images_is_left_out():
    members = np.concatenate([np.linspace(0, 1, 20), np.linspace(100, 101, 20)])[:, None] * np.ones(16)
    scored = c_t(members, members[:20] + 0.3, members + 0.01, cells=2)
    assert scored.used == 1
    assert sorted(cell.heldout for cell in scored.cells) == [0, 20]


def test_c_t_reduces_many_features_to_64_principal_components_of_the_members():
    """Against the singular vectors; 64 features stay as they are."""
    members, heldout, generated = law(6, 150, 80, 77, d=90)
    mean = members.mean(axis=0, dtype=np.float64)
    axes = np.linalg.svd(members - mean, full_matrices=False)[2][:64].T
    reduced = [((rows - mean) @ axes).astype(np.float32) for rows in (members, heldout, generated)]
    whole = c_t(members, heldout, generated, cells=1).value
    np.testing.assert_allclose(whole, c_t(*reduced, cells=1).value, atol=0.01)
    assert abs(whole - c_t(*(rows[:, :63] for rows in reduced), cells=1).value) > 0.02


# Frechet distance


def with_moments(mean, covariance, n, seed):
    """Rows whose mean and covariance are exactly these."""
    rng = np.random.default_rng(seed)
    white = rng.normal(size=(n, len(mean)))
    white -= white.mean(axis=0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white.T))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_diagonal_gaussians():
    """|m_a - m_b|^2 + the sum of (sqrt a - sqrt b)^2, of sets of different size."""
    a, b = with_moments([0, 1, 2], np.diag([1, 4, 9]), 50, 0), with_moments([1, 1, 0], np.diag([4, 4, 0.25]), 30, 1)
    np.testing.assert_allclose(frechet_distance(a, b), 5 + 1 + 0 + 2.5**2, rtol=1e-5)


def test_frechet_distance_is_the_formula_of_matrix_roots():
    a, b = law(15, 40, 60, d=4)
    b = 1.5 * b[:, [1, 0, 3, 2]] + 0.3
    covariances = [np.cov(rows.T.astype(np.float64)) for rows in (a, b)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + sum(map(np.trace, covariances)) - 2 * np.trace(root)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-5)


@pytest.mark.parametrize(("n", "m"), [(12, 9), (12, 80), (80, 9)])
def test_frechet_distance_with_fewer_images_than_features(n, m):
    """Against the eigenvalues of the singular product."""
    a, b = law(16, n, m, d=30)
    covariances = [np.cov(rows.T.astype(np.float64)) for rows in (a, b)]
    eigenvalues = np.linalg.eigvals(covariances[0] @ covariances[1]).real
    overlap = np.sqrt(eigenvalues[eigenvalues > 1e-9]).sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() + sum(map(np.trace, covariances)) - 2 * overlap
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-4)
    np.testing.assert_allclose(frechet_distance(b, a), expected, rtol=1e-4)
    turn = rotation(30)
    np.testing.assert_allclose(frechet_distance(a @ turn, b @ turn), expected, rtol=1e-4)


@pytest.mark.parametrize("n", [10, 200])
def test_frechet_distance_of_equal_and_of_moved_sets(n):
    (a,) = law(17, n, d=40)
    scale = a.var(axis=0).sum()
    assert 0 <= frechet_distance(a, a) < 1e-9 * scale
    for k in range(20):  # rounding falls on either side of 0
        assert 0 <= frechet_distance(a, np.roll(a, k, axis=0)) < 1e-9 * scale
    np.testing.assert_allclose(frechet_distance(a, a + 2), 4 * 40, rtol=1e-5)


# All together


def test_all_see_copies_and_none_sees_fresh_draws():
    """The positive control (noised copies of members), the negative one (fresh draws), and noise for what it is."""
    members, heldout, fresh = law(18, 250, 250, 250)
    copied, clean, noise = (summary(rows, members, heldout, 0) for rows in (copies(members), fresh, 3 * fresh))
    assert copied["auth_pct"] < 5
    assert copied["c_t"]["value"] < -8
    assert copied["fld_gap"] < -500
    assert copied["frechet_members"] < 0.2 * copied["frechet_members_heldout"]
    assert copied["auth_pct_heldout"] > 40
    assert copied["fld_gap_heldout"] > -10
    assert abs(clean["auth_pct"] - clean["auth_pct_heldout"]) < 12
    assert abs(clean["c_t"]["value"]) < 3
    assert abs(clean["fld_gap"] - clean["fld_gap_heldout"]) < 10
    assert 0.5 < clean["frechet_members"] / clean["frechet_members_heldout"] < 2
    assert 0.5 < clean["frechet_heldout"] / clean["frechet_members_heldout"] < 2
    assert noise["c_t"]["value"] > 8
    assert noise["auth_pct"] > 95
    assert noise["frechet_heldout"] > 20 * noise["frechet_members_heldout"]


def test_summary_is_its_parts_and_fit_for_json():
    generated, members, heldout = law(19, 24, 40, 20)
    whole = summary(generated, members, heldout, 4)
    assert json.loads(json.dumps(whole, allow_nan=False)) == {
        **whole,
        "c_t": {**whole["c_t"], "cells": list(whole["c_t"]["cells"])},
    }
    assert whole["n"] == {"generated": 24, "members": 40, "heldout": 20, "frechet": 20}
    assert whole["auth_pct"] == auth_pct(generated, members)
    assert whole["auth_pct_heldout"] == auth_pct(generated, heldout)
    assert whole["c_t"] == dataclasses.asdict(c_t(members, heldout, generated, seed=4))
    assert whole["c_t"]["value"] is None
    assert whole["fld_gap"] == fld_gap(members, heldout, generated)
    assert whole["fld_gap_heldout"] == fld_gap(heldout, members, generated)
    some, some_members = subsample(generated, 20, 4), subsample(members, 20, 4)
    assert whole["frechet_members"] == frechet_distance(some, some_members)
    assert whole["frechet_heldout"] == frechet_distance(some, heldout)
    assert whole["frechet_members_heldout"] == frechet_distance(some_members, heldout)


def test_summary_of_the_fewest_rows_and_of_sets_without_variance():
    for rows in (law(20, 3, 3, 3), [np.ones((24, 16), np.float32) + np.arange(3)[i % 3] for i in range(3)]):
        with np.errstate(all="raise"):
            json.dumps(summary(*rows, 0), allow_nan=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: auth_pct(x, x[:1]), "members must have 2 rows or more, got 1"),
        (lambda x: auth_pct(x[:0], x), "generated must have 1 rows or more, got 0"),
        (lambda x: auth_pct(x[:, :2], x), "members has 3 features where generated has 2"),
        (lambda x: c_t(x, x, x[0]), r"generated must be rows of features \[n, d\], got shape \(3,\)"),
        (lambda x: c_t(x, x, x, cells=6), "cells must be between 1 and the 5 members, got 6"),
        (lambda x: c_t(x, x, x, minimum=0), "minimum must be 1 or more, got 0"),
        (lambda x: fld_gap(x, x, x, limit=0), "limit must be 1 or more, got 0"),
        (lambda x: fld_gap(x, np.where(np.arange(5)[:, None] == 2, np.nan, x), x), "heldout must be finite, row 2 is"),
        (lambda x: frechet_distance(x, x[:1]), "b must have 2 rows or more, got 1"),
        (lambda x: summary(x, x[:2], x, 0), "members must have 3 rows or more, got 2"),
    ],
)
def test_refuses_what_it_cannot_compare(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(21).normal(size=(5, 3)))
