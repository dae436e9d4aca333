"""Losses of the classifiers against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.diffusion.process import importance
from side_jax.training import losses

LOGITS = np.asarray([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]], np.float32)


class Fixed:
    """Stands in for a classifier: constant log-probabilities, and what it was shown is kept."""

    def __init__(self):
        self.shown = []


@pytest.fixture
def fixed(monkeypatch):
    module = Fixed()

    def log_probs(of, params, x, t):
        of.shown.append((x, t))
        return jax.nn.log_softmax(jnp.broadcast_to(params["logits"], (len(x), 3))), {}

    monkeypatch.setattr(losses, "train_log_probs", log_probs)
    return module


def batch(n=64, classes=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 2, 2, 1), np.uint8), rng.integers(0, classes, n, np.int32)


def keys(n=64):
    return jax.random.split(jax.random.key(1), n), jax.random.key(2)


def test_distillation_at_temperature_one_is_the_kl_divergence():
    student, teacher = (jax.nn.log_softmax(jnp.asarray(values)) for values in (LOGITS, LOGITS[::-1]))
    p, q = np.exp(np.asarray(teacher)), np.exp(np.asarray(student))
    np.testing.assert_allclose(losses.distillation(student, teacher, 1.0), (p * np.log(p / q)).sum(1), rtol=1e-5)
    np.testing.assert_allclose(losses.distillation(student, student, 3.0), 0, atol=1e-6)


def test_distillation_to_a_sure_teacher_is_cross_entropy():
    student = jax.nn.log_softmax(jnp.asarray(LOGITS))
    labels = jnp.asarray([2, 0])
    sure = jax.nn.log_softmax(jnp.asarray(100.0 * np.eye(3, dtype=np.float32)[[2, 0]]))
    np.testing.assert_allclose(
        losses.distillation(student, sure, 1.0), losses.cross_entropy(student, labels), rtol=1e-5
    )


def test_a_hot_teacher_leaves_half_the_squared_distance_of_centred_logits():
    """As the temperature grows, tau^2 KL tends to |z - v|^2 / (2 C) of logits with zero mean (Hinton et al. 2015)."""
    z, v = (values - values.mean(axis=1, keepdims=True) for values in (LOGITS, LOGITS[::-1]))
    got = losses.distillation(jax.nn.log_softmax(jnp.asarray(z)), jax.nn.log_softmax(jnp.asarray(v)), 100.0)
    np.testing.assert_allclose(got, ((z - v) ** 2).sum(axis=1) / 6, rtol=0.03)


def test_clean_images_are_shown_as_they_are_at_time_zero(fixed):
    images, labels = batch()
    loss, (metrics, carried) = losses.classifier_loss(fixed)({"logits": jnp.zeros(3)}, (images, labels), *keys())
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)
    (shown, t), count = fixed.shown[0], metrics["accuracy"][1]
    np.testing.assert_allclose(shown, images / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(t, 0)
    assert count == 64
    assert carried == {}


def test_importance_sampling_leaves_a_constant_loss_as_it_is_on_average(fixed, schedule):
    images, labels = batch(20_000)
    loss_fn = losses.classifier_loss(fixed, schedule, proposal=importance(schedule))
    loss, _ = loss_fn({"logits": jnp.zeros(3)}, (images, labels), *keys(20_000))
    np.testing.assert_allclose(loss, np.log(3), rtol=0.02)
    t = np.asarray(fixed.shown[0][1])
    assert (t >= 500).mean() > 0.55  # uniform would be half


def test_shuffled_labels_keep_their_counts_and_lose_their_images(fixed):
    """Their sizes stay: a constant classifier's loss is the same. Their images do not: a right one's is not."""
    images, labels = batch()
    images[:] = labels[:, None, None, None]
    logits = {"logits": jnp.asarray([1.0, 0.0, 0.0])}
    plain, _ = losses.classifier_loss(fixed)(logits, (images, labels), *keys())
    shuffled, _ = losses.classifier_loss(fixed, shuffle=True)(logits, (images, labels), *keys())
    np.testing.assert_allclose(shuffled, plain, rtol=1e-6)
    teacher = np.log(0.98 * np.eye(3, dtype=np.float32)[labels] + 0.01)
    given = (images, labels, teacher.astype(np.float32))
    soft, (metrics, _) = losses.classifier_loss(fixed, shuffle=True, temperature=2.0)(logits, given, *keys())
    unshuffled, _ = losses.classifier_loss(fixed, temperature=2.0)(logits, given, *keys())
    np.testing.assert_allclose(soft, unshuffled, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"][0], (labels == 0).sum())


def test_shuffling_is_new_for_every_key(monkeypatch):
    """Each image's label is another one's, and not the same other one's next time."""
    seen = []

    def log_probs(of, params, x, t):
        return jax.nn.log_softmax(100.0 * jnp.eye(64)[jnp.arange(64)]), {}  # image i is surely of class i

    monkeypatch.setattr(losses, "train_log_probs", log_probs)
    images, _ = batch()
    for seed in (0, 1):
        key = jax.random.key(seed)
        _, (metrics, _) = losses.classifier_loss(None, shuffle=True)(
            {}, (images, np.arange(64, dtype=np.int32)), keys()[0], key
        )
        seen.append(float(metrics["accuracy"][0]))
    assert max(seen) < 8
