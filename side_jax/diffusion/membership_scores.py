"""How strongly an image looks memorised, by the denoiser alone: no classifier, no other image. Smaller: member-like.

With the notation of process.py, epsilon(x, t) and x0_hat(x, t) what the network predicts of x at timestep t, d values
in an image, e ~ N(0, I), and x_t = a_t x_0 + sigma_t e:

    loss         E_e (1 / d) || e - epsilon(x_t, t) ||^2                                           (1)
    DDIM         phi(x, t -> t') = a_t' x0_hat(x, t) + sigma_t' epsilon(x, t)                      (2)
    SecMI        || phi( phi(x, t -> t + k), t + k -> t ) - x ||^2,   x = phi(x_0, 0 -> k -> .. -> t)  (3)
    PIA          || epsilon_0 - epsilon(a_t x_0 + sigma_t epsilon_0, t) ||_p^p,   epsilon_0 = epsilon(x_0, 0)  (4)
    PIAN         (4) with epsilon_0 scaled so that (1 / d) || epsilon_0 ||_1 = sqrt(2 / pi), N(0, I)'s own  (5)
    SimA         || epsilon(x_0, t) ||_p^p                                                         (6)
    consistency  (1 / d) sum Var_e x0_hat(x_t, t)   and   (1 / d) || E_e x0_hat(x_t, t) - x_0 ||^2     (7)

((1): Ho et al. 2020, eq. 14, as Carlini et al. 2023 attack it. (2): Song, Meng and Ermon 2021. (3): Duan et al. 2023,
"Are Diffusion Models Vulnerable to Membership Inference Attacks?", the t-error. (4), (5): Kong et al. 2024, "An
Efficient Membership Inference Attack for the Diffusion Model by Proximal Initialization". (6): Rao, Qu and Moyer 2025,
"Score-based Membership Inference on Diffusion Models". (7): a model that has memorised an image gives it back whatever
the noise.) (1) and (7) are means over an image's values, (3), (4) and (6) sums, as in the papers. For (5), published
codes differ: sqrt(2 / pi) or sqrt(pi / 2). Only the first is E|z| of a standard normal z.

Every function takes

    denoise_fn   (x float32 [b, h, w, c], t int32 [b]) -> what schedule.prediction_type says, the shape of x
    schedule     of T timesteps
    x0           images float32 [b, h, w, c] in [-1, 1]
    keys         typed PRNG keys [b], where noise is drawn. An image's noise depends on its own key and the draw's
                 number alone: neither on its batch nor on t, so that timesteps are compared on the same noise.

and timesteps in 0..T-1, integers or traced scalars; only Python's and NumPy's are checked. The network has no timestep
for a clean image: as the papers do, (3) and (4) present it as timestep 0. Timesteps that suit one T don't suit another.
"""

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.diffusion.process import coefficients, epsilon_and_x0, q_sample
from side_jax.diffusion.sampler import DenoiseFn, initial_noise
from side_jax.diffusion.schedule import Schedule

Timestep = int | jax.Array


