"""Stage evaluate: scores every extraction run against the members and, as a control, equally many held-out images."""

import logging
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, structs

from side_jax.attacks.table import Run
from side_jax.data.sides import Side
from side_jax.devices import process_group
from side_jax.features import extractors
from side_jax.measure import records, target_scores
from side_jax.measure.measurement import measure
from side_jax.measure.scoring import Scorer
from side_jax.progress import doing, progress
from side_jax.sampling import shards
from side_jax.settings import Settings, random_streams
from side_jax.stages import estimates, label_scan, stage_inputs, stage_table
from side_jax.stages.stage_table import EVALUATION_VERSION
from side_jax.workdir import files, work_units

logger = logging.getLogger(__name__)


def run(settings: Settings, workdir: Path) -> None:
    """Writes evaluate/results.json, matches.csv (one row per generated image) and members.csv.

    With evaluate.label_images, also labels.csv and labels.png.
    """
    work = stage_table.evaluation_unit(settings, workdir)
    if work.begin():
        if process_group.primary():  # evaluation is cheap compared with sampling; the others wait
            _evaluate(settings, workdir, work)
        work.finish(has_labels=bool(settings.evaluate.label_images))


def _evaluate(settings: Settings, workdir: Path, work: work_units.Unit) -> None:
    seed = random_streams.stream_seed(settings, "evaluate")
    with doing("reading the images"):
        members, heldout = stage_inputs.load_sides(settings, workdir)
    embed = None
    if settings.uses_features:
        embed = extractors.member_frame(stage_inputs.build_extractor(settings, workdir), members.images)
    e, people = settings.evaluate, (members.groups, heldout.groups)
    with doing("comparing members with held-out images"):
        scorer = Scorer(
            members.images,
            heldout.images,
            e.make_metrics(),
            e,
            seed=seed,
            embed=embed,
            groups=None if heldout.groups is None else people,
            shared=members.shared,
        )
    target, scores = stage_inputs.load_target_scores(settings, workdir), {}
    if e.membership:
        for name, side in (("members", members), ("heldout", heldout)):
            with doing(f"scoring the membership of {name}"):
                scores[name] = target.scores(target_scores.MEMBERSHIP, side.images, f"membership/{name}")
    units = stage_table.extraction_units(settings, workdir)
    runs = (
        (_record(settings, attack_run), shards.stream(stage_table.extracted_shards(settings, unit)))
        for attack_run, unit in progress(units, total=len(units), description="evaluate", unit="run")
    )
    distribution_embed = embed if e.distribution else None
    options = {"embed": distribution_embed, "evidence": scores, "seed": seed, "chosen": _fittest(units)}
    measured = measure(work.directory, runs, members, heldout, scorer, e, **options)
    split_counts = files.read_json(workdir / "train" / "split.json")["counts"]
    results = records.Results(
        **structs.asdict(measured),
        dataset=records.Dataset(
            name=settings.data.tfds_name or settings.data.name,
            members=len(members),
            heldout=len(heldout),
            heldout_used=scorer.sizes["heldout"],
            members_untested=int(members.shared.sum()),
            groups=UNSET if heldout.groups is None else tuple(len(np.unique(of)) for of in people),
            member_near_pairs=split_counts["near_duplicate_pairs_within_members"],
            heldout_near_dropped=split_counts["near_duplicates_moved"],
            reading=records.Reading(**split_counts.get("reading", {})),  # earlier versions did not count
            image_shape=members.images.shape[1:],
            split_sha256=files.file_digest(workdir / "train" / "split.json"),
        ),
        membership=target_scores.quality(scores, settings, heldout.groups) if scores else None,
        divergence=_divergence(settings, workdir, target, members, heldout) if e.divergence else None,
        target=target.describe(members.images, heldout.images),
        label_spread=label_scan.write(settings, work.directory, target) if e.label_images else UNSET,
        surrogate=_surrogate(settings, workdir),
        classifiers=_classifiers(settings, workdir),
        versions=records.versions(),
    )
    records.write(work.directory / "results.json", results)
    logger.info("evaluate: %d rows in %s.", len(results.rows), work.directory / "results.json")


def _divergence(
    settings: Settings, workdir: Path, target: target_scores.TargetScores, members: Side, heldout: Side
) -> records.Divergence:
    """The memorisation divergence, kept beside the model: another threshold of a metric does not change it."""
    name, e, train = "train/divergence.json", settings.evaluate, stage_table.train_unit(settings, workdir)
    path = workdir / name
    own = {"model": target.digest, "seed": settings.seed, "version": EVALUATION_VERSION}
    own |= {"epsilon": e.divergence_epsilon, "draws": e.divergence_draws}
    own |= {"split": stage_inputs.split_digest(files.read_json(workdir / "train" / "split.json"))}
    recorded = path.exists() and name in train.digests()  # which load_split has compared
    kept = files.read_json(path) if recorded else {}
    if kept.get("of") != own:
        found = target.divergence(members.images, heldout.images[: len(members)])
        kept = {"of": own, "divergence": msgspec.to_builtins(found)}
        files.write_json(path, kept)
        train.record(path)
    return msgspec.convert(kept["divergence"], records.Divergence)


def _record(settings: Settings, run: Run) -> records.Run:
    """A run as results.json has it."""
    known: dict[str, Any] = {"network_calls": estimates.network_calls(settings, run)}
    if requests := estimates.requests(run):
        known["requests"] = requests
    if run.start:
        known |= {"start": run.start, "rounds": run.rounds}
        known |= {"last_steps": run.last_steps} if run.last_steps else {"noise_level": run.noise}
    return records.Run(attack=run.attack, guidance_scale=run.scale, **known)


def _fittest(units: list[tuple[Run, work_units.Unit]]) -> dict[str, list[int]]:
    """Of each search, by its run's name, the indices of the fittest image of each generation."""
    found = {run.name: unit.content().get("best_of_generation") for run, unit in units}
    return {name: chosen for name, chosen in found.items() if chosen}


def _classifiers(settings: Settings, workdir: Path) -> dict[str, records.Classifier]:
    """What each classifier learned from, and what it knows at each noise level."""
    classifiers = {}
    for name, work in stage_table.classifier_units(settings, workdir).items():
        content = work.content()
        counts = {key: content[key] for key in ("classes", "images", "held_back", "steps")}
        levels = tuple(records.NoiseLevel(**level) for level in files.read_json(work.directory / "levels.json"))
        classifiers[name] = records.Classifier(**counts, levels=levels)
    return classifiers


def _surrogate(settings: Settings, workdir: Path) -> records.Surrogate | None:
    """The outcome of the label stage, where SIDE ran."""
    if not settings.extract.needs_pseudo_labels:
        return None
    content = stage_table.unit(settings, workdir, "label").content()
    for name in ("unit", "fingerprint", "format", "side_jax", "done", work_units.DIGESTS):
        content.pop(name, None)  # earlier versions did not record all of them
    return records.Surrogate(
        **content, assignment=settings.label.assignment, synthetic_images=settings.synthesize.num_images
    )
