"""Shows what a run is doing: stages, loops and what takes long, as bars on a terminal and as lines elsewhere."""

from side_jax.progress.chain import Work
from side_jax.progress.small_table import Table
from side_jax.progress.watch import WATCH, Watch

doing, progress = WATCH.doing, WATCH.progress

__all__ = ["Table", "WATCH", "Watch", "Work", "doing", "progress"]
