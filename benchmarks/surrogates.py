"""Measures which choices of the surrogate matter: a sweep over features, clusters, cohesion and loss; and ablations.

python benchmarks/surrogates.py --config=configs/digits_128.py --workdir=runs/surrogates --seeds=10,11,12

Each seed has its own split, model and synthetic images, in <workdir>/seed_<n>/base, shared by all points of the sweep.
Points with equal pseudo-labels share one classifier; another config uses other folders. The loss tdkd gets as many
training steps as cross_entropy, including its teacher's. Run again, it continues, prints the tables of
docs/results_surrogate.md and draws clusters.png and cohesion.png. --ablations varies one other choice at a time, from
the config's defaults.
"""

import dataclasses
import itertools
import logging
from pathlib import Path

import jax
import matplotlib
import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from side_jax.commands import cli
from side_jax.config import from_config
from side_jax.errors import InputError
from side_jax.features import clustering, extractors
from side_jax.pipeline import audit
from side_jax.pipeline.resolve import resolve
from side_jax.sampling import shards
from side_jax.settings import random_streams
from side_jax.stages import stage_inputs, stage_table
from side_jax.stages.stage_table import audit_stages
from side_jax.workdir import files

matplotlib.use("agg")
import matplotlib.pyplot as plt

CONFIG = config_flags.DEFINE_config_file("config", None, "a config file")
WORKDIR = flags.DEFINE_string("workdir", None, "holds all workdirs", required=True)
SEEDS = flags.DEFINE_list("seeds", ["10"], "the seeds")
FEATURES = flags.DEFINE_list("features", ["pixels", "denoiser"], "feature extractors")
CLUSTERS = flags.DEFINE_list("clusters", ["5", "10", "20", "50", "100"], "values of K")
THRESHOLDS = flags.DEFINE_list("thresholds", ["0", "0.5", "0.7"], "values of tau")
ASSIGNMENTS = flags.DEFINE_list("assignments", ["reassign", "drop"], "what becomes of images of rejected clusters")
OBJECTIVES = flags.DEFINE_list("objectives", ["cross_entropy", "tdkd"], "losses")
SCALE = flags.DEFINE_float("scale", 10.0, "the guidance scale of every point")
METRIC = flags.DEFINE_string("metric", "normalized_l2", "of the tables and figures")
ABLATIONS = flags.DEFINE_bool("ablations", False, "vary one other choice at a time, in place of the sweep")

