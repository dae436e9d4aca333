"""The search in batches: against one by hand, whatever the batch; what an earlier start has left; a known optimum.

Most tests run over starting noise and over label embeddings.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from side_jax.diffusion import genetic, sampler
from side_jax.diffusion.genetic import Order, Rates
from side_jax.diffusion.pixel_range import to_float
from side_jax.diffusion.schedule import make_schedule
from side_jax.diffusion.steps import step_table
from side_jax.errors import InputError
from side_jax.models import label_table
from side_jax.sampling import generation, shards
from side_jax.sampling.genetic_search import GeneticSearch, SearchProgram, targets

SHAPE, CLASSES = (2, 2, 1), 4
TABLE = step_table(make_schedule("linear", 100, 1e-3, 0.2), 3)
BASE, KEY, PARAMS = jax.random.key(3), jax.random.key(4), {"a": np.float32(0.8)}
ORDER, RATES = Order(searches=2, population=12), Rates(parents=3, crossover=0.5, mutation=0.3)
COUNT = 100  # of the fifth generation, one search has 4 images and the other none
ROWS = jnp.asarray(np.random.default_rng(7).normal(size=(5, *SHAPE)), jnp.float32)  # the table of five labels


def denoise(params, x, t, given):
    """Some network, which depends on the timestep, and on the label embedding if genomes [b, 5] are given."""
    plain = params["a"] * x + 0.001 * t.astype(jnp.float32)[:, None, None, None]
    return plain + label_table.mixed(ROWS, given) if given is not None and given.ndim == 2 else plain


def log_prob(params, images):
    """Of as many classes as corners: each grows with its pixel."""
    return jax.nn.log_softmax(3 * images.reshape(-1, CLASSES))


def program(labels, batch_size=16):
    options = {"denoise": denoise, "log_prob": log_prob, "table": TABLE, "shape": SHAPE}
    return SearchProgram(batch_size=batch_size, labels=labels, **options)


def nothing(index):
    raise InputError("nothing is stored")


def search(compiled, stored=nothing):
    options = {"targets": np.asarray([1, 3], np.int32), "key": KEY, "stored": stored}
    return GeneticSearch(compiled, ORDER, RATES, **options)


def whole(one, count=COUNT, batch_size=16):
    index = np.arange(count)
    parts = [index[i : i + batch_size] for i in range(0, count, batch_size)]
    return np.concatenate([one(PARAMS, BASE, part, None, 0.0) for part in parts])


@pytest.fixture(scope="module", params=[0, len(ROWS)], ids=["noise", "labels"])
def labels(request):
    """Number of labels that are searched, or 0."""
    return request.param


@pytest.fixture(scope="module")
def compiled(labels):
    return program(labels)


@pytest.fixture(scope="module")
def images(compiled):
    return whole(search(compiled))


@jax.jit
def draw(number, genes):
    """The image of a number, by its genome; that of a label has the number's own noise."""
    keys = sampler.sample_keys(BASE, number)
    noise, given = (genes, None) if genes.ndim == 4 else (sampler.initial_noise(keys, SHAPE), genes)
    x = sampler.sample_from(lambda x, t: denoise(PARAMS, x, t, given), TABLE, noise, keys)
    return jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5).astype(jnp.uint8)


def by_hand(labels):
    """Both searches, image by image."""
    drawn = generation.target_labels(BASE, 24, labels) if labels else ()
    found = np.zeros((COUNT, *SHAPE), np.uint8)
    pools = {0: [], 1: []}  # (fitness, genome) of every image so far
    for begin in range(0, COUNT, 12):
        which, ahead = begin // 12 % 2, list(pools[begin // 12 % 2])
        for i in range(begin, min(begin + 12, COUNT)):
            number = jnp.asarray([i], jnp.uint32)
            key = sampler.sample_keys(KEY, number)
            if i < 24 and labels:
                genes = np.sqrt(np.float32(labels)) * np.eye(labels, dtype=np.float32)[drawn[i : i + 1]]
            elif i < 24:
                genes = sampler.initial_noise(sampler.sample_keys(BASE, number), SHAPE)
            else:
                best = sorted(ahead, key=lambda one: -one[0])[:3]
                first, second = (best[j][1] for j in np.asarray(genetic.choose(key, 3))[0])
                genes = genetic.breed(key, first, second, RATES)
            found[i] = draw(number, genes)[0]
            fitness = genetic.log_odds(log_prob(PARAMS, to_float(found[i : i + 1])), np.asarray([(1, 3)[which]]))
            pools[which].append((float(fitness[0]), genes))
    fitness = [np.asarray([one[0] for one in pools[which]]) for which in (0, 1)]
    return found, fitness


