"""Classifier guidance in its score form.

The surrogate's gradient is added to the DPM's score (Dhariwal and Nichol 2021, algorithm 2; SIDE's equation 5a):

    s_guided     = s_theta(x_t, t) + lambda grad_{x_t} log p(c | x_t, t)                           (1)
    epsilon_hat  = epsilon_theta(x_t, t) - lambda sqrt(1 - alpha_bar_t) grad_{x_t} log p(c | x_t, t)   (2)

since s = -epsilon / sqrt(1 - alpha_bar). With a = sqrt(alpha_bar_t), sigma = sqrt(1 - alpha_bar_t) and process.py's
equations (4) to (6), the same change of epsilon is, for a network that predicts x0 or v,

    x0_hat = x0_theta + lambda (sigma^2 / a) grad log p,      v_hat = v_theta - lambda (sigma / a) grad log p.   (3)

The gradient is taken at x_t itself, not at a predicted mean. A classifier that has seen clean images alone can be asked
about the clean image that the DPM predicts, x0_hat(x_t), with the gradient through the DPM (Bansal et al. 2023, forward
universal guidance):

    grad_{x_t} log p(c | x0_hat(x_t)).                                                             (4)

A guidance scale lambda other than 1 is a power prior p(c | x)^lambda, which makes up for a miscalibrated classifier.

Summing log-probabilities over the batch before taking the gradient is right only because the classifier treats each
image on its own (GroupNorm, or frozen batch statistics); tests hold the classifiers to that.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from side_jax.diffusion.process import coefficients, epsilon_and_x0
from side_jax.diffusion.schedule import Schedule

LogProbFn = Callable[[jax.Array, jax.Array], jax.Array]


def classifier_gradient(log_prob_fn: LogProbFn, labels: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The guidance direction grad_{x_t} log p(c | x_t, t).

    Args:
      log_prob_fn: (x_t [b, h, w, c], t int32 [b]) -> log-probabilities [b, classes]. A time-independent classifier
        ignores t.
      labels: int32 [b], each image's target class c.

    Returns:
      A function of (x_t, t) whose value has the shape of x_t.
    """

    def total(x: jax.Array, t: jax.Array) -> jax.Array:
        log_probs = log_prob_fn(x, t)
        return jnp.take_along_axis(log_probs, labels[:, None], axis=1).sum()

    return jax.grad(total)


def at_predicted_x0(
    log_prob_fn: LogProbFn, denoise_fn: Callable[[jax.Array, jax.Array], jax.Array], schedule: Schedule
) -> LogProbFn:
    """Equation (4)'s log-probabilities as a function of (x_t, t).

    x0_hat is clipped to the data's range [-1, 1], as what the classifier knows; the gradient passes the clipping as if
    it were not there, or pixels at the edge of the range could never be pushed.

    Args:
      log_prob_fn: of a classifier of clean images; it is given t = 0.
      denoise_fn: the DPM, (x_t, t) -> what schedule.prediction_type says.
      schedule: of the DPM.
    """

    def log_prob(x: jax.Array, t: jax.Array) -> jax.Array:
        signal, sigma = coefficients(schedule, t, x)
        _, x0 = epsilon_and_x0(schedule.prediction_type, denoise_fn(x, t), x, signal, sigma)
        x0 = x0 + jax.lax.stop_gradient(jnp.clip(x0, -1.0, 1.0) - x0)
        return log_prob_fn(x0, jnp.zeros_like(t))

    return log_prob


def guide(
    prediction_type: str,
    output: jax.Array,
    gradient: jax.Array,
    scale: jax.Array,
    signal: jax.Array,
    sigma: jax.Array,
) -> jax.Array:
    """Equations (2) and (3); scale = 0 returns the output unchanged, bit for bit.

    Args:
      prediction_type: one of schedule.PREDICTIONS.
      output: the DPM's prediction [b, h, w, c].
      gradient: of the log-probability, same shape.
      scale: the guidance scale lambda, a scalar >= 0.
      signal: a, a scalar.
      sigma: a scalar.
    """
    factor = {"epsilon": sigma, "x0": -sigma * sigma / signal, "v": sigma / signal}[prediction_type]
    return output - (scale * factor) * gradient
