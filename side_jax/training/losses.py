"""Training losses: cross-entropy and distillation for classifiers, and the denoising loss of the DPM.

The time-dependent surrogate minimises E_{t, x_0, epsilon}[-log p(y | x_t, t)] (Chen et al. 2024, section 3.2) or, as in
the first version of that paper (TDKD), with a temperature tau (Hinton et al. 2015),

    tau^2 KL( softmax(log p_teacher(. | x_0) / tau) || softmax(log p(. | x_t, t) / tau) ).                      (1)
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from side_jax.diffusion import pixel_range
from side_jax.diffusion.process import denoising_loss, diffuse, importance
from side_jax.diffusion.schedule import Schedule
from side_jax.models import adapters
from side_jax.models.classifier import train_log_probs
from side_jax.models.labelled import Labelled
from side_jax.settings import Settings
from side_jax.training import trainer


def cross_entropy(log_probs: jax.Array, labels: jax.Array) -> jax.Array:
    """-log p(label) for each image: float32 [b], from log-probabilities [b, C] and int32 labels [b]."""
    return -jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]


def distillation(log_probs: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """Equation (1) for each image: float32 [b], from log-probabilities [b, C] of student and teacher."""
    student, teacher = (jax.nn.log_softmax(values / temperature) for values in (log_probs, teacher))
    return temperature**2 * (jnp.exp(teacher) * (teacher - student)).sum(axis=1)


@functools.lru_cache(maxsize=4)  # what is compiled for a function is found again only by that function
def classifier_loss(
    module: Any,
    schedule: Schedule | None = None,
    *,
    importance_sampling: bool = False,
    shuffle: bool = False,
    temperature: float | None = None,
) -> trainer.LossFn:
    """The loss function for batches of uint8 images, int32 labels and, for distillation, the teacher's log-probs.

    Args:
      module: the classifier.
      schedule: the noise schedule for the images; None: clean images, at t = 0.
      importance_sampling: draws timesteps in proportion to process.importance instead of uniformly; weights keep the
        expected loss that of uniform ones. Needs the schedule.
      shuffle: permutes the labels within each batch, differently at every step, so that nothing can be learned.
      temperature: tau of equation (1); None: cross-entropy.
    """
    proposal = importance(schedule) if schedule and importance_sampling else None

    def loss_fn(params: Any, batch: tuple, keys: jax.Array, key: jax.Array) -> tuple:
        images, *targets = batch
        if shuffle:
            order = jax.random.permutation(key, len(images))
            targets = [target[order] for target in targets]
        labels = targets[0]
        x, t, weights = pixel_range.to_float(images), jnp.zeros(labels.shape, jnp.int32), jnp.ones(labels.shape)
        if schedule is not None:
            x, t, _ = diffuse(schedule, x, keys, proposal)
        if proposal is not None:
            weights = jnp.asarray(1.0 / (len(proposal) * proposal), jnp.float32)[t]
        log_probs, statistics = train_log_probs(module, params, x, t)
        if temperature is None:
            losses = weights * cross_entropy(log_probs, labels)
        else:
            losses = weights * distillation(log_probs, targets[1], temperature)
        correct = (log_probs.argmax(axis=1) == labels).astype(jnp.float32)
        count = jnp.ones_like(correct).sum()
        return losses.mean(), ({"loss": (losses.sum(), count), "accuracy": (correct.sum(), count)}, statistics)

    return loss_fn


PROFILE_BINS = 10  # equal parts of 0..T-1, least noisy first


def build_loss(settings: Settings, unet: Any, schedule: Any) -> trainer.LossFn:
    """The DPM's loss function, as the settings specify it; the same function for equal arguments."""
    return _build_loss(unet, schedule, settings.train.horizontal_flip, settings.condition.dropout)


@functools.lru_cache(maxsize=4)  # what is compiled for a function is found again only by that function
def _build_loss(unet: Any, schedule: Any, flip: bool, label_dropout: float) -> trainer.LossFn:
    return functools.partial(dpm_loss, unet, schedule, flip, label_dropout=label_dropout)


def dpm_loss(
    unet: Any,
    schedule: Any,
    flip: bool,
    params: Any,
    batch: tuple,
    keys: jax.Array,
    key: jax.Array,
    *,
    label_dropout: float = 0.0,
) -> tuple[jax.Array, tuple[trainer.Metrics, trainer.NonTrainable]]:
    """The denoising loss of a batch, and its profile over timesteps; see trainer.LossFn.

    The batch holds uint8 images [b, h, w, c] and, for a conditional DPM, labels int32 [b]. Each label is hidden with
    probability label_dropout, drawn from the image's key (Ho and Salimans 2022, algorithm 1). Of a Labelled network it
    may also hold the network's own labels, int32 [b], which are never hidden.
    """
    images = pixel_range.to_float(batch[0])
    labels, own = batch[1] if len(batch) > 1 else None, {"own": batch[2]} if len(batch) > 2 else {}
    if labels is not None:
        hidden = jax.vmap(lambda k: jax.random.bernoulli(jax.random.fold_in(k, 3), label_dropout))(keys)
        labels = jnp.where(hidden, -1, labels)
    if flip:
        mirrored = jax.vmap(lambda k: jax.random.bernoulli(jax.random.fold_in(k, 2)))(keys)
        images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        return unet.apply({"params": params}, x, t, deterministic=False, labels=labels, rngs={"dropout": key}, **own)

    losses, t = denoising_loss(denoise, schedule, images, keys)
    part = jax.nn.one_hot(t * PROFILE_BINS // schedule.num_timesteps, PROFILE_BINS)
    profile = (losses[:, None] * part).sum(axis=0), part.sum(axis=0)
    return losses.mean(), ({"loss": (losses.sum(), part.sum()), "loss_by_timestep": profile}, {})


@functools.lru_cache(maxsize=4)  # what is compiled for a function is found again only by that function
def adapter_loss(network: Labelled, schedule: Schedule, alpha: float, label_dropout: float) -> trainer.LossFn:
    """The denoising loss as a function of adapters, for batches of images and int32 pseudo-labels; see dpm_loss.

    Args:
      network: holds the network that is adapted, whose parameters stand in the tree as adapters.FROZEN.
      schedule: of that network.
      alpha: see adapters.merge.
      label_dropout: share of the images shown without their label.
    """

    def loss_fn(params: Any, batch: tuple, keys: jax.Array, key: jax.Array) -> tuple:
        merged = adapters.merge(network.net, params[adapters.FROZEN], adapters.changing(params), alpha)
        return dpm_loss(network, schedule, False, merged, batch, keys, key, label_dropout=label_dropout)

    return loss_fn
