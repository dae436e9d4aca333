"""Run by test_shards.py in a process of its own: makes and scores images of a trivial network; prints peak memory.

python tests/memory_probe.py DIRECTORY NUM_IMAGES
"""

import resource
import sys
from pathlib import Path

import jax
import numpy as np

from side_jax.devices import cpu
from side_jax.diffusion.schedule import make_schedule
from side_jax.diffusion.steps import step_table
from side_jax.memorization.matching import joined, match, references
from side_jax.memorization.metrics import Rmse
from side_jax.sampling import generation, shards

SHAPE = (32, 32, 3)


def peak():
    """MiB of resident memory, at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main():
    cpu.keep_memory()  # as the real command does, so that nothing goes back to the system
    directory, num_images = Path(sys.argv[1]), int(sys.argv[2])
    table = step_table(make_schedule("linear", 10), 2)
    generator = generation.Generator(
        denoise=lambda params, x, t: params * x, table=table, shape=SHAPE, batch_size=200, loop="scan"
    )
    parts = shards.layout(directory, num_images, 200)
    labels = np.full(num_images, -1, np.int32)
    options = {"params": np.float32(0.5), "base": jax.random.key(0), "labels": labels, "scale": 0.0}
    shards.write(generator, parts, description="probe", **options)
    after_writing = peak()
    metric = [Rmse(below=0.1)]
    members = references(np.random.default_rng(0).integers(0, 256, (16, *SHAPE), np.uint8), metric)
    found = [match(made["images"], members, metric)[0] for made in shards.stream(parts)]
    assert len(joined(found).value) == num_images
    print(after_writing, peak())


if __name__ == "__main__":
    main()
