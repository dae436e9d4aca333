"""Mode seeking through an API in batches: against requests made one by one, and on Gaussian data the law of its images.

The tests have 8 devices; what is made by hand here is made on one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.diffusion import sampler
from side_jax.diffusion.pixel_range import to_float, to_uint8
from side_jax.diffusion.schedule import make_schedule
from side_jax.diffusion.steps import step_table
from side_jax.sampling.mode_generation import ModeGenerator, RequestProgram

SCHEDULE = make_schedule("linear", 50, 1e-3, 0.2)
KEY, BASE = jax.random.key(5), jax.random.key(3)
INDEX, LABELS = np.arange(16), np.full(16, -1, np.int32)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 2, 2, 1), np.uint8)
PARAMS = {"dpm": {"a": np.float32(0.7)}}
MEAN, STD = 0.2, 0.15


def denoise(params, x, t, index):
    """Some network, which depends on the timestep and, as one that always needs a label, on the image's number."""
    of_image = 0.01 * t.astype(jnp.float32) + 0.3 * (index % 3).astype(jnp.float32)
    return params["dpm"]["a"] * jnp.tanh(x) + of_image[:, None, None, None]


def exact(params, x, t, index):
    """E[epsilon | x_t] for x_0 ~ N(MEAN, STD^2 I)."""
    a = jnp.asarray(SCHEDULE.alpha_bar, jnp.float32)[t][:, None, None, None]
    return jnp.sqrt(1 - a) * (x - jnp.sqrt(a) * MEAN) / (a * STD**2 + 1 - a)


def table(count, eta=0.0, clip=True):
    return step_table(SCHEDULE, 10, eta=eta, clip=clip).last(count)


def generator(rounds, *, of=None, network=denoise, images=IMAGES, shape=(2, 2, 1), **options):
    program = RequestProgram(denoise=network, table=of or table(2), shape=shape, batch_size=16, **options)
    return ModeGenerator(program=program, rounds=(KEY, np.int32(rounds)), starts=lambda index: images[index])


def asked(rounds, of, encode=lambda x: x, decode=lambda x: x):
    """The requests one after the other, of all images at once."""

    @jax.jit
    def request(number, images):
        index = jnp.asarray(INDEX, jnp.uint32)
        keys = sampler.sample_keys(jax.random.fold_in(KEY, number), index)
        x = encode(to_float(images))
        return to_uint8(decode(sampler.sample_again(lambda x, t: denoise(PARAMS, x, t, index), of, x, keys)))

    images = IMAGES[INDEX]
    for number in range(rounds):
        images = request(number, images)
    return np.asarray(images)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_rounds_are_requests_each_with_images_in_and_out(eta):
    """Of 8 bits, and with noise of its own in every round: the solver's too."""
    of = table(3, eta)
    for rounds in (1, 4):
        found = generator(rounds, of=of)(PARAMS, BASE, INDEX, LABELS, 5.0)
        np.testing.assert_array_equal(found, asked(rounds, of))
    assert np.abs(found.astype(int) - IMAGES[INDEX]).mean() > 10


def test_without_rounds_the_images_are_those_of_the_start():
    np.testing.assert_array_equal(generator(0)(PARAMS, BASE, INDEX, LABELS, 0.0), IMAGES[INDEX])


def test_of_a_model_of_latents_every_request_encodes_and_decodes():
    options = {"encode": lambda params, x: 2.0 * x - 0.1, "decode": lambda params, z: (z + 0.1) / 2.0}
    found = generator(3, of=table(2, clip=False), **options)(PARAMS, BASE, INDEX, LABELS, 0.0)
    expected = asked(3, table(2, clip=False), lambda x: 2.0 * x - 0.1, lambda z: (z + 0.1) / 2.0)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert np.abs(found.astype(int) - asked(3, table(2, clip=False))).max() > 2


def test_an_image_belongs_to_its_index():
    one = generator(3)
    whole = one(PARAMS, BASE, INDEX, LABELS, 0.0)
    np.testing.assert_array_equal(one(PARAMS, BASE, INDEX[5:9], LABELS[5:9], 0.0), whole[5:9])
    alike = generator(3, images=np.full_like(IMAGES, 128))(PARAMS, BASE, INDEX, LABELS, 0.0)
    assert len(np.unique(alike.reshape(16, -1), axis=0)) == 16


def test_more_rounds_compile_nothing(compiled):
    one = generator(1)
    one(PARAMS, BASE, INDEX, LABELS, 0.0)
    assert compiled
    compiled.clear()
    ModeGenerator(program=one.program, rounds=(KEY, np.int32(7)), starts=one.starts)(PARAMS, BASE, INDEX, LABELS, 0.0)
    assert not compiled


@pytest.mark.parametrize("rounds", [1, 3, 12])
def test_the_law_on_gaussian_data(rounds):
    """A round maps x to MEAN + C (a (x - MEAN) + sigma z): all moments follow, up to the 8 bits of an image."""
    t = table(2).steps.t
    (a, b), factor = np.sqrt(SCHEDULE.alpha_bar[t]), 1.0
    for signal, then in ((a, b), (b, 1.0)):
        x0 = signal * STD**2 / (signal**2 * STD**2 + 1 - signal**2)
        factor *= then * x0 + np.sqrt((1 - then**2) / (1 - signal**2)) * (1 - signal * x0)
    mean, variance = -0.4 - MEAN, 0.05**2
    for _ in range(rounds):
        mean, variance = factor * a * mean, factor**2 * (a**2 * variance + 1 - a**2) + (2 / 255) ** 2 / 12
    shape = (32, 32, 4)
    start = to_uint8(-0.4 + 0.05 * np.random.default_rng(1).standard_normal((16, *shape)).astype(np.float32))
    one = generator(rounds, of=table(2, clip=False), network=exact, images=np.asarray(start), shape=shape)
    found = np.asarray(to_float(one(PARAMS, BASE, INDEX, LABELS, 0.0)), np.float64)
    assert abs(found.mean() - MEAN - mean) < 0.003
    np.testing.assert_allclose(found.std(), np.sqrt(variance), rtol=0.015)
