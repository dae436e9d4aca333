"""A small table of what each stage found, from the files that it wrote; it names no image."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from side_jax.measure import records
from side_jax.progress import Table
from side_jax.report import phrases
from side_jax.settings import Settings
from side_jax.stages import stage_table
from side_jax.workdir import curves, files
from side_jax.workdir.work_units import Unit


def summary(stage: str, settings: Settings, workdir: Path) -> Table | None:
    """What a finished stage found; None if there is nothing to tell."""
    table = _TABLES.get(stage, lambda *_: None)(settings, workdir)
    return table if table and table.rows else None


def _train(settings: Settings, workdir: Path) -> Table:
    columns, rows = ["model", "steps", "loss"], []
    units = {"the target": stage_table.train_unit(settings, workdir)}
    if settings.extract.needs_twin:
        units["its twin"] = stage_table.twin_unit(settings, workdir)
    for name, unit in units.items():
        content = unit.content()
        steps = "imported" if "imported" in content else f"{content['steps']:,}"
        rows.append([name, steps, _number(_last(unit.directory / "metrics.jsonl"), "loss")])
    seen = _last(units["the target"].directory / "monitor.jsonl")
    if seen:
        columns += ["samples that match", "held-out control"]
        kind = "matched" if "matched" in seen else "copied"
        rows[0] += [phrases.percent(seen[kind]), phrases.percent(seen[f"{kind}_heldout"])]
        rows[1:] = [[*row, "", ""] for row in rows[1:]]
    return Table(title="train", columns=columns, rows=rows)


def _synthesize(settings: Settings, workdir: Path) -> Table | None:
    if not settings.needs_synthetic:
        return None
    steps = f"{settings.sampler.num_steps:,}"
    rows = [["synthetic", f"{settings.synthesize.num_images:,}", settings.sampler.solver, steps]]
    return Table(title="synthesize", columns=["images", "number", "sampler", "steps"], rows=rows)


def _label(settings: Settings, workdir: Path) -> Table | None:
    if not settings.extract.needs_pseudo_labels:
        return None
    found = stage_table.unit(settings, workdir, "label").content()
    low, _, high = found["cohesion"]
    kept = f"{found['kept']} of {found['clusters']}"
    moved, dropped = (f"{found[f'{name}_images']:,}" for name in ("reassigned", "dropped"))
    rows = [[found["features"]["name"], kept, f"{low:.2f} to {high:.2f}", moved, dropped]]
    columns = ["features", "clusters kept", "cohesion", "images reassigned", "dropped"]
    return Table(title="label", columns=columns, rows=rows)


def _surrogate(settings: Settings, workdir: Path) -> Table:
    rows = []
    for name, unit in stage_table.classifier_units(settings, workdir).items():
        content, lowest = unit.content(), files.read_json(unit.directory / "levels.json")[0]
        accuracy = phrases.percent(lowest["accuracy"])
        rows.append([name, f"{content['classes']:,}", f"{content['steps']:,}", _number(lowest, "loss"), accuracy])
    if settings.extract.needs_adapters:
        found = stage_table.adapters_unit(settings, workdir).content()
        rows.append(["adapters", f"{found['classes']:,}", f"{found['steps']:,}", "", ""])
    if settings.trains_weak:
        unit = stage_table.weak_unit(settings, workdir)
        steps = f"{unit.content()['steps']:,}"
        rows.append(["weaker model", "", steps, "", ""])
    columns = ["network", "classes", "steps", "held-back loss", "accuracy at the lowest noise"]
    return Table(title="surrogate", columns=columns, rows=rows)


def _extract(settings: Settings, workdir: Path) -> Table:
    runs: dict[str, list[int]] = {}
    for run, unit in stage_table.extraction_units(settings, workdir):
        runs.setdefault(run.attack, []).append(_images(unit))
    rows = [[attack, str(len(counts)), f"{sum(counts):,}"] for attack, counts in runs.items()]
    return Table(title="extract", columns=["attack", "runs", "images"], rows=rows)


def _evaluate(settings: Settings, workdir: Path) -> Table:
    found = phrases.headline(records.read(workdir / "evaluate" / "results.json"))
    rows = []
    for attack in dict.fromkeys(row.attack for row in found):
        best = phrases.best(found, attack)
        assert best
        control = phrases.percent(best.heldout_ams)
        matches = f"{round(best.ams * best.n_generated):,} of {best.n_generated:,}"
        rows.append([best.key.name, matches, phrases.share(best), control, f"{best.unique:,}"])
    columns = ["best run of each attack", "matches", "share (interval)", "held-out control", "members"]
    return Table(title=f"evaluate, by {found[0].metric}", columns=columns, rows=rows)


def _images(unit: Unit) -> int:
    """The number of images of a finished extraction unit."""
    first, last = unit.content()["index_range"]
    return last - first


def _last(path: Path) -> dict[str, Any] | None:
    """The last row of a curve, if there is one."""
    return (curves.read(path) or [None])[-1]


def _number(row: dict[str, Any] | None, name: str) -> str:
    """A figure of a row of a curve."""
    return "" if row is None or row.get(name) is None else f"{row[name]:.4g}"


_TABLES: dict[str, Callable[[Settings, Path], Table | None]] = {
    "train": _train,
    "synthesize": _synthesize,
    "label": _label,
    "surrogate": _surrogate,
    "extract": _extract,
    "evaluate": _evaluate,
}
