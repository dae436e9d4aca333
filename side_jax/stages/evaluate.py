"""Stage 6: scores every extraction run against the members, and, as its control, against as many held-out images."""

import csv
import functools
import logging
import platform
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from side_jax import __version__, builders, files, manifest, parallel, sampling, shards
from side_jax.config import from_config
from side_jax.diffusion.process import denoising_loss
from side_jax.memorization.metrics import Matches, joined, match, wilson_interval
from side_jax.progress import progress
from side_jax.settings import Settings

logger = logging.getLogger(__name__)


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes evaluate/results.json and evaluate/matches.csv (one row for each generated image)."""
    settings = from_config(config)
    work = manifest.evaluation_unit(settings, workdir)
    if work.begin():
        if parallel.primary():  # the comparison is small beside the sampling; the others wait
            _evaluate(settings, workdir, work)
        work.finish()


def _evaluate(settings: Settings, workdir: Path, work: manifest.Unit) -> None:
    members, heldout, member_ids, heldout_ids = builders.load_split(settings, workdir)
    sides = [jnp.asarray(sampling.to_float(side.images)) for side in (members, heldout)]
    metrics = builders.build_metrics(settings)
    units = manifest.extraction_units(settings, workdir)
    rows = []
    with files.atomic(work.directory / "matches.csv", "w") as file:
        table = csv.writer(file)
        table.writerow(_header([metric.name for metric in metrics]))
        for run_of, unit in progress(units, total=len(units), description="evaluate", unit="run"):
            scored: list[list[Matches]] | None = None  # [side][metric]
            for made in shards.stream(builders.extracted_shards(settings, unit)):
                pictures = sampling.to_float(made["images"])
                found = [match(pictures, side, metrics) for side in sides]
                _write_matches(table, (run_of.attack, run_of.scale), made, found, (member_ids, heldout_ids))
                # Joined at once: each holds something of every member.
                scored = found if scored is None else _joined(scored, found)
            for metric, to_members, to_heldout in zip(metrics, *scored, strict=True):
                row = {"attack": run_of.attack, "guidance_scale": run_of.scale, "metric": metric.name}
                rows.append(row | {"band": list(metric.band)} | _scores(to_members, to_heldout, settings))
    results = {
        "rows": rows,
        "dataset": {
            "name": settings.data.tfds_name or settings.data.name,
            "members": len(members),
            "heldout": len(heldout),
            "image_shape": list(members.images.shape[1:]),
        },
        "target": _target(settings, workdir, sides),
        "surrogate": _surrogate(settings, workdir),
        "classifiers": _classifiers(settings, workdir),
        "versions": {"side_jax": __version__, "jax": jax.__version__, "python": platform.python_version()},
    }
    files.write_json(work.directory / "results.json", results)
    logger.info("evaluate: %d rows in %s.", len(rows), work.directory / "results.json")


def _joined(before: list[list[Matches]], more: list[list[Matches]]) -> list[list[Matches]]:
    """Both [side][metric]."""
    sides = zip(before, more, strict=True)
    return [[joined(list(parts)) for parts in zip(*side, strict=True)] for side in sides]


def _scores(to_members: Matches, to_heldout: Matches, settings: Settings) -> dict[str, Any]:
    """The figures of one row of results.json; rates are fractions in [0, 1]."""
    n = len(to_members.matched)
    interval = functools.partial(wilson_interval, trials=n, confidence=settings.evaluate.confidence)
    return {
        "n_generated": n,
        "ams": to_members.ams,
        "ams_ci": list(interval(int(to_members.matched.sum()))),
        "ums": to_members.ums,
        "unique": to_members.unique,
        "heldout_ams": to_heldout.ams,
        "heldout_ams_ci": list(interval(int(to_heldout.matched.sum()))),
        "heldout_ums": to_heldout.ums,
        "heldout_unique": to_heldout.unique,
        # The 95th percentile of the value of the nearest member: all three metrics are distances, lower is closer.
        "p95": float(np.percentile(to_members.value, 95)),
        "p05": float(np.percentile(to_members.value, 5)),
    }


def _header(names: list[str]) -> list[str]:
    columns = ["attack", "guidance_scale", "index", "label"]
    for name in names:
        columns += [f"{name}_member", f"{name}_member_id", f"{name}_member_match"]
        columns += [f"{name}_heldout", f"{name}_heldout_id", f"{name}_heldout_match"]
    return columns


def _write_matches(table: Any, who: tuple[str, float], made: dict, scored: list[list[Matches]], ids: tuple) -> None:
    for i in range(len(made["index"])):
        row = [*who, made["index"][i], made["label"][i]]
        for pair in zip(*scored, strict=True):
            for one, names in zip(pair, ids, strict=True):
                row += [f"{one.value[i]:.6g}", names[one.nearest[i]], int(one.matched[i])]
        table.writerow(row)


def _target(settings: Settings, workdir: Path, sides: list[jax.Array]) -> dict[str, Any]:
    """The DPM's checkpoint, and its mean denoising loss on members and on held-out images: how far it overfits."""
    unet, schedule = builders.build_unet(settings), builders.build_schedule(settings)
    dpm = builders.restore_ema(settings, builders.train_unit(settings, workdir), unet)
    params = dpm.trees["ema"]

    @jax.jit
    def loss(params, batch, key):
        keys = jax.random.split(key, len(batch))
        return denoising_loss(lambda x, t: unet.apply({"params": params}, x, t), schedule, batch, keys)[0]

    def mean_loss(images: jax.Array, repeats: int = 8, block: int = 256) -> float:
        key, total = builders.base_key(settings, "probe"), []
        for r in range(repeats):
            for i in range(0, len(images), block):
                total.append(loss(params, images[i : i + block], jax.random.fold_in(jax.random.fold_in(key, r), i)))
        return float(jnp.concatenate(total).mean())

    return {
        "step": dpm.step,
        "ema_sha256": dpm.meta["sha256"]["ema"],
        "parameters": builders.size(params),
        "denoising_loss_members": mean_loss(sides[0]),
        "denoising_loss_heldout": mean_loss(sides[1]),
    }


def _classifiers(settings: Settings, workdir: Path) -> dict[str, Any]:
    """What each classifier learned from, and what it knows at each noise level."""
    found = {}
    for name, work in manifest.surrogate_units(settings, workdir).items():
        content = work.content()
        found[name] = {key: content[key] for key in ("classes", "images", "held_back", "steps")}
        found[name]["levels"] = files.read_json(work.directory / "levels.json")
    return found


def _surrogate(settings: Settings, workdir: Path) -> dict[str, Any]:
    """What the label stage found, where SIDE ran."""
    if not settings.extract.needs_pseudo_labels:
        return {}
    found = manifest.unit(settings, workdir, "label").content()
    for name in ("unit", "fingerprint", "format", "done"):
        del found[name]
    return found | {"assignment": settings.label.assignment, "synthetic_images": settings.synthesize.num_images}
