"""Samplers on Gaussian data, where the denoiser and the law of every x_t are known exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.diffusion import sampler
from side_jax.diffusion.guidance import Guidance
from side_jax.diffusion.process import bcast
from side_jax.diffusion.schedule import make_schedule
from side_jax.diffusion.steps import step_table

MEAN, STD = 0.3, 0.5
SHAPE = (2, 2, 1)


def exact_denoiser(schedule, mean=MEAN, std=STD):
    """E[epsilon | x_t] for x_0 ~ N(mean, std^2 I), or E[x_0 | x_t] or E[v | x_t], as the schedule says."""
    alpha_bar = jnp.asarray(schedule.alpha_bar, jnp.float32)

    def denoise(x, t):
        a = bcast(alpha_bar[t], x)
        surprise = (x - jnp.sqrt(a) * mean) / (a * std**2 + 1 - a)
        epsilon, x0 = jnp.sqrt(1 - a) * surprise, mean + jnp.sqrt(a) * std**2 * surprise
        v = jnp.sqrt(a) * epsilon - jnp.sqrt(1 - a) * x0
        return {"epsilon": epsilon, "x0": x0, "v": v}[schedule.prediction_type]

    return denoise


def exact_epsilon(schedule, x, t):
    """E[epsilon | x_t] at one timestep, in NumPy."""
    a = schedule.alpha_bar[t]
    return (1 - a) ** 0.5 * (x - a**0.5 * MEAN) / (a * STD**2 + 1 - a)


def state(x):
    """That of a first step."""
    return sampler.State(x, np.zeros_like(x))


def noise(n, seed=9):
    return np.random.default_rng(seed).standard_normal((n, *SHAPE)).astype(np.float32)


@functools.partial(jax.jit, static_argnames="n")
def begun(seed, n):
    """(keys, the state before the first step)."""
    keys = sampler.sample_keys(jax.random.key(seed), jnp.arange(n, dtype=jnp.uint32))
    return keys, sampler.start(keys, SHAPE)


@jax.jit
def drawn_noise(keys, number):
    """The z of a step."""
    at = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number.astype(jnp.uint32))
    return jax.vmap(lambda key: jax.random.normal(key, SHAPE, jnp.float32))(at)


@functools.partial(jax.jit, static_argnames=("schedule", "by"))
def step(at, now, keys, schedule, by=None):
    """Compiled once for all steps of all grids of one schedule and solver."""
    return sampler.sample_step(exact_denoiser(schedule), at, now, keys, by)


FINE, FEW = make_schedule("linear", 20_000, 5e-6, 1e-3), make_schedule("linear", 50, 1e-3, 0.2)


def walk(table, stop=None, schedule=FINE, seed=3, n=64):
    """(x_T, x) after some steps or all of them."""
    keys, now = begun(seed, n)
    start = np.asarray(now.x)
    for i in range(table.num_steps if stop is None else stop):
        now = step(table[i], now, keys, schedule)
    return start, np.asarray(now.x)


# What the network predicts and how much noise a step draws do not know of each other.
@pytest.mark.parametrize(("eta", "prediction"), [(0.0, "epsilon"), (0.5, "v"), (1.0, "x0")])
def test_recovers_the_gaussian(eta, prediction):
    schedule = make_schedule("linear", 1000, prediction_type=prediction)
    table = step_table(schedule, 1000, eta=eta, clip=False)

    @jax.jit
    def draw():
        keys = sampler.sample_keys(jax.random.key(0), jnp.arange(4096, dtype=jnp.uint32))
        return sampler.sample(exact_denoiser(schedule), table, keys, SHAPE)

    images = np.asarray(draw())
    np.testing.assert_allclose(images.mean(), MEAN, atol=0.01)
    # The small variance of DDPM is a lower bound of the true one, so the standard deviation is a little low.
    np.testing.assert_allclose(images.std(), STD, rtol=0.015)


def flow(schedule, x_start, t):
    """What the probability-flow ODE makes of x_T at timestep t: here it is known in closed form."""
    a_start, a = schedule.alpha_bar[-1], schedule.alpha_bar[t]
    variance_start, variance = (b * STD**2 + 1 - b for b in (a_start, a))
    return a**0.5 * MEAN + (variance / variance_start) ** 0.5 * (x_start - a_start**0.5 * MEAN)


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_solvers_converge_at_their_orders(solver, order):
    """Before the last step, which goes to a log-SNR of infinity, twice the steps divide the error by 2^order."""
    errors = []
    for num_steps in (20, 40, 80, 160):
        table = step_table(FINE, num_steps, clip=False, spacing="log_snr", solver=solver)
        start, x = walk(table, num_steps - 1)
        errors.append(np.abs(x - flow(FINE, start, table[num_steps - 1].t)).max())
    orders = np.log2(np.asarray(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders[-2:], order, atol=0.25)


def test_the_second_order_solver_is_nearer_at_equal_steps():
    a, error = FINE.alpha_bar[-1], {}
    for solver in ("ddim", "dpmpp_2m"):
        start, x = walk(step_table(FINE, 10, clip=False, spacing="log_snr", solver=solver))
        exact = MEAN + STD * (start - a**0.5 * MEAN) / (a * STD**2 + 1 - a) ** 0.5
        error[solver] = np.abs(x - exact).mean()
    assert error["dpmpp_2m"] < 0.3 * error["ddim"]


def test_dpm_solver_with_clipping_is_algorithm_2():
    """Lu et al. 2022 ("DPM-Solver++"), algorithm 2 as printed, in float64, with each x0_hat clipped."""
    schedule = make_schedule("linear", 1000)
    keys, now = begun(3, 64)
    table = step_table(schedule, 14, solver="dpmpp_2m")
    got = jax.jit(lambda keys: sampler.sample(lambda x, t: jnp.float32(0.9) * jnp.tanh(x), table, keys, SHAPE))(keys)
    x, before, clipped = np.asarray(now.x, np.float64), None, 0
    a, sigma = np.sqrt(schedule.alpha_bar[table.steps.t]), np.sqrt(1 - schedule.alpha_bar[table.steps.t])
    half_log_snr = np.log(a / sigma)
    for i in range(14):
        exact = (x - sigma[i] * 0.9 * np.tanh(x)) / a[i]
        x0 = np.clip(exact, -1, 1)
        clipped += (x0 != exact).mean() / 14
        if i == 13:
            x = x0
            break
        h = half_log_snr[i + 1] - half_log_snr[i]
        r = (half_log_snr[i] - half_log_snr[i - 1]) / h
        mixed = x0 if before is None else (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        x, before = sigma[i + 1] / sigma[i] * x - a[i + 1] * np.expm1(-h) * mixed, x0
    assert 0.1 < clipped < 0.9
    np.testing.assert_allclose(got, x, atol=2e-4)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_too_few_steps_for_a_second_order_are_ddim(num_steps):
    images = [walk(step_table(FINE, num_steps, solver=solver))[1] for solver in ("ddim", "dpmpp_2m")]
    np.testing.assert_array_equal(*images)


def test_the_large_variance_is_beta_and_leaves_the_mean_alone():
    """Ho et al. 2020, section 3.2: on the full grid the noise has variance beta_t; the last step draws none."""
    (keys, _), x = begun(0, 4), noise(4)
    tables = [step_table(FEW, 50, eta=1.0, variance=variance) for variance in ("small", "large")]
    for i in (0, 20, 48, 49):
        t = 49 - i
        small, large = (np.asarray(step(table[i], state(x), keys, FEW).x) for table in tables)
        before = FEW.alpha_bar[t - 1] if t > 0 else 1.0
        tilde = (1 - before) / (1 - FEW.alpha_bar[t]) * FEW.betas[t]
        wider = FEW.betas[t] ** 0.5 - tilde**0.5 if t > 0 else 0.0
        np.testing.assert_allclose(large - small, wider * drawn_noise(keys, np.uint32(i + 1)), atol=1e-5)


def test_eta_one_on_the_full_grid_is_ddpm():
    """Against Ho et al. 2020 eq. 7 and algorithm 2, written from the posterior's own formulas."""
    table = step_table(FEW, 50, eta=1.0, clip=True)
    (keys, _), x = begun(0, 4), 1.5 * noise(4)
    alpha_bar, betas = FEW.alpha_bar, FEW.betas
    for i in (0, 20, 48, 49):
        t = 49 - i
        before = alpha_bar[t - 1] if t > 0 else 1.0
        mean_x0 = before**0.5 * betas[t] / (1 - alpha_bar[t])
        mean_xt = (1 - betas[t]) ** 0.5 * (1 - before) / (1 - alpha_bar[t])
        variance = (1 - before) / (1 - alpha_bar[t]) * betas[t]
        x0 = np.clip((x - (1 - alpha_bar[t]) ** 0.5 * exact_epsilon(FEW, x, t)) / alpha_bar[t] ** 0.5, -1, 1)
        expected = mean_x0 * x0 + mean_xt * x + variance**0.5 * np.asarray(drawn_noise(keys, np.uint32(i + 1)))
        got = step(table[i], state(x), keys, FEW).x
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_eta_zero_uses_no_noise_after_the_start():
    at, x = step_table(FINE, 10)[3], noise(64)
    results = [np.asarray(step(at, state(x), begun(seed, 64)[0], FINE).x) for seed in (0, 1)]
    np.testing.assert_array_equal(*results)


