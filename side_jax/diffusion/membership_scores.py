"""Scores an image's membership by the denoiser alone, without a classifier or other images. Smaller: more member-like.

Notation as in process.py. epsilon(x, t) and x0_hat(x, t) are the network's predictions for x at timestep t, d is the
number of values in an image, e ~ N(0, I), and x_t = a_t x_0 + sigma_t e:

    loss         E_e (1 / d) || e - epsilon(x_t, t) ||^2                                           (1)
    DDIM         phi(x, t -> t') = a_t' x0_hat(x, t) + sigma_t' epsilon(x, t)                      (2)
    SecMI        || phi( phi(x, t -> t + k), t + k -> t ) - x ||^2,   x = phi(x_0, 0 -> k -> .. -> t)  (3)
    PIA          || epsilon_0 - epsilon(a_t x_0 + sigma_t epsilon_0, t) ||_p^p,   epsilon_0 = epsilon(x_0, 0)  (4)
    PIAN         (4) with epsilon_0 scaled so that (1 / d) || epsilon_0 ||_1 = sqrt(2 / pi), as for N(0, I)  (5)
    SimA         || epsilon(x_0, t) ||_p^p                                                         (6)
    consistency  (1 / d) sum Var_e x0_hat(x_t, t)   and   (1 / d) || E_e x0_hat(x_t, t) - x_0 ||^2     (7)

Sources: (1): Ho et al. 2020, eq. 14; Carlini et al. 2023 use it as an attack. (2): Song, Meng and Ermon 2021. (3):
Duan et al. 2023, "Are Diffusion Models Vulnerable to Membership Inference Attacks?", the t-error. (4), (5): Kong et al.
2024, "An Efficient Membership Inference Attack for the Diffusion Model by Proximal Initialization". (6): Rao, Qu and
Moyer 2025, "Score-based Membership Inference on Diffusion Models". (7): a model that has memorised an image restores it
from any noise. (1) and (7) are means over an image's values; (3), (4) and (6) are sums, as in the papers. For (5),
published code uses sqrt(2 / pi) or sqrt(pi / 2). Only the first is E|z| of a standard normal z.

Every function takes

    denoise_fn   (x float32 [b, h, w, c], t int32 [b]) -> the prediction named by schedule.prediction_type, shaped as x
    schedule     with T timesteps
    x0           images float32 [b, h, w, c] in [-1, 1]
    keys         typed PRNG keys [b], if noise is drawn. An image's noise depends on its own key and the draw's number
                 alone, not on its batch or on t, so timesteps are compared on the same noise.

and timesteps in 0..T-1, integers or traced scalars; only Python and NumPy integers are checked. The network has no
timestep for a clean image; as in the papers, (3) and (4) use timestep 0. Good timesteps depend on T.
"""

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.diffusion.process import DenoiseFn, coefficients, epsilon_and_x0, q_sample
from side_jax.diffusion.sampler import initial_noise
from side_jax.diffusion.schedule import Schedule

Timestep = int | jax.Array


