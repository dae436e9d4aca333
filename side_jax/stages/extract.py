"""Stage 5: draws N_G images by every attack at every guidance scale, all from the same starting noise."""

import functools
from pathlib import Path

import ml_collections
import numpy as np

from side_jax import builders, manifest, sampling, shards
from side_jax.config import from_config
from side_jax.settings import ATTACKS
from side_jax.stages import surrogate


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes extract/<attack>[_<scale>]/shard_*.npz."""
    settings = from_config(config)
    works = manifest.extraction_units(settings, workdir)
    base = builders.base_key(settings, "extract")
    loaded: dict[str, tuple[sampling.Generator, dict, int]] = {}  # for each attack, so that a sweep compiles once
    dpm = None
    for run_of, work in works:
        parts = builders.extracted_shards(settings, work)
        if not work.begin(functools.partial(shards.complete, parts)):
            continue
        if run_of.attack not in loaded:
            if dpm is None:
                train = builders.train_unit(settings, workdir)
                dpm = builders.restore_ema(settings, train, builders.build_unet(settings)).trees["ema"]
            attack, classifier, guide, classes = ATTACKS[run_of.attack], None, {}, 0
            if attack.classifier:
                classifier, guide = surrogate.load(settings, workdir, run_of.attack)
                classes = classifier.num_classes
            elif attack.own_labels:
                classes = settings.condition.num_labels
            options = {"at_x0": attack.at_x0, "own_labels": attack.own_labels}
            by = settings.guided_sampler if run_of.guided else settings.sampler
            generator = builders.build_generator(settings, classifier, by=by, **options)
            loaded[run_of.attack] = generator, {"dpm": dpm} | guide, classes
        generator, params, classes = loaded[run_of.attack]
        count = settings.extract.num_images
        labels = sampling.target_labels(base, count, classes) if classes else np.full(count, -1, np.int32)
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
    manifest.finish_stage(workdir, "extract", [work for _, work in works])