def test_a_sample_depends_on_its_index_alone():
    schedule = make_schedule("linear", 20)
    table = step_table(schedule, 10, eta=1.0)

    @jax.jit
    def make(index):
        keys = sampler.sample_keys(jax.random.key(5), index)
        return sampler.sample(exact_denoiser(schedule), table, keys, SHAPE)

    together, alone = np.asarray(make(np.arange(16, dtype=np.uint32))), make(np.asarray([11], np.uint32))
    np.testing.assert_allclose(together[11], alone[0], rtol=1e-6, atol=1e-6)
    assert len({image.tobytes() for image in together}) == 16


def test_clipping_keeps_images_in_range():
    assert np.abs(walk(step_table(FINE, 20, clip=True))[1]).max() <= 1.0
    assert np.abs(walk(step_table(FINE, 20, clip=False))[1]).max() > 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.5}, "eta must be between 0"),
        ({"solver": "heun"}, "unknown solver 'heun'"),
        ({"solver": "dpmpp_2m", "eta": 0.5}, "dpmpp_2m has no option eta: it has clip"),
        ({"solver": "dpmpp_2m", "recompute": False}, "dpmpp_2m has no option recompute"),
        ({"variance": "learned_range"}, "unknown variance 'learned_range'"),
        ({"interval": (5, 2)}, r"got \(5, 2\)"),
        ({"interval": (5,)}, r"got \(5,\)"),
    ],
)
def test_refuses_what_no_solver_can_do(options, message):
    with pytest.raises(ValueError, match=message):
        step_table(make_schedule("linear", 10), 5, **options)


