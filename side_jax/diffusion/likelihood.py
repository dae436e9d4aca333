"""Log-likelihood of images under a DPM: by the probability-flow ODE, and the variational bound of its training.

Notation as in process.py. epsilon(x, t) is the network's prediction, d the number of values in an image. In place of
the timestep we use the half log-odds

    l_t = log( sigma_t / a_t ),     a = (1 + e^(2 l))^(-1/2),     sigma = (1 + e^(-2 l))^(-1/2)         (1)

(between two timesteps, t is interpolated linearly in l and given to the network as a real number). The probability-flow
ODE of the variance-preserving process (Song et al. 2021, "Score-Based Generative Modeling through SDEs", eq. 13) is

    dx / dl = sigma ( epsilon(x, t) - sigma x ),                                                   (2)

and log-densities follow (their eq. 39; Chen et al. 2018, "Neural Ordinary Differential Equations", theorem 1)

    log p(x_0) = log N(x_T; 0, I) + integral from l_0 to l_T of  sigma ( tr d epsilon / dx - sigma d ) dl.   (3)

The trace is either exact, by d products with the Jacobian, or Hutchinson's estimate (Grathwohl et al. 2019, "FFJORD"):
the mean of z^T (d epsilon / dx) z over probes z of +1 and -1 with equal probability (Rademacher). Each image keeps its
probes during the whole integration, which an adaptive solver needs. (2) ends at the least noise that the network knows,
l_0: (3) is the density of clean images plus noise of standard deviation e^(l_0), in units of the data. The law of the
ODE equals the DPM's law only as far as the score is exact, and samplers that draw noise have another law.

The variational bound is that of DDPM's Markov chain (Ho et al. 2020, eq. 5), in nats:

    -log p(x_0) <= L_T + sum over t = 1..T-1 of L_t + L_0,                                         (4)
    L_T = KL( q(x_T | x_0) || N(0, I) ),
    L_t = E KL( q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t) ),    L_0 = E -log p(x_0 | x_0').

x_0' is the image after its first noise step. The posterior q has the variance beta_tilde_t (their eq. 7), p the same or
the large variance beta_t, and their means differ by sqrt(alpha_bar_{t-1}) beta_t / (1 - alpha_bar_t) times
x_0 - x0_hat. The expectations use one draw for each t. p(x_0 | .) is either that Gaussian, a density, or its integral
over the bin of each of 256 levels (their eq. 13), a probability. Its variance is beta_tilde_1, since beta_tilde_0 is 0.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from side_jax.diffusion.process import DenoiseFn, bcast, epsilon_and_x0, q_sample
from side_jax.diffusion.sampler import initial_noise
from side_jax.diffusion.schedule import Schedule
from side_jax.diffusion.solvers import VARIANCES

DECODERS = ("density", "levels")
MAX_STEPS = 1024  # about forty times the steps that digits need; an image that needs more gets NaN


class Likelihood(NamedTuple):
    """log_prob: float32 [b], in nats, NaN if the solver failed. evaluations: int32 [b], calls of the network."""

    log_prob: jax.Array
    evaluations: jax.Array


def ode_log_likelihood(
    denoise_fn: DenoiseFn,
    schedule: Schedule,
    x0: jax.Array,
    keys: jax.Array,
    *,
    probes: int = 1,
    rtol: float = 1e-4,
    atol: float = 1e-4,
) -> Likelihood:
    """Computes equation (3) by an adaptive Runge-Kutta method of order 5 (Tsitouras 2011), with steps per image.

    An image's steps and probes do not depend on its batch.

    Args:
      denoise_fn: (x [b, ...], t float32 [b], also between timesteps) -> the prediction named by
        schedule.prediction_type, independently for each image.
      schedule: the noise schedule.
      x0: float32 [b, ...], in units of the data.
      keys: typed PRNG keys [b]; ignored if the trace is exact.
      probes: number of probes of Hutchinson's estimate; 0: the exact trace, which costs as much as d probes.
      rtol: relative tolerance of the solver, above 0.
      atol: absolute tolerance, above 0.

    Raises:
      ValueError: if probes is below 0 or a tolerance is not above 0.
    """
    import diffrax  # slow to import: an eighth of the time of importing the package

    if probes < 0:
        raise ValueError(f"probes must be at least 0 (0: the exact trace), got {probes}")
    if not (rtol > 0 and atol > 0):
        raise ValueError(f"rtol and atol must be above 0, got {rtol} and {atol}")
    shape, size = x0.shape[1:], x0[0].size
    levels = -0.5 * schedule.log_snr
    field = functools.partial(_field, denoise_fn, schedule.prediction_type, levels)
    batch = len(x0), probes or size
    example = (x0.shape, batch[:1], (*batch, *shape), batch[:1])
    # Values captured by denoise_fn, such as traced parameters or labels, pass through the loops as arguments.
    traced = jax.make_jaxpr(field)(*(jax.ShapeDtypeStruct(dims, jnp.float32) for dims in example))
    constants = tuple(traced.consts)
    slopes = _per_image(traced.jaxpr, len(example), len(x0))

    def solve(x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        if probes:
            vectors = jax.random.rademacher(key, (probes, *shape), jnp.float32)
        else:
            vectors = jnp.eye(size, dtype=jnp.float32).reshape(size, *shape)

        def slope(level: Any, state: tuple[jax.Array, jax.Array], args: tuple) -> tuple:
            vectors, constants = args
            return slopes(state[0], level, vectors, jnp.float32(max(probes, 1)), *constants)

        first, last = jnp.float32(levels[0]), jnp.float32(levels[-1])
        # Diffrax mixes float and weak types, which is correct but not allowed in strict mode.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(slope),
                diffrax.Tsit5(),
                first,
                last,
                None,
                (x * jnp.float32(schedule.alpha_bar[0] ** 0.5), jnp.float32(0)),
                args=(vectors, constants),
                stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
                adjoint=diffrax.ForwardMode(),  # no reverse-mode gradients needed, so plain loops
                max_steps=MAX_STEPS,
                throw=False,
            )
        end, change = (values[0] for values in solution.ys)
        normal = -0.5 * (jnp.square(end).sum() + jnp.float32(size * np.log(2 * np.pi)))
        log_prob = normal + change + jnp.float32(0.5 * size * np.log(schedule.alpha_bar[0]))
        steps = solution.stats["num_steps"]
        return jnp.where(solution.result == diffrax.RESULTS.successful, log_prob, jnp.nan), 6 * steps + 1

    return Likelihood(*jax.vmap(solve)(x0, keys))


def _field(
    denoise_fn: DenoiseFn,
    prediction_type: str,
    levels: np.ndarray,
    x: jax.Array,
    level: jax.Array,
    vectors: jax.Array,
    count: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Evaluates (2) and (3): x [b, ...], level [b], vectors [b, k, ...], count [b] -> slopes [b, ...] and [b]."""
    t = jnp.interp(level, jnp.asarray(levels, jnp.float32), jnp.arange(len(levels), dtype=jnp.float32))
    factors = [jnp.sqrt(jax.nn.sigmoid(sign * 2.0 * level)) for sign in (-1.0, 1.0)]
    signal, sigma = (bcast(values, x) for values in factors)

    def epsilon(x: jax.Array) -> jax.Array:
        return epsilon_and_x0(prediction_type, denoise_fn(x, t), x, signal, sigma)[0]

    # Forward mode: in a compiled loop on CPU, the gradients of reverse mode would take six times as long.
    predicted, push = jax.linearize(epsilon, x)

    def product(vector: jax.Array) -> jax.Array:
        return (push(vector) * vector).sum(axis=tuple(range(1, x.ndim)))

    if vectors.shape[1] == 1:
        trace = product(vectors[:, 0])
    else:
        trace = jax.lax.map(product, vectors.swapaxes(0, 1)).sum(axis=0) / count
    return sigma * (predicted - sigma * x), factors[1] * (trace - factors[1] * jnp.float32(x[0].size))


