"""The audit of a model without a config: its files, members and held-out images, and a time that it may take.

What images the model makes, how many there are and what fits into the time is found out; what a user sets stays.
"""

import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from side_jax.attacks.table import ATTACKS, PLAIN
from side_jax.config import default_config, from_config, to_config
from side_jax.data import datasets, safe_npz, sources, split
from side_jax.data.listed import ImageSource, location
from side_jax.devices import compilation_cache, cpu
from side_jax.errors import InputError
from side_jax.memorization.metrics import METRICS
from side_jax.pipeline import audit, budget, plan, resolve
from side_jax.pipeline.clock import Clock
from side_jax.progress import WATCH, Work
from side_jax.progress.chain import SECONDS
from side_jax.settings import Data, Evaluate, Settings
from side_jax.settings.checks import one_of
from side_jax.stages import stage_table
from side_jax.targets import formats
from side_jax.targets.target_model import Target
from side_jax.workdir import files

logger = logging.getLogger(__name__)

DEFAULT_BUDGET = "1h"
LOOKED_AT = 64  # members whose sizes tell that of the images, where the model does not
ASKED, GIVEN = "asked.json", "given"  # in the workdir: what was asked for, and the folder of images that were arrays
# How messages call the settings that this audit has names of its own for.
OPTIONS = {
    "config.target.path": "--model",
    "config.data.path": "--members",
    "config.data.heldout_from": "--heldout",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to audit.

    Attributes:
      config: from `start`, with what the user has set.
      workdir: folder for everything that the run writes.
      budget: seconds that the audit may take.
      given: the settings that the user has set, such as "extract.num_images"; these stay.
      attacks: to run; (): those that the time allows.
      target: a model that is a Python object, in place of that of config.target.path.
      started: time.monotonic() when the audit was asked for.
    """

    config: ml_collections.ConfigDict
    workdir: Path
    budget: float
    given: frozenset[str] = frozenset()
    attacks: tuple[str, ...] = ()
    target: Target | None = None
    started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def time_left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget - (time.monotonic() - self.started)

    def asked(self) -> dict[str, Any]:
        """What decides the settings; a run that was asked for the same continues."""
        data = self.config.data
        model = f"object {self.target.origin.digest}" if self.target else self.config.target.path
        named = {"model": model, "members": data.path, "heldout": data.heldout_from}
        own = {key: _value(self.config, key) for key in sorted(self.given)}
        whole = named | {"budget": self.budget, "attacks": self.attacks, "given": own}
        return json.loads(json.dumps(whole))  # as it will be read again


def start(model: str, members: str, heldout: str) -> ml_collections.ConfigDict:
    """The config of an audit of these, before anything is found out."""
    config = default_config()
    config.name = os.path.basename(os.path.normpath(model)) or model
    config.target.path, config.data.name = model, "folder"
    config.data.path, config.data.heldout_from = members, heldout
    config.extract.attacks, config.sampler.num_steps = (PLAIN.name,), 1  # until others are chosen
    return config


def default_workdir(model: str) -> Path:
    """Where the audit of a model is written, unless the user says so."""
    return files.as_path(os.path.join("runs", Path(model).stem or "audit"))


def kept(images: ImageSource, workdir: Path, side: str) -> str:
    """The path of images; an array is first written into the workdir, from which a run that continues reads it."""
    if not isinstance(images, np.ndarray):
        return location(images)
    safe_npz.check_images(images.shape, images.dtype, side)
    files.make_private(workdir)
    path = workdir / GIVEN / f"{side}.npy"
    path.parent.mkdir(exist_ok=True)
    with files.atomic(path) as file:
        np.save(file, images)
    return str(path)


def run(request: Request) -> Settings:
    """Chooses the settings, runs all stages, and returns the settings.

    Raises:
      InputError: if the model or the images can't be used, or the budget allows no audit.
    """
    if settings := _continued(request):
        audit.run(settings, request.workdir)
        return settings
    settings, clock = chosen(request)
    schedule = _Schedule(request, settings, clock)
    audit.run(settings, request.workdir, schedule=schedule)
    took = request.budget - request.time_left
    logger.info("took %s of %s.", plan.duration(took), plan.duration(request.budget))
    return schedule.settings


@dataclasses.dataclass
class _Schedule:
    """What the audit should take; before the attacks, their number of images is fitted to the time that is left."""

    request: Request
    settings: Settings
    clock: Clock

    def work(self, chosen: Sequence[str]) -> Work:
        """The seconds of the units of the chosen stages; records the settings, now that the workdir is this run's."""
        _keep(self.request, self.settings)
        units: dict[str, dict[str, dict[str, float]]] = {name: {} for name in chosen}
        for line in plan.lines(self.settings, self.request.workdir, chosen, self.clock):
            units[stage_table.unit_stage(line.unit).name][line.unit] = {SECONDS: line.seconds}
        return Work(units=units)

    def revised(self) -> Settings:
        """The settings from the attacks on."""
        request, before = self.request, self.settings
        self.settings = budget.refit(before, request.workdir, request.time_left, request.given, self.clock)
        if self.settings != before:
            logger.info("%d images of each attack fit into the time that is left.", self.settings.extract.num_images)
            _keep(request, self.settings)
        return self.settings


def dry_run(request: Request) -> str:
    """The plan of `run` as text; writes nothing."""
    settings = _continued(request) or chosen(request)[0]
    return audit.dry_run(settings, request.workdir)


def chosen(request: Request) -> tuple[Settings, Clock]:
    """The settings, and the clock that timed their steps. Says what was chosen, to the log."""
    compilation_cache.prepare()
    cpu.prepare([budget.BATCHES["cpu"]])
    given, workdir = request.given, request.workdir
    attacks = tuple(request.config.extract.attacks) if "extract.attacks" in given else request.attacks
    for attack in attacks:
        one_of("extract.attacks", attack, ATTACKS)
    if request.target:
        config = resolve.with_object(request.config, request.target)
    else:
        config = _with_images(resolve.resolve_revisions(request.config, workdir), given)
    settings = resolve.resolve(_with_references(config, given), workdir)
    if "sampler.batch_size" not in given:
        sampler = dataclasses.replace(settings.sampler, batch_size=budget.batch_size(settings))
        settings = dataclasses.replace(settings, sampler=sampler)
    audit.check_devices(settings)
    with WATCH.doing("timing steps of the model"):
        settings, clock = budget.choose(settings, workdir, request.time_left, given, attacks)
    for line in account(settings, budget.planned(settings, workdir, clock), request.budget):
        logger.info("chosen: %s", line)
    return settings, clock


def account(settings: Settings, seconds: float, whole: float) -> tuple[str, ...]:
    """What was chosen, in sentences."""
    height, width, channels = settings.data.shape
    data, e = settings.data, settings.evaluate
    left_out = [name for name in ("membership", "divergence") if not getattr(e, name)]
    without = f" Left out: {' and '.join(left_out)}, which would take too long." if left_out else ""
    return (
        f"{data.num_members:,} members and {data.num_heldout:,} held-out images of {height}x{width} pixels and "
        f"{channels} channel{'' if channels == 1 else 's'}.",
        f"{settings.extract.num_images:,} images of each of {', '.join(settings.extract.attacks)}, "
        f"{settings.sampler.num_steps} sampling steps, {settings.sampler.batch_size} images at once.{without}",
        f"about {plan.duration(seconds)} by timed steps, of a budget of {plan.duration(whole)}. "
        "--config.SECTION.SETTING=VALUE sets what you want otherwise.",
    )


def _continued(request: Request) -> Settings | None:
    """The settings of the run that was asked for the same before; None: there is none."""
    path = request.workdir / ASKED
    before = files.read_json(path) if path.exists() else {}
    if before.get("asked") != request.asked():
        return None
    logger.info("continues with the settings that were chosen before, in %s.", path)
    return resolve.resolve(ml_collections.ConfigDict(before["settings"]), request.workdir)


def _keep(request: Request, settings: Settings) -> None:
    """Records the settings, so that a run that is asked for the same continues with them."""
    files.write_json(request.workdir / ASKED, {"asked": request.asked(), "settings": to_config(settings).to_dict()})


def _with_images(config: ml_collections.ConfigDict, given: Collection[str]) -> ml_collections.ConfigDict:
    """The config with the size and the channels of the model's images, where the user has not set them."""
    config = config.copy_and_resolve_references()
    try:
        hints = formats.hints(config)
        target = formats.read_target(formats.located(hints.target), hints)
    except InputError as error:
        raise InputError(f"config.target.path: {error}") from None
    with config.unlocked():
        if "data.channels" not in given:
            config.data.channels = target.channels
        if not given & {"data.image_size", "data.image_width"}:
            height, width = target.size or _size(config.data)
            config.data.image_size, config.data.image_width = height, 0 if width == height else width
    return config


def _size(data: ml_collections.ConfigDict) -> tuple[int, int]:
    """(height, width) of the first members, of a model that does not say what it makes."""
    source = sources.open_source(data.path, "config.data.path", data.orientation, data.revision)
    found = {source.read(row).size for row in range(min(LOOKED_AT, len(source.names)))}
    if len(found) != 1:
        listed = ", ".join(f"{height}x{width}" for height, width in sorted(found)[:4])
        raise InputError(
            "the model's files do not say the size of its images, and the members have several "
            f"({listed}); set --config.data.image_size=N to what it was trained with."
        )
    return found.pop()


def _with_references(config: ml_collections.ConfigDict, given: Collection[str]) -> ml_collections.ConfigDict:
    """The config with the numbers of images, and where the user has not set them, neighbours that these allow."""
    data = from_config(config.data, Data)
    made = split.make_split(datasets.load(data, private=config.report.private), data, config.seed)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.num_members, config.data.num_heldout = len(made["members"]), len(made["heldout"])
    least = min(config.data.num_members, config.data.num_heldout)
    for metric in map(from_config(config.evaluate, Evaluate).make_metric, METRICS.values()):
        key = f"{metric.name}_{metric.references_setting}"
        excess = metric.references_needed - least
        if metric.references_setting and excess > 0 and f"evaluate.{key}" not in given:
            with config.unlocked():
                config.evaluate[key] = max(1, config.evaluate[key] - excess)
    return config


def _value(config: ml_collections.ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


@contextlib.contextmanager
def spoken(names: Mapping[str, str]) -> Iterator[None]:
    """In this block, messages call settings by other names, such as OPTIONS."""
    try:
        yield
    except InputError as error:
        text = str(error)
        for setting, name in names.items():
            text = text.replace(setting, name)
        raise type(error)(text) from None
