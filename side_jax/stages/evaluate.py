"""Stage evaluate: scores every extraction run against the members and, as a control, equally many held-out images."""

import logging
import platform
from pathlib import Path
from typing import Any

import jax

from side_jax import __version__, builders
from side_jax.devices import process_group
from side_jax.features import extractors
from side_jax.measure import target_scores
from side_jax.measure.measurement import measure
from side_jax.measure.scoring import Scorer
from side_jax.progress import progress
from side_jax.sampling import shards
from side_jax.settings import Settings, random_streams
from side_jax.stages import stage_inputs, stage_table
from side_jax.workdir import files, work_units

logger = logging.getLogger(__name__)


def run(settings: Settings, workdir: Path) -> None:
    """Writes evaluate/results.json, matches.csv (one row per generated image) and members.csv."""
    work = stage_table.evaluation_unit(settings, workdir)
    if work.begin():
        if process_group.primary():  # evaluation is cheap compared with sampling; the others wait
            _evaluate(settings, workdir, work)
        work.finish()


def _evaluate(settings: Settings, workdir: Path, work: work_units.Unit) -> None:
    seed = random_streams.stream_seed(settings, "evaluate")
    members, heldout = stage_inputs.load_sides(settings, workdir)
    embed = None
    if settings.uses_features:
        embed = extractors.member_frame(stage_inputs.build_extractor(settings, workdir), members.images)
    e, groups = settings.evaluate, heldout.groups
    metrics = builders.build_metrics(e)
    scorer = Scorer(members.images, heldout.images, metrics, e, seed=seed, embed=embed, groups=groups)
    target, scores = stage_inputs.load_target_scores(settings, workdir), {}
    if e.membership:
        for name, side in (("members", members), ("heldout", heldout)):
            scores[name] = target.scores(target_scores.MEMBERSHIP, side.images, f"membership/{name}")
    units = stage_table.extraction_units(settings, workdir)
    runs = (
        ((attack_run.attack, attack_run.scale), shards.stream(stage_table.extracted_shards(settings, unit)))
        for attack_run, unit in progress(units, total=len(units), description="evaluate", unit="run")
    )
    with_laws = embed if e.distribution else None
    results = measure(work.directory, runs, members, heldout, scorer, e, embed=with_laws, evidence=scores, seed=seed)
    results |= {
        "dataset": {
            "name": settings.data.tfds_name or settings.data.name,
            "members": len(members),
            "heldout": len(heldout),
            "heldout_used": scorer.sizes["heldout"],
            "image_shape": list(members.images.shape[1:]),
            "split_sha256": files.file_digest(workdir / "train" / "split.json"),
        },
        "membership": target_scores.quality(scores, settings, groups) if scores else {},
        "divergence": target.divergence(members.images, heldout.images[: len(members)]) if e.divergence else {},
        "target": target.about
        | {"denoising_loss_members": target.mean_loss(members.images)}
        | {"denoising_loss_heldout": target.mean_loss(heldout.images)},
        "surrogate": _surrogate(settings, workdir),
        "classifiers": _classifiers(settings, workdir),
        "versions": {"side_jax": __version__, "jax": jax.__version__, "python": platform.python_version()},
    }
    files.write_json(work.directory / "results.json", results)
    logger.info("evaluate: %d rows in %s.", len(results["rows"]), work.directory / "results.json")


def _classifiers(settings: Settings, workdir: Path) -> dict[str, Any]:
    """The training data of each classifier, and its accuracy and calibration at each noise level."""
    summaries = {}
    for name, work in stage_table.classifier_units(settings, workdir).items():
        content = work.content()
        summaries[name] = {key: content[key] for key in ("classes", "images", "held_back", "steps")}
        summaries[name]["levels"] = files.read_json(work.directory / "levels.json")
    return summaries


def _surrogate(settings: Settings, workdir: Path) -> dict[str, Any]:
    """The results of the label stage; empty if it did not run."""
    if not settings.extract.needs_pseudo_labels:
        return {}
    content = stage_table.unit(settings, workdir, "label").content()
    for name in ("unit", "fingerprint", "format", "done"):
        del content[name]
    return content | {"assignment": settings.label.assignment, "synthetic_images": settings.synthesize.num_images}