def _per_image(jaxpr: core.Jaxpr, count: int, size: int) -> Callable:
    """Makes a function of one image from a function of a batch; under vmap, it runs on the whole batch at once.

    So each image has its own solver state, and the network still gets batches instead of a vmapped image.

    Args:
      jaxpr: maps `count` arguments [size, ...] to two results [size, ...]; its constants are further arguments.
      count: number of arguments.
      size: batch size, also of the vmap.
    """

    def call(arguments: tuple, batched: list[bool]) -> tuple:
        batches, constants = arguments[:count], arguments[count:]
        full = [a if has else jnp.broadcast_to(a, (size, *a.shape)) for a, has in zip(batches, batched, strict=False)]
        return tuple(core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, constants))(*full))

    @jax.custom_batching.custom_vmap
    def single(*arguments: jax.Array) -> tuple:  # only its shapes are used
        return jax.tree.map(lambda a: a[0], call(arguments, [False] * count))

    @single.def_vmap
    def batch_rule(_: int, batched: list[bool], *arguments: jax.Array) -> tuple:
        return call(arguments, batched), (True, True)

    return single


def variational_bound(
    denoise_fn: DenoiseFn,
    schedule: Schedule,
    x0: jax.Array,
    keys: jax.Array,
    *,
    variance: str = "small",
    decoder: str = "levels",
    clip: bool = True,
) -> jax.Array:
    """Computes the terms of (4) for each image: float32 [T + 1, b], in nats, from L_0 to L_T; their sum is the bound.

    Args:
      denoise_fn: (x [b, ...], t int32 [b]) -> the prediction named by schedule.prediction_type.
      schedule: the noise schedule.
      x0: float32 [b, ...]; for the decoder "levels", 8-bit images in [-1, 1].
      keys: typed PRNG keys [b]; an image's noise depends on its own key and t alone.
      variance: of p: "small" or "large".
      decoder: "levels", a probability of 8-bit images, or "density", comparable with ode_log_likelihood.
      clip: clip x0_hat to [-1, 1].

    Raises:
      ValueError: if the variance or the decoder is unknown.
    """
    for name, value, known in (("variance", variance, VARIANCES), ("decoder", decoder, DECODERS)):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(known)}")
    betas, alpha_bar = schedule.betas, schedule.alpha_bar
    before = np.append(1.0, alpha_bar[:-1])
    tilde = betas * (1 - before) / (1 - alpha_bar)
    first = tilde[1] if len(tilde) > 1 else betas[0]
    wide = np.append(first, betas[1:] if variance == "large" else tilde[1:])
    ratio = tilde[1:] / wide[1:]
    variance_terms = np.append(0.0, 0.5 * (ratio - 1 - np.log(ratio)))  # KL from the variances, per value of an image
    scale = before * (betas / (1 - alpha_bar)) ** 2 / (2 * wide)
    axes, size = tuple(range(1, x0.ndim)), x0[0].size

    def terms(_: None, row: tuple[jax.Array, ...]) -> tuple[None, jax.Array]:
        t, variance_term, scale = row
        noise = initial_noise(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, t), x0.shape[1:])
        times = jnp.full(x0.shape[:1], t, jnp.int32)
        x = q_sample(schedule, x0, times, noise)
        signal, sigma = (jnp.asarray(c**0.5, jnp.float32)[t] for c in (alpha_bar, 1 - alpha_bar))
        x0_hat = epsilon_and_x0(schedule.prediction_type, denoise_fn(x, times), x, signal, sigma)[1]
        if clip:
            x0_hat = jnp.clip(x0_hat, -1.0, 1.0)
        kl = size * variance_term + scale * jnp.square(x0 - x0_hat).sum(axis=axes)
        decoded = _decoder(decoder, x0, x0_hat, first**0.5).sum(axis=axes)
        return None, jnp.where(t == 0, -decoded, kl)

    rows = (variance_terms.astype(np.float32), scale.astype(np.float32))
    _, kls = jax.lax.scan(terms, None, (jnp.arange(len(betas), dtype=jnp.int32), *map(jnp.asarray, rows)))
    end = alpha_bar[-1]
    prior = 0.5 * (end * jnp.square(x0).sum(axis=axes) + size * (-end - np.log1p(-end)))
    return jnp.concatenate([kls, prior[None]])


