"""The chain of stages: checks everything first, then runs what is asked for and not done yet."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections

from side_jax import builders, conditioning, cpu, features, foreign, manifest, parallel, plan
from side_jax import workdir as workdirs
from side_jax.config import from_config
from side_jax.data import datasets, split
from side_jax.errors import InputError
from side_jax.manifest import Unit
from side_jax.settings import Settings
from side_jax.stages import evaluate, extract, label, report, surrogate, suspects, synthesize, train

logger = logging.getLogger(__name__)

STAGES = {
    "train": train.run,
    "synthesize": synthesize.run,
    "label": label.run,
    "surrogate": surrogate.run,
    "extract": extract.run,
    "evaluate": evaluate.run,
    "report": report.run,
}
_ALL = STAGES | {"suspects": suspects.run}  # not of an audit: what an attacker does


@parallel.together()
def run(config: ml_collections.ConfigDict, workdir: Path, stages: Sequence[str] = tuple(STAGES)) -> None:
    """Runs the stages in their order, whatever the order they are named in.

    With several processes, all call this with the same arguments. They share the training and the sampling; what is
    small beside these, the first one does alone.

    Raises:
      InputError: if anything the user gave can't work; all checks come before the first heavy step.
      StoppedError: if the machine asks the run to stop while it trains or samples.
    """
    config, settings, chosen = _resolve(config, workdir, stages)
    with workdirs.locked(workdir) if parallel.primary() else contextlib.nullcontext():
        if parallel.primary():
            workdirs.check_writable(workdir)
            _check(settings, workdir, chosen)
            workdirs.adopt(config, settings, workdir)
        parallel.barrier("checked")
        for name in chosen:
            logger.info("stage %s.", name)
            _ALL[name](config, workdir)


def dry_run(config: ml_collections.ConfigDict, workdir: Path, stages: Sequence[str] = tuple(STAGES)) -> str:
    """What `run` would do, for people, after the same checks; writes nothing.

    Raises:
      InputError: as run does.
    """
    _, settings, chosen = _resolve(config, workdir, stages)
    _check(settings, workdir, chosen)
    workdirs.check_model(settings, workdir)
    return plan.text(settings, workdir, chosen)


def _resolve(
    config: ml_collections.ConfigDict, workdir: Path, stages: Sequence[str]
) -> tuple[ml_collections.ConfigDict, Settings, list[str]]:
    config = features.resolve(conditioning.resolve(foreign.resolve(config)), workdir)
    settings = from_config(config)
    chosen = check_stages(stages)
    cpu.prepare([settings.sampler.batch_size])
    check_devices(settings)
    return config, settings, chosen


def _check(settings: Settings, workdir: Path, chosen: Sequence[str]) -> None:
    check_inputs(settings, workdir, chosen)
    if "train" in chosen and not builders.train_unit(settings, workdir).done():
        dataset = datasets.load(settings.data)
        surrogate.check_true_labels(settings, dataset.num_classes)
        made = split.make_split(dataset, settings.data, settings.seed)
        conditioning.check(settings, dataset, made)
    workdirs.check_space(settings, workdir)


def check_devices(settings: Settings) -> None:
    """Raises InputError where a batch can't be split over the devices."""
    parallel.check_divisible("sampler.batch_size", settings.sampler.batch_size, jax.local_device_count())
    for section in ("train", "surrogate", "conditional"):
        fit = getattr(settings, section)
        key = f"{section}.batch_size" + (f" / accumulate ({fit.accumulate})" if fit.accumulate > 1 else "")
        parallel.check_divisible(key, fit.batch_size // fit.accumulate, parallel.mesh().size)


def check_stages(names: Sequence[str]) -> list[str]:
    """The named stages in their order.

    Raises:
      InputError: for an unknown name, or none at all.
    """
    for name in names:
        if name not in _ALL:
            raise InputError(f"--stages names {name!r}, which is no stage; choose from {', '.join(_ALL)}.")
    if not names:
        raise InputError(f"--stages is empty; choose from {', '.join(_ALL)}.")
    return [name for name in _ALL if name in names]


def check_inputs(settings: Settings, workdir: Path, chosen: Sequence[str]) -> None:
    """Raises InputError where a chosen stage reads what neither is there nor will be made by an earlier one."""
    side = settings.extract.needs_pseudo_labels
    units: dict[str, list[Unit]] = {
        "train": [builders.train_unit(settings, workdir)],
        "synthesize": [manifest.unit(settings, workdir, "synthesize")] if side else [],
        "label": [manifest.unit(settings, workdir, "label")] if side else [],
        "surrogate": list(manifest.surrogate_units(settings, workdir).values()),
        "extract": [work for _, work in manifest.extraction_units(settings, workdir)],
        "evaluate": [manifest.evaluation_unit(settings, workdir)],
        "report": [],
    }
    undone = [name for name in STAGES if name not in chosen and not all(work.done() for work in units[name])]
    for name in chosen:
        if name == "suspects":
            missing = [stage for stage in suspects.lacking(settings, workdir) if stage not in chosen]
        else:
            missing = [stage for stage in undone if stage in list(STAGES)[: list(STAGES).index(name)]]
        if missing:
            raise InputError(
                f"stage {name} needs what stage {missing[0]} makes, and {workdir} does not hold it for this "
                f"config; run --stages={','.join([*missing, *(c for c in chosen if c not in missing)])} instead."
            )
