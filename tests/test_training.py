"""The training loop's parts against closed forms, and progress where there is no terminal."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from side_jax import progress, training
from side_jax.settings import Fit


def test_every_epoch_is_a_fresh_shuffle_without_its_ragged_end():
    epochs = [[training.batch_indices(0, step, 10, 3) for step in range(3 * e, 3 * e + 3)] for e in range(20)]
    for epoch in epochs:
        assert len(set(np.concatenate(epoch))) == 9
    assert len({tuple(np.concatenate(epoch)) for epoch in epochs}) == 20
    assert set(np.concatenate([np.concatenate(epoch) for epoch in epochs])) == set(range(10))
    np.testing.assert_array_equal(training.batch_indices(0, 7, 10, 3), training.batch_indices(0, 7, 10, 3))


def test_ema_warms_up_to_its_decay():
    decays = [float(training.ema_decay(jnp.int32(step), 0.99)) for step in (0, 10, 10_000)]
    np.testing.assert_allclose(decays, [0.1, 11 / 20, 0.99], rtol=1e-6)


def test_one_step_of_gradient_descent_by_hand():
    """Loss (p - 3)^2 / 2 at p = 1 with rate 0.5: p becomes 2, and the EMA 0.1 * 1 + 0.9 * 2."""

    def loss_fn(params, batch, key):
        return 0.5 * jnp.square(params["p"] - batch[0]).mean(), {}

    optimizer = optax.sgd(0.5)
    params = {"p": jnp.float32(1.0)}
    state = {"params": params, "opt_state": optimizer.init(params), "step": jnp.int32(0)}
    batch = (jnp.full((4,), 3.0),)
    state, ema, scalars = training.train_step(loss_fn, optimizer, 0.99, state, params, batch, jax.random.key(0))
    assert float(state["params"]["p"]) == 2.0
    assert int(state["step"]) == 1
    np.testing.assert_allclose(ema["p"], 1.9, rtol=1e-6)
    np.testing.assert_allclose(scalars["loss"], 2.0)
    np.testing.assert_allclose(scalars["gradient_norm"], 2.0)


@pytest.mark.parametrize("warmup", [0, 100])
def test_warm_up_starts_small(warmup):
    """Adam's first step has the size of the learning rate; after one step of a warm-up that is (nearly) nothing."""
    optimizer = training.make_optimizer(Fit(learning_rate=0.1, warmup_steps=warmup))
    params = {"p": jnp.float32(1.0)}
    with jax.numpy_dtype_promotion("standard"):  # see runs.run
        updates, _ = optimizer.update({"p": jnp.float32(0.5)}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["p"], 0.0 if warmup else -0.1, atol=1e-4)


def test_progress_prints_a_clean_line_a_minute(monkeypatch):
    """Ten items of 25 seconds each, six of them done before: a line after 75 seconds, counting from a restart."""
    clock, lines = iter(np.arange(0, 1000, 25.0)), []
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(progress.logger, "info", lambda form, *args: lines.append(form % args))
    assert list(progress.progress(range(4), total=10, description="work", unit="step", done=6)) == [0, 1, 2, 3]
    assert len(lines) == 1
    assert "work" in lines[0]
    assert "9/10" in lines[0]
    assert "\r" not in lines[0]
