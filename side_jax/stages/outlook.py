"""What is left of a run, in evaluations of a network for one image: weights for the time that is left (progress/).

Only the target's network and those of its size are counted: training and sampling. Nobody knows beforehand what
clustering, classifiers, evaluation and the report take in such evaluations, so that their stages have no weights.
"""

from collections.abc import Sequence
from pathlib import Path

from side_jax.attacks.table import PLAIN, Run
from side_jax.progress import Work
from side_jax.sampling import shards
from side_jax.settings import Settings
from side_jax.stages import estimates, stage_table
from side_jax.workdir import checkpoint
from side_jax.workdir.work_units import Unit

GRADIENT = 3  # evaluations that a training step takes for one image: forward, and twice as much backward


def work(settings: Settings, workdir: Path, chosen: Sequence[str]) -> Work:
    """What the chosen stages have left to do."""
    weights = {}
    for name in chosen:
        left = [one for one in stage_table.STAGES[name].plan(settings, workdir) if not one.unit.done()]
        if not left:
            weights[name] = {}
        elif name == "train":
            weights[name] = {one.unit.name: _training(settings, one.unit) for one in left}
        elif name == "synthesize":
            parts = stage_table.synthetic_shards(settings, workdir)
            weights[name] = {
                one.unit.name: _sampling(settings, one.unit, parts, Run(attack=PLAIN.name)) for one in left
            }
        elif name == "extract":
            weights[name] = {
                one.unit.name: _sampling(settings, one.unit, stage_table.extracted_shards(settings, one.unit), one.run)
                for one in left
            }
    return Work(weights=weights)


def _training(settings: Settings, unit: Unit) -> float:
    """Of a unit that trains a network like the target's; an import takes none."""
    if settings.target.path:
        return 0.0
    done = checkpoint.latest_step(checkpoint.checkpoint_directory(unit.workdir, unit.name)) if unit.begun() else None
    return GRADIENT * settings.train.batch_size * max(settings.train.num_steps - (done or 0), 0)


def _sampling(settings: Settings, unit: Unit, parts: list[shards.Shard], run: Run) -> float:
    """Of a unit that samples; the images that mode seeking starts from are another unit's."""
    begun = unit.begun()  # files of other settings do not count
    images = sum(len(part.index) for part in parts if not (begun and part.path.exists()))
    return images * (run.rounds or estimates.network_calls(settings, run))
