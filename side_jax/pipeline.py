"""The chain of stages: checks everything first, then runs what is asked for and not done yet."""

import logging
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from side_jax import builders, manifest, parallel
from side_jax import workdir as workdirs
from side_jax.config import from_config
from side_jax.data import datasets, split
from side_jax.errors import InputError
from side_jax.manifest import Unit
from side_jax.settings import Settings
from side_jax.stages import evaluate, extract, label, report, surrogate, synthesize, train

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


def run(config: ml_collections.ConfigDict, workdir: Path, stages: Sequence[str] = tuple(STAGES)) -> None:
    """Runs the stages in their order, whatever the order they are named in.

    Raises:
      InputError: if anything the user gave can't work; all checks come before the first heavy step.
    """
    settings = from_config(config)
    chosen = check_stages(stages)
    with workdirs.locked(workdir):
        workdirs.check_writable(workdir)
        parallel.check_divisible("sampler.batch_size", settings.sampler.batch_size)
        for section in ("train", "surrogate", "conditional"):
            parallel.check_divisible(f"{section}.batch_size", getattr(settings, section).batch_size)
        check_inputs(settings, workdir, chosen)
        if "train" in chosen and not builders.train_unit(settings, workdir).done():
            split.make_split(datasets.load(settings.data), settings.data, settings.seed)
        builders.parameter_count(settings)
        workdirs.check_space(settings, workdir)
        workdirs.adopt(config, settings, workdir)
        for name in chosen:
            logger.info("stage %s.", name)
            STAGES[name](config, workdir)


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
    """Raises InputError where a chosen stage reads what neither is there nor will be made by an earlier one."""
    side = settings.extract.needs_surrogate
    units: dict[str, list[Unit]] = {
        "train": [builders.train_unit(settings, workdir)],
        "synthesize": [manifest.unit(settings, workdir, "synthesize")] if side else [],
        "label": [manifest.unit(settings, workdir, "label")] if side else [],
        "surrogate": list(manifest.surrogate_units(settings, workdir).values()),
        "extract": [work for _, work in manifest.extraction_units(settings, workdir)],
        "evaluate": [manifest.evaluation_unit(settings, workdir)],
        "report": [],
    }
    missing: list[str] = []
    for name in STAGES:
        if name in chosen and missing:
            raise InputError(
                f"stage {name} needs what stage {missing[0]} makes, and {workdir} does not hold it for this "
                f"config; run --stages={','.join([*missing, *(c for c in chosen if c not in missing)])} instead."
            )
        if name not in chosen and not all(work.done() for work in units[name]):
            missing.append(name)
