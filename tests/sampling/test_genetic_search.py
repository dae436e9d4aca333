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
GENOMES = {"noise": (), "label": (len(ROWS),)}


def denoise(params, x, t, given):
    """Some network, which depends on the timestep, and on the label embedding if genomes [b, 5] are given."""
    plain = params["a"] * x + 0.001 * t.astype(jnp.float32)[:, None, None, None]
    return plain + label_table.mixed(ROWS, given) if given is not None and given.ndim == 2 else plain


def log_prob(params, images):
    """Of as many classes as corners: each grows with its pixel."""
    return jax.nn.log_softmax(3 * images.reshape(-1, CLASSES))


def program(genome, batch_size=16):
    options = {"denoise": denoise, "log_prob": log_prob, "table": TABLE, "shape": SHAPE}
    return SearchProgram(batch_size=batch_size, genome=genome, **options)


def nothing(index):
    raise InputError("nothing is stored")


def search(compiled, stored=nothing):
    options = {"targets": np.asarray([1, 3], np.int32), "key": KEY, "stored": stored}
    return GeneticSearch(compiled, ORDER, RATES, **options)


def whole(one, count=COUNT, batch_size=16):
    index = np.arange(count)
    parts = [index[i : i + batch_size] for i in range(0, count, batch_size)]
    return np.concatenate([one(PARAMS, BASE, part, None, 0.0) for part in parts])


@pytest.fixture(scope="module", params=GENOMES)
def genome(request):
    """Shape of one genome that is not the starting noise; (): it is."""
    return GENOMES[request.param]


@pytest.fixture(scope="module")
def compiled(genome):
    return program(genome)


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


def by_hand(genome):
    """Both searches, image by image."""
    found = np.zeros((COUNT, *SHAPE), np.uint8)
    pools = {0: [], 1: []}  # (fitness, genome) of every image so far
    for begin in range(0, COUNT, 12):
        which, ahead = begin // 12 % 2, list(pools[begin // 12 % 2])
        for i in range(begin, min(begin + 12, COUNT)):
            number = jnp.asarray([i], jnp.uint32)
            key = sampler.sample_keys(KEY, number)
            if i < 24 and genome:
                genes = genetic.founders(key, genome)
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


def test_it_is_the_search_by_hand_and_climbs(images, compiled, genome):
    """Every search to its own class; its best image so far is never lost, since parents may be of any generation."""
    expected, fitness = by_hand(genome)
    np.testing.assert_array_equal(images, expected)
    assert len(np.unique(images.reshape(COUNT, -1), axis=0)) > COUNT / 2
    for one in fitness:
        generations = [one[i : i + 12].mean() for i in range(0, 48, 12)]
        assert generations[-1] > generations[0] + 0.5
    best = search(compiled).best(PARAMS, BASE, COUNT)
    blocks = [fitness[i % 2][i // 2 * 12 : i // 2 * 12 + 12] for i in range(9)]
    assert best == [12 * i + int(block.argmax()) for i, block in enumerate(blocks)]


def test_the_first_generation_are_the_plain_samples():
    """Of starting noise; of labels, plain samples with embeddings of their own, which have the law of the table."""
    images = search(program(()))(PARAMS, BASE, np.arange(16), None, 0.0)
    plain = generation.Generator(denoise=denoise, table=TABLE, shape=SHAPE, batch_size=16)
    index = np.arange(16)
    expected = plain(PARAMS, BASE, index, np.full(16, -1), 0.0)
    assert np.abs(images.astype(int) - expected.astype(int)).max() <= 1
    compiled = program(GENOMES["label"])
    index = np.arange(2000, dtype=np.uint32)
    genomes = compiled.first((BASE, KEY), index)
    # 7 tests at 0.001 / 7: a false alarm in 1,000 runs.
    columns = (*genomes.T, genomes.sum(axis=1) / np.sqrt(5))
    found = [stats.kstest(column, "norm").pvalue for column in columns]
    below = stats.chi2(genomes.size).cdf(np.square(genomes, dtype=np.float64).sum())
    assert min(*found, 2 * below, 2 * (1 - below)) > 0.001 / 7
    sampled = compiled.draw((PARAMS, BASE), index[:16], np.zeros((16, 5), np.float32))
    mean = np.asarray(ROWS.mean(axis=0))
    x = sampler.sample_from(
        lambda x, t: denoise(PARAMS, x, t, None) + mean[None],
        TABLE,
        sampler.initial_noise(sampler.sample_keys(BASE, index[:16]), SHAPE),
        None,
    )
    assert np.abs(to_float(sampled) - jnp.clip(x, -1, 1)).max() < 0.01


@pytest.mark.parametrize("batch_size", [8, 64])
def test_an_image_does_not_depend_on_the_batch(images, genome, batch_size):
    np.testing.assert_array_equal(whole(search(program(genome, batch_size)), batch_size=batch_size), images)


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


def test_it_finds_the_label_that_is_known_to_be_the_fittest():
    """Images that are the mixtures themselves, and a class for each label that is surest of the label's own image.

    Two searches for the labels 1 and 3 come closer to them than as many mixtures that are drawn without selection.
    """
    rows = 0.6 * jnp.asarray([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], jnp.float32)
    rows = rows.reshape(4, *SHAPE)
    schedule = make_schedule("linear", 100, 1e-3, 0.2, prediction_type="x0")

    def surest(params, images):
        distance = jnp.square(images[:, None] - rows[None]).sum(axis=(2, 3, 4))
        return jax.nn.log_softmax(jnp.concatenate([-9 * distance, jnp.zeros((len(images), 1))], axis=1))

    compiled = SearchProgram(
        denoise=lambda params, x, t, genomes: label_table.mixed(rows, genomes),
        log_prob=surest,
        table=step_table(schedule, 2),
        shape=SHAPE,
        batch_size=64,
        genome=(4,),
    )
    nearest = {}
    for mutation in (0.3, 1.0):
        rates = Rates(parents=5, crossover=0.5, mutation=mutation)
        options = {"targets": np.asarray([1, 3]), "key": KEY, "stored": nothing}
        one = GeneticSearch(compiled, Order(searches=2, population=32), rates, **options)
        images = np.asarray(to_float(whole(one, 640, 64)))
        best = one.best(PARAMS, BASE, 640)[-2:]
        weights = np.linalg.lstsq(np.asarray(rows).reshape(4, -1).T, images[best].reshape(2, -1).T)[0].T
        nearest[mutation] = np.abs(weights - np.eye(4)[[1, 3]]).max()
    assert nearest[0.3] < 0.1 < nearest[1.0]


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
