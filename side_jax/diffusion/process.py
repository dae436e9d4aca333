"""The forward (noising) process, what a network predicts, and the training loss.

With the notation of schedule.py, a = sqrt(alpha_bar_t) and sigma = sqrt(1 - alpha_bar_t):

    q(x_t | x_0) = N( a x_0, sigma^2 I )                                                           (1)
    v            = a epsilon - sigma x_0                                                           (2)
    L            = E_{t, x_0, epsilon} || target - f_theta(x_t, t) ||^2                            (3)

((1): Ho et al. 2020, eq. 4. (2): Salimans and Ho 2022, section 4.) The target of (3) is epsilon (Ho et al., eq. 14),
x_0 or v; from any of the three predictions follow epsilon and x_0:

    epsilon-prediction   x_0 = (x_t - sigma epsilon) / a                                           (4)
    x0-prediction        epsilon = (x_t - a x_0) / sigma                                           (5)
    v-prediction         x_0 = a x_t - sigma v,   epsilon = sigma x_t + a v                        (6)

Images are float32 in [-1, 1], laid out [batch, height, width, channels].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.diffusion.schedule import Schedule


def bcast(values: jax.Array, like: jax.Array) -> jax.Array:
    """Reshapes per-sample values [b] so that they broadcast against `like` [b, ...]."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def coefficients(schedule: Schedule, t: jax.Array, like: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(a, sigma) of each sample's timestep, broadcastable against `like`."""
    alpha_bar = schedule.alpha_bar
    signal = jnp.asarray(alpha_bar**0.5, like.dtype)[t]
    sigma = jnp.asarray((1.0 - alpha_bar) ** 0.5, like.dtype)[t]
    return bcast(signal, like), bcast(sigma, like)


def q_sample(schedule: Schedule, x0: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
    """Draws x_t given x_0, equation (1).

    Args:
      schedule: the noise schedule.
      x0: clean images [b, ...], in [-1, 1].
      t: int32 [b], timesteps in 0..T-1.
      noise: standard normal, the shape of x0.
    """
    signal, sigma = coefficients(schedule, t, x0)
    return signal * x0 + sigma * noise


def importance(schedule: Schedule) -> np.ndarray:
    """A proposal for the timestep: half uniform, half in proportion to sigma; float64 [T], its sum is 1.

    sigma is the factor by which a classifier's gradient enters a guided step (guidance.py, equation 2). An expectation
    over uniform t is kept by weights 1 / (T p_t); the uniform half keeps them below 2 (a defensive mixture, Hesterberg
    1995).
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
      keys: a typed PRNG key for each image, [b], so that an image's draw depends neither on the batch it shares nor on
        how the batch is cut over devices or accumulation steps.
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
    """(epsilon, x_0) that a network's output stands for, equations (4) to (6).

    Each is taken from the output directly: one by way of the other would lose digits where a is small.

    Args:
      prediction_type: one of schedule.PREDICTIONS.
      output: of the network, the shape of x.
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
    denoise_fn: Callable[[jax.Array, jax.Array], jax.Array], schedule: Schedule, x0: jax.Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Equation (3), averaged over pixels: (a loss for each image, float32 [b]; its timestep, int32 [b]).

    Args:
      denoise_fn: (x_t [b, h, w, c], t int32 [b]) -> what schedule.prediction_type says, same shape as x_t.
      schedule: the noise schedule, and what the network predicts.
      x0: clean images [b, h, w, c] in [-1, 1].
      keys: typed PRNG keys [b] for the timesteps and the noise, see diffuse.
    """
    xt, t, noise = diffuse(schedule, x0, keys)
    signal, sigma = coefficients(schedule, t, x0)
    target = {"epsilon": noise, "x0": x0, "v": signal * noise - sigma * x0}[schedule.prediction_type]
    error = jnp.square(denoise_fn(xt, t) - target)
    return error.mean(axis=tuple(range(1, error.ndim))), t