def test_the_large_variance_is_an_upper_bound():
    """Ho et al. 2020, section 3.2: right for x_0 ~ N(0, I), too wide for anything narrower."""
    schedule = make_schedule("linear", 1000)
    std = {}
    for variance in ("small", "large"):
        table = step_table(schedule, 50, eta=1.0, variance=variance, clip=False)

        @jax.jit
        def draw(wide, table=table):
            keys = sampler.sample_keys(jax.random.key(0), jnp.arange(8192, dtype=jnp.uint32))
            return sampler.sample(exact_denoiser(schedule, 0.0, wide), table, keys, SHAPE)

        for wide in (1.0, STD):
            std[variance, wide] = float(np.std(draw(np.float32(wide))))
    assert std["large", 1.0] == pytest.approx(1.0, rel=0.01)
    assert std["small", 1.0] < 0.98
    assert std["small", STD] < std["large", STD]
    with pytest.raises(ValueError, match="unknown variance 'huge'"):
        step_table(schedule, 5, variance="huge")


def test_guidance_acts_on_every_prediction_type_alike():
    """One guided step from the same x_t is the same, whichever way the exact denoiser puts its prediction."""
    by, x, (keys, _) = Guidance(gradient_fn=lambda x, t: -x, scale=np.float32(3.0)), noise(4), begun(1, 4)
    results = []
    for prediction in ("epsilon", "x0", "v"):
        schedule = make_schedule("linear", 100, prediction_type=prediction)
        at = step_table(schedule, 10, clip=False)[4]
        results.append(np.asarray(step(at, state(x), keys, schedule, by).x))
        assert np.abs(results[-1] - step(at, state(x), keys, schedule).x).max() > 0.1
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(results[2], results[0], rtol=1e-4, atol=1e-5)


