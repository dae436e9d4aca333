"""The search in batches: against one by hand, whatever the batch; and what an earlier start has left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from side_jax.diffusion import genetic, sampler
from side_jax.diffusion.genetic import Order, Rates
from side_jax.diffusion.pixel_range import to_float
from side_jax.diffusion.schedule import make_schedule
from side_jax.diffusion.steps import step_table
from side_jax.errors import InputError
from side_jax.sampling import generation, shards
from side_jax.sampling.genetic_search import GeneticSearch, SearchProgram, targets

SHAPE, CLASSES = (2, 2, 1), 4
TABLE = step_table(make_schedule("linear", 100, 1e-3, 0.2), 3)
BASE, KEY, PARAMS = jax.random.key(3), jax.random.key(4), {"a": np.float32(0.8)}
ORDER, RATES = Order(searches=2, population=12), Rates(parents=3, crossover=0.5, mutation=0.3)
COUNT = 100  # of the fifth generation, one search has 4 images and the other none


def denoise(params, x, t, index):
    """Some network, which depends on the timestep."""
    return params["a"] * x + 0.001 * t.astype(jnp.float32)[:, None, None, None]


def log_prob(params, images):
    """Of as many classes as corners: each grows with its pixel."""
    return jax.nn.log_softmax(3 * images.reshape(-1, CLASSES))


def program(batch_size=16):
    options = {"denoise": denoise, "log_prob": log_prob, "table": TABLE, "shape": SHAPE}
    return SearchProgram(batch_size=batch_size, **options)


def nothing(index):
    raise InputError("nothing is stored")


def search(compiled, stored=nothing):
    options = {"targets": np.asarray([1, 3], np.int32), "key": KEY, "stored": stored}
    return GeneticSearch(compiled, ORDER, RATES, **options)


def whole(one, count=COUNT, batch_size=16):
    index = np.arange(count)
    parts = [index[i : i + batch_size] for i in range(0, count, batch_size)]
    return np.concatenate([one(PARAMS, BASE, part, None, 0.0) for part in parts])


@pytest.fixture(scope="module")
def compiled():
    return program()


@pytest.fixture(scope="module")
def images(compiled):
    return whole(search(compiled))


def draw(noise):
    keys = sampler.sample_keys(BASE, jnp.arange(len(noise), dtype=jnp.uint32))
    x = sampler.sample_from(lambda x, t: denoise(PARAMS, x, t, None), TABLE, noise, keys)
    return np.asarray(jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8))


def by_hand():
    """Both searches, image by image."""
    found = np.zeros((COUNT, *SHAPE), np.uint8)
    pools = {0: [], 1: []}  # (fitness, x_T) of every image so far
    for begin in range(0, COUNT, 12):
        which, ahead = begin // 12 % 2, list(pools[begin // 12 % 2])
        for i in range(begin, min(begin + 12, COUNT)):
            number = jnp.asarray([i], jnp.uint32)
            key = sampler.sample_keys(KEY, number)
            if i < 24:
                noise = sampler.initial_noise(sampler.sample_keys(BASE, number), SHAPE)
            else:
                best = sorted(ahead, key=lambda one: -one[0])[:3]
                first, second = (best[j][1] for j in np.asarray(genetic.choose(key, 3))[0])
                noise = genetic.breed(key, first, second, RATES)
            found[i] = draw(noise)[0]
            fitness = genetic.log_odds(log_prob(PARAMS, to_float(found[i : i + 1])), np.asarray([(1, 3)[which]]))
            pools[which].append((float(fitness[0]), noise))
    fitness = [np.asarray([one[0] for one in pools[which]]) for which in (0, 1)]
    return found, fitness


def test_it_is_the_search_by_hand_and_climbs(images, compiled):
    """Every search to its own class; its best image so far is never lost, since parents may be of any generation."""
    expected, fitness = by_hand()
    np.testing.assert_array_equal(images, expected)
    assert len(np.unique(images.reshape(COUNT, -1), axis=0)) > COUNT / 2
    for one in fitness:
        generations = [one[i : i + 12].mean() for i in range(0, 48, 12)]
        assert generations[-1] > generations[0] + 1
    best = search(compiled).best(PARAMS, BASE, COUNT)
    blocks = [fitness[i % 2][i // 2 * 12 : i // 2 * 12 + 12] for i in range(9)]
    assert best == [12 * i + int(block.argmax()) for i, block in enumerate(blocks)]


def test_the_first_generation_are_the_plain_samples(images):
    plain = generation.Generator(denoise=denoise, table=TABLE, shape=SHAPE, batch_size=16)
    index = np.arange(16)
    expected = plain(PARAMS, BASE, index, np.full(16, -1), 0.0)
    assert np.abs(images[:16].astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("batch_size", [8, 64])
def test_an_image_does_not_depend_on_the_batch(images, batch_size):
    np.testing.assert_array_equal(whole(search(program(batch_size)), batch_size=batch_size), images)


@pytest.mark.parametrize("have", [0, 30, 64, 99])
def test_what_is_stored_is_not_generated_again(images, compiled, monkeypatch, have):
    """From any point on, the same images; and the model is asked for those alone that are missing."""
    asked = []
    real = compiled.draw

    def draw(params, index, noise):
        asked.extend(index)
        return real(params, index, noise)

    monkeypatch.setattr(compiled, "draw", draw)

    def stored(index):
        if index.max() >= have:
            raise InputError("not yet")
        return images[index]

    rest = np.arange(have, COUNT)
    found = search(compiled, stored)(PARAMS, BASE, rest, None, 0.0)
    np.testing.assert_array_equal(found, images[rest])
    if have in (0, 64, 99):  # else a batch of the first generation is half stored
        assert sorted(asked) == rest.tolist()


def test_any_image_alone_is_the_same(images, compiled):
    """As the last process of several asks, which finds nothing stored; and an earlier one afterwards."""
    one = search(compiled)
    for index in (np.arange(90, 97), np.arange(26, 30), np.arange(5)):
        np.testing.assert_array_equal(one(PARAMS, BASE, index, None, 0.0), images[index])


def test_other_stored_images_lead_elsewhere(images, compiled):
    """The parents are chosen by what is stored."""
    found = search(compiled, lambda index: 255 - images[index])(PARAMS, BASE, np.arange(24, 40), None, 0.0)
    assert np.abs(found.astype(int) - images[24:40].astype(int)).mean() > 10


def test_it_writes_shards_and_goes_on_from_them(images, compiled, tmp_path):
    labels = np.resize(np.repeat([1, 3], 12), COUNT).astype(np.int32)
    options = {"params": PARAMS, "base": BASE, "labels": labels, "scale": 0.0, "description": "test"}
    parts = shards.layout(tmp_path, COUNT, 16)
    shards.write(search(compiled, lambda index: shards.pick(parts, index)), parts, **options)
    before = {part.path: part.path.read_bytes() for part in parts}
    np.testing.assert_array_equal(shards.read(parts)["images"], images)
    for lost in (parts[1:2], parts[3:]):
        for part in lost:
            part.path.unlink()
        shards.write(search(compiled, lambda index: shards.pick(parts, index)), parts, **options)
        assert {part.path: part.path.read_bytes() for part in parts} == before


def test_targets_are_different_as_long_as_there_are():
    found = targets(KEY, 10, 4)
    assert sorted(found[:4]) == [0, 1, 2, 3]
    np.testing.assert_array_equal(found[4:8], found[:4])
    assert len({tuple(targets(jax.random.key(i), 3, 40)) for i in range(5)}) == 5
