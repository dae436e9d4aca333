"""The forward (noising) process, prediction types, and the training loss.

Notation as in schedule.py, with a = sqrt(alpha_bar_t) and sigma = sqrt(1 - alpha_bar_t):

    q(x_t | x_0) = N( a x_0, sigma^2 I )                                                           (1)
    v            = a epsilon - sigma x_0                                                           (2)
    L            = E_{t, x_0, epsilon} || target - f_theta(x_t, t) ||^2                            (3)

((1): Ho et al. 2020, eq. 4. (2): Salimans and Ho 2022, section 4.) The target of (3) is epsilon (Ho et al., eq. 14),
x_0 or v. Each prediction determines epsilon and x_0:

    epsilon-prediction   x_0 = (x_t - sigma epsilon) / a                                           (4)
    x0-prediction        epsilon = (x_t - a x_0) / sigma                                           (5)
    v-prediction         x_0 = a x_t - sigma v,   epsilon = sigma x_t + a v                        (6)

Images are float32 in [-1, 1] with axes [batch, height, width, channels].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.diffusion.schedule import Schedule

DenoiseFn = Callable[[jax.Array, jax.Array], jax.Array]  # (x_t [b, ...], t int32 [b]) -> the prediction [b, ...]


def bcast(values: jax.Array, array: jax.Array) -> jax.Array:
    """Reshapes per-sample values [b] so that they broadcast against `array` [b, ...]."""
    return values.reshape(values.shape + (1,) * (array.ndim - values.ndim))


def coefficients(schedule: Schedule, t: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (a, sigma) at each sample's timestep, broadcastable against x [b, ...]."""
    alpha_bar = schedule.alpha_bar
    signal = jnp.asarray(alpha_bar**0.5, x.dtype)[t]
    sigma = jnp.asarray((1.0 - alpha_bar) ** 0.5, x.dtype)[t]
    return bcast(signal, x), bcast(sigma, x)


def q_sample(schedule: Schedule, x0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
    """Draws x_t given x_0, equation (1).

    Args:
      schedule: the noise schedule.
      x0: clean images [b, ...], in [-1, 1].
      t: int32 [b], timesteps in 0..T-1.
      noise: standard normal, with the shape of x0.
    """
    signal, sigma = coefficients(schedule, t, x0)
    return signal * x0 + sigma * noise


def importance(schedule: Schedule) -> np.ndarray:
    """Returns a proposal for the timestep: half uniform, half proportional to sigma; float64 [T] with sum 1.

    A classifier's gradient enters a guided step with the factor sigma (guidance.py, equation 2). The weights
    1 / (T p_t) keep the expectation over uniform t; the uniform half keeps them below 2 (a defensive mixture,
    Hesterberg 1995).
    """
    sigma = np.sqrt(1.0 - schedule.alpha_bar)
    return 0.5 / schedule.num_timesteps + 0.5 * sigma / sigma.sum()


def diffuse(
    schedule: Schedule, x0: jax.Array, keys: jax.Array, proposal: np.ndarray | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws timesteps and noise; returns (x_t, t int32 [b], noise).

    Args:
      schedule: the noise schedule.
      x0: clean images [b, ...].
      keys: typed PRNG keys [b], one per image, so that an image's draw does not depend on its batch or on how the batch
        is split over devices or accumulation steps.
      proposal: the probability of each timestep, [T]; None: uniform.
    """
    steps = schedule.num_timesteps

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        key_t, key_noise = jax.random.split(key)
        t = jax.random.randint(key_t, (), 0, steps)
        if proposal is not None:
            t = jax.random.choice(key_t, steps, p=jnp.asarray(proposal, jnp.float32))
        return t, jax.random.normal(key_noise, x0.shape[1:], x0.dtype)

    t, noise = jax.vmap(draw)(keys)
    return q_sample(schedule, x0, t, noise), t, noise


def epsilon_and_x0(
    prediction_type: str, output: jax.Array, x: jax.Array, signal: jax.Array, sigma: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Converts a network's output to (epsilon, x_0) by equations (4) to (6).

    Each is computed from the output directly; deriving one from the other would lose digits where a is small.

    Args:
      prediction_type: one of schedule.PREDICTIONS.
      output: of the network, with the shape of x.
      x: x_t.
      signal: a, broadcastable against x.
      sigma: broadcastable against x.
    """
    if prediction_type == "epsilon":
        return output, (x - sigma * output) / signal
    if prediction_type == "x0":
        return (x - signal * output) / sigma, output
    return sigma * x + signal * output, signal * x - sigma * output


def denoising_loss(
    denoise_fn: DenoiseFn, schedule: Schedule, x0: jax.Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Computes equation (3) averaged over pixels; returns each image's loss, float32 [b], and timestep, int32 [b].

    Args:
      denoise_fn: (x_t [b, h, w, c], t int32 [b]) -> the prediction named by schedule.prediction_type, shaped as x_t.
      schedule: the noise schedule and the prediction type.
      x0: clean images [b, h, w, c] in [-1, 1].
      keys: typed PRNG keys [b] for the timesteps and the noise, see diffuse.
    """
    xt, t, noise = diffuse(schedule, x0, keys)
    signal, sigma = coefficients(schedule, t, x0)
    target = {"epsilon": noise, "x0": x0, "v": signal * noise - sigma * x0}[schedule.prediction_type]
    error = jnp.square(denoise_fn(xt, t) - target)
    return error.mean(axis=tuple(range(1, error.ndim))), t
