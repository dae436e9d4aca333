"""Stage extract: generates N_G images by every attack at every guidance scale, from the same initial noise."""

import functools
from pathlib import Path

import numpy as np

from side_jax import builders
from side_jax.attacks.table import ATTACKS
from side_jax.sampling import generation, shards
from side_jax.settings import Settings, random_streams
from side_jax.stages import stage_inputs, stage_table
from side_jax.workdir import work_units


def run(settings: Settings, workdir: Path) -> None:
    """Writes extract/<attack>[_<scale>]/shard_*.npz."""
    works = stage_table.extraction_units(settings, workdir)
    base = random_streams.stream_key(settings, "extract")
    loaded: dict[
        str, tuple[generation.Generator, dict, int]
    ] = {}  # by attack, so that a sweep over scales compiles once
    dpm = None
    for attack_run, work in works:
        parts = stage_table.extracted_shards(settings, work)
        if not work.begin(functools.partial(shards.complete, parts)):
            continue
        if attack_run.attack not in loaded:
            if dpm is None:
                dpm = stage_inputs.load_target(settings, workdir).trees["ema"]
            attack, classifier, guide, classes = ATTACKS[attack_run.attack], None, {}, 0
            if attack.classifier:
                classifier, guide = stage_inputs.load_classifier(settings, workdir, attack.classifier)
                classes = classifier.num_classes
            elif attack.own_labels:
                classes = settings.condition.num_labels
            options = {"at_x0": attack.at_x0, "own_labels": attack.own_labels}
            sampler = settings.guided_sampler if attack_run.guided else settings.sampler
            generator = builders.build_generator(settings, classifier, sampler=sampler, **options)
            loaded[attack_run.attack] = generator, {"dpm": dpm} | guide, classes
        generator, params, classes = loaded[attack_run.attack]
        count = settings.extract.num_images
        labels = generation.target_labels(base, count, classes) if classes else np.full(count, -1, np.int32)
        shards.write(
            generator,
            parts,
            params=params,
            base=base,
            labels=labels,
            scale=attack_run.scale,
            description=f"extract {attack_run.name}",
        )
        work.finish(
            attack=attack_run.attack, guidance_scale=attack_run.scale, index_range=[0, settings.extract.num_images]
        )
    work_units.finish_stage(workdir, "extract", [work for _, work in works])