def _decoder(decoder: str, x0: jax.Array, mean: jax.Array, std: float) -> jax.Array:
    """Returns log p(x_0 | .) of each value, with the shape of x0."""
    deviation = (x0 - mean) / std
    if decoder == "density":
        return -0.5 * jnp.square(deviation) - np.log(std * np.sqrt(2 * np.pi))
    half = 1 / (255 * std)
    # The normal law is symmetric: flip the bin to the side where the difference of tails keeps its digits.
    flip = jnp.where(deviation > 0, -1.0, 1.0)
    upper, lower = flip * deviation + half, flip * deviation - half
    open_below = jnp.where(flip > 0, x0 < -1 + 1 / 255, x0 > 1 - 1 / 255)
    open_above = jnp.where(flip > 0, x0 > 1 - 1 / 255, x0 < -1 + 1 / 255)
    high = jnp.where(open_above, 0.0, jax.scipy.special.log_ndtr(upper))
    low = jnp.where(open_below, -jnp.inf, jax.scipy.special.log_ndtr(lower))
    return high + jnp.log1p(-jnp.exp(low - high))


def bits_per_dimension(nats: jax.typing.ArrayLike, size: int, *, density: bool) -> jax.typing.ArrayLike:
    """Converts -log p from nats to bits per value of an image.

    Args:
      nats: -log p, any shape.
      size: number of values in an image.
      density: whether p is a density of images in [-1, 1]; it is then taken as constant over each of the 256 levels,
        which are 2 / 255 wide. Otherwise p is a probability.
    """
    return nats / (size * np.log(2)) + (np.log2(255 / 2) if density else 0.0)
