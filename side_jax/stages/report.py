"""Stage 7: report/index.html, one self-contained page that says how much came out, beside its control."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from side_jax.attacks.table import Run
from side_jax.devices import process_group
from side_jax.report import findings, plots, writer
from side_jax.report.figures import Drawn
from side_jax.report.findings import percent
from side_jax.report.writer import Audit
from side_jax.sampling import shards
from side_jax.settings import Settings
from side_jax.stages import stage_inputs, stage_table
from side_jax.training import monitor
from side_jax.workdir import curves, files, work_units

_PATHS = (
    *(("data", key) for key in ("path", "data_dir", "heldout_from")),
    *(("target", "path"), ("condition", "path"), ("label", "weights"), ("surrogate", "teacher_path")),
)


def run(settings: Settings, workdir: Path) -> None:
    """Writes report/index.html, and its figures beside it as PNG."""
    work = stage_table.report_unit(settings, workdir)
    if work.begin():
        drawn = _write(settings, workdir, work) if process_group.primary() else []
        work.finish(page="index.html", figures=drawn)


def _write(settings: Settings, workdir: Path, work: work_units.Unit) -> list[str]:
    """Returns the names of the figures' files."""
    results = files.read_json(workdir / "evaluate" / "results.json")
    members, heldout = stage_inputs.load_sides(settings, workdir)
    units = dict(stage_table.extraction_units(settings, workdir))

    def fetch(attack: str, scale: float, index: np.ndarray) -> np.ndarray:
        return shards.pick(stage_table.extracted_shards(settings, units[Run(attack=attack, scale=scale)]), index)

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
        notes=(_made(results, settings),),
        provenance=_provenance(results, settings),
        config=json.dumps(_shown(settings), indent=2),
    )
    return writer.write(audit, work.directory)


def _figures(results: dict[str, Any], settings: Settings, workdir: Path) -> list[Drawn]:
    """What only an audit of a model has: its training, its samples, their clusters, and what the classifiers know."""
    drawn = [figure for figure in (_training(settings, workdir), _knowledge(results["classifiers"])) if figure]
    sheets = (
        ("samples", "synthesize/samples.png", "Samples of the model, unguided", "Unguided samples of the model"),
        (
            "clusters",
            "label/clusters.png",
            "What SIDE takes for labels",
            "Images of the most and least cohesive clusters",
        ),
    )
    if results["surrogate"]:
        for name, path, heading, alt in sheets:
            note = _clusters(results["surrogate"]) if name == "clusters" else ""
            png = (workdir / path).read_bytes()
            drawn.append(Drawn(name=name, heading=heading, png=png, alt=alt, note=note, reveals=True))
    return drawn


def _training(settings: Settings, workdir: Path) -> Drawn | None:
    """The curves of training and what the monitor found; None for a foreign model, which was not trained here."""
    metrics, watched = (curves.read(workdir / "train" / f"{name}.jsonl") for name in ("metrics", "monitor"))
    if not metrics:
        return None
    return Drawn(
        name="training",
        heading="When did memorisation begin?" if watched else "Training",
        png=plots.training(metrics, watched),
        alt="Loss and the memorisation monitor against the training step"
        if watched
        else "Loss against the training step",
        note=_began(watched, settings) if watched else "Not watched: set monitor.every_steps to see when it begins.",
    )


def _began(watched: list[dict[str, Any]], settings: Settings) -> str:
    began, last = monitor.began(watched), watched[-1]
    copied, closer = (
        f"From step {step:,} on" if (step := began[key]) is not None else "At no step that was looked at"
        for key in ("copied", "closer")
    )
    said = (
        f"{copied}, significantly more samples copy a member (d1 / d2 < 1/3) than copy a held-out image. {closer}, "
        "significantly more than half of the samples were closer to a member than to every held-out image. At the last "
        f"look {percent(last['copied'])} copied a member, {percent(last['copied_heldout'])} a held-out image, and "
        f"{percent(last['closer'])} were closer to a member."
    )
    if settings.data.split_by == "identity":
        said += (
            " The split is by identity: a model that has learned its people without copying a photograph also draws "
            "closer to members, so only copying shows memorisation of images here."
        )
    return said


