"""Sampling as pure functions: from noise, step by step, to images.

One step goes from timestep t to the next, less noisy t' of the grid:

    epsilon_hat, x0_hat   from the network's prediction at (x_t, t), guided or not (process.py, equations 4 to 6)
    x_t'                  = the solver's mean of x_t' given these, guided or not, plus its noise (solvers.py)

Where x0_hat is clipped to [-1, 1], epsilon_hat is recomputed from it, so that x_t is still their sum; diffusers' DDIM
keeps the network's own epsilon_hat instead, unless asked to recompute it.

Randomness belongs to the sample: image i has its own key, from which its x_T and every z are derived, so neither the
batch it shares nor the number of devices changes it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from side_jax.diffusion.guidance import Guidance
from side_jax.diffusion.process import epsilon_and_x0
from side_jax.diffusion.solvers import Step
from side_jax.diffusion.steps import StepTable

DenoiseFn = Callable[[jax.Array, jax.Array], jax.Array]


class State(NamedTuple):
    """Where a trajectory is: x, float32 [b, ...], and x0, the x0_hat of the step before (zero before the first)."""

    x: jax.Array
    x0: jax.Array


def sample_keys(base: jax.Array, index: jax.Array) -> jax.Array:
    """One key for each global sample index: fold_in(base, i), for int indices [b]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(base, index)


def _normal(keys: jax.Array, stream: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A standard normal image for each key; `stream` tells apart the draws of one sample."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, stream)
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def initial_noise(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x_T ~ N(0, I), float32 [b, *shape], one image for each key [b]."""
    return _normal(keys, jnp.uint32(0), shape)


def start(keys: jax.Array, shape: tuple[int, ...]) -> State:
    """The state before the first step."""
    x = initial_noise(keys, shape)
    return State(x, jnp.zeros_like(x))


def sample_step(
    denoise_fn: DenoiseFn,
    step: Step,
    state: State,
    keys: jax.Array,
    guidance: Guidance | None = None,
) -> State:
    """One step, guided where a guidance is given.

    Args:
      denoise_fn: (x_t, t int32 [b]) -> what step.prediction_type says.
      step: its coefficients, scalars.
      state: before the step.
      keys: typed keys [b], one for each sample.
      guidance: what is added to the prediction or to the mean; None in a step that is not guided.

    Returns:
      The state after the step.
    """
    x, solver = state.x, step.solver
    t, next_t = (jnp.full(x.shape[:1], value) for value in (step.t, step.next_t))
    output = denoise_fn(x, t)
    if guidance is not None:
        output = guidance.of_prediction(step.prediction_type, output, x, t, step.signal, step.sigma)
    epsilon, x0 = epsilon_and_x0(step.prediction_type, output, x, step.signal, step.sigma)
    if solver.clip:
        x0 = jnp.clip(x0, -1.0, 1.0)
        if solver.recompute:
            epsilon, _ = epsilon_and_x0("x0", x0, x, step.signal, step.sigma)
    next_x = solver.mean(step, x, x0, state.x0, epsilon)
    if guidance is not None:
        next_x = guidance.of_mean(next_x, step.std, x, t, next_t)
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
    """The whole trajectory as compiled loops: images float32 [b, *shape], in about [-1, 1].

    Arguments as in sample_step, with all steps as a table; `shape` is one image's (height, width, channels). Steps
    outside of the guidance's interval do not run the classifier.
    """
    state = start(keys, shape)
    for first, last, guided in table.segments(guidance is not None):

        def body(state: State, step: Step, by: Guidance | None = guidance if guided else None) -> tuple[State, None]:
            return sample_step(denoise_fn, step, state, keys, by), None

        state, _ = jax.lax.scan(body, state, jax.tree.map(jnp.asarray, table[first:last]))
    return state.x
