"""Stage report: writes report/index.html, a self-contained page of the extraction results and their controls."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET

from side_jax.attacks.table import Run, get_attack
from side_jax.devices import process_group
from side_jax.measure import records
from side_jax.measure.records import Classifier, Results, Surrogate
from side_jax.memorization import basins
from side_jax.report import matches, phrases, plots, writer
from side_jax.report.figures import Drawn
from side_jax.report.phrases import percent
from side_jax.report.writer import Audit
from side_jax.sampling import shards
from side_jax.settings import Adapters, Label, Settings
from side_jax.settings.paths import path_fields
from side_jax.settings.target import OWN
from side_jax.stages import label_scan, stage_inputs, stage_table, suspects
from side_jax.training import monitor
from side_jax.workdir import curves, files

MODES = 48  # distinct images in the figure of mode seeking
MORE_STARTS = 10  # times as many starts, for which distinct images are predicted


def run(settings: Settings, workdir: Path) -> None:
    """Writes report/index.html and its figures as files of their own."""
    work = stage_table.report_unit(settings, workdir)
    if work.begin():
        drawn = write(settings, workdir, work.directory) if process_group.primary() else []
        work.finish(page="index.html", figures=drawn)


def write(settings: Settings, workdir: Path, directory: Path) -> list[str]:
    """Writes the report of a workdir into a folder; returns the names of its figure files."""
    stage_table.evaluation_unit(settings, workdir).check()
    results = records.read(workdir / "evaluate" / "results.json")
    members, heldout = stage_inputs.load_sides(settings, workdir)
    units = dict(stage_table.extraction_units(settings, workdir))

    def fetch(run: Run, index: np.ndarray) -> np.ndarray:
        return shards.pick(stage_table.extracted_shards(settings, units[run]), index)

    audit = Audit(
        title=f"{settings.name}: how much training data comes out",
        results=results,
        directory=workdir / "evaluate",
        members=members,
        heldout=heldout,
        fetch=fetch,
        confidence=settings.evaluate.confidence,
        report=settings.report,
        figures=tuple(_figures(results, settings, workdir)),
        notes=(_method_note(results, settings),),
        provenance=_provenance(results, settings),
        config=json.dumps(displayed_config(settings), indent=2),
        facts=(("Model", _model(results, settings)),),
    )
    return writer.write(audit, directory)


def _figures(results: Results, settings: Settings, workdir: Path) -> list[Drawn]:
    """The figures of a model's audit: training, classifiers, samples and clusters."""
    figures = (
        _training_figure(settings, workdir),
        _classifier_figure(results.classifiers or {}),
        _modes_figure(results, settings, workdir),
        _labels_figure(results, workdir),
    )
    drawn = [figure for figure in figures if figure]
    sheets = (
        ("samples", "synthesize/samples.png", "Samples of the model, unguided", "Unguided samples of the model"),
        (
            "clusters",
            "label/clusters.png",
            "SIDE's pseudo-labels",
            "Images of the most and least cohesive clusters",
        ),
    )
    if results.surrogate:
        for name, path, heading, alt in sheets:
            note = _cluster_note(results.surrogate) if name == "clusters" else ""
            png = (workdir / path).read_bytes()
            drawn.append(Drawn(name=name, heading=heading, content=png, alt=alt, note=note, reveals=True))
    return drawn


def _modes_figure(results: Results, settings: Settings, workdir: Path) -> Drawn | None:
    """The distinct images of the best run of mode seeking, the most frequent first; None without such a run."""
    rows = [row for row in phrases.headline(results) if row.rounds is not UNSET and get_attack(row.attack).data_free]
    if not rows:
        return None
    row = max(rows, key=lambda row: row.ams)
    unit = dict(stage_table.extraction_units(settings, workdir))[row.key]
    images = shards.read(stage_table.extracted_shards(settings, unit))["images"]
    found = suspects.distinct_modes(images, settings.evaluate.rmse_below)
    columns = matches.select_run(matches.read(workdir / "evaluate" / "matches.csv"), row)
    matched, shown = columns[f"{row.metric}_member_match"] > 0, found.centre[:MODES]
    several = int((found.size > 1).sum())
    return Drawn(
        name="distinct_modes",
        heading=f"Mode seeking leads to {len(found.size):,} distinct images; "
        f"{int(matched[found.centre].sum()):,} match a training image",
        content=plots.modes(images[shown], found.size[:MODES].tolist(), matched[shown].tolist()),
        alt="The distinct images that mode seeking leads to, the most frequent first",
        note=(
            f"Distinct images of {matches.title(row)}: groups with an RMSE below {settings.evaluate.rmse_below:g}. "
            f"Above each: how many of the {len(images):,} images came to it. There are {len(found.size):,}, of which "
            f"{several:,} were reached more than once; {MORE_STARTS} times as many starts are expected to reach "
            f"{basins.expected_modes(found.size, MORE_STARTS):,.0f} or more. Red: it matches a training image. Without "
            "the data an attacker sees the same images."
        ),
        reveals=True,
    )


