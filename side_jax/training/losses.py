"""Losses of the classifiers: cross-entropy, or a teacher's soft labels; on clean images, or on noised ones.

The time-dependent surrogate minimises E_{t, x_0, epsilon} of -log p(y | x_t, t) (Chen et al. 2024, section 3.2), or, in
the first version of that paper (TDKD), with tau a temperature (Hinton et al. 2015),

    tau^2 KL( softmax(log p_teacher(. | x_0) / tau) || softmax(log p(. | x_t, t) / tau) ).                      (1)
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.diffusion import pixel_range
from side_jax.diffusion.process import denoising_loss, diffuse
from side_jax.diffusion.schedule import Schedule
from side_jax.models.classifier import train_log_probs
from side_jax.settings import Settings
from side_jax.training import trainer


def cross_entropy(log_probs: jax.Array, labels: jax.Array) -> jax.Array:
    """-log p(label) of each image: float32 [b], from [b, C] and int32 [b]."""
    return -jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]


def distillation(log_probs: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """Equation (1) of each image: float32 [b], from log-probabilities [b, C] of student and teacher."""
    student, teacher = (jax.nn.log_softmax(values / temperature) for values in (log_probs, teacher))
    return temperature**2 * (jnp.exp(teacher) * (teacher - student)).sum(axis=1)


def classifier_loss(
    module: Any,
    schedule: Schedule | None = None,
    *,
    proposal: np.ndarray | None = None,
    shuffle: bool = False,
    temperature: float | None = None,
) -> trainer.LossFn:
    """The loss of a batch (uint8 images, int32 labels and, to distil, the teacher's log-probabilities).

    Args:
      module: the classifier.
      schedule: by which images are noised; None: they stay clean, at t = 0.
      proposal: of the timesteps, see process.diffuse; the loss is weighted so that its expectation is that of uniform
        ones.
      shuffle: gives every image the label of another one of its batch, anew each time: nothing can be learned.
      temperature: of equation (1); None: cross-entropy.
    """

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
        log_probs, carried = train_log_probs(module, params, x, t)
        if temperature is None:
            losses = weights * cross_entropy(log_probs, labels)
        else:
            losses = weights * distillation(log_probs, targets[1], temperature)
        right = (log_probs.argmax(axis=1) == labels).astype(jnp.float32)
        count = jnp.ones_like(right).sum()
        return losses.mean(), ({"loss": (losses.sum(), count), "accuracy": (right.sum(), count)}, carried)

    return loss_fn


PROFILE_BINS = 10  # equal parts of 0..T-1, the least noisy first


def build_loss(settings: Settings, unet: Any, schedule: Any) -> trainer.LossFn:
    """The DPM's loss by the settings."""
    options = {"label_dropout": settings.condition.dropout}
    return functools.partial(dpm_loss, unet, schedule, settings.train.horizontal_flip, **options)


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
) -> tuple[jax.Array, tuple[trainer.Metrics, trainer.Carried]]:
    """The denoising loss of a batch, and its profile over timesteps.

    The batch is uint8 images [b, h, w, c] and, of a conditional DPM, their labels int32 [b], of which a share of
    label_dropout, drawn by each image's key, is not shown (Ho and Salimans 2022, algorithm 1).
    """
    images = pixel_range.to_float(batch[0])
    labels = batch[1] if len(batch) > 1 else None
    if labels is not None:
        hidden = jax.vmap(lambda k: jax.random.bernoulli(jax.random.fold_in(k, 3), label_dropout))(keys)
        labels = jnp.where(hidden, -1, labels)
    if flip:
        mirrored = jax.vmap(lambda k: jax.random.bernoulli(jax.random.fold_in(k, 2)))(keys)
        images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        return unet.apply({"params": params}, x, t, deterministic=False, labels=labels, rngs={"dropout": key})

    losses, t = denoising_loss(denoise, schedule, images, keys)
    part = jax.nn.one_hot(t * PROFILE_BINS // schedule.num_timesteps, PROFILE_BINS)
    profile = (losses[:, None] * part).sum(axis=0), part.sum(axis=0)
    return losses.mean(), ({"loss": (losses.sum(), part.sum()), "loss_by_timestep": profile}, {})
