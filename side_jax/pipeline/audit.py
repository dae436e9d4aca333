"""Runs an audit: checks everything first, then does what is asked for and not done yet."""

import contextlib
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path

import jax

from side_jax.data import datasets, member_labels, split
from side_jax.devices import compilation_cache, cpu, placement, process_group
from side_jax.errors import InputError
from side_jax.pipeline import plan, saved_config, space
from side_jax.settings import Settings
from side_jax.stages import stage_table, surrogate
from side_jax.stages.stage_table import STAGES, Stage
from side_jax.workdir import lock

logger = logging.getLogger(__name__)


@process_group.together()
def run(settings: Settings, workdir: Path, stages: Sequence[str] | None = None) -> None:
    """Runs the stages in their order, whatever the order they are named in.

    With several processes, all call this with the same arguments. They share the training and the sampling; the first
    one does the rest, which is small.

    Args:
      settings: of the run, resolved (pipeline/resolve.py).
      workdir: for everything that the run writes.
      stages: their names; None: those of an audit.

    Raises:
      InputError: if anything the user gave can't work; all checks come before the first heavy step.
      StoppedError: if the machine asks the run to stop while it trains or samples.
    """
    chosen = _prepare(settings, stages)
    with lock.locked(workdir) if process_group.primary() else contextlib.nullcontext():
        if process_group.primary():
            lock.check_writable(workdir)
            _check(settings, workdir, chosen)
            saved_config.adopt(settings, workdir)
        process_group.barrier("checked")
        for name in chosen:
            logger.info("stage %s.", name)
            _run_of(STAGES[name])(settings, workdir)


def dry_run(settings: Settings, workdir: Path, stages: Sequence[str] | None = None) -> str:
    """What `run` would do, for people, after the same checks; writes nothing.

    Raises:
      InputError: as run does.
    """
    chosen = _prepare(settings, stages)
    _check(settings, workdir, chosen)
    saved_config.check_model(settings, workdir)
    return plan.text(settings, workdir, chosen)


def _run_of(stage: Stage):
    """What does the stage's work: its entry's own function, or that of the module of its name."""
    return stage.run or importlib.import_module(f"side_jax.stages.{stage.name}").run


def _prepare(settings: Settings, stages: Sequence[str] | None) -> list[str]:
    """The chosen stages, once JAX is set up for this machine."""
    chosen = check_stages(stage_table.audit_stages() if stages is None else stages)
    compilation_cache.prepare()
    cpu.prepare([settings.sampler.batch_size])
    check_devices(settings)
    return chosen


def _check(settings: Settings, workdir: Path, chosen: Sequence[str]) -> None:
    check_inputs(settings, workdir, chosen)
    if "train" in chosen and not stage_table.train_unit(settings, workdir).done():
        dataset = datasets.load(settings.data)
        surrogate.check_true_labels(settings, dataset.num_classes)
        made = split.make_split(dataset, settings.data, settings.seed)
        member_labels.check(settings, dataset, made)
    space.check_space(settings, workdir)


def check_devices(settings: Settings) -> None:
    """Raises InputError where a batch can't be split over the devices."""
    placement.check_divisible("sampler.batch_size", settings.sampler.batch_size, jax.local_device_count())
    for section in ("train", "surrogate", "conditional"):
        fit = getattr(settings, section)
        key = f"{section}.batch_size" + (f" / accumulate ({fit.accumulate})" if fit.accumulate > 1 else "")
        placement.check_divisible(key, fit.batch_size // fit.accumulate, placement.mesh().size)


def check_stages(names: Sequence[str]) -> list[str]:
    """The named stages in their order.

    Raises:
      InputError: for an unknown name, or none at all.
    """
    for name in names:
        if name not in STAGES:
            raise InputError(f"--stages names {name!r}, which is no stage; choose from {', '.join(STAGES)}.")
    if not names:
        raise InputError(f"--stages is empty; choose from {', '.join(STAGES)}.")
    return [name for name in STAGES if name in names]


def check_inputs(settings: Settings, workdir: Path, chosen: Sequence[str]) -> None:
    """Raises InputError where a chosen stage needs an output that is missing and not scheduled."""
    for name in chosen:
        found = stage_table.missing(settings, workdir, STAGES[name])
        missing = [stage for stage in found if stage not in chosen]
        if missing:
            raise InputError(
                f"stage {name} needs what stage {missing[0]} makes, and {workdir} does not hold it for this "
                f"config; run --stages={','.join([*missing, *(c for c in chosen if c not in missing)])} instead."
            )