def _knowledge(classifiers: dict[str, Any]) -> Drawn | None:
    """What each classifier knows at each noise level; None where nothing is guided."""
    if not classifiers:
        return None
    rows = {name: found["levels"] for name, found in classifiers.items()}
    chance = {name: 1 / found["classes"] for name, found in classifiers.items()}
    listed = "; ".join(
        f"{name}: {found['classes']} classes, {found['images']} images, {found['steps']} steps, accuracy "
        f"{percent(found['levels'][0]['accuracy'])} at the least noise and "
        f"{percent(found['levels'][-1]['accuracy'])} at the most, on {found['held_back']} images held back"
        for name, found in classifiers.items()
    )
    return Drawn(
        name="classifiers",
        heading="Where do the classifiers know the label?",
        png=plots.noise_levels(rows, chance),
        alt="Accuracy and calibration of each classifier at each noise level",
        note=f"{listed}. Calibration: expected calibration error (Guo et al. 2017, 15 bins), solid as trained, dashed "
        "after temperature scaling fitted on the other half of those images.",
    )


def _clusters(found: dict[str, Any]) -> str:
    features = ", ".join(f"{key} {value}" for key, value in found["features"].items())
    return (
        f"Features: {features}. Of {found['clusters']} clusters {found['kept']} are kept; "
        f"{found['rejected_by_cohesion']} lack cohesion, {found['empty']} are empty, {found['tiny']} too small, "
        f"{found['duplicate']} duplicates of another. "
        f"{found['featureless']} images have no features, {found['dropped_images']} no label."
    )


def _made(results: dict[str, Any], settings: Settings) -> str:
    """How the images were made."""
    target, surrogate, interval = results["target"], results["surrogate"], settings.extract.guidance_interval
    said = (
        f"Target: {target['parameters']:,} parameters at step {target['step']:,}, {results['dataset']['members']} "
        f"members of {results['dataset']['name']}{_labels(settings)}; denoising loss "
        f"{target['denoising_loss_members']:.4f} on members, {target['denoising_loss_heldout']:.4f} on held-out "
        "images. All attacks make "
        f"{settings.extract.num_images:,} images from the same starting noise. Without guidance: "
        f"{settings.sampler.solver}, {settings.sampler.num_steps} steps; "
        f"guided: {settings.guided_sampler.solver}, {settings.guided_sampler.num_steps} steps"
    )
    if interval:
        asked = "the classifier asked" if settings.extract.classifiers else "with guidance"
        said += f", {asked} at timesteps {interval[0]} to {interval[1]}"
    if surrogate:
        low, high = surrogate["cohesion"][0], surrogate["cohesion"][2]
        said += (
            f". SIDE saw {surrogate['synthetic_images']:,} of the model's own samples and no label; "
            f"{surrogate['kept']} of {surrogate['clusters']} clusters were cohesive enough (cohesion {low:.2f} to "
            f"{high:.2f}; images of the others: {surrogate['assignment']})"
        )
    return said + "."


def _labels(settings: Settings) -> str:
    """The labels that the model was trained with; nothing of an unconditional one."""
    condition = settings.condition
    if not condition.labels:
        return ""
    count = f"{condition.num_labels} label" + "s" * (condition.num_labels > 1)
    return f" with {count} ({condition.labels}), left out for {100 * condition.dropout:g}% of the images it was shown"


def _provenance(results: dict[str, Any], settings: Settings) -> tuple[tuple[str, str], ...]:
    versions, target = results["versions"], results["target"]
    return (
        ("Weights of the model, SHA-256", target["ema_sha256"]),
        ("Split, SHA-256", results["dataset"]["split_sha256"]),
        ("Settings of the evaluation, SHA-256", files.digest(dataclasses.asdict(settings.evaluate))),
        ("Seed", str(settings.seed)),
        *((name, value) for name, value in versions.items()),
        ("Command", "python -m side_jax.main, with the config below"),
        ("Tables", "evaluate/results.json, matches.csv and members.csv in the workdir"),
    )


def _shown(settings: Settings) -> dict[str, Any]:
    """The config; of a private report, without what a path may tell."""
    shown = dataclasses.asdict(settings)
    for section, key in _PATHS if settings.report.private else ():
        shown[section][key] = "(left out)" if shown[section][key] else ""
    return shown


def in_plain_words(settings: Settings, workdir: Path) -> str:
    """What the command line prints at its end."""
    results = files.read_json(workdir / "evaluate" / "results.json")
    return findings.in_plain_words(results, settings.evaluate.confidence, workdir / "report" / "index.html")