def denoising_loss_at(
    denoise_fn: DenoiseFn, schedule: Schedule, x0: jax.Array, keys: jax.Array, t: Timestep, repeats: int
) -> jax.Array:
    """Equation (1) by the mean over `repeats` draws, at least 1, of the noise; float32 [b], at least 0.

    The error is that of epsilon, whatever the network predicts.

    Raises:
      ValueError: if t or repeats is out of range.
    """
    _check_timestep("t", t, schedule)
    _check_least("repeats", repeats, 1)

    def add(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        noise = _noise(keys, number, x0.shape[1:])
        epsilon, _ = _predict(denoise_fn, schedule, q_sample(schedule, x0, _batch(t, x0), noise), t)
        return total + _mean(jnp.square(noise - epsilon)), None

    total, _ = jax.lax.scan(add, jnp.zeros(x0.shape[:1], jnp.float32), jnp.arange(repeats))
    return total / repeats


def secmi_t_error(
    denoise_fn: DenoiseFn, schedule: Schedule, x0: jax.Array, t_sec: Timestep = 100, stride: Timestep = 10
) -> jax.Array:
    """Equation (3), a sum of squares; float32 [b], at least 0.

    The network is called at 0, stride, 2 stride, .., t_sec - stride to bring the image to t_sec, then at t_sec for the
    step to t_sec + stride, and at t_sec + stride for the step back. The defaults are the paper's, for T = 1000: x at
    t = 100. (The authors' code stops one stride short of it, which is t_sec = 90 here.)

    Args:
      denoise_fn: see the module's docstring, as for schedule and x0.
      schedule: as there.
      x0: as there.
      t_sec: a multiple of stride, at least 0.
      stride: at least 1; t_sec + stride must be below T.

    Raises:
      ValueError: if t_sec or stride is out of range or t_sec is no multiple of stride.
    """
    if _is_number(t_sec) and _is_number(stride):
        _check_least("stride", stride, 1)
        _check_timestep("t_sec", t_sec, schedule)
        _check_timestep("t_sec + stride", t_sec + stride, schedule)
        if t_sec % stride:
            raise ValueError(f"t_sec must be a multiple of the stride {stride}, got {t_sec}")

    def step(x: jax.Array, t: Timestep, to: Timestep) -> jax.Array:
        epsilon, x0_hat = _predict(denoise_fn, schedule, x, t)
        return q_sample(schedule, x0_hat, _batch(to, x), epsilon)  # equation (2): the epsilon predicted for noise

    x = jax.lax.fori_loop(0, t_sec // stride, lambda i, x: step(x, i * stride, (i + 1) * stride), x0)
    back = step(step(x, t_sec, t_sec + stride), t_sec + stride, t_sec)
    return _sum(jnp.square(back - x))


def pia(
    denoise_fn: DenoiseFn, schedule: Schedule, x0: jax.Array, t: Timestep, p: float = 4, normalize: bool = False
) -> jax.Array:
    """Equation (4), or (5) where `normalize`, a sum of p-th powers; float32 [b], at least 0.

    p is at least 1; the authors' is 4.

    Raises:
      ValueError: if t or p is out of range.
    """
    _check_timestep("t", t, schedule)
    _check_least("p", p, 1)
    first, _ = _predict(denoise_fn, schedule, x0, 0)
    if normalize:
        size = jnp.abs(first).mean(axis=tuple(range(1, first.ndim)), keepdims=True)
        # An all-zero prediction stays zero.
        first = first * ((2 / np.pi) ** 0.5 / jnp.maximum(size, jnp.finfo(jnp.float32).tiny))
    second, _ = _predict(denoise_fn, schedule, q_sample(schedule, x0, _batch(t, x0), first), t)
    return _sum(jnp.abs(first - second) ** p)


def score_norm(denoise_fn: DenoiseFn, schedule: Schedule, x0: jax.Array, t: Timestep, p: float = 4) -> jax.Array:
    """Equation (6), a sum of p-th powers, of the un-noised image; float32 [b], at least 0.

    p is at least 1; the authors' is 4. For p = 2 it is sigma_t^2 times the squared norm of the score at x_0.

    Raises:
      ValueError: if t or p is out of range.
    """
    _check_timestep("t", t, schedule)
    _check_least("p", p, 1)
    epsilon, _ = _predict(denoise_fn, schedule, x0, t)
    return _sum(jnp.abs(epsilon) ** p)


def one_step_consistency(
    denoise_fn: DenoiseFn, schedule: Schedule, x0: jax.Array, keys: jax.Array, t: Timestep, repeats: int
) -> tuple[jax.Array, jax.Array]:
    """Equation (7) by `repeats` draws, at least 2, of the noise: (variance, squared distance), each float32 [b].

    The variance is unbiased. The distance is that of the draws' mean, so that it is too large by variance / repeats on
    average. Predictions are not clipped. Memory does not grow with the draws.

    Raises:
      ValueError: if t or repeats is out of range.
    """
    _check_timestep("t", t, schedule)
    _check_least("repeats", repeats, 2)

    def add(state: tuple[jax.Array, jax.Array], number: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        mean, squares = state
        noise = _noise(keys, number, x0.shape[1:])
        _, x0_hat = _predict(denoise_fn, schedule, q_sample(schedule, x0, _batch(t, x0), noise), t)
        # Welford 1962: squares of raw values would cancel, above all for a memorised image.
        change = x0_hat - mean
        mean = mean + change / (number + 1).astype(jnp.float32)
        return (mean, squares + change * (x0_hat - mean)), None

    (mean, squares), _ = jax.lax.scan(add, (jnp.zeros_like(x0), jnp.zeros_like(x0)), jnp.arange(repeats))
    return _mean(squares) / (repeats - 1), _mean(jnp.square(mean - x0))


def _predict(denoise_fn: DenoiseFn, schedule: Schedule, x: jax.Array, t: Timestep) -> tuple[jax.Array, jax.Array]:
    """(epsilon, x0_hat) of x, taken to be at timestep t."""
    t = _batch(t, x)
    return epsilon_and_x0(schedule.prediction_type, denoise_fn(x, t), x, *coefficients(schedule, t, x))


def _batch(t: Timestep, x: jax.Array) -> jax.Array:
    return jnp.full(x.shape[:1], t, jnp.int32)


def _noise(keys: jax.Array, number: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The draw of that number for each key [b]; float32 [b, *shape]."""
    return initial_noise(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number), shape)


def _sum(values: jax.Array) -> jax.Array:
    return values.sum(axis=tuple(range(1, values.ndim)))


def _mean(values: jax.Array) -> jax.Array:
    return values.mean(axis=tuple(range(1, values.ndim)))


def _is_number(value: Timestep) -> bool:
    return isinstance(value, int | np.integer)


def _check_timestep(name: str, t: Timestep, schedule: Schedule) -> None:
    if _is_number(t) and not 0 <= t < schedule.num_timesteps:
        raise ValueError(f"{name} must be between 0 and {schedule.num_timesteps - 1}, got {t}")


def _check_least(name: str, value: float | Timestep, least: int) -> None:
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
