"""Schedules and time grids against their closed forms."""

import numpy as np
import pytest

from side_jax.diffusion.schedule import SCHEDULES, SPACINGS, make_schedule, time_grid


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_timesteps", [10, 1000])
def test_alpha_bar_falls_from_near_one(name, num_timesteps):
    alpha_bar = make_schedule(name, num_timesteps).alpha_bar
    assert alpha_bar.shape == (num_timesteps,)
    assert (np.diff(alpha_bar) < 0).all()
    assert 0 < alpha_bar[-1] < alpha_bar[0] < 1


def test_linear_is_ho_et_al():
    schedule = make_schedule("linear", 1000, 1e-4, 0.02)
    # beta_1 = 1e-4 and beta_T = 0.02; alpha_bar_T about 4e-5 (Ho et al. 2020, section 4).
    assert schedule.betas[0] == 1e-4
    assert schedule.betas[-1] == 0.02
    np.testing.assert_allclose(schedule.alpha_bar[-1], 4.036e-5, rtol=1e-3)


def test_cosine_follows_its_alpha_bar_where_not_capped():
    schedule = make_schedule("cosine", 100)
    f = np.cos((np.arange(1, 101) / 100 + 0.008) / 1.008 * np.pi / 2) ** 2
    expected = f / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(schedule.alpha_bar[:-1], expected[:-1], rtol=1e-10)
    assert schedule.betas[-1] == 0.999


def test_scaled_linear_is_linear_in_the_square_root():
    roots = np.sqrt(make_schedule("scaled_linear", 5, 0.01, 0.09).betas)
    np.testing.assert_allclose(roots, [0.1, 0.15, 0.2, 0.25, 0.3])


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 7, 20, 999, 1000])
def test_grid_falls_within_range(spacing, num_steps):
    grid = time_grid(make_schedule("linear", 1000), num_steps, spacing)
    assert grid.shape == (num_steps,)
    assert (np.diff(grid) < 0).all()
    assert grid[0] <= 999
    assert grid[-1] >= 0


def test_grids_by_hand():
    schedule = make_schedule("linear", 1000)
    assert time_grid(schedule, 4, "trailing").tolist() == [999, 749, 499, 249]
    assert time_grid(schedule, 4, "leading").tolist() == [750, 500, 250, 0]
    assert time_grid(schedule, 4, "linspace").tolist() == [999, 666, 333, 0]


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_log_snr_grid_is_uniform_in_it(name):
    """To the rounding of timesteps: no neighbour is nearer, but where they are so sparse that it has every one."""
    schedule = make_schedule(name, 4000)
    grid = time_grid(schedule, 30, "log_snr")
    log_snr = np.log(schedule.alpha_bar / (1 - schedule.alpha_bar))
    even = np.linspace(log_snr[-1], log_snr[0], 30)
    free = [i for i in range(1, 29) if grid[i - 1] - 1 > grid[i] > grid[i + 1] + 1]
    assert len(free) > 15
    assert all(log_snr[grid[i] + 1] < even[i] < log_snr[grid[i] - 1] for i in free)
    assert grid[0] == 3999
    assert grid[-1] == 0


@pytest.mark.parametrize("spacing", SPACINGS)
def test_full_grid_is_every_timestep(spacing):
    assert time_grid(make_schedule("linear", 50), 50, spacing).tolist() == list(range(49, -1, -1))


def test_refusals():
    with pytest.raises(ValueError, match="unknown schedule 'sine'"):
        make_schedule("sine", 10)
    with pytest.raises(ValueError, match="unknown spacing"):
        time_grid(make_schedule("linear", 10), 5, "random")
    with pytest.raises(ValueError, match="num_steps must be between 1 and"):
        time_grid(make_schedule("linear", 10), 11)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        make_schedule("linear", 10, 0.1, 1.0)
    with pytest.raises(ValueError, match="leave 0 of the image's variance at the last step, too little for float32"):
        make_schedule("linear", 1000, 1e-4, 0.999)
