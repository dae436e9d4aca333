"""Losses of the classifiers against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.training import losses

LOGITS = np.asarray([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]], np.float32)


@pytest.fixture
def fixed(monkeypatch):
    """The loss of a classifier that is surer of the same logits at each later t, whatever the image.

    (logits, batch, options) -> (the loss function's result, what the classifier was shown).
    """
    shown = []

    def log_probs(of, params, x, t):
        shown.append((x, t))
        return jax.nn.log_softmax(params["logits"][None] * (1 + t[:, None] / 50)), {}

    monkeypatch.setattr(losses, "train_log_probs", log_probs)

    def run(logits, given, schedule=None, **options):
        loss_fn = losses.classifier_loss(None, schedule, **options)

        @jax.jit
        def compute(given):
            keys = jax.random.split(jax.random.key(1), len(given[0]))
            return loss_fn({"logits": jnp.asarray(logits)}, given, keys, jax.random.key(2)), shown.pop()

        return compute(given)

    return run


def batch(n=64, classes=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 2, 2, 1), np.uint8), rng.integers(0, classes, n, np.int32)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


distillation = jax.jit(losses.distillation)


def test_distillation_at_temperature_one_is_the_kl_divergence():
    student, teacher = log_softmax(LOGITS), log_softmax(LOGITS[::-1])
    p, q = np.exp(teacher), np.exp(student)
    np.testing.assert_allclose(distillation(student, teacher, 1.0), (p * np.log(p / q)).sum(1), rtol=1e-5)
    np.testing.assert_allclose(distillation(student, student, 3.0), 0, atol=1e-6)


def test_distillation_to_a_sure_teacher_is_cross_entropy():
    student, labels = log_softmax(LOGITS), np.asarray([2, 0])
    sure = log_softmax(80 * np.eye(3, dtype=np.float32)[labels])
    by_hand = [-student[0, 2], -student[1, 0]]
    np.testing.assert_allclose(distillation(student, sure, 1.0), by_hand, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(losses.cross_entropy)(student, labels), by_hand, rtol=1e-6)


def test_a_hot_teacher_leaves_half_the_squared_distance_of_centred_logits():
    """As the temperature grows, tau^2 KL tends to |z - v|^2 / (2 C) of logits with zero mean (Hinton et al. 2015)."""
    z, v = (values - values.mean(axis=1, keepdims=True) for values in (LOGITS, LOGITS[::-1]))
    got = distillation(log_softmax(z), log_softmax(v), 100.0)
    np.testing.assert_allclose(got, ((z - v) ** 2).sum(axis=1) / 6, rtol=0.03)


def test_clean_images_are_shown_as_they_are_at_time_zero(fixed):
    images, labels = batch()
    (loss, (metrics, carried)), (shown, t) = fixed(np.zeros(3, np.float32), (images, labels))
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)
    count = metrics["accuracy"][1]
    np.testing.assert_allclose(shown, images / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(t, 0)
    assert count == 64
    assert carried == {}


def test_importance_sampling_leaves_the_loss_as_it_is_on_average(fixed, schedule):
    """By hand, over each timestep as often as over any other; without weights it would be a tenth more."""
    logits, given = LOGITS[0], batch(20_000)
    (loss, _), (_, t) = fixed(logits, given, schedule, importance_sampling=True)
    by_hand = -log_softmax(logits * (1 + np.arange(1000)[:, None] / 50)) @ np.bincount(given[1]) / 20_000
    np.testing.assert_allclose(loss, by_hand.mean(), rtol=0.02)
    assert (np.asarray(t) >= 500).mean() > 0.55  # uniform would be half


def test_shuffled_labels_keep_their_counts_and_lose_their_images(fixed):
    """Their sizes stay: a constant classifier's loss is the same. Their images do not: a right one's is not."""
    images, labels = batch()
    images[:] = labels[:, None, None, None]
    logits = np.asarray([1.0, 0.0, 0.0], np.float32)
    (plain, _), _ = fixed(logits, (images, labels))
    (shuffled, _), _ = fixed(logits, (images, labels), shuffle=True)
    np.testing.assert_allclose(shuffled, plain, rtol=1e-6)
    teacher = np.log(0.98 * np.eye(3, dtype=np.float32)[labels] + 0.01)
    given = (images, labels, teacher.astype(np.float32))
    (soft, (metrics, _)), _ = fixed(logits, given, shuffle=True, temperature=2.0)
    (unshuffled, _), _ = fixed(logits, given, temperature=2.0)
    np.testing.assert_allclose(soft, unshuffled, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"][0], (labels == 0).sum())


def test_shuffling_is_new_for_every_key(monkeypatch):
    """Each image's label is another one's, and not the same other one's next time."""
    logits = 100.0 * np.eye(64) + np.random.default_rng(0).normal(size=(64, 64))  # image i is surely of class i

    def log_probs(of, params, x, t):
        return jax.nn.log_softmax(jnp.asarray(logits, jnp.float32)), {}

    monkeypatch.setattr(losses, "train_log_probs", log_probs)

    @jax.jit
    def compute(given, seed):
        keys = jax.random.split(jax.random.key(1), 64)
        loss, (metrics, _) = losses.classifier_loss(None, shuffle=True)({}, given, keys, jax.random.key(seed))
        return loss, metrics["accuracy"][0]

    given = (batch()[0], np.arange(64, dtype=np.int32))
    (first, right), (second, again) = (jax.device_get(compute(given, seed)) for seed in (0, 1))
    assert max(right, again) < 8
    assert abs(first - second) > 1e-3  # the logits differ, and so does the loss of every other order