def _labels_figure(results: Results, workdir: Path) -> Drawn | None:
    """The mean images of the labels whose images are most alike; None where labels were not scanned."""
    scan = results.label_spread
    if scan is UNSET:
        return None
    count = len(scan.flagged)
    found = "nothing is decided" if scan.undecided else f"{count:,} {'is' if count == 1 else 'are'} worth a look"
    shown = min(scan.scanned, label_scan.SHOWN)
    return Drawn(
        name="labels",
        heading=f"Of {scan.scanned:,} labels, {found}",
        content=(workdir / "evaluate" / label_scan.SHEET).read_bytes(),
        alt="The mean image of each label, the label whose images are most alike first",
        note=f"The means of {scan.images} images of each of {shown:,} labels, those whose images are most alike first, "
        f"in the order of evaluate/{label_scan.TABLE}; those worth a look come first. If a label's one training image "
        "is memorised, planted or not, its mean image is that image.",
        reveals=True,
    )


def _training_figure(settings: Settings, workdir: Path) -> Drawn | None:
    """The curves of training and of the monitor; None for an imported model."""
    metrics, watched = (curves.read(workdir / "train" / f"{name}.jsonl") for name in ("metrics", "monitor"))
    if not metrics:
        return None
    return Drawn(
        name="training",
        heading=_training_heading(watched),
        content=plots.training(metrics, watched),
        alt="Loss and the memorisation monitor against the training step"
        if watched
        else "Loss against the training step",
        note=_monitor_note(watched, settings)
        if watched
        else "The monitor was off; set monitor.every_steps to see when memorisation begins.",
    )


def _training_heading(watched: list[dict[str, Any]]) -> str:
    """From which step on more images matched a member than an unseen image."""
    steps = [monitor.onset(watched).get(name) for name in ("matched", "modes_matched")] if watched else []
    first = min((step for step in steps if step), default=None)
    if first:
        return f"From step {first:,} on, more images matched a training image than an unseen one"
    return (
        "At no measured step did clearly more images match a training image than an unseen one" if watched else "Loss"
    )


def _monitor_note(watched: list[dict[str, Any]], settings: Settings) -> str:
    """When memorisation began, and the last measurement."""
    onset, last, clean = monitor.onset(watched), watched[-1], monitor.last_clean(watched)
    begins = {key: f"from step {step:,} on" if step else "at no measured step" for key, step in onset.items()}
    signs = {
        "matched": "samples matched a member than a held-out image",
        "copied": "samples copied a member (d1 / d2 < 1/3) than copied a held-out image",
        "modes_matched": "of the modes that these samples lead to matched a member than a held-out image",
        "modes_copied": "of the modes that these samples lead to copied a member than a held-out image",
    }
    note = "".join(
        f"{begins[key].capitalize()}, significantly more {what}; at the last measurement {percent(last[key])} and "
        f"{percent(last[f'{key}_heldout'])} did. "
        for key, what in signs.items()
        if key in onset
    )
    if "closer" in onset:
        note += (
            f"{begins['closer'].capitalize()}, significantly more samples were closer to a member than to every "
            f"held-out image; at the last measurement {percent(last['closer'])} were."
        )
    if clean is not None and clean < last["step"]:
        note += (
            f" No sample and no mode showed memorisation up to step {clean:,}: a training of so many steps "
            f"(train.num_steps={clean}) ends before it."
        )
    if settings.data.split_by == "identity":
        note += (
            " The split is by identity: a model that has learned the members' identities without copying a photograph "
            "is also closer to members, so only copying shows memorisation of images here."
        )
    return note


def _classifier_figure(classifiers: dict[str, Classifier]) -> Drawn | None:
    """Accuracy and calibration of each classifier at each noise level; None without classifiers."""
    if not classifiers:
        return None
    levels = {name: one.levels for name, one in classifiers.items()}
    chance = {name: 1 / one.classes for name, one in classifiers.items()}
    listed = "; ".join(
        f"{name}: {one.classes} classes, {one.images} images, {one.steps} steps, accuracy "
        f"{percent(one.levels[0].accuracy)} at the lowest noise level and "
        f"{percent(one.levels[-1].accuracy)} at the highest, on {one.held_back} held-back images"
        for name, one in classifiers.items()
    )
    return Drawn(
        name="classifiers",
        heading=_classifier_heading(classifiers),
        content=plots.noise_levels(levels, chance),
        alt="Accuracy and calibration of each classifier at each noise level",
        note=f"{listed}. Calibration: expected calibration error (Guo et al. 2017, 15 bins); solid: as trained; "
        "dashed: after temperature scaling, fitted on the other half of the held-back images.",
    )


def _classifier_heading(classifiers: dict[str, Classifier]) -> str:
    """How well the first classifier recognises its labels with little and with much noise."""
    name, one = next(iter(classifiers.items()))
    return (
        f"The classifier {name} recognises {percent(one.levels[0].accuracy)} of the labels with the least noise, "
        f"{percent(one.levels[-1].accuracy)} with the most (chance: {percent(1 / one.classes)})"
    )


