"""Stage 5: draws N_G images by every attack at every guidance scale, all from the same starting noise."""

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
    loaded: dict[str, tuple[generation.Generator, dict, int]] = {}  # for each attack, so that a sweep compiles once
    dpm = None
    for run_of, work in works:
        parts = stage_table.extracted_shards(settings, work)
        if not work.begin(functools.partial(shards.complete, parts)):
            continue
        if run_of.attack not in loaded:
            if dpm is None:
                dpm = stage_inputs.load_target(settings, workdir).trees["ema"]
            attack, classifier, guide, classes = ATTACKS[run_of.attack], None, {}, 0
            if attack.classifier:
                classifier, guide = stage_inputs.load_classifier(settings, workdir, attack.classifier)
                classes = classifier.num_classes
            elif attack.own_labels:
                classes = settings.condition.num_labels
            options = {"at_x0": attack.at_x0, "own_labels": attack.own_labels}
            by = settings.guided_sampler if run_of.guided else settings.sampler
            generator = builders.build_generator(settings, classifier, by=by, **options)
            loaded[run_of.attack] = generator, {"dpm": dpm} | guide, classes
        generator, params, classes = loaded[run_of.attack]
        count = settings.extract.num_images
        labels = generation.target_labels(base, count, classes) if classes else np.full(count, -1, np.int32)
        shards.write(
            generator,
            parts,
            params=params,
            base=base,
            labels=labels,
            scale=run_of.scale,
            description=f"extract {run_of.name}",
        )
        work.finish(attack=run_of.attack, guidance_scale=run_of.scale, index_range=[0, settings.extract.num_images])
    work_units.finish_stage(workdir, "extract", [work for _, work in works])
