"""The FLD-style gap against scipy's mixture and optimiser, a closed form, copies and fresh draws."""

import numpy as np
from scipy import optimize, stats
from scipy.spatial.distance import cdist

from side_jax.memorization.distribution import fld_density_gap
from side_jax.memorization.distribution.feature_rows import subsample
from side_jax.memorization.distribution.fld_density_gap import FLOOR, fld_gap


def law(seed, *sizes, d=16):
    """Sets of float32 rows of one correlated Gaussian."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) * np.linspace(0.1, 1, d)
    return [(rng.normal(size=(n, d)) @ mixing).astype(np.float32) for n in sizes]


def test_log_likelihood_is_scipys_mixture(monkeypatch):
    monkeypatch.setattr(fld_density_gap, "BLOCK", 4)
    rng = np.random.default_rng(7)
    rows, means = (rng.normal(size=(n, 3)).astype(np.float32) for n in (11, 5))
    variances = rng.uniform(0.1, 2, 5)
    density = np.mean([stats.multivariate_normal(g, s).pdf(rows) for g, s in zip(means, variances, strict=True)], 0)
    np.testing.assert_allclose(fld_density_gap.log_likelihood(rows, means, variances), np.log(density), rtol=1e-5)


def test_fit_climbs_and_ends_at_the_maximum(monkeypatch):
    """Each iteration climbs, and scipy's own ascent from the end finds nothing higher."""
    monkeypatch.setattr(fld_density_gap, "BLOCK", 16)
    rows, means = law(8, 60, 4, d=3)
    variances, history = fld_density_gap.fit_variances(rows, means, 2000, 1e-10)
    assert len(history) > 5
    assert (np.diff(history) > -1e-9).all()

    def mean(log):
        return fld_density_gap.log_likelihood(rows, means, np.exp(log)).mean()

    np.testing.assert_allclose(history[-1], mean(np.log(variances)) / 3, atol=1e-6)
    best = optimize.minimize(lambda log: -mean(log), np.log(variances))
    np.testing.assert_allclose(-best.fun, mean(np.log(variances)), atol=1e-5)
    np.testing.assert_allclose(np.exp(best.x), variances, rtol=0.02)


def test_fit_starts_at_the_nearest_row_and_stops_when_told():
    rows, means = law(9, 30, 6)
    start = cdist(rows, means, "sqeuclidean").min(axis=0) / 16
    first = fld_density_gap.log_likelihood(rows, means, start).mean() / 16
    _, history = fld_density_gap.fit_variances(rows, means, 3, 0.0)
    np.testing.assert_allclose(history[0], first, rtol=1e-5)
    assert len(history) == 3
    assert len(fld_density_gap.fit_variances(rows, means, 100, 1e9)[1]) == 2


def test_exact_copies_get_the_floor_and_strangers_keep_their_start():
    (rows,) = law(10, 40, d=256)
    means = np.concatenate([rows, np.full((1, 256), 1e4, np.float32)])
    variances, _ = fld_density_gap.fit_variances(rows, means)
    np.testing.assert_array_equal(variances[:-1], FLOOR)
    np.testing.assert_allclose(variances[-1], cdist(rows, means[-1:], "sqeuclidean").min() / 256, rtol=1e-5)


def test_fld_gap_of_one_gaussian_has_a_closed_form():
    """Its variance is the members' mean square distance per feature, so gap = 50 (1 - held-out's over members')."""
    members, heldout, generated = law(11, 50, 40, 1)
    generated[:, 3], heldout = generated[:, 3] + 5, 1.3 * heldout
    mean, deviation = members.mean(axis=0), members.std(axis=0)
    square = [np.square((rows - generated) / deviation).sum(axis=1).mean() for rows in (members, heldout)]
    expected = 50 * (1 - square[1] / square[0])
    assert abs(expected) > 5
    np.testing.assert_allclose(fld_gap(members, heldout, generated), expected, rtol=1e-4)
    units = np.linspace(0.1, 30, 16)  # the features' own, which do not matter
    turned = [(rows - mean) * units + 7 for rows in (members, heldout, generated)]
    np.testing.assert_allclose(fld_gap(*turned), expected, rtol=1e-3)


def test_fld_gap_grows_with_what_is_copied_and_is_near_zero_for_fresh_draws():
    members, heldout, fresh = law(12, 200, 200, 200, d=64)
    noise = np.random.default_rng(99).normal(size=members.shape)
    copied = (members + 0.1 * members.std(axis=0) * noise).astype(np.float32)
    some = np.where(np.arange(200)[:, None] < 20, copied, fresh)
    values = [fld_gap(members, heldout, rows) for rows in (fresh, some, copied)]
    assert abs(values[0]) < 3
    assert -100 < values[1] < -10
    assert values[2] < -1000


def test_fld_gap_draws_what_exceeds_its_limit():
    members, heldout, generated = law(13, 40, 40, 60)
    by_seed = [fld_gap(members, heldout, generated, limit=20, seed=seed) for seed in (0, 0, 1)]
    assert by_seed[0] == by_seed[1] != by_seed[2]
    assert by_seed[0] == fld_gap(members, heldout, subsample(generated, 20, 0))
    rows = np.arange(30)[:, None]
    part = subsample(rows, 12, 3)
    assert len(np.unique(part)) == 12
    assert (np.diff(part[:, 0]) > 0).all()
    assert subsample(rows, 30, 3) is rows


def test_a_feature_that_is_constant_changes_nothing():
    """Of one Gaussian, whose gap does not depend on the number of features."""
    rows = law(14, 40, 40, 1)
    constant = fld_gap(*(np.insert(part, 4, 2.5, axis=1) for part in rows))
    np.testing.assert_allclose(constant, fld_gap(*rows), rtol=1e-4)
