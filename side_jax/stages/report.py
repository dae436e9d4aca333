"""Stage 7: report/index.html, one self-contained page that says how much came out, beside its control."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import jinja2
import ml_collections
import numpy as np

from side_jax import builders, curves, files, images, manifest, monitor, parallel, plots, sampling, shards
from side_jax.config import from_config
from side_jax.memorization import neighbors
from side_jax.memorization.metrics import difference_interval, joined, match
from side_jax.settings import ATTACKS, Run, Settings

TRIPLES_SHOWN = 24


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes report/index.html, report/guidance.png and report/matches_<run>.png."""
    settings = from_config(config)
    work = manifest.report_unit(settings, workdir)
    if work.begin():
        galleries = _write(config, settings, workdir, work) if parallel.primary() else []
        work.finish(page="index.html", galleries=galleries)


def _write(config: ml_collections.ConfigDict, settings: Settings, workdir: Path, work: manifest.Unit) -> list[str]:
    """Returns the names of the galleries' pictures."""
    results = files.read_json(workdir / "evaluate" / "results.json")
    headline = [row for row in results["rows"] if row["metric"] == settings.evaluate.metrics[0]]
    figure = plots.guidance(headline)
    galleries = []
    for row in _shown(headline):
        gallery = _gallery(settings, workdir, row)
        galleries.append(gallery)
        with files.atomic(work.directory / f"matches_{gallery['name']}.png") as file:
            file.write(gallery.pop("png"))
    with files.atomic(work.directory / "guidance.png") as file:
        file.write(figure)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("side_jax", "stages"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = percent
    page = environment.get_template("report.html.j2").render(
        settings=settings,
        results=results,
        sentences=sentences(results, settings),
        by_metric=[
            (name, [row for row in results["rows"] if row["metric"] == name]) for name in settings.evaluate.metrics
        ],
        figure=images.data_uri(figure),
        galleries=galleries,
        training=_training(workdir),
        attacks=ATTACKS,
        knowledge=_knowledge(results["classifiers"]),
        pictures={
            name: images.data_uri((workdir / path).read_bytes())
            for name, path in (("samples", "synthesize/samples.png"), ("clusters", "label/clusters.png"))
            if results["surrogate"]
        },
        config=json.dumps(config.to_dict(), indent=2),
    )
    with files.atomic(work.directory / "index.html", "w") as file:
        file.write(page)
    return [f"matches_{gallery['name']}.png" for gallery in galleries]


def _training(workdir: Path) -> dict[str, Any] | None:
    """The curves of training and what the monitor found; None for a foreign model, which was not trained here."""
    metrics, watched = (curves.read(workdir / "train" / f"{name}.jsonl") for name in ("metrics", "monitor"))
    if not metrics:
        return None
    figure = images.data_uri(plots.training(metrics, watched))
    return {"figure": figure, "began": monitor.began(watched) if watched else None, "last": watched[-1:]}


def _knowledge(classifiers: dict[str, Any]) -> str | None:
    """The figure of what each classifier knows at each noise level; None where nothing is guided."""
    if not classifiers:
        return None
    rows = {name: found["levels"] for name, found in classifiers.items()}
    chance = {name: 1 / found["classes"] for name, found in classifiers.items()}
    return images.data_uri(plots.noise_levels(rows, chance))


def percent(rate: float) -> str:
    """A rate in [0, 1] for people: 0.0254 -> 2.54%."""
    return f"{100 * rate:.2f}%"


def best(rows: list[dict[str, Any]], attack: str) -> dict[str, Any] | None:
    """The row of an attack's guidance scale with the highest AMS, the smaller scale on ties."""
    own = [row for row in rows if row["attack"] == attack]
    return max(own, key=lambda row: (row["ams"], -row["guidance_scale"]), default=None)


def _shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    shown = ("side", "conditional", "conditional_x0", "unconditional")
    return [row for row in (best(rows, attack) for attack in shown) if row]


def sentences(results: dict[str, Any], settings: Settings) -> list[str]:
    """The most important figures in plain words: what leaks unguided, what SIDE adds, and the controls."""
    rows = [row for row in results["rows"] if row["metric"] == settings.evaluate.metrics[0]]
    members = results["dataset"]["members"]
    plain, side, *conditional = (
        best(rows, attack) for attack in ("unconditional", "side", "conditional", "conditional_x0")
    )
    baseline = max(filter(None, conditional), key=lambda row: row["ams"], default=None)
    said = []
    if plain:
        said.append(
            f"Sampled as it is, {percent(plain['ams'])} of {plain['n_generated']:,} images match a training image: "
            f"{plain['unique']} of the {members} members came out."
        )
    strongest = max((row for row in (side, baseline, plain) if row), key=lambda row: row["ams"], default=rows[0])
    for row, name in ((side, "SIDE"), (baseline, "the conditional baseline")):
        if row is None or (row is baseline and side):
            continue
        compared = ""
        if plain and plain["ams"] > 0:
            times = row["ams"] / plain["ams"]
            compared = (
                f", {times:.1f} times the rate" if times > 1 else f", NO more than without it ({times:.2f} times)"
            )
        said.append(
            f"Guided by {name} at its best scale ({row['guidance_scale']:g}), {percent(row['ams'])} match{compared}: "
            f"{row['unique']} members came out"
            + (", fewer than without it." if plain and row["unique"] < plain["unique"] else ".")
        )
    if side and baseline:
        better = "conditional baseline" + (" (shown the predicted clean image)" if baseline is conditional[1] else "")
        said[-1] += f" The {better} reaches {percent(baseline['ams'])} at its best."
    if side and plain:
        said.append(_random_control(side, plain, best(rows, "side_random"), settings.evaluate.confidence))
    low, high = strongest["heldout_ams_ci"]
    level = f"{100 * settings.evaluate.confidence:g}%"
    said.append(
        f"Control: of the same {strongest['n_generated']:,} images, {percent(strongest['heldout_ams'])} match one of "
        f"{results['dataset']['heldout']} images that the model never saw ({level} interval {percent(low)} to "
        f"{percent(high)})."
    )
    return said


def _random_control(side: dict, plain: dict, control: dict | None, confidence: float) -> str:
    """Whether SIDE's gain survives the control of random labels, in words; each row is of an attack's best scale."""
    if control is None:
        return (
            "Not controlled: whether random labels would do as well is not known; add side_random to extract.attacks."
        )

    def ahead_of(other: dict) -> tuple[float, float]:
        trials = side["n_generated"], other["n_generated"]
        hits = round(side["ams"] * trials[0]), round(other["ams"] * trials[1])
        return difference_interval(hits, trials, confidence)

    at = f"Control: with random pseudo-labels of the same sizes, at most {percent(control['ams'])} match"
    if ahead_of(plain)[0] <= 0:
        return f"{at}; SIDE itself gains nothing significant over no guidance that a control would have to explain."
    low, high = (100 * end for end in ahead_of(control))
    verdict = "survives" if low > 0 else "does NOT survive"
    return (
        f"{at}: the gain of SIDE {verdict} this control ({100 * confidence:g}% interval of the difference {low:+.2f} "
        f"to {high:+.2f} points)."
    )


def in_plain_words(config: ml_collections.ConfigDict, workdir: Path) -> str:
    """What the command line prints at its end."""
    results = files.read_json(workdir / "evaluate" / "results.json")
    lines = [f"  {i}. {text}" for i, text in enumerate(sentences(results, from_config(config)), start=1)]
    return "\n".join(["", *lines, f"Report: {workdir / 'report' / 'index.html'}"])


def _gallery(settings: Settings, workdir: Path, row: dict[str, Any]) -> dict[str, Any]:
    """The closest match of each extracted member: generated | nearest member | nearest held-out."""
    run_of = Run(attack=row["attack"], scale=row["guidance_scale"])
    work = next(work for found, work in manifest.extraction_units(settings, workdir) if found == run_of)
    parts = builders.extracted_shards(settings, work)
    members, heldout, member_ids, heldout_ids = builders.load_split(settings, workdir)
    sides = [jnp.asarray(sampling.to_float(side.images)) for side in (members, heldout)]
    metric = builders.build_metrics(settings)[:1]
    found = [
        [match(sampling.to_float(made["images"]), side, metric)[0] for side in sides] for made in shards.stream(parts)
    ]
    scored, control = (joined(list(side)) for side in zip(*found, strict=True))
    order = np.argsort(scored.value, kind="stable")
    first = {}
    for i in order[scored.matched[order]]:
        first.setdefault(scored.nearest[i], i)
    chosen = np.asarray(list(first.values())[:TRIPLES_SHOWN], np.int64)
    made = shards.pick(parts, chosen) if len(chosen) else np.empty((0, *members.images.shape[1:]), np.uint8)
    rmse = [neighbors.nearest(sampling.to_float(made), side, 1)[0][:, 0] for side in sides] if len(chosen) else []
    triples = np.stack([made, members.images[scored.nearest[chosen]], heldout.images[control.nearest[chosen]]], axis=1)
    cells = [
        {
            "index": int(i),
            "member": int(member_ids[scored.nearest[i]]),
            "heldout": int(heldout_ids[control.nearest[i]]),
            "value": float(scored.value[i]),
            "heldout_value": float(control.value[i]),
            "rmse": float(rmse[0][j]),
            "heldout_rmse": float(rmse[1][j]),
            "picture": images.data_uri(images.png(images.grid(triples[j], columns=3, side=64))),
        }
        for j, i in enumerate(chosen)
    ]
    if not len(chosen):
        triples = np.full((1, 3, *made.shape[1:]), 255, np.uint8)
    strips = np.stack([np.asarray(images.grid(triple, columns=3)) for triple in triples])
    strips = strips.reshape((*strips.shape[:3], made.shape[-1]))
    return {"name": run_of.name, "row": row, "cells": cells, "png": images.png(images.grid(strips, 4, side=1, gap=10))}
