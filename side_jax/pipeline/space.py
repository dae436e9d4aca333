"""Checks disk space: the bytes that a run has yet to write, and the free bytes."""

import math
import os
import shutil
from pathlib import Path

from side_jax.errors import InputError
from side_jax.settings import Settings
from side_jax.stages import stage_table
from side_jax.workdir import files

_MARGIN = 50 * 2**20  # bytes for all small files


def check_space(settings: Settings, workdir: Path) -> None:
    """Raises InputError if the disk has too little space for the rest of the run."""
    if not files.local(workdir):
        return
    need, free = space(settings, workdir)
    if free < need:
        raise InputError(
            f"--workdir={workdir} has {free / 2**20:,.0f} MiB free, but what is left of this run can need "
            f"{need / 2**20:,.0f} MiB; free some space, or use another disk."
        )


def space(settings: Settings, workdir: Path) -> tuple[int, float]:
    """(upper bound of the bytes yet to write, free bytes); an object store has infinitely many free bytes."""
    works = [work for name in stage_table.audit_stages() for work in stage_table.STAGES[name].plan(settings, workdir)]
    need = sum(work.disk() for work in works)
    if need or not all(work.unit.done() for work in works):
        need += _MARGIN
    if not files.local(workdir):
        return need, math.inf
    existing = next(folder for folder in (workdir, *Path(os.path.abspath(workdir)).parents) if folder.exists())
    return need, shutil.disk_usage(existing).free
