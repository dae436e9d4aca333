"""Chooses the settings of an audit that fits into a given time, by timed steps of its model on this machine.

The richest of a few levels that fits is taken, with as many images as the time allows. Plain sampling and mode seeking
come first: for the same calls of the network they find more than SIDE (docs/results_modes.md), which joins where there
is time for it. What a user has set stays.
"""

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from side_jax import builders
from side_jax.attacks.table import ATTACKS, NOISE, PLAIN
from side_jax.errors import InputError
from side_jax.measure import target_scores
from side_jax.pipeline import plan
from side_jax.pipeline.clock import Clock
from side_jax.settings import Settings
from side_jax.stages import estimates, stage_table

logger = logging.getLogger(__name__)

SHARE = 0.7  # of the time that is planned for: steps may take longer than they did when they were timed
MOST = 10_000  # images of each attack
EXTRAS = 0.15  # share of the time that each further measure of the model may take
BATCHES = {"cpu": 64}  # images sampled together, at most
BATCH = 256  # on accelerators
LEAST_PROBED = 8  # images of each side whose denoising loss is computed
STEP = 4.0  # seconds that a step of a batch should take at most
_UNITS = {"s": 1, "min": 60, "h": 3600}
_SEEKING = tuple(name for name, attack in ATTACKS.items() if attack.seeks_modes and attack.default)
_SIDE = tuple(
    part for name, attack in ATTACKS.items() if attack.random_control for part in (name, attack.random_control)
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    """One depth of an audit.

    Attributes:
      attacks: that it runs; (): those that the user asks for.
      images: of each attack, at least.
      steps: of sampling.
    """

    attacks: tuple[str, ...]
    images: int
    steps: int


LEVELS = (
    Level(attacks=(PLAIN.name, *_SIDE, *_SEEKING), images=2048, steps=20),
    Level(attacks=(PLAIN.name, *_SEEKING), images=64, steps=20),
    Level(attacks=(PLAIN.name, *_SEEKING), images=16, steps=10),
)
# What SIDE needs beside its images, small enough for a CPU; each label has a few dozen synthetic images.
_GUIDED = {
    "synthesize.num_images": 2048,
    "surrogate.num_steps": 2000,
    "extract.guidance_scales": (3.0, 10.0),
}


def seconds(text: str | float) -> float:
    """A time as a user writes it, such as 90s, 10min or 1.5h, or a number of seconds.

    Raises:
      InputError: if it is neither, or not above 0.
    """
    found = re.fullmatch(r"([0-9.]+) *(s|min|h)", str(text).strip())
    try:
        value = float(found[1]) * _UNITS[found[2]] if found else float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(f"the budget {text!r} is no time; give one such as 90s, 10min or 2h.")
    return value


def batch_size(settings: Settings) -> int:
    """Images to sample together: fewer where the network is so large that one step of a batch would take long."""
    params = jax.eval_shape(builders.init_fn(builders.build_network(settings), settings, 0))
    x = jax.ShapeDtypeStruct((1, *builders.sampled_shape(settings)), jnp.float32)
    index = jax.ShapeDtypeStruct((1,), jnp.int32)
    lowered = jax.jit(builders.build_denoise(settings)).lower({"dpm": params}, x, index, index)
    cost: Mapping[str, float] = lowered.cost_analysis() or {}
    each = cost.get("flops", 0.0) / 2 * Clock(settings).product() / jax.local_device_count()
    size = BATCHES.get(jax.default_backend(), BATCH)
    while size > jax.local_device_count() and size * each > STEP:
        size //= 2
    return max(size, jax.local_device_count())


def choose(
    settings: Settings, workdir: Path, time_left: float, given: Set[str], attacks: Sequence[str] = ()
) -> tuple[Settings, Clock]:
    """The settings of the audit that fits into `time_left` seconds, and the clock that timed its steps.

    Args:
      settings: with the data, the target and the batch size; resolved.
      workdir: of the run.
      time_left: in seconds.
      given: the settings that the user has set, such as "extract.num_images"; these stay.
      attacks: that the user asks for; (): those of the level.

    Raises:
      InputError: if not even the least audit fits.
    """
    levels = LEVELS
    if attacks:
        levels = tuple(Level(attacks=tuple(attacks), images=one.images, steps=one.steps) for one in LEVELS[1:])
    clock = Clock(settings)
    for level in levels:
        chosen = _at(settings, level, given)
        if level is not levels[-1] and _least(chosen, level.images, clock) > SHARE * time_left:
            continue  # without timing what else it needs
        chosen = _extras(chosen, time_left, given, clock)
        if fitted := _fitted(chosen, workdir, time_left, given, clock, level.images):
            return fitted, clock
    count = _needed(chosen, max(levels[-1].images, chosen.sampler.batch_size))
    least = _changed(chosen, {"extract.num_images": count}, given)
    need = planned(least, workdir, clock) / SHARE
    raise InputError(
        f"the smallest audit of this model, with {least.extract.num_images} images of each attack, takes about "
        f"{plan.duration(need)} on this machine, but {plan.duration(max(time_left, 0.0))} are left of the budget; give "
        "more time."
    )


def refit(settings: Settings, workdir: Path, time_left: float, given: Set[str], clock: Clock) -> Settings:
    """The same settings with the number of images that fits into the time that is left, at most as many as before."""
    fewer = _fitted(settings, workdir, time_left, given, clock, settings.sampler.batch_size)
    return fewer or _changed(settings, {"extract.num_images": _needed(settings, settings.sampler.batch_size)}, given)


def planned(settings: Settings, workdir: Path, clock: Clock) -> float:
    """The seconds that are left of an audit, see plan.py."""
    lines = plan.lines(settings, workdir, stage_table.audit_stages(), clock)
    return sum(line.seconds for line in lines)


def _least(settings: Settings, images: int, clock: Clock) -> float:
    """Seconds of the calls of the network alone."""
    calls = images * sum(run.round_calls or estimates.network_calls(settings, run) for run in settings.runs())
    calls += settings.needs_synthetic * settings.synthesize.num_images * settings.sampler.num_steps
    step = clock.for_plan(settings).sampling_step(None).step
    return calls / settings.sampler.batch_size * step / jax.device_count()


def _at(settings: Settings, level: Level, given: Set[str]) -> Settings:
    """The settings of a level, with as many images as it has at least."""
    guided = any(ATTACKS[name].guided or ATTACKS[name].searches for name in level.attacks if name in ATTACKS)
    steps = min(level.steps, settings.diffusion.num_timesteps)
    changes: dict[str, Any] = {"extract.attacks": level.attacks, "sampler.num_steps": steps}
    if PLAIN.name not in level.attacks:
        changes["modes.starts"] = (NOISE,)
    changes |= _GUIDED if guided else {}
    changes |= {"extract.num_images": MOST}
    return _changed(settings, changes, given)


def _extras(settings: Settings, time_left: float, given: Set[str], clock: Clock) -> Settings:
    """The settings with those measures of the model that take little of the time; the others are left out.

    The denoising loss, which every audit has, is that of fewer images.
    """
    each = clock.for_plan(settings).sampling_step(None).step / settings.sampler.batch_size / jax.device_count()
    affordable = int(EXTRAS * time_left / (2 * target_scores.REPEATS * each))
    most = max(LEAST_PROBED, min(settings.evaluate.loss_images, affordable))
    off = {"evaluate.membership": False, "evaluate.divergence": False}
    without = _changed(settings, off | {"evaluate.loss_images": most}, given)
    for name in ("membership", "divergence"):
        if f"evaluate.{name}" in given or not getattr(settings.evaluate, name):
            continue
        extra = _changed(without, {f"evaluate.{name}": True}, given)
        more = estimates.asked(extra, clock.for_plan(extra)) - estimates.asked(without, clock.for_plan(without))
        without = extra if more <= EXTRAS * time_left else without
    return without


def _fitted(
    settings: Settings, workdir: Path, time_left: float, given: Set[str], clock: Clock, least: int
) -> Settings | None:
    """The settings with the most images that fit, at most those they have; None if not even `least` do."""
    batch, most = settings.sampler.batch_size, settings.extract.num_images
    least = _needed(settings, least)
    if "extract.num_images" in given:
        return settings if planned(settings, workdir, clock) <= SHARE * time_left else None
    counts = sorted({min(most, -(-count // batch) * batch) for count in (least, *range(batch, most + batch, batch))})
    counts = [count for count in counts if count >= min(least, most)]
    low, high = -1, len(counts) - 1
    while low < high:  # the largest count that fits lies in counts[low..high]; -1: none does
        middle = (low + high + 1) // 2
        some = _changed(settings, {"extract.num_images": counts[middle]}, given)
        low, high = (middle, high) if planned(some, workdir, clock) <= SHARE * time_left else (low, middle - 1)
    return _changed(settings, {"extract.num_images": counts[low]}, given) if low >= 0 else None


def _needed(settings: Settings, images: int) -> int:
    """So many images, or as many more as a search needs for its first generations."""
    return max(images, builders.search_order(settings).size if settings.extract.searches else 0)


def _changed(settings: Settings, changes: Mapping[str, Any], given: Set[str]) -> Settings:
    """The settings with changes such as {"extract.num_images": 64}, without those of what the user has set."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        if key not in given:
            section, _, name = key.partition(".")
            sections.setdefault(section, {})[name] = value
    parts = {name: dataclasses.replace(getattr(settings, name), **values) for name, values in sections.items()}
    return dataclasses.replace(settings, **parts)