def test_guidance_acts_in_its_interval_alone():
    """Outside of it the gradient is not even computed: here it would be NaN."""
    schedule = make_schedule("linear", 100)

    def gradient(x, t):
        inside = bcast((t >= 30) & (t <= 69), x)
        return jnp.where(inside, 1.0, jnp.nan) * jnp.ones_like(x)

    by = Guidance(gradient_fn=gradient, scale=np.float32(2.0))
    table = step_table(schedule, 10, interval=(30, 69), clip=False)
    assert table.steps.t[table.guided].tolist() == [69, 59, 49, 39]
    assert list(table.segments(True)) == [(0, 3, False), (3, 7, True), (7, 10, False)]
    assert list(table.segments(False)) == [(0, 10, False)]
    everywhere = step_table(schedule, 10, clip=False)
    assert list(everywhere.segments(True)) == [(0, 10, True)]
    keys, now = begun(0, 8)

    @jax.jit
    def draw(keys):
        return [sampler.sample(exact_denoiser(schedule), grid, keys, SHAPE, by) for grid in (table, everywhere)]

    guided, of_everywhere = draw(keys)
    assert np.isfinite(guided).all()
    for i in range(10):
        now = step(table[i], now, keys, schedule, by if 3 <= i < 7 else None)
    np.testing.assert_allclose(guided, now.x, rtol=1e-5, atol=1e-6)
    assert np.isnan(of_everywhere).all()


def by_hand(schedule, num_steps, count, solver):
    """(signal, factor): image to image by the last steps maps x to MEAN + factor (signal (x - MEAN) + sigma z)."""
    t = step_table(schedule, num_steps).steps.t[num_steps - count :]
    a = np.sqrt(np.append(schedule.alpha_bar[t], 1.0))
    sigma, half_snr = np.sqrt(1 - a**2), np.log(a[:-1] / np.sqrt(1 - a[:-1] ** 2))
    away, before = 1.0, 0.0  # of x_t and of the last x0_hat, from their means
    for i in range(count):
        x0 = away * a[i] * STD**2 / (a[i] ** 2 * STD**2 + sigma[i] ** 2)
        ahead = x0
        if solver == "dpmpp_2m" and 0 < i < count - 1:
            ahead += (half_snr[i + 1] - half_snr[i]) / (half_snr[i] - half_snr[i - 1]) / 2 * (x0 - before)
        away, before = a[i + 1] * ahead + sigma[i + 1] * (away - a[i] * ahead) / sigma[i], x0
    return a[0], away


@pytest.mark.parametrize(("solver", "count"), [("ddim", 1), ("ddim", 3), ("dpmpp_2m", 4), ("ddim", 10)])
def test_image_to_image_is_affine_on_gaussian_data(solver, count):
    """Each image by its own noise, and the law of all; by all steps, hardly anything of the image is left."""
    table = step_table(FEW, 10, clip=False, solver=solver).last(count)
    keys, now = begun(4, 4096)
    x = 0.7 + 0.2 * noise(4096)
    found = np.asarray(jax.jit(lambda x: sampler.sample_again(exact_denoiser(FEW), table, x, keys))(x))
    signal, factor = by_hand(FEW, 10, count, solver)
    sigma = np.sqrt(1 - signal**2)
    np.testing.assert_allclose(found, MEAN + factor * (signal * (x - MEAN) + sigma * np.asarray(now.x)), atol=3e-5)
    np.testing.assert_allclose(found.mean(), MEAN + factor * signal * (0.7 - MEAN), atol=0.01)
    np.testing.assert_allclose(found.std(), factor * np.hypot(signal * 0.2, sigma), rtol=0.02)
    assert (factor * signal < 0.05) == (count == 10)
