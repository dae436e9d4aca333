"""Classifier guidance: uses the gradient of a classifier in a step of the sampler.

`score` form. The gradient is added to the DPM's score (Dhariwal and Nichol 2021, algorithm 2; SIDE's equation 5a):

    s_guided     = s_theta(x_t, t) + lambda grad_{x_t} log p(c | x_t, t)                           (1)
    epsilon_hat  = epsilon_theta(x_t, t) - lambda sqrt(1 - alpha_bar_t) grad_{x_t} log p(c | x_t, t)   (2)

since s = -epsilon / sqrt(1 - alpha_bar). Let a = sqrt(alpha_bar_t) and sigma = sqrt(1 - alpha_bar_t). By equations (4)
to (6) of process.py, the same change of epsilon is, for a network that predicts x0 or v,

    x0_hat = x0_theta + lambda (sigma^2 / a) grad log p,      v_hat = v_theta - lambda (sigma / a) grad log p.   (3)

`mean` forms. The gradient, times the variance std^2 of the step's noise, is added to the mean mu of x_t' given x_t
(Dhariwal and Nichol 2021, algorithm 1). These forms need a sampler that draws noise, eta > 0. The literature has two:

    mean              mu + lambda std^2 grad log p(c | x, t) at x = x_t                            (4)
    mean_at_mean      mu + lambda std^2 grad log p(c | x, t') at x = mu, which has the noise of t'  (5)

The paper derives (5) by a Taylor expansion around mu. The authors' code computes (4), which they call a slight bug that
made no difference (openai/guided-diffusion#51); most later work does the same. Unlike in that code, the last step here
draws no noise, so these forms do not guide it.

A classifier trained on clean images only can be evaluated at the clean image that the DPM predicts, x0_hat(x_t), with
the gradient taken through the DPM (Bansal et al. 2023, forward universal guidance):

    grad_{x_t} log p(c | x0_hat(x_t)).                                                             (6)

A model trained with labels, and without them on a share of its images, contains an implicit classifier. By Bayes' rule
its gradient is the difference of two scores (Ho and Salimans 2022, section 3.2), so that (2) becomes classifier-free
guidance, with lambda = 1 + w of their equation 6: lambda 0 is the model without a label, 1 the conditional model.

    grad_{x_t} log p(c | x_t) = -( epsilon_theta(x_t, t, c) - epsilon_theta(x_t, t) ) / sqrt(1 - alpha_bar_t)    (7)
    epsilon_hat               = epsilon_theta(x_t, t) + lambda ( epsilon_theta(x_t, t, c) - epsilon_theta(x_t, t) )

A weaker model of the same images can take the place of the model without a label (Karras et al. 2024, "Guiding a
Diffusion Model with a Bad Version of Itself"; Wu et al. 2025, FineXtract, for a model before its fine-tuning), so that
samples lie where the target's density exceeds that of the weaker one:

    grad_{x_t} log ( p / p_weak )(x_t) = -( epsilon_theta(x_t, t) - epsilon_weak(x_t, t) ) / sqrt(1 - alpha_bar_t)  (8)
    epsilon_hat                        = epsilon_weak + w ( epsilon_theta - epsilon_weak ),   w = 1 + lambda

A guidance scale lambda other than 1 is a power prior p(c | x)^lambda, which corrects a miscalibrated classifier. With
normalised gradients, lambda is instead the root mean square, over an image's pixels, of what is added to the score (or
to the mean, in units of the variance), regardless of the classifier's confidence.

The gradient is taken of log-probabilities summed over the batch. This is correct only if the classifier treats each
image independently (GroupNorm, or frozen batch statistics); tests check this.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from side_jax.diffusion.process import DenoiseFn, coefficients, epsilon_and_x0
from side_jax.diffusion.schedule import Schedule

FORMS = ("score", "mean", "mean_at_mean")

LogProbFn = Callable[[jax.Array, jax.Array], jax.Array]
GradientFn = Callable[[jax.Array, jax.Array], jax.Array]


def classifier_gradient(log_prob_fn: LogProbFn, labels: jax.Array) -> GradientFn:
    """Returns the guidance direction grad_{x_t} log p(c | x_t, t).

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
    log_prob_fn: LogProbFn, denoise_fn: DenoiseFn, schedule: Schedule, *, clip: bool = True
) -> LogProbFn:
    """Returns the log-probabilities of equation (6) as a function of (x_t, t).

    x0_hat is clipped to the data's range [-1, 1], which the classifier was trained on. The gradient ignores the
    clipping; otherwise pixels at the edge of the range could never change.

    Args:
      log_prob_fn: a classifier of clean images; it is called with t = 0.
      denoise_fn: the DPM, (x_t, t) -> the prediction named by schedule.prediction_type.
      schedule: of the DPM.
      clip: whether x0_hat is clipped.
    """

    def log_prob(x: jax.Array, t: jax.Array) -> jax.Array:
        signal, sigma = coefficients(schedule, t, x)
        _, x0 = epsilon_and_x0(schedule.prediction_type, denoise_fn(x, t), x, signal, sigma)
        if clip:
            x0 = x0 + jax.lax.stop_gradient(jnp.clip(x0, -1.0, 1.0) - x0)
        return log_prob_fn(x0, jnp.zeros_like(t))

    return log_prob


