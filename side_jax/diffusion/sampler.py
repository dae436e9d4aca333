"""Samples images from noise, step by step, with pure functions.

One step goes from timestep t to the next, less noisy t' of the grid:

    epsilon_hat, x0_hat   from the network's prediction at (x_t, t), guided or not (process.py, equations 4 to 6)
    x_t'                  = the solver's mean of x_t' given these, guided or not, plus its noise (solvers.py)

If x0_hat is clipped to [-1, 1], epsilon_hat is recomputed from it, so that x_t is still their weighted sum. diffusers'
DDIM keeps the network's epsilon_hat unless asked to recompute it.

Randomness belongs to the sample: x_T and every z of image i derive from its own key, so they do not depend on its batch
or on the number of devices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from side_jax.diffusion.guidance import Guidance
from side_jax.diffusion.process import DenoiseFn, epsilon_and_x0
from side_jax.diffusion.solvers import Step
from side_jax.diffusion.steps import StepTable


class State(NamedTuple):
    """State of a trajectory: x, float32 [b, ...], and x0, the x0_hat of the previous step (zero before the first)."""

    x: jax.Array
    x0: jax.Array


def sample_keys(base: jax.Array, index: jax.Array) -> jax.Array:
    """Returns one key per global sample index: fold_in(base, i), for int indices [b]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(base, index)


def _normal(keys: jax.Array, stream: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws a standard normal image for each key; `stream` separates the draws of one sample."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, stream)
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def initial_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws x_T ~ N(0, I), float32 [b, *shape], one image for each key [b]."""
    return _normal(keys, jnp.uint32(0), shape)


def start(keys: jax.Array, shape: tuple[int, ...]) -> State:
    """Returns the state before the first step."""
    x = initial_noise(keys, shape)
    return State(x, jnp.zeros_like(x))


def sample_step(
    denoise_fn: DenoiseFn,
    step: Step,
    state: State,
    keys: jax.Array,
    guidance: Guidance | None = None,
) -> State:
    """Takes one step, guided if a guidance is given.

    Args:
      denoise_fn: (x_t, t int32 [b]) -> the prediction named by step.prediction_type.
      step: its coefficients, scalars.
      state: before the step.
      keys: typed keys [b], one for each sample.
      guidance: changes the prediction or the mean; None for an unguided step.

    Returns:
      The state after the step.
    """
    x, solver = state.x, step.solver
    t, next_t = (jnp.full(x.shape[:1], value) for value in (step.t, step.next_t))
    output = denoise_fn(x, t)
    if guidance is not None:
        output = guidance.guide_prediction(step.prediction_type, output, x, t, step.signal, step.sigma)
    epsilon, x0 = epsilon_and_x0(step.prediction_type, output, x, step.signal, step.sigma)
    if solver.clip:
        x0 = jnp.clip(x0, -1.0, 1.0)
        if solver.recompute:
            epsilon, _ = epsilon_and_x0("x0", x0, x, step.signal, step.sigma)
    next_x = solver.mean(step, x, x0, state.x0, epsilon)
    if guidance is not None:
        next_x = guidance.guide_mean(next_x, step.std, x, t, next_t)
    if solver.stochastic:
        next_x = next_x + step.std * _normal(keys, jnp.asarray(step.number + 1, jnp.uint32), x.shape[1:])
    return State(next_x, x0)


def sample(
    denoise_fn: DenoiseFn,
    table: StepTable,
    keys: jax.Array,
    shape: tuple[int, ...],
    guidance: Guidance | None = None,
) -> jax.Array:
    """Runs the whole trajectory as compiled loops; returns images float32 [b, *shape], in about [-1, 1].

    Arguments as in sample_step, with a table of all steps; `shape` is one image's (height, width, channels). Steps
    outside the guidance interval do not run the classifier.
    """
    return sample_from(denoise_fn, table, initial_noise(keys, shape), keys, guidance)


def sample_from(
    denoise_fn: DenoiseFn,
    table: StepTable,
    noise: jax.Array,
    keys: jax.Array,
    guidance: Guidance | None = None,
) -> jax.Array:
    """As sample, from a given x_T, float32 [b, ...]; a solver without noise does not use the keys."""
    state = State(noise, jnp.zeros_like(noise))
    for first, last, guided in table.segments(guidance is not None):

        def body(
            state: State, step: Step, step_guidance: Guidance | None = guidance if guided else None
        ) -> tuple[State, None]:
            return sample_step(denoise_fn, step, state, keys, step_guidance), None

        state, _ = jax.lax.scan(body, state, jax.tree.map(jnp.asarray, table[first:last]))
    return state.x


def sample_again(denoise_fn: DenoiseFn, table: StepTable, x: jax.Array, keys: jax.Array) -> jax.Array:
    """Adds noise to clean images, and samples from there: image to image (Meng et al. 2022, "SDEdit").

    Args:
      denoise_fn: as in sample_step.
      table: the last steps of a sampler; the noise is that of the first of them.
      x: float32 [b, ...].
      keys: typed keys [b], other ones each time.

    Returns:
      float32 [b, ...].
    """
    first = table[0]
    noised = first.signal * x + first.sigma * initial_noise(keys, x.shape[1:])
    return sample_from(denoise_fn, table, noised, keys)