def test_it_is_the_search_by_hand_and_climbs(images, compiled, labels):
    """Every search to its own class; its best image so far is never lost, since parents may be of any generation."""
    expected, fitness = by_hand(labels)
    np.testing.assert_array_equal(images, expected)
    assert len(np.unique(images.reshape(COUNT, -1), axis=0)) > COUNT / 2
    for one in fitness:
        generations = [one[i : i + 12].mean() for i in range(0, 48, 12)]
        assert generations[-1] > generations[0] + 0.5
    best = search(compiled).best(PARAMS, BASE, COUNT)
    blocks = [fitness[i % 2][i // 2 * 12 : i // 2 * 12 + 12] for i in range(9)]
    assert best == [12 * i + int(block.argmax()) for i, block in enumerate(blocks)]


def test_the_first_generation_are_the_plain_samples(images, labels):
    """Those without a label; or of a label that is drawn as guidance by a target's own labels draws it."""
    drawn = ROWS[generation.target_labels(BASE, 16, labels)] if labels else jnp.zeros((16, *SHAPE))
    plain = generation.Generator(
        denoise=lambda params, x, t, index: denoise(params, x, t, None) + drawn[index],
        table=TABLE,
        shape=SHAPE,
        batch_size=16,
    )
    expected = plain(PARAMS, BASE, np.arange(16), np.full(16, -1), 0.0)
    assert np.abs(images[:16].astype(int) - expected.astype(int)).max() <= 1


def test_the_labels_of_the_first_generation_are_uniform():
    """So that their embeddings have the moments of the table. By a test at 0.001, a false alarm in 1,000 runs."""
    genomes = program(len(ROWS)).first(BASE, np.arange(2000, dtype=np.uint32))
    np.testing.assert_allclose(np.sort(genomes, axis=1), np.tile([0, 0, 0, 0, np.sqrt(5)], (2000, 1)), rtol=1e-6)
    assert stats.chisquare(np.bincount(genomes.argmax(axis=1))).pvalue > 0.001


@pytest.mark.parametrize("batch_size", [8, 64])
def test_an_image_does_not_depend_on_the_batch(images, labels, batch_size):
    np.testing.assert_array_equal(whole(search(program(labels, batch_size)), batch_size=batch_size), images)


@pytest.mark.parametrize("have", [0, 30, 64, 99])
def test_what_is_stored_is_not_generated_again(images, compiled, monkeypatch, have):
    """From any point on, the same images; and the model is asked for those alone that are missing."""
    asked = []
    real = compiled.draw

    def draw(given, index, genomes):
        asked.extend(index)
        return real(given, index, genomes)

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


def test_it_finds_what_is_known_to_be_the_fittest():
    """Images that are the mixtures themselves: one search for a label, and one for a mixture that is none.

    The label is among the first generation, and never lost. Of the mixture no label is near, and the search comes
    closer than as many mixtures that are drawn without selection.
    """
    rows = 0.6 * jnp.asarray([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], jnp.float32)
    best = np.asarray([[0, 1, 0, 0], [0.7, -0.3, 0.4, 0.2]], np.float32)  # the weights of the fittest
    rows, centres = rows.reshape(4, *SHAPE), (best @ rows).reshape(2, *SHAPE)

    def surest(params, images):
        distance = jnp.square(images[:, None] - centres[None]).sum(axis=(2, 3, 4))
        return jax.nn.log_softmax(jnp.concatenate([-9 * distance, jnp.zeros((len(images), 1))], axis=1))

    compiled = SearchProgram(
        denoise=lambda params, x, t, genomes: label_table.mixed(rows, genomes),
        log_prob=surest,
        table=step_table(make_schedule("linear", 100, 1e-3, 0.2, prediction_type="x0"), 2),
        shape=SHAPE,
        batch_size=64,
        labels=4,
    )
    away = {}
    for mutation in (0.3, 1.0):
        rates, order = Rates(parents=5, crossover=0.5, mutation=mutation), Order(searches=2, population=32)
        one = GeneticSearch(compiled, order, rates, targets=np.asarray([0, 1]), key=KEY, stored=nothing)
        images = np.asarray(to_float(whole(one, 640, 64)))
        weights = np.linalg.solve(np.reshape(rows, (4, 4)).T, images.reshape(640, 4).T).T
        error = np.abs(weights - best[order.search(np.arange(640))]).max(axis=1)
        chosen = one.best(PARAMS, BASE, 640)
        assert error[chosen[0]] < 0.01  # a label of the first generation
        away[mutation] = min(error[i] for i in chosen[1::2])
        assert error[chosen[1]] > 0.3
    assert away[0.3] < 0.1 < away[1.0]


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
