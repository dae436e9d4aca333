"""Makes images 0..63 on however many devices there are; test_device_counts.py also runs it in a process of its own.

python tests/device_probe.py OUT.npz KIND/LOOP:BATCH_SIZE...
"""

import sys

import jax
import numpy as np

from side_jax import builders
from side_jax.config import default_config, from_config
from side_jax.errors import InputError
from side_jax.sampling import generation, mode_generation
from side_jax.settings.extraction import BlackBox

COUNT, CLASSES = 64, 5
BASE, OWN = jax.random.key(3), jax.random.key(5)


def noisy(params):
    """Every leaf replaced by noise: an untrained U-Net predicts zero, which would hide mistakes."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(
        tree, [0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )


def tiny(loop, batch_size, **changes):
    """A config of all."""
    config = default_config()
    config.model.update(block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    config.classifier.stage_sizes = (1,)
    config.classifier.width = 8
    config.sampler.update(num_steps=6, loop=loop, batch_size=batch_size, **changes)
    return config


def drawn(network, settings):
    """Parameters of a network."""
    return noisy(builders.init_fn(network, settings, 0)())


def in_batches(generator, params, labels, batch_size):
    """The images of a generator."""
    parts = [np.arange(start, start + batch_size) for start in range(0, COUNT, batch_size)]
    return np.concatenate([generator(params, BASE, index, labels[index], 2.0) for index in parts])


def guided(loop, batch_size):
    """By a classifier."""
    settings = from_config(tiny(loop, batch_size, eta=1.0))
    classifier = builders.build_classifier(settings, CLASSES, time_dependent=True)
    params = {
        "dpm": drawn(builders.build_network(settings), settings),
        "classifier": drawn(classifier, settings),
        "temperature": np.linspace(0.5, 2, settings.diffusion.num_timesteps, dtype=np.float32),
    }
    labels = generation.target_labels(BASE, COUNT, CLASSES)
    return in_batches(builders.build_generator(settings, classifier), params, labels, batch_size)


def adapted(loop, batch_size):
    """By labels of adapters."""
    settings = from_config(tiny(loop, batch_size, eta=1.0))
    params = {"dpm": drawn(builders.build_adapted_network(settings, CLASSES), settings)}
    generator = builders.build_adapted_generator(settings, CLASSES, steered=True, sampler=settings.sampler)
    return in_batches(generator, params, generation.target_labels(BASE, COUNT, CLASSES), batch_size)


def searched(loop, batch_size):
    """By two searches over label embeddings, of four generations."""
    config = tiny(loop, batch_size)
    config.condition.update(labels="random", num_labels=3)
    settings = from_config(config)
    classifier = builders.build_classifier(settings, CLASSES, time_dependent=False)
    params = {"dpm": drawn(builders.build_network(settings), settings), "classifier": drawn(classifier, settings)}

    def nothing(index):
        raise InputError("nothing is stored")

    program, own = builders.build_search_program(settings, classifier), BlackBox(searches=2, population=8, parents=3)
    search = builders.build_search(program, own, OWN, CLASSES, nothing)
    return in_batches(search, params, np.arange(COUNT), batch_size)


def requested(loop, batch_size):
    """By three rounds of mode seeking through an API, from images that are drawn here."""
    settings = from_config(tiny(loop, batch_size, eta=1.0))
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 1), np.uint8)
    one = builders.build_request_generator(settings, 2, 3, OWN, lambda index: images[index])
    return mode_generation.draw(one, {"dpm": drawn(builders.build_network(settings), settings)}, BASE, COUNT)


KINDS = {"guided": guided, "adapted": adapted, "search": searched, "requests": requested}


def made(*ways):
    """{way: images}, for ways such as guided/dispatch:16, a loop and a batch size; and the number of devices."""
    found = {"devices": np.asarray(jax.local_device_count())}
    for way in ways:
        kind, _, how = way.partition("/")
        loop, _, size = how.partition(":")
        found[way] = KINDS[kind](loop, int(size))
    return found


if __name__ == "__main__":
    np.savez(sys.argv[1], **made(*sys.argv[2:]))
