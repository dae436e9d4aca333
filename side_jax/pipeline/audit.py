"""Runs an audit: checks all inputs, then runs the chosen stages that are not done yet."""

import contextlib
import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import jax

from side_jax.data import datasets, member_labels, split
from side_jax.devices import compilation_cache, compilation_events, cpu, placement, process_group
from side_jax.errors import InputError
from side_jax.pipeline import plan, saved_config, space
from side_jax.progress import WATCH, Work
from side_jax.settings import Settings
from side_jax.stages import fit_adapters, stage_inputs, stage_table, summaries, surrogate
from side_jax.stages.stage_table import STAGES, Stage
from side_jax.workdir import boards, files, lock, run_log
from side_jax.workdir.work_units import change

logger = logging.getLogger(__name__)


class Schedule(Protocol):
    """What a run should take, by timed steps."""

    def work(self, chosen: Sequence[str]) -> Work:
        """The seconds of the units of the chosen stages."""

    def revised(self) -> Settings:
        """The settings from a timed stage on, once all that precedes it is done."""


@process_group.propagate_errors()
def run(
    settings: Settings, workdir: Path, stages: Sequence[str] | None = None, *, schedule: Schedule | None = None
) -> None:
    """Runs stages in the order of the pipeline.

    All processes must call this with the same arguments. They share training and sampling; the first one does the rest.

    Args:
      settings: of the run, resolved (pipeline/resolve.py).
      workdir: the folder of all outputs.
      stages: names of the stages, in any order; None: all stages of an audit.
      schedule: what the run should take; None: that is learnt while it runs.

    Raises:
      InputError: if the input is unusable; all checks precede the first heavy step.
      StoppedError: on SIGTERM or Ctrl-C during training or sampling.
    """
    chosen = _prepare(settings, stages)
    if lock.refused(workdir) and _done(settings, workdir, chosen):
        logger.info("%s can't be written, but holds all results already.", workdir)
        return
    if process_group.primary():
        files.make_private(workdir)
    with contextlib.ExitStack() as around:
        if process_group.primary():
            around.enter_context(lock.locked(workdir))
            lock.check_writable(workdir)
            around.enter_context(run_log.kept(workdir))
            with WATCH.doing("checking the inputs"):
                _check(settings, workdir, chosen)
            saved_config.adopt(settings, workdir)
            stage_inputs.withhold_names(settings, workdir)
        process_group.barrier("checked")
        around.enter_context(boards.open_for(settings, workdir, write=process_group.primary()))
        left = schedule.work(chosen) if schedule else stage_table.left(settings, workdir, chosen)
        around.enter_context(WATCH.chain(chosen, work=left, bars=process_group.primary()))
        for name in chosen:
            if schedule and STAGES[name].timed:
                settings = schedule.revised()
                saved_config.adopt(settings, workdir)
            _run_stage(settings, workdir, name)


def _run_stage(settings: Settings, workdir: Path, name: str) -> None:
    """Runs a stage, and shows what it found."""
    with WATCH.stage(name) as stage:
        _stage_function(STAGES[name])(settings, workdir)
        if stage.worked and process_group.primary():
            found = summaries.summary(name, settings, workdir)
            if found:
                WATCH.table(found)


def dry_run(settings: Settings, workdir: Path, stages: Sequence[str] | None = None) -> str:
    """The plan of `run` as text, after the same checks; writes nothing.

    Raises:
      InputError: as `run`.
    """
    chosen = _prepare(settings, stages)
    _check(settings, workdir, chosen)
    saved_config.check_model(settings, workdir)
    return plan.text(settings, workdir, chosen)


def _done(settings: Settings, workdir: Path, chosen: Sequence[str]) -> bool:
    """Whether nothing is left to do."""
    return all(work.unit.done() for name in chosen for work in STAGES[name].plan(settings, workdir))


def _stage_function(stage: Stage):
    """The function that runs a stage: stage.run, by default `run` of the module side_jax.stages.<name>."""
    return stage.run or importlib.import_module(f"side_jax.stages.{stage.name}").run


def _prepare(settings: Settings, stages: Sequence[str] | None) -> list[str]:
    """Sets JAX up for this machine and checks its devices; returns the chosen stages."""
    chosen = check_stages(stage_table.audit_stages() if stages is None else stages)
    compilation_cache.prepare()
    compilation_events.listen()
    cpu.prepare([settings.sampler.batch_size])
    check_devices(settings)
    return chosen


def _check(settings: Settings, workdir: Path, chosen: Sequence[str]) -> None:
    boards.check(settings)
    check_inputs(settings, workdir, chosen)
    if "train" in chosen and not stage_table.train_unit(settings, workdir).done():
        dataset = datasets.load(settings.data, private=settings.report.private)
        surrogate.check_true_labels(settings, dataset.num_classes)
        new_split = split.make_split(dataset, settings.data, settings.seed)
        member_labels.check(settings, dataset, new_split)
    if "surrogate" in chosen and settings.extract.needs_adapters:
        fit_adapters.check_kernels(settings)
    space.check_space(settings, workdir)


def check_devices(settings: Settings) -> None:
    """Raises InputError if a batch can't be split evenly over the devices."""
    placement.check_divisible("sampler.batch_size", settings.sampler.batch_size, jax.local_device_count())
    used = {"weak": settings.trains_weak, "adapters": settings.extract.needs_adapters}
    for section in ("train", "surrogate", "conditional", *(name for name, trained in used.items() if trained)):
        fit = getattr(settings, section)
        key = f"{section}.batch_size" + (f" / accumulate ({fit.accumulate})" if fit.accumulate > 1 else "")
        placement.check_divisible(key, fit.batch_size // fit.accumulate, placement.training_mesh().size)


def check_stages(names: Sequence[str]) -> list[str]:
    """The named stages, in the order of the pipeline.

    Raises:
      InputError: for an unknown name or an empty list.
    """
    for name in names:
        if name not in STAGES:
            raise InputError(f"--stages holds {name!r}, which is not a stage; choose from {', '.join(STAGES)}.")
    if not names:
        raise InputError(f"--stages is empty; choose from {', '.join(STAGES)}.")
    return [name for name in STAGES if name in names]


def check_inputs(settings: Settings, workdir: Path, chosen: Sequence[str]) -> None:
    """Raises InputError if a chosen stage needs an output that is missing and not scheduled."""
    for name in chosen:
        needed = stage_table.missing(settings, workdir, STAGES[name])
        missing = [stage for stage in needed if stage not in chosen]
        if missing:
            works = STAGES[missing[0]].plan(settings, workdir)
            changed = [change(workdir / file) for work in works for file in work.unit.changed()]
            why = f" ({changed[0]})" if changed else ""
            raise InputError(
                f"stage {name} needs the output of stage {missing[0]}, but {workdir} does not hold it for this "
                f"config{why}; run --stages={','.join([*missing, *(c for c in chosen if c not in missing)])} instead."
            )