# Ablations: one choice at a time, from the config's defaults.
CHANGES = {
    "the config's defaults": {},
    "timesteps by importance": {"surrogate.timesteps": "importance"},
    "early stop (patience 4)": {"surrogate.patience": 4},
    "temperature scaling": {"extract.temperature_scaling": True},
    "weight decay 0.05": {"surrogate.weight_decay": 0.05},
    "ResNet": {"classifier.architecture": "resnet"},
    "ResNet with BatchNorm, frozen": {"classifier.architecture": "resnet", "classifier.norm": "batch"},
    "bottleneck blocks": {"classifier.architecture": "resnet_bottleneck"},
    "half U-Net": {"classifier.architecture": "half_unet"},
    "two blocks a stage": {"classifier.stage_sizes": (2, 2)},
    "half of the steps": {"surrogate.num_steps": 0.5},
    "half of the synthetic images": {"synthesize.num_images": 0.5},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One point of the sweep."""

    features: str
    clusters: int
    threshold: float
    assignment: str
    objective: str


def changed(config: ml_collections.ConfigDict, values: dict) -> ml_collections.ConfigDict:
    """A copy of a config with other values; a float for an integer setting multiplies it."""
    config = config.copy_and_resolve_references()
    for key, value in values.items():
        section, name = key.split(".")
        if isinstance(value, float) and isinstance(config[section][name], int):
            value = int(value * config[section][name])
        config[section][name] = value
    return config


def key_of(config: ml_collections.ConfigDict, labels: np.ndarray | None = None) -> str:
    """The name of a result's folder: a digest of the config and, for its label section, the pseudo-labels."""
    values = config.to_dict()
    if labels is not None:
        values["label"] = files.array_digest([labels])
    return files.digest(values)[:16]


def run_in(workdir: Path, base: Path, config: ml_collections.ConfigDict, shared: tuple[str, ...]) -> dict:
    """Runs an attack on the base's model in its own workdir, sharing what is equal; returns its row."""
    results = workdir / "evaluate" / "results.json"
    if not results.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        for name in shared:
            if not (workdir / name).exists():
                (workdir / name).symlink_to((base / name).resolve(), target_is_directory=True)
        audit.run(
            resolve(config, workdir), workdir, [stage for stage in audit_stages() if stage not in ("train", "report")]
        )
    (row,) = [
        row for row in files.read_json(results)["rows"] if (row["metric"], row["level"]) == (METRIC.value, "high")
    ]
    return row


def with_point(config: ml_collections.ConfigDict, point: Point) -> ml_collections.ConfigDict:
    """The config of a point of the sweep."""
    values = {
        "label.features": point.features,
        "label.num_clusters": point.clusters,
        "label.cohesion_threshold": point.threshold,
        "label.assignment": point.assignment,
        "surrogate.objective": point.objective,
    }
    return changed(config, values)


def rows_of_seed(config: ml_collections.ConfigDict, seed: int, points: list[Point], workdir: Path) -> dict:
    """The row of every point; key None is unguided sampling."""
    root = workdir / f"seed_{seed}"
    base = root / "base"
    with config.unlocked():
        config.seed = seed
    config = changed(config, {"extract.guidance_scales": (SCALE.value,), "extract.attacks": ("side",)})
    audit.run(resolve(config, base), base, ["train", "synthesize"])
    (base / "features").mkdir(exist_ok=True)
    target = ("train", "checkpoints")
    plain = changed(config, {"extract.attacks": ("unconditional",)})
    rows = {None: run_in(root / key_of(plain), base, plain, target)}
    if ABLATIONS.value:
        for name, values in CHANGES.items():
            varied = changed(config, values)
            again = ("synthesize",) if "synthesize.num_images" not in values else ()
            rows[name] = run_in(root / key_of(varied), base, varied, (*target, *again))
        return rows
    images = shards.read(stage_table.synthetic_shards(from_config(config), base))["images"]
    for point in points:
        varied = with_point(config, point)
        settings = from_config(varied)
        found = extractors.extract(stage_inputs.build_extractor(settings, base), images, base / "features")
        try:
            labels = clustering.pseudo_labels(found, settings.label, random_streams.stream_seed(settings, "label"))[
                "label"
            ]
        except InputError as error:
            logging.info("%s: %s", point, error)
            rows[point] = None
            continue
        key = key_of(varied, labels)
        rows[point] = run_in(root / key, base, varied, (*target, "synthesize", "features"))
        rows[point] |= {"kept": int(labels.max()) + 1, "key": key}
    return rows


def cells(rows: list[dict]) -> str:
    """The columns of a table: means over seeds, and the AMS of each seed."""
    ams, ums, unique, heldout = ([row[key] for row in rows] for key in ("ams", "ums", "unique", "heldout_ams"))
    each = ", ".join(f"{100 * a:.2f}" for a in ams)
    return (
        f"{100 * np.mean(ams):.2f} | {each} | {100 * np.mean(ums):.2f} | {np.mean(unique):.1f} | "
        f"{100 * np.mean(heldout):.2f}"
    )


def cohesive(point: Point) -> tuple[str, str]:
    """A point's cohesion settings; all those in one row of the table gave the same pseudo-labels."""
    return f"{point.threshold:g}", point.assignment


def figure(path: Path, rows: dict[Point, list[dict]], unguided: list[dict], axis: str, at: dict) -> None:
    """Plots AMS and extracted members against one field of the points; `at` fixes the other fields."""
    picture, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    lines: dict[str, list] = {}
    for point, found in rows.items():
        if all(getattr(point, name) == value for name, value in at.items()):
            label = ", ".join(
                str(getattr(point, name)) for name in ("features", "objective", "assignment") if name not in at
            )
            lines.setdefault(label, []).append((getattr(point, axis), found))
    for label, line in lines.items():
        for one, key, factor in ((axes[0], "ams", 100), (axes[1], "unique", 1)):
            y = np.asarray([[factor * row[key] for row in found] for _, found in line])
            one.errorbar([x for x, _ in line], y.mean(axis=1), yerr=y.std(axis=1), marker="o", capsize=3, label=label)
    for one, key, factor, name in ((axes[0], "ams", 100, "AMS, %"), (axes[1], "unique", 1, "extracted members")):
        one.axhline(np.mean([factor * row[key] for row in unguided]), color="0.4", linestyle=":", label="no guidance")
        one.set_ylabel(name)
        one.set_xlabel({"clusters": "clusters K", "threshold": "cohesion threshold tau"}[axis])
        one.set_ylim(bottom=0)
    axes[0].legend(fontsize="small")
    picture.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(picture)


def main(_: list[str]) -> None:
    """Runs the command line."""
    cli.log_to_stderr()
    workdir = Path(WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str((workdir / "compiled").resolve()))
    grid = itertools.product(
        FEATURES.value, map(int, CLUSTERS.value), map(float, THRESHOLDS.value), ASSIGNMENTS.value, OBJECTIVES.value
    )
    names = [field.name for field in dataclasses.fields(Point)]
    points = [Point(**dict(zip(names, values, strict=True))) for values in grid]
    seeds = [int(seed) for seed in SEEDS.value]
    each = [rows_of_seed(CONFIG.value.copy_and_resolve_references(), seed, points, workdir) for seed in seeds]
    unguided = [rows[None] for rows in each]
    head = "mean AMS, % | each seed | mean UMS, % | extracted, mean | held-out AMS, %"
    if ABLATIONS.value:
        print(f"| change | {head} |\n|---|---|---|---|---|---|")
        print(f"| no guidance | {cells(unguided)} |")
        for name in CHANGES:
            print(f"| {name} | {cells([rows[name] for rows in each])} |")
        return
    print(f"| features | K | tau | images of rejected clusters | loss | kept, each seed | {head} |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    print(f"| no guidance |  |  |  |  |  | {cells(unguided)} |")
    complete, same = {}, {}
    for point in points:
        rows = [found[point] for found in each]
        if all(rows):
            complete[point] = rows
            same.setdefault(tuple(row["key"] for row in rows), []).append(point)
        else:
            print(f"| {' | '.join(map(str, dataclasses.astuple(point)))} | fewer than two |  |  |  |  |  |")
    for alike in same.values():
        point, rows = alike[0], complete[alike[0]]
        thresholds, assignments = (
            ", ".join(dict.fromkeys(values)) for values in zip(*map(cohesive, alike), strict=True)
        )
        kept = ", ".join(str(row["kept"]) for row in rows)
        first = f"{point.features} | {point.clusters} | {thresholds} | {assignments} | {point.objective}"
        print(f"| {first} | {kept} | {cells(rows)} |")
    first = points[0]
    at = {"threshold": first.threshold, "assignment": first.assignment}
    figure(workdir / "clusters.png", complete, unguided, "clusters", at)
    at = {"clusters": int(CLUSTERS.value[len(CLUSTERS.value) // 2]), "objective": first.objective}
    figure(workdir / "cohesion.png", complete, unguided, "threshold", at)


if __name__ == "__main__":
    app.run(main)