def implicit_gradient(
    denoise_fn: Callable[[jax.Array, jax.Array, jax.Array], jax.Array], labels: jax.Array, schedule: Schedule
) -> GradientFn:
    """Returns equation (7), the guidance direction of a conditional model's own labels.

    Args:
      denoise_fn: the DPM, (x_t [b, h, w, c], t int32 [b], labels int32 [b]) -> the prediction named by
        schedule.prediction_type; the label -1 means none.
      labels: int32 [b], each image's target label c.
      schedule: of the DPM.

    Returns:
      A function of (x_t, t) whose value has the shape of x_t. The sampler also calls the DPM without a label; compiled
      together, both unlabelled calls become one, so a guided step has two evaluations.
    """
    return _ratio_gradient(
        lambda x, t: denoise_fn(x, t, labels), lambda x, t: denoise_fn(x, t, jnp.full_like(labels, -1)), schedule
    )


def extrapolation_gradient(denoise_fn: DenoiseFn, weak_fn: DenoiseFn, schedule: Schedule) -> GradientFn:
    """Returns equation (8), the direction from a weaker model to the target.

    Args:
      denoise_fn: the target, (x_t [b, h, w, c], t int32 [b]) -> the prediction named by schedule.prediction_type.
      weak_fn: the weaker model, likewise.
      schedule: of both.

    Returns:
      A function of (x_t, t) whose value has the shape of x_t. The sampler also calls the target; compiled together,
      both calls become one, so a guided step has two evaluations.
    """
    return _ratio_gradient(denoise_fn, weak_fn, schedule)


def _ratio_gradient(of: DenoiseFn, over: DenoiseFn, schedule: Schedule) -> GradientFn:
    """The gradient of the log-ratio of two models' densities."""

    def gradient(x: jax.Array, t: jax.Array) -> jax.Array:
        signal, sigma = coefficients(schedule, t, x)
        # Epsilon is affine in the output, so a difference of outputs is converted at x_t = 0, which loses no digits.
        difference = of(x, t) - over(x, t)
        epsilon, _ = epsilon_and_x0(schedule.prediction_type, difference, jnp.zeros_like(x), signal, sigma)
        return -epsilon / sigma

    return gradient


def normalize(gradient_fn: GradientFn) -> GradientFn:
    """Scales each image's gradient to a root mean square of 1; a zero gradient stays zero."""

    def fn(x: jax.Array, t: jax.Array) -> jax.Array:
        gradient = gradient_fn(x, t)
        largest = jnp.abs(gradient).max(axis=tuple(range(1, x.ndim)), keepdims=True)
        # Scaled first: the squares of a small gradient would underflow.
        unit = gradient / jnp.where(largest > 0, largest, 1.0)
        mean_square = jnp.square(unit).mean(axis=tuple(range(1, x.ndim)), keepdims=True)
        return unit * jax.lax.rsqrt(jnp.where(largest > 0, mean_square, 1.0))

    return fn


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Guidance:
    """The guidance of a sampler's step. A scale of 0 changes nothing but rounding.

    Attributes:
      gradient_fn: (x, t int32 [b]) -> the direction, with the shape of x; see classifier_gradient, implicit_gradient,
        extrapolation_gradient and normalize.
      scale: the guidance scale lambda >= 0, a scalar; may be traced.
      form: one of FORMS.
    """

    gradient_fn: GradientFn
    scale: jax.Array
    form: str = "score"

    def guide_prediction(
        self,
        prediction_type: str,
        output: jax.Array,
        x: jax.Array,
        t: jax.Array,
        signal: jax.Array,
        sigma: jax.Array,
    ) -> jax.Array:
        """Applies equations (2) and (3) in the score form; otherwise returns the output unchanged.

        Args:
          prediction_type: one of schedule.PREDICTIONS.
          output: the DPM's prediction [b, h, w, c].
          x: x_t, same shape.
          t: int32 [b].
          signal: a, a scalar.
          sigma: a scalar.
        """
        if self.form != "score":
            return output
        factor = {"epsilon": sigma, "x0": -sigma * sigma / signal, "v": sigma / signal}[prediction_type]
        return output - (self.scale * factor) * self.gradient_fn(x, t)

    def guide_mean(self, mean: jax.Array, std: jax.Array, x: jax.Array, t: jax.Array, next_t: jax.Array) -> jax.Array:
        """Applies equations (4) and (5) in the mean forms; otherwise returns the mean unchanged.

        Args:
          mean: of x_t' given x_t, [b, h, w, c].
          std: of its noise, a scalar or the shape of the mean.
          x: x_t, same shape.
          t: int32 [b], the timestep of x_t.
          next_t: int32 [b], the timestep of x_t'.
        """
        if self.form == "score":
            return mean
        point = (mean, next_t) if self.form == "mean_at_mean" else (x, t)
        return mean + self.scale * std * std * self.gradient_fn(*point)
