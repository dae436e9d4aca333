"""Classifier guidance in its score form.

The surrogate's gradient is added to the DPM's score (Dhariwal and Nichol 2021, algorithm 2; SIDE's equation 5a):

    s_guided     = s_theta(x_t, t) + lambda grad_{x_t} log p(c | x_t, t)                           (1)
    epsilon_hat  = epsilon_theta(x_t, t) - lambda sqrt(1 - alpha_bar_t) grad_{x_t} log p(c | x_t, t)   (2)

since s = -epsilon / sqrt(1 - alpha_bar). With a = sqrt(alpha_bar_t), sigma = sqrt(1 - alpha_bar_t) and process.py's
equations (4) to (6), the same change of epsilon is, for a network that predicts x0 or v,

    x0_hat = x0_theta + lambda (sigma^2 / a) grad log p,      v_hat = v_theta - lambda (sigma / a) grad log p.   (3)

The gradient is taken at x_t itself, not at a predicted mean. A guidance scale
lambda other than 1 is a power prior p(c | x)^lambda, which makes up for a miscalibrated classifier.

Summing log-probabilities over the batch before taking the gradient is right only because the classifier treats each
image on its own (GroupNorm, no batch statistics); tests hold the classifiers to that.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

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