def denoising_loss_at(
    denoise_fn: DenoiseFn, schedule: Schedule, x0: jax.Array, keys: jax.Array, t: Timestep, repeats: int
) -> jax.Array:
    """Computes equation (1) as the mean over `repeats` >= 1 draws of the noise; float32 [b], at least 0.

    The error is that of epsilon, for every prediction type.

    Raises:
      ValueError: if t or repeats is out of range.
    """
    _check_timestep("t", t, schedule)
    _check_minimum("repeats", repeats, 1)

    def add(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        noise = _noise(keys, number, x0.shape[1:])
        epsilon, _ = _predict(denoise_fn, schedule, q_sample(schedule, x0, _batch(t, x0), noise), t)
        return total + _mean(jnp.square(noise - epsilon)), None

    total, _ = jax.lax.scan(add, jnp.zeros(x0.shape[:1], jnp.float32), jnp.arange(repeats))
    return total / repeats


def secmi_t_error(
    denoise_fn: DenoiseFn, schedule: Schedule, x0: jax.Array, t_sec: Timestep = 100, stride: Timestep = 10
) -> jax.Array:
    """Computes equation (3), a sum of squares; float32 [b], at least 0.

    The network is called at 0, stride, 2 stride, .., t_sec - stride to bring the image to t_sec, then at t_sec for the
    step to t_sec + stride, and at t_sec + stride for the step back. The defaults are the paper's for T = 1000: x at
    t = 100. (The authors' code stops one stride earlier, which is t_sec = 90 here.)

    Args:
      denoise_fn: see the module's docstring.
      schedule: see there.
      x0: see there.
      t_sec: a multiple of stride, at least 0.
      stride: at least 1; t_sec + stride must be below T.

    Raises:
      ValueError: if t_sec or stride is out of range, or t_sec is not a multiple of stride.
    """
    if _is_number(t_sec) and _is_number(stride):
        _check_minimum("stride", stride, 1)
        _check_timestep("t_sec", t_sec, schedule)
        _check_timestep("t_sec + stride", t_sec + stride, schedule)
        if t_sec % stride:
            raise ValueError(f"t_sec must be a multiple of the stride {stride}, got {t_sec}")

    there = t_sec // stride

    def step(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, at_t_sec = state
        at_t_sec = jnp.where(i == there, x, at_t_sec)
        t = i * stride
        next_t = jnp.where(i > there, t_sec, t + stride)
        epsilon, x0_hat = _predict(denoise_fn, schedule, x, t)
        return q_sample(schedule, x0_hat, _batch(next_t, x), epsilon), at_t_sec  # (2): epsilon as the noise

    # One loop over all steps, the last of which is the step back: the network is compiled once.
    back, x = jax.lax.fori_loop(0, there + 2, step, (x0, x0))
    return _sum(jnp.square(back - x))


def pia(
    denoise_fn: DenoiseFn, schedule: Schedule, x0: jax.Array, t: Timestep, p: float = 4, normalize: bool = False
) -> jax.Array:
    """Computes equation (4), or (5) if `normalize`, a sum of p-th powers; float32 [b], at least 0.

    p is at least 1; the authors use 4.

    Raises:
      ValueError: if t or p is out of range.
    """
    _check_timestep("t", t, schedule)
    _check_minimum("p", p, 1)
    first, _ = _predict(denoise_fn, schedule, x0, 0)
    if normalize:
        size = jnp.abs(first).mean(axis=tuple(range(1, first.ndim)), keepdims=True)
        # An all-zero prediction stays zero.
        first = first * ((2 / np.pi) ** 0.5 / jnp.maximum(size, jnp.finfo(jnp.float32).tiny))
    second, _ = _predict(denoise_fn, schedule, q_sample(schedule, x0, _batch(t, x0), first), t)
    return _sum(jnp.abs(first - second) ** p)


def score_norm(denoise_fn: DenoiseFn, schedule: Schedule, x0: jax.Array, t: Timestep, p: float = 4) -> jax.Array:
    """Computes equation (6), a sum of p-th powers for the image without noise; float32 [b], at least 0.

    p is at least 1; the authors use 4. For p = 2 it is sigma_t^2 times the squared norm of the score at x_0.

    Raises:
      ValueError: if t or p is out of range.
    """
    _check_timestep("t", t, schedule)
    _check_minimum("p", p, 1)
    epsilon, _ = _predict(denoise_fn, schedule, x0, t)
    return _sum(jnp.abs(epsilon) ** p)


def one_step_consistency(
    denoise_fn: DenoiseFn, schedule: Schedule, x0: jax.Array, keys: jax.Array, t: Timestep, repeats: int
) -> tuple[jax.Array, jax.Array]:
    """Computes equation (7) from `repeats` >= 2 draws of the noise: (variance, squared distance), each float32 [b].

    The variance is unbiased. The distance is that of the mean of the draws, so on average it is too large by
    variance / repeats. Predictions are not clipped. Memory does not grow with the number of draws.

    Raises:
      ValueError: if t or repeats is out of range.
    """
    _check_timestep("t", t, schedule)
    _check_minimum("repeats", repeats, 2)

    def add(state: tuple[jax.Array, jax.Array], number: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        mean, squares = state
        noise = _noise(keys, number, x0.shape[1:])
        _, x0_hat = _predict(denoise_fn, schedule, q_sample(schedule, x0, _batch(t, x0), noise), t)
        # Welford 1962: sums of raw squares would cancel, above all for a memorised image.
        change = x0_hat - mean
        mean = mean + change / (number + 1).astype(jnp.float32)
        return (mean, squares + change * (x0_hat - mean)), None

    (mean, squares), _ = jax.lax.scan(add, (jnp.zeros_like(x0), jnp.zeros_like(x0)), jnp.arange(repeats))
    return _mean(squares) / (repeats - 1), _mean(jnp.square(mean - x0))


def _predict(denoise_fn: DenoiseFn, schedule: Schedule, x: jax.Array, t: Timestep) -> tuple[jax.Array, jax.Array]:
    """Returns (epsilon, x0_hat) for x at timestep t."""
    t = _batch(t, x)
    return epsilon_and_x0(schedule.prediction_type, denoise_fn(x, t), x, *coefficients(schedule, t, x))


def _batch(t: Timestep, x: jax.Array) -> jax.Array:
    return jnp.full(x.shape[:1], t, jnp.int32)


def _noise(keys: jax.Array, number: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns draw `number` of the noise for each key [b]; float32 [b, *shape]."""
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


def _check_minimum(name: str, value: float | Timestep, minimum: int) -> None:
    if not value >= minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
