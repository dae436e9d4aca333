"""Makes images 0..63 on however many devices there are; test_device_counts.py also runs it in a process of its own.

python tests/device_probe.py OUT.npz [ATTACK/]LOOP:BATCH_SIZE...
"""

import sys

import jax
import numpy as np

from side_jax import builders
from side_jax.config import default_config, from_config
from side_jax.sampling import generation


def noisy(params):
    """Every leaf replaced by noise: an untrained U-Net predicts zero, which would hide mistakes."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(
        tree, [0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )


def made(*ways):
    """{way: images}, for ways such as dispatch:16, a loop and a batch size; and the number of devices.

    Those that begin with adapted/ are of labels and adapters, the others of a classifier.
    """
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
    network = builders.build_adapted_network(settings, 5)
    adapted = {"dpm": noisy(builders.init_fn(network, settings, 0)())}
    labels = generation.target_labels(base, 64, 5)
    for way in ways:
        kind, _, how = way.rpartition("/")
        config.sampler.loop, _, size = how.partition(":")
        config.sampler.batch_size = batch_size = int(size)
        own = from_config(config)
        generator = builders.build_generator(own, classifier)
        if kind:
            generator = builders.build_adapted_generator(own, 5, steered=True, sampler=own.sampler)
        parts = [np.arange(start, start + batch_size) for start in range(0, 64, batch_size)]
        images = [generator(adapted if kind else params, base, index, labels[index], 2.0) for index in parts]
        found[way] = np.concatenate(images)
    return found


if __name__ == "__main__":
    np.savez(sys.argv[1], **made(*sys.argv[2:]))
