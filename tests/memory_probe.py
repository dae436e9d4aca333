"""Run by test_shards.py in a process of its own: makes and scores images of a trivial network; prints peak memory.

python tests/memory_probe.py DIRECTORY NUM_IMAGES ...

Prints the peak after it wrote each of these numbers of images, then after it scored each, all in MiB; a later number
includes what came before it, so the numbers ascend.
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
CHUNK = 2**20  # of elements, read at a time


def peak():
    """MiB of resident memory, at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main():
    cpu.keep_memory()  # as the real command does, so that nothing goes back to the system
    directory, counts = Path(sys.argv[1]), [int(word) for word in sys.argv[2:]]
    table = step_table(make_schedule("linear", 10), 2)
    generator = generation.Generator(
        denoise=lambda params, x, t, index: params * x, table=table, shape=SHAPE, batch_size=200, loop="scan"
    )
    sets, peaks = [shards.layout(directory, count, 200) for count in counts], []
    for count, parts in zip(counts, sets, strict=True):
        labels = np.full(count, -1, np.int32)
        options = {"params": np.float32(0.5), "base": jax.random.key(0), "labels": labels, "scale": 0.0}
        shards.write(generator, parts, description="probe", **options)
        peaks.append(peak())
    metric = [Rmse(below=0.1)]
    members = references(np.random.default_rng(0).integers(0, 256, (16, *SHAPE), np.uint8), metric)
    for count, parts in zip(counts, sets, strict=True):
        found = [match(made["images"], members, metric)[0] for made in shards.stream(parts, size=CHUNK)]
        assert len(joined(found).value) == count
        peaks.append(peak())
    print(*peaks)


if __name__ == "__main__":
    main()
