"""Mode seeking in batches: against the rounds taken by hand, from images and from noise, whatever the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.diffusion import mode_seeking, pixel_range, sampler
from side_jax.diffusion.schedule import make_schedule
from side_jax.sampling.mode_generation import ModeGenerator, ModeProgram

SCHEDULE = make_schedule("linear", 100, 1e-3, 0.2)
BASE, INDEX, LABELS = jax.random.key(3), np.arange(16), np.full(16, -1, np.int32)
LEVELS = mode_seeking.noise_levels(0.3, 3, 0.1)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 2, 2, 1), np.uint8)
PARAMS = {"dpm": {"a": np.float32(0.7)}}


def denoise(params, x, t, index):
    """Some network, which depends on the timestep."""
    return params["dpm"]["a"] * jnp.tanh(x) + 0.01 * t[:, None, None, None]


def generator(starts, **options):
    options |= {"from_noise": starts is None}
    program = ModeProgram(denoise=denoise, schedule=SCHEDULE, shape=(2, 2, 1), batch_size=16, **options)
    return ModeGenerator(program=program, rounds=LEVELS, starts=starts)


@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("options", [{}, {"random": True}, {"anderson": True}, {"relaxation": 1.5}])
def test_it_takes_the_rounds_from_its_start(options, noise):
    keys = sampler.sample_keys(BASE, INDEX.astype(np.uint32))
    x = pixel_range.to_float(IMAGES[INDEX])
    if noise:
        x = np.clip(sampler.initial_noise(keys, (2, 2, 1)), -1, 1)
    own = {name: value for name, value in options.items() if name != "random"}
    denoiser = mode_seeking.from_network(lambda x, t: denoise(PARAMS, x, t, INDEX), SCHEDULE)
    state = mode_seeking.seek(denoiser, LEVELS, x, keys if "random" in options else None, **own)
    images = generator(None if noise else lambda index: IMAGES[index], **options)(PARAMS, BASE, INDEX, LABELS, 5.0)
    difference = np.abs(images.astype(int) - np.asarray(pixel_range.to_uint8(state.x)).astype(int))
    assert difference.max() <= 1
    assert np.abs(images.astype(int) - IMAGES[INDEX]).max() > 10


@pytest.mark.parametrize("starts", [None, lambda index: IMAGES[index]])
def test_an_image_belongs_to_its_index(starts):
    one = generator(starts, random=True)
    whole = one(PARAMS, BASE, INDEX, LABELS, 0.0)
    np.testing.assert_array_equal(one(PARAMS, BASE, INDEX[5:9], LABELS[5:9], 0.0), whole[5:9])
    assert len(np.unique(whole.reshape(16, -1), axis=0)) > 8


def test_another_noise_level_compiles_nothing(compiled):
    one = generator(lambda index: IMAGES[index])
    one(PARAMS, BASE, INDEX, LABELS, 0.0)
    assert compiled
    compiled.clear()
    ModeGenerator(program=one.program, rounds=2 * LEVELS, starts=one.starts)(PARAMS, BASE, INDEX, LABELS, 0.0)
    assert not compiled
