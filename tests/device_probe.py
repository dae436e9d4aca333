"""Makes images 0..63 on however many devices there are; test_device_counts.py also runs it in a process of its own.

python tests/device_probe.py OUT.npz LOOP:BATCH_SIZE... requests:BATCH_SIZE...
"""

import sys

import jax
import numpy as np

from side_jax import builders
from side_jax.config import default_config, from_config
from side_jax.sampling import generation
from side_jax.sampling.mode_generation import draw


def noisy(params):
    """Every leaf replaced by noise: an untrained U-Net predicts zero, which would hide mistakes."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(
        tree, [0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )


def requested(settings, params):
    """Images of three rounds of mode seeking through an API, from images that are drawn here."""
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)
    one = builders.build_request_generator(settings, 2, 3, jax.random.key(5), lambda index: images[index])
    return draw(one, params, jax.random.key(3), 64)


def made(*ways):
    """{way: images}, for ways such as dispatch:16, a loop and a batch size; and the number of devices."""
    config = default_config()
    config.model.update(block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    config.classifier.stage_sizes = (1,)
    config.classifier.width = 8
    config.sampler.num_steps = 6
    config.sampler.eta = 1.0
    found = {"devices": np.asarray(jax.local_device_count())}
    base = jax.random.key(3)
    settings = from_config(config)
    classifier = builders.build_classifier(settings, 5, time_dependent=True)
    params = {
        "dpm": noisy(builders.init_fn(builders.build_network(settings), settings, 0)()),
        "classifier": noisy(builders.init_fn(classifier, settings, 0)()),
        "temperature": np.linspace(0.5, 2, settings.diffusion.num_timesteps, dtype=np.float32),
    }
    labels = generation.target_labels(base, 64, 5)
    for way in ways:
        config.sampler.loop, _, size = way.partition(":")
        config.sampler.batch_size = batch_size = int(size)
        if config.sampler.loop == "requests":
            config.sampler.loop = "scan"
            found[way] = requested(from_config(config), params)
            continue
        generator = builders.build_generator(from_config(config), classifier)
        parts = [np.arange(start, start + batch_size) for start in range(0, 64, batch_size)]
        images = [generator(params, base, index, labels[index], 2.0) for index in parts]
        found[way] = np.concatenate(images)
    return found


if __name__ == "__main__":
    np.savez(sys.argv[1], **made(*sys.argv[2:]))
