"""DDPM, DDIM and DPM-Solver++ (2M) sampling as pure functions.

One step goes from timestep t to the next, less noisy t' of the grid (Song, Meng and Ermon 2021, eq. 12 and 16):

    x0_hat  = ( x_t - sqrt(1 - abar_t) epsilon_hat ) / sqrt(abar_t)                                (1)
    std     = eta sqrt( (1 - abar_t') / (1 - abar_t) ) sqrt( 1 - abar_t / abar_t' )                (2)
    x_t'    = sqrt(abar_t') x0_hat + sqrt(1 - abar_t' - std^2) epsilon_hat + std z,   z ~ N(0, I)  (3)

eta = 0 is DDIM, deterministic given x_T. eta = 1 on the full grid is the ancestral DDPM sampler with the small
variance beta_tilde (Ho et al. 2020, eq. 7). The large variance draws the noise of (3), but not its mean, with

    std     = eta sqrt( 1 - abar_t / abar_t' )                                                     (4)

(beta_t on the full grid, Ho et al. 2020, section 3.2), and none in the last step. A learned variance lies between the
two, by a second output u in [-1, 1] of the network for every pixel (Nichol and Dhariwal 2021, eq. 15):

    log std = (u + 1) / 2 log std_(4) + (1 - (u + 1) / 2) log std_(2).                             (5)

DPM-Solver++ (2M) (Lu et al. 2022, "DPM-Solver++", algorithm 2) is (3) with eta = 0, where x0_hat is first extrapolated
from that of the step before, and epsilon_hat recomputed by (1). With h the step in log(sqrt(abar) / sqrt(1 - abar)),

    D = x0_hat + c (x0_hat - x0_hat of the step before),   c = h / (2 h of the step before),       (6)

and c = 0 in the first step and in the last, which ends where the log-SNR is infinite. Where x0_hat is clipped to
[-1, 1], epsilon_hat is recomputed from it, so that (1) stays true; diffusers' DDIM keeps the network's own epsilon_hat
instead, unless asked to recompute it. A prediction of x0 or v is turned into (epsilon, x0) by process.py's equations
(4) to (6).

Randomness belongs to the sample: image i has its own key, from which its x_T and every z are derived, so neither the
batch it shares nor the number of devices changes it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from side_jax.diffusion.guidance import Guidance
from side_jax.diffusion.process import epsilon_and_x0
from side_jax.diffusion.steps import Step, StepTable

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
    """One step of equations (1) to (6), guided where a guidance is given.

    Args:
      denoise_fn: (x_t, t int32 [b]) -> what step.prediction_type says; with a learned variance twice the channels, of
        which the second half is u of equation (5).
      step: its coefficients, scalars.
      state: before the step.
      keys: typed keys [b], one for each sample.
      guidance: what is added to the prediction or to the mean; None in a step that is not guided.

    Returns:
      The state after the step.
    """
    x, kind = state.x, step.prediction_type
    t = jnp.full(x.shape[:1], step.t)
    output, std = denoise_fn(x, t), step.std
    if step.learned:
        output, u = jnp.split(output, 2, axis=-1)
        # The floor keeps log(0) of the last step, whose std is 0 either way, out of the interpolation.
        low, high = (jnp.log(jnp.maximum(end, jnp.float32(1e-20))) for end in (step.std, step.std_large))
        std = jnp.exp(low + 0.5 * (u + 1.0) * (high - low))
    if guidance is not None:
        output = guidance.of_prediction(kind, output, x, t, step.signal, step.sigma)
    epsilon, x0 = epsilon_and_x0(kind, output, x, step.signal, step.sigma)
    if step.clip:
        x0 = jnp.clip(x0, -1.0, 1.0)
    used = x0 + step.extrapolate * (x0 - state.x0) if step.multistep else x0
    if step.multistep or (step.clip and step.recompute):
        epsilon, _ = epsilon_and_x0("x0", used, x, step.signal, step.sigma)
    mean = step.next_signal * used + step.next_sigma * epsilon
    if guidance is not None:
        mean = guidance.of_mean(mean, std, x, t, jnp.full(x.shape[:1], step.next_t))
    if step.stochastic:
        stream = jnp.asarray(step.number + 1, jnp.uint32)
        mean = mean + std * _normal(keys, stream, x.shape[1:])
    return State(mean, x0)


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
