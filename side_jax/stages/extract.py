"""Stage extract: generates N_G images in every run of every attack; all runs share the initial noise."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from side_jax import builders
from side_jax.attacks.table import ATTACKS, Run
from side_jax.sampling import generation, shards
from side_jax.sampling.genetic_search import GeneticSearch, SearchProgram
from side_jax.sampling.mode_generation import ModeGenerator
from side_jax.settings import Settings, random_streams
from side_jax.stages import fit_adapters, stage_inputs, stage_table
from side_jax.workdir import work_units
from side_jax.workdir.work_units import Unit


def run(settings: Settings, workdir: Path) -> None:
    """Writes extract/<run>/shard_*.npz."""
    works = stage_table.extraction_units(settings, workdir)
    base, count = random_streams.stream_key(settings, "extract"), settings.extract.num_images
    # Each model is loaded once, and a sweep over scales compiles once.
    model = functools.cache(functools.partial(_load_model, settings, workdir))
    adapted = functools.cache(functools.partial(fit_adapters.load, settings, workdir))
    load = functools.cache(functools.partial(_load, settings, workdir, model, adapted))
    spread = functools.cache(functools.partial(stage_inputs.training_spread, settings, workdir))
    for attack_run, work in works:
        if not work.begin(lambda work=work: shards.complete(stage_table.extracted_shards(settings, work))):
            continue
        parts = stage_table.extracted_shards(settings, work)
        program, params, classes = load(attack_run.attack, attack_run.steered)
        labels = generation.target_labels(base, count, classes) if classes else np.full(count, -1, np.int32)
        sampler = program or _mode_generator(settings, attack_run, dict(works), spread)
        if isinstance(sampler, SearchProgram):
            sampler = _search(settings, sampler, classes, parts)
            labels = sampler.labels(np.arange(count))
        shards.write(
            sampler,
            parts,
            params=params,
            base=base,
            labels=labels,
            scale=attack_run.scale,
            description=f"extract {attack_run.name}",
        )
        content = {"attack": attack_run.attack, "guidance_scale": attack_run.scale, "index_range": [0, count]}
        if isinstance(sampler, GeneticSearch):
            content["best_of_generation"] = sampler.best(params, base, count)
            content["genome"] = settings.search_genome
        work.finish([part.path for part in parts], **content)
    work_units.finish_stage(workdir, "extract", [work for _, work in works])


def _load_model(settings: Settings, workdir: Path, twin: bool) -> Any:
    """The averaged parameters of the twin or of the target."""
    load = stage_inputs.load_twin if twin else stage_inputs.load_target
    return load(settings, workdir).trees["ema"]


def _load(
    settings: Settings,
    workdir: Path,
    model: Callable[[bool], Any],
    adapted: Callable[[], tuple[Any, int]],
    name: str,
    steered: bool,
) -> tuple[generation.Generator | SearchProgram | None, dict[str, Any], int]:
    """(what samples an attack's images, or None of mode seeking; its parameters; its number of target labels, or 0)."""
    attack = ATTACKS[name]
    if attack.adapted:
        merged, classes = adapted()
        options = {"steered": steered, "sampler": settings.guided_sampler}
        return builders.build_adapted_generator(settings, classes, **options), {"dpm": merged}, classes
    params = {"dpm": model(attack.twin)}
    if attack.seeks_modes:
        return None, params, 0
    classifier, classes = None, settings.condition.num_labels if attack.own_labels else 0
    if attack.classifier:
        classifier, guide = stage_inputs.load_classifier(settings, workdir, attack.classifier)
        params, classes = params | guide, classifier.num_classes
    if attack.searches:
        return builders.build_search_program(settings, classifier), params, classes
    sampler = settings.guided_sampler if attack.guided else settings.sampler
    if attack.weak:
        params["weak"] = stage_inputs.load_weak(settings, workdir).trees["ema"]
    options = {"at_x0": attack.at_x0, "own_labels": attack.own_labels, "weak": attack.weak}
    return builders.build_generator(settings, classifier, sampler=sampler, **options), params, classes


def _search(settings: Settings, program: SearchProgram, classes: int, parts: list[shards.Shard]) -> GeneticSearch:
    """The black-box search, which goes on from the shards that are there."""
    key, stored = random_streams.stream_key(settings, "search"), functools.partial(shards.pick, parts)
    return builders.build_search(program, settings.black_box, key, classes, stored)


def _mode_generator(
    settings: Settings, attack_run: Run, units: dict[Run, Unit], spread: Callable[[], float]
) -> ModeGenerator:
    """The generator of a run of mode seeking, from the images of the run that it starts from."""
    starts, rounds = None, attack_run.rounds
    if attack_run.start_run:
        starts = functools.partial(shards.pick, stage_table.extracted_shards(settings, units[attack_run.start_run]))
    if starts and attack_run.last_steps:
        key = random_streams.stream_key(settings, "requests")
        return builders.build_request_generator(settings, attack_run.last_steps, rounds, key, starts)
    levels = builders.mode_noise_levels(settings, attack_run.noise, rounds, spread())
    return builders.build_mode_generator(settings, levels, starts)
