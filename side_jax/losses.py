"""Losses of the classifiers: cross-entropy, or a teacher's soft labels; on clean images, or on noised ones.

The time-dependent surrogate minimises E_{t, x_0, epsilon} of -log p(y | x_t, t) (Chen et al. 2024, section 3.2), or, in
the first version of that paper (TDKD), with tau a temperature (Hinton et al. 2015),

    tau^2 KL( softmax(log p_teacher(. | x_0) / tau) || softmax(log p(. | x_t, t) / tau) ).                      (1)
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax import sampling, training
from side_jax.diffusion.process import diffuse
from side_jax.diffusion.schedule import Schedule
from side_jax.models.classifier import train_log_probs


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
) -> training.LossFn:
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
        x, t, weights = sampling.to_float(images), jnp.zeros(labels.shape, jnp.int32), jnp.ones(labels.shape)
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
