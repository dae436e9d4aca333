"""Per-image scores computed with the target model, on all devices; see diffusion/membership_scores.py."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax import builders
from side_jax.devices import placement
from side_jax.diffusion import likelihood, membership_scores, mode_seeking, pixel_range
from side_jax.diffusion.process import denoising_loss
from side_jax.diffusion.sampler import sample_keys
from side_jax.measure.records import Divergence, Estimate, Membership, Operating, Quality, Target
from side_jax.memorization.membership import attack_quality
from side_jax.memorization.statistics.intervals import halves
from side_jax.memorization.theory.divergence import draw, log_q, mean
from side_jax.progress import doing, progress
from side_jax.settings import Settings, random_streams
from side_jax.workdir.checkpoint import Restored

REPEATS = 8  # draws of the noise
# Membership scores: the denoising loss, SecMI's t-error (Duan et al. 2023) and PIA (Kong et al. 2024).
MEMBERSHIP = ("loss", "secmi", "pia")
# Of the likelihood's solver; on digits, 1e-4 changes the mean by 0.002 bits per value and costs 2.4 times as much.
TOLERANCE = 1e-3
# Scores of suspects that need the model: one-step consistency, and the norm of the score (Rao et al. 2025).
SUSPICION = ("variance", "score_norm")
# Scores of modes, at some noise: what one more round would change, and the posterior variance.
MODES = ("movement", "posterior_variance")


class TargetScores:
    """Scores images with the target model, whose parameters are on the devices.

    Attributes:
      digest: SHA-256 of the parameters.
    """

    def __init__(self, settings: Settings, restored: Restored):
        """Takes the target model's checkpoint, as `stage_inputs.load_target` restores it."""
        self._settings = settings
        self._params = {"dpm": restored.trees["ema"]}
        self._step, self.digest = restored.step, restored.meta["sha256"]["ema"]

    def scores(
        self,
        kinds: tuple[str, ...],
        images: np.ndarray,
        stream: str,
        sigma: float = 1.0,
        index: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Scores of images uint8 [n, h, w, c]: float32 [n] for each kind named above; smaller is member-like.

        An image's noise depends on the stream and its index alone, by default its place among the images; so does its
        label, of a model that always needs one. `sigma` is the noise at which MODES are scored.
        """
        program = _program(_scorer, self._settings, kinds)
        index = np.asarray(np.arange(len(images)) if index is None else index, np.uint32)
        scores = program((self._params, self._base(stream), np.float32(sigma)), images, index)
        return {kind: scores[:, i] for i, kind in enumerate(kinds)}

    def encoded(self, images: np.ndarray) -> np.ndarray:
        """What the model samples, for images uint8 [n, h, w, c]: float32 [n, ...], the images or their latents."""
        return encoded(self._settings, self._params["dpm"], images)

    def drawn(self, labels: np.ndarray, count: int) -> Iterator[np.ndarray]:
        """Images that the conditional model draws of each label without guidance, uint8 [count, h, w, c] each.

        An image depends on its label and its place among the images of it alone.

        Args:
          labels: int [n], each in 0..num_labels-1.
          count: images of each label.
        """
        generator, base = builders.build_label_generator(self._settings, count), self._base("label spread")
        index = (labels[:, None] * count + np.arange(count)).ravel()
        parts = [index[i : i + generator.batch_size] for i in range(0, len(index), generator.batch_size)]
        left: list[np.ndarray] = []
        for part in progress(parts, total=len(parts), description="images of each label", unit="batch"):
            left.extend(generator(self._params, base, part, np.zeros(len(part), np.int32), 0.0))
            while len(left) >= count:
                yield np.stack(left[:count])
                del left[:count]

    def describe(self, members: np.ndarray, heldout: np.ndarray) -> Target:
        """What the audited model is, and how far it overfits, for results.json.

        Args:
          members: uint8 [m, h, w, c].
          heldout: uint8 [k, h, w, c].
        """
        most = self._settings.evaluate.loss_images
        with doing("computing the model's loss on members and held-out images"):
            losses = [self.mean_loss(images[:most]) for images in (members, heldout)]
        return Target(
            step=self._step,
            ema_sha256=self.digest,
            parameters=builders.count(self._settings, self._params),
            denoising_loss_members=losses[0],
            denoising_loss_heldout=losses[1],
            latent=builders.build_target(self._settings).latent,
        )

    def mean_loss(self, images: np.ndarray) -> float:
        """The mean denoising loss of images uint8 [n, h, w, c] over all timesteps: how far the model overfits."""
        program, base = _program(_mean_loss, self._settings), self._base("probe")
        index = np.arange(len(images), dtype=np.uint32)
        keys = (jax.random.fold_in(base, draw) for draw in range(REPEATS))
        return float(np.mean([program((self._params, key), images, index).mean() for key in keys]))

    def log_prob(self, x: np.ndarray, stream: str, labels: np.ndarray | None = None) -> np.ndarray:
        """Log p of points, in nats; NaN where it could not be solved.

        By the probability-flow ODE with one Rademacher probe, which depends on the stream and a point's place alone.

        Args:
          x: float32 [n, h, w, c], in [-1, 1] or near it.
          stream: of the probes.
          labels: int32 [n], for p(x | label) of a conditional model; None: p(x) without label.

        Returns:
          float32 [n].
        """
        program = _program(_log_prob, self._settings)
        index = np.arange(len(x), dtype=np.uint32)
        labels = np.full(len(x), -1, np.int32) if labels is None else labels
        size, model = self._settings.sampler.batch_size, (self._params, self._base(stream))
        parts = [slice(start, start + size) for start in range(0, len(x), size)]
        shown = progress(parts, total=len(parts), description=stream, unit="batch")
        return np.concatenate([program(model, x[part], index[part], labels[part]) for part in shown])

    def divergence(self, members: np.ndarray, heldout: np.ndarray) -> Divergence:
        """The memorisation divergence around members and around as many held-out images, for results.json.

        Args:
          members: uint8 [n, h, w, c].
          heldout: uint8 [n, h, w, c].
        """
        e = self._settings.evaluate
        terms = {}
        for name, images in (("members", members), ("heldout", heldout)):
            stream, images = f"divergence/{name}", self.encoded(images)
            x, _ = draw(images, e.divergence_epsilon, self._base(stream), e.divergence_draws)
            terms[name] = log_q(x, images, e.divergence_epsilon) - self.log_prob(x, stream)
        unsolved = sum(int((~np.isfinite(values)).sum()) for values in terms.values())
        estimates = dict.fromkeys(("members", "heldout", "difference"))
        if not unsolved:
            near, far = (Estimate(**dataclasses.asdict(mean(terms[name]))) for name in ("members", "heldout"))
            error = math.hypot(near.standard_error, far.standard_error)
            difference = Estimate(estimate=far.estimate - near.estimate, standard_error=error)
            estimates = {"members": near, "heldout": far, "difference": difference}
        return Divergence(epsilon=e.divergence_epsilon, draws=e.divergence_draws, unsolved=unsolved, **estimates)

    def _base(self, stream: str) -> jax.Array:
        return random_streams.stream_key(self._settings, stream)


def encoded(settings: Settings, params: Any, images: np.ndarray) -> np.ndarray:
    """As TargetScores.encoded, with the target's parameters."""
    if not builders.build_target(settings).latent:
        return pixel_range.to_float(images)
    return _program(_encoder, settings)({"dpm": params}, images)


@functools.lru_cache(maxsize=8)  # members and held-out images share a program, and so do audits of equal settings
def _program(make: Callable[..., Callable], settings: Settings, *arguments: Any) -> Callable:
    """The function that `make(settings, *arguments)` returns, in batches over all devices."""
    return placement.in_batches(make(settings, *arguments), settings.sampler.batch_size)


def _encoder(settings: Settings) -> Callable:
    """(parameters, images uint8 [b, h, w, c]) -> float32 [b, ...]."""
    encode = builders.build_encode(settings)
    return lambda params, images: encode(params, pixel_range.to_float(images))


def _mean_loss(settings: Settings) -> Callable:
    """((parameters, base key), images uint8 [b, h, w, c], index uint32 [b]) -> denoising losses float32 [b]."""
    schedule, denoise = builders.build_schedule(settings), builders.build_denoise(settings)
    encode = builders.build_encode(settings)

    def fn(whole: tuple[Any, jax.Array], images: jax.Array, index: jax.Array) -> jax.Array:
        params, base = whole
        x0, keys = encode(params, pixel_range.to_float(images)), sample_keys(base, index)
        return denoising_loss(lambda x, t: denoise(params, x, t, index), schedule, x0, keys)[0]

    return fn


def _log_prob(settings: Settings) -> Callable:
    """((parameters, base key), x float32 [b, h, w, c], index uint32 [b], labels int32 [b]) -> log p, float32 [b]."""
    # Half precision rounds more than an adaptive solver allows: it would take ever smaller steps.
    settings = dataclasses.replace(settings, model=dataclasses.replace(settings.model, dtype="float32"))
    schedule = builders.build_schedule(settings)
    denoise = builders.build_conditional_denoise(settings)  # an unconditional model ignores labels

    def fn(whole: tuple[Any, jax.Array], x: jax.Array, index: jax.Array, labels: jax.Array) -> jax.Array:
        params, base = whole
        return likelihood.ode_log_likelihood(
            lambda x, t: denoise(params, x, t, labels),
            schedule,
            x,
            sample_keys(base, index),
            rtol=TOLERANCE,
            atol=TOLERANCE,
        ).log_prob

    return fn


def _scorer(settings: Settings, kinds: tuple[str, ...]) -> Callable:
    """((parameters, base key, sigma), images uint8 [b, h, w, c], index uint32 [b]) -> float32 [b, kinds]."""
    schedule, denoise = builders.build_schedule(settings), builders.build_denoise(settings)
    encode, clip = builders.build_encode(settings), not builders.build_target(settings).latent
    t, stride = timesteps(settings)

    def fn(whole: tuple[Any, jax.Array, jax.Array], images: jax.Array, index: jax.Array) -> jax.Array:
        params, base, sigma = whole
        x0, keys = encode(params, pixel_range.to_float(images)), sample_keys(base, index)
        common = (lambda x, t: denoise(params, x, t, index)), schedule, x0
        denoiser = mode_seeking.from_network(*common[:2], clip=clip)
        known = {
            "loss": lambda: membership_scores.denoising_loss_at(*common, keys, t, REPEATS),
            "secmi": lambda: membership_scores.secmi_t_error(*common, t // stride * stride, stride),
            "pia": lambda: membership_scores.pia(*common, t),
            "score_norm": lambda: membership_scores.score_norm(*common, t),
            "movement": lambda: mode_seeking.movement(denoiser, sigma, x0),
            "posterior_variance": lambda: mode_seeking.posterior_variance(denoiser, sigma, x0, keys, REPEATS),
            "variance": lambda: membership_scores.one_step_consistency(*common, keys, t, REPEATS)[0],
        }
        return jnp.stack([known[kind]() for kind in kinds], axis=1)

    return fn


def timesteps(settings: Settings) -> tuple[int, int]:
    """(the timestep at which the scores are taken, SecMI's stride): by default a tenth of all, and a tenth of that."""
    t = settings.evaluate.membership_timestep or max(1, settings.diffusion.num_timesteps // 10)
    t = min(t, settings.diffusion.num_timesteps - 1 - max(1, t // 10))  # SecMI goes one stride beyond it
    return max(t, 0), max(1, t // 10)


def membership_calls(settings: Settings) -> int:
    """Evaluations of the network for the membership scores of one image, see diffusion/membership_scores.py."""
    t, stride = timesteps(settings)
    return REPEATS + (t // stride + 2) + 2


def quality(
    scores: dict[str, dict[str, np.ndarray]], settings: Settings, groups: np.ndarray | None = None
) -> Membership:
    """How well each membership score tells members from held-out images, for results.json.

    Args:
      scores: {"members" or "heldout": {kind: float [m]}}, of the kinds of MEMBERSHIP.
      settings: of the run.
      groups: int [k], of the held-out images, see `intervals.halves`.
    """
    seed, confidence = random_streams.stream_seed(settings, "evaluate"), settings.evaluate.confidence
    qualities = {}
    for kind, heldout in scores["heldout"].items():
        calibrates = np.zeros(len(heldout), bool)
        calibrates[halves(len(heldout), seed, groups)[0]] = True
        values = attack_quality(scores["members"][kind], heldout, calibrates, confidence=confidence)
        points = tuple(Operating(**point) for point in values.pop("at"))
        qualities[kind] = Quality(**values, at=points)
    timestep, stride = timesteps(settings)
    return Membership(timestep=timestep, secmi_stride=stride, **qualities)
