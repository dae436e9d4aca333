"""The batch generator on trivial networks: one compilation for a sweep, padding, and uint8 conversion."""

import functools

import jax
import numpy as np
import pytest

from side_jax.diffusion import pixel_range
from side_jax.diffusion.guidance import Guidance, classifier_gradient
from side_jax.diffusion.schedule import make_schedule
from side_jax.diffusion.steps import step_table
from side_jax.sampling import generation


def make(schedule, loop, traced, interval=(), guided=True):
    def denoise(params, x, t, index):
        traced.append(None)
        return params["dpm"]["a"] * x

    def guide(params, index, labels, scale):
        def log_prob(x, t):
            return jax.nn.log_softmax(x.reshape(len(x), -1)[:, :3] * params["classifier"]["b"])

        return Guidance(gradient_fn=classifier_gradient(log_prob, labels), scale=scale)

    table = step_table(schedule, 4, interval=interval)
    return generation.Generator(
        denoise=denoise, guide=guide if guided else None, table=table, shape=(2, 2, 1), batch_size=16, loop=loop
    )


@functools.cache
def made(loop, interval=(), guided=True):
    """As make, once for all tests, with what it has compiled."""
    return make(make_schedule("linear", 1000), loop, [], interval, guided)


PARAMS = {"dpm": {"a": np.float32(0.5)}, "classifier": {"b": np.float32(2.0)}}


@pytest.mark.parametrize("loop", ["scan", "dispatch"])
def test_a_sweep_compiles_once(schedule, loop, compiled):
    traced = []
    generator = make(schedule, loop, traced)
    index, base = np.arange(16), jax.random.key(0)
    first = generator(PARAMS, base, index, np.full(16, 0, np.int32), 0.0)
    count = len(traced)
    assert count > 0
    assert compiled
    compiled.clear()
    for scale in range(1, 51):
        later = generator(PARAMS, jax.random.key(scale), index, np.full(16, scale % 3, np.int32), float(scale))
        assert np.abs(first.astype(int) - later).max() > 0
    assert len(traced) == count
    assert not compiled


def test_both_loops_heed_the_interval():
    found, index, base, labels = {}, np.arange(16), jax.random.key(0), np.ones(16, np.int32)
    for loop in ("scan", "dispatch"):
        for interval in ((), (400, 800), (0, 999)):
            found[loop, interval] = made(loop, interval)(PARAMS, base, index, labels, 20.0).astype(int)
        assert np.abs(found[loop, (400, 800)] - found[loop, ()]).max() > 1
        np.testing.assert_array_equal(found[loop, (0, 999)], found[loop, ()])
    for interval in ((), (400, 800)):
        assert np.abs(found["scan", interval] - found["dispatch", interval]).max() <= 1


def test_scale_zero_is_unguided_bit_for_bit_on_every_path():
    index, base, labels = np.arange(16), jax.random.key(0), np.arange(16, dtype=np.int32) % 3
    for loop in ("scan", "dispatch"):
        guided, unguided = (made(loop, guided=guided) for guided in (True, False))
        expected = unguided(PARAMS, base, index, labels, 0.0)
        np.testing.assert_array_equal(guided(PARAMS, base, index, labels, 0.0), expected)
        assert np.abs(guided(PARAMS, base, index, labels, 20.0).astype(int) - expected).max() > 1


@pytest.mark.parametrize(
    ("backend", "guided", "loop"), [("cpu", True, "dispatch"), ("cpu", False, "scan"), ("gpu", True, "scan")]
)
def test_guided_steps_are_dispatched_on_cpu_alone(schedule, monkeypatch, backend, guided, loop):
    """The gradient of a convolution inside a compiled loop is slow on CPU; elsewhere a trajectory is one program."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert make(schedule, "auto", [], guided=guided).loop == loop


@pytest.mark.parametrize("loop", ["scan", "dispatch"])
def test_a_part_of_a_batch_is_the_same_images(loop):
    generator = made(loop)
    index, base, labels = np.arange(16), jax.random.key(0), np.arange(16, dtype=np.int32) % 3
    whole = generator(PARAMS, base, index, labels, 2.0)
    assert whole.shape == (16, 2, 2, 1)
    np.testing.assert_array_equal(generator(PARAMS, base, index[3:8], labels[3:8], 2.0), whole[3:8])


def test_target_labels_are_uniform_and_belong_to_the_index():
    base = jax.random.key(1)
    labels = generation.target_labels(base, 6000, 6)
    np.testing.assert_allclose(np.bincount(labels, minlength=6), 1000, rtol=0.12)
    np.testing.assert_array_equal(generation.target_labels(base, 100, 6), labels[:100])


def test_uint8_round_trip():
    levels = np.arange(256, dtype=np.uint8)
    floats, to_uint8 = pixel_range.to_float(levels), jax.jit(pixel_range.to_uint8)
    assert (floats.min(), floats.max()) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(floats), levels)
    assert to_uint8(np.float32([-7, 7])).tolist() == [0, 255]
