"""Mode seeking: iterates a denoiser at low noise, which climbs the model's own smoothed density to one of its modes.

Let p be the model's density of clean images, and p_sigma the density of x + sigma z, x ~ p, z ~ N(0, I). The exact
denoiser is the posterior mean, by Tweedie's formula (Miyasawa 1961; Efron 2011)

    D(y; sigma) = E[ x | x + sigma z = y ] = y + sigma^2 grad log p_sigma(y)                       (1)

A round of mean shift replaces the image by its prediction. No noise is added:

    x' = D(x; sigma)                                                                               (2)

If p is the empirical distribution of points x_i, (2) is the mean shift of Fukunaga and Hostetler 1975 (Comaniciu and
Meer 2002, equation 17) with a Gaussian kernel,

    x' = sum_i w_i x_i / sum_i w_i,   w_i = exp( -|x - x_i|^2 / (2 sigma^2) )                      (3)

p_sigma never falls from x to x' (Comaniciu and Meer 2002, theorem 1, for (3), and so for every p as a limit of
points), and the fixed points are the stationary points of p_sigma. A network that has memorised approximates (3) with
its training images as the points: for sigma well below their distances, each is a mode. Autoencoders store their
training images as attractors in the same way (Radhakrishnan, Belkin and Uhler 2020); Pham et al. 2025 describe the
basins of diffusion models. For N(mu, s^2 I), the distance to mu shrinks in each round by the factor

    s^2 / (s^2 + sigma^2)                                                                          (4)

With noise, the rounds are a Markov chain of posterior means (Bengio et al. 2013, "Generalized Denoising
Auto-Encoders", without their last draw),

    x' = D(x + sigma z; sigma)                                                                     (5)

Two accelerations keep the fixed points. Over-relaxation by a factor w in (0, 2) (Peters and Walker 1978, for EM)

    x' = x + w (D(x; sigma) - x)                                                                   (6)

and Anderson's of depth 1 (Walker and Ni 2011, section 2), for each image, with the residual r_k = D(x_k; sigma) - x_k:

    x_{k+1} = D(x_k) - b (D(x_k) - D(x_{k-1})),   b = r_k.(r_k - r_{k-1}) / |r_k - r_{k-1}|^2      (7)

The Jacobian of D is the posterior covariance, by the second-order form of (1) (Efron 2011): where a network has
memorised an image, little else can have become x, and its mean over the d values of an image is nearly 0,

    (1 / d) tr Cov[ x | x + sigma z = y ] = sigma^2 (1 / d) tr dD/dy                               (8)

Annealed noise falls geometrically from the first round to the last. A network for x_t = a x + sqrt(1 - a^2) epsilon
(process.py) is a denoiser of its noise levels,

    D(y; sigma_t) = x0_hat(a_t y, t),   sigma_t = sqrt(1 - a_t^2) / a_t                            (9)

and between two timesteps, t is interpolated linearly in log sigma and given to the network as a real number, as in
likelihood.py.

Which sigma is low depends on the images. Settings give it in units of their spread about their mean image m,

    s = sqrt( E |x - m|^2 / d ),   m = E x                                                        (10)
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.diffusion.process import DenoiseFn, bcast, epsilon_and_x0
from side_jax.diffusion.sampler import initial_noise
from side_jax.diffusion.schedule import Schedule

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]  # (y [b, ...], sigma float32 [b]) -> clean images [b, ...]
DEEPEST = 4.0  # largest |b| of equation (7), which two nearly equal residuals would make arbitrarily large


class Seekers(NamedTuple):
    """Images on their way to a mode.

    Attributes:
      x: float32 [b, ...].
      moved: float32 [b], root mean square of the last change of each image; infinite before the first round.
      rounds: int32 [b], the rounds that each image took; one that has stopped takes no more.
      target: float32 [b, ...], D(x_{k-1}) of equation (7); zero before the first round.
      residual: float32 [b, ...], r_{k-1} likewise.
    """

    x: jax.Array
    moved: jax.Array
    rounds: jax.Array
    target: jax.Array
    residual: jax.Array


def noise_range(schedule: Schedule) -> tuple[float, float]:
    """(the smallest sigma_t, the largest) of equation (9)."""
    levels = np.exp(-0.5 * schedule.log_snr)
    return float(levels[0]), float(levels[-1])


def spread(images: np.ndarray) -> float:
    """The spread s of equation (10), of images float32 [n, ...] in [-1, 1]; between 0 and 1."""
    return float(np.sqrt(np.var(np.asarray(images, np.float64), axis=0).mean()))


def from_network(denoise_fn: DenoiseFn, schedule: Schedule, *, clip: bool = True) -> Denoiser:
    """Returns the denoiser of equation (9).

    Args:
      denoise_fn: (x_t [b, ...], t float32 [b]) -> the prediction named by schedule.prediction_type, also between
        timesteps.
      schedule: of the network.
      clip: whether to clip clean images to the data's range [-1, 1].
    """
    levels = jnp.asarray(-0.5 * schedule.log_snr, jnp.float32)

    def denoiser(y: jax.Array, sigma: jax.Array) -> jax.Array:
        level = jnp.log(sigma)
        t = jnp.interp(level, levels, jnp.arange(len(levels), dtype=jnp.float32))
        signal, noise = (bcast(jnp.sqrt(jax.nn.sigmoid(sign * 2.0 * level)), y) for sign in (-1.0, 1.0))
        x = signal * y
        _, x0 = epsilon_and_x0(schedule.prediction_type, denoise_fn(x, t), x, signal, noise)
        return jnp.clip(x0, -1.0, 1.0) if clip else x0

    return denoiser


def noise_levels(first: float, rounds: int, last: float | None = None) -> np.ndarray:
    """The noise of each round, float32 [rounds]: constant, or falling geometrically from `first` to `last`.

    Args:
      first: sigma of the first round, above 0.
      rounds: number of rounds, at least 1.
      last: sigma of the last round, above 0 and at most `first`; None: the same as `first`.

    Raises:
      ValueError: if an argument is out of its range.
    """
    last = first if last is None else last
    if not (0 < last <= first and rounds >= 1):
        raise ValueError(f"noise must fall within (0, first] in 1 or more rounds, got {first}, {last} and {rounds}")
    return np.geomspace(first, last, rounds).astype(np.float32)


def start(x: jax.Array) -> Seekers:
    """The state before the first round, from images float32 [b, ...]."""
    b = x.shape[:1]
    zero = jnp.zeros_like(x)
    return Seekers(x, jnp.full(b, jnp.inf, jnp.float32), jnp.zeros(b, jnp.int32), zero, zero)


def seek_round(
    denoiser: Denoiser,
    sigma: jax.Array,
    state: Seekers,
    keys: jax.Array | None = None,
    *,
    relaxation: float = 1.0,
    anderson: bool = False,
    tolerance: float = 0.0,
) -> Seekers:
    """Takes one round, equation (2), (5), (6) or (7); each image independently of its batch.

    Args:
      denoiser: see Denoiser.
      sigma: the noise, float32 scalar, above 0.
      state: before the round.
      keys: typed PRNG keys [b], one for each image, for equation (5); None: no noise is added. An image's noise depends
        on its key and the number of its round alone.
      relaxation: w of equation (6).
      anderson: whether to use equation (7), with w = 1.
      tolerance: an image whose last change was below this stays as it is.
    """
    x, axes = state.x, tuple(range(1, state.x.ndim))
    y = x
    if keys is not None:
        draws = jax.vmap(jax.random.fold_in)(keys, state.rounds.astype(jnp.uint32))
        y = x + sigma * initial_noise(draws, x.shape[1:])
    target = denoiser(y, jnp.full(x.shape[:1], sigma))
    residual = target - x
    new = x + relaxation * residual
    if anderson:
        change = residual - state.residual
        size = jnp.square(change).sum(axis=axes)
        b = jnp.where(size > 0, (residual * change).sum(axis=axes) / jnp.where(size > 0, size, 1.0), 0.0)
        b = jnp.where(state.rounds > 0, jnp.clip(b, -DEEPEST, DEEPEST), 0.0)
        new = target - bcast(b, x) * (target - state.target)
    moved = jnp.sqrt(jnp.square(new - x).mean(axis=axes))
    goes_on = state.moved >= tolerance
    keep = bcast(goes_on, x)
    return Seekers(
        x=jnp.where(keep, new, x),
        moved=jnp.where(goes_on, moved, state.moved),
        rounds=state.rounds + goes_on.astype(jnp.int32),
        target=jnp.where(keep, target, state.target),
        residual=jnp.where(keep, residual, state.residual),
    )


def seek(
    denoiser: Denoiser,
    sigmas: np.ndarray,
    x: jax.Array,
    keys: jax.Array | None = None,
    *,
    relaxation: float = 1.0,
    anderson: bool = False,
    tolerance: float = 0.0,
) -> Seekers:
    """Takes a round at each noise of `sigmas`, float32 [rounds], from images x, float32 [b, ...]; see seek_round."""
    take = functools.partial(
        seek_round, denoiser, keys=keys, relaxation=relaxation, anderson=anderson, tolerance=tolerance
    )

    def body(state: Seekers, sigma: jax.Array) -> tuple[Seekers, None]:
        return take(sigma, state), None

    state, _ = jax.lax.scan(body, start(x), jnp.asarray(sigmas, jnp.float32))
    return state


def movement(denoiser: Denoiser, sigma: jax.Array, x: jax.Array) -> jax.Array:
    """Root mean square of what one more round would change, float32 [b]; 0 at a mode.

    Args:
      denoiser: see Denoiser.
      sigma: float32 scalar, above 0.
      x: float32 [b, ...].
    """
    change = denoiser(x, jnp.full(x.shape[:1], sigma)) - x
    return jnp.sqrt(jnp.square(change).mean(axis=tuple(range(1, x.ndim))))


def posterior_variance(
    denoiser: Denoiser, sigma: jax.Array, x: jax.Array, keys: jax.Array, probes: int = 8
) -> jax.Array:
    """Estimates (8) by Hutchinson's trace with Rademacher probes, float32 [b].

    Args:
      denoiser: see Denoiser; differentiable in forward mode.
      sigma: float32 scalar, above 0.
      x: float32 [b, ...].
      keys: typed PRNG keys [b]; an image's probes depend on its own key alone.
      probes: number of probes, 1 or more.
    """

    def add(total: jax.Array, number: jax.Array) -> tuple[jax.Array, None]:
        draws = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
        z = jax.vmap(lambda key: jax.random.rademacher(key, x.shape[1:], jnp.float32))(draws)
        _, push = jax.jvp(lambda y: denoiser(y, jnp.full(x.shape[:1], sigma)), (x,), (z,))
        return total + (push * z).mean(axis=tuple(range(1, x.ndim))), None

    total, _ = jax.lax.scan(add, jnp.zeros(x.shape[:1], jnp.float32), jnp.arange(probes))
    return sigma * sigma * total / probes