def _cluster_note(surrogate: Surrogate) -> str:
    """The features and the numbers of clusters kept and rejected."""
    features = ", ".join(f"{key} {value}" for key, value in surrogate.features.items())
    return (
        f"Features: {features}. Of {surrogate.clusters} clusters, {surrogate.kept} are kept; "
        f"{surrogate.rejected_by_cohesion} lack cohesion, {surrogate.empty} are empty, {surrogate.tiny} are "
        f"too small, and {surrogate.duplicate} duplicate another one. "
        f"{surrogate.featureless} images have no features, {surrogate.dropped_images} no label."
    )


def _method_note(results: Results, settings: Settings) -> str:
    """How the images were generated."""
    target, surrogate, interval = results.target, results.surrogate, settings.extract.guidance_interval
    note = (
        f"Target: {target.parameters:,} parameters at step {target.step:,}, {results.dataset.members} "
        f"members of {results.dataset.name}{_labels(settings)}; denoising loss "
        f"{target.denoising_loss_members:.4f} on members, {target.denoising_loss_heldout:.4f} on held-out "
        f"images (at most {settings.evaluate.loss_images:,} of each). Every attack generates "
        f"{settings.extract.num_images:,} images from the same initial noise. Unguided: "
        f"{settings.sampler.solver}, {settings.sampler.num_steps} steps; "
        f"guided: {settings.guided_sampler.solver}, {settings.guided_sampler.num_steps} steps"
    )
    if interval:
        note += f", with guidance at timesteps {interval[0]} to {interval[1]}"
    if surrogate:
        low, _, high = surrogate.cohesion
        kinds = {"classifiers": "synthetic" in settings.extract.sources, "adapters": settings.extract.needs_adapters}
        at_modes = f" of them {_at_modes(settings.label)}" if settings.label.rounds else ""
        note += (
            f". The attacker's {' and '.join(name for name, used in kinds.items() if used)} used "
            f"{surrogate.synthetic_images:,} of the model's own samples and no labels; {surrogate.kept} of "
            f"{surrogate.clusters} clusters{at_modes} were cohesive enough (cohesion {low:.2f} to "
            f"{high:.2f}; images of the others: {surrogate.assignment})"
        )
    if settings.extract.needs_adapters:
        own = settings.adapters
        share = f"the {100 * own.keep:g}% of these samples that mode seeking moves least" if own.keep < 1 else ""
        note += (
            f". Adapters of rank {own.rank} at most (kernels: {own.kernels}) and labels were fitted in "
            f"{own.num_steps:,} steps to {share or 'these samples'} {_at_modes(own) if own.rounds else 'as drawn'}"
        )
    return note + "."


def _at_modes(settings: Label | Adapters) -> str:
    """What mode seeking did to samples before they were used."""
    rounds = f"{settings.rounds} round{'' if settings.rounds == 1 else 's'}"
    return f"after {rounds} of mode seeking at noise {settings.noise:g}"


def _model(results: Results, settings: Settings) -> str:
    """The model, for people."""
    target, source = results.target, settings.target
    weights = f"{target.parameters:,} parameters, weights {target.ema_sha256[:12]}"
    if not source.path:
        return f"trained here to step {target.step:,}, {weights}"
    where = "" if settings.report.private else f" {source.path}"
    return f"a model of the format {source.format}{where}, {weights}"


def _labels(settings: Settings) -> str:
    """The labels that the model was trained with; empty for an unconditional model."""
    condition = settings.condition
    if not condition.labels:
        return ""
    what = "prompt" if settings.target.prompts else "label"
    count = f"{condition.num_labels} {what}" + "s" * (condition.num_labels > 1)
    if condition.labels == OWN:
        return f", used with {count}" if settings.target.prompts else f" with {count} of its own"
    return f" with {count} ({condition.labels}), left out for {100 * condition.dropout:g}% of the images in training"


def _provenance(results: Results, settings: Settings) -> tuple[tuple[str, str], ...]:
    return (
        ("Weights of the model, SHA-256", results.target.ema_sha256),
        ("Split, SHA-256", results.dataset.split_sha256),
        ("Settings of the evaluation, SHA-256", files.digest(dataclasses.asdict(settings.evaluate))),
        ("Seed", str(settings.seed)),
        *((name, value) for name, value in results.versions.items()),
        ("Command", "python -m side_jax.main, with the config below"),
        ("Tables", "evaluate/results.json, matches.csv and members.csv in the workdir"),
    )


def displayed_config(settings: Settings) -> dict[str, Any]:
    """The config; without paths in a private report, and the commits that they have in repositories."""
    shown = dataclasses.asdict(settings)
    if settings.report.private:
        for path in path_fields(Settings):
            section = shown[path.section]
            for name in filter(None, (path.name, path.revision)):
                section[name] = "(left out)" if section[name] else ""
    return shown
