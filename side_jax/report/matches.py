"""matches.csv as columns."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from side_jax.attacks.table import get_attack
from side_jax.measure.records import Row, Run
from side_jax.report import phrases

Columns = dict[str, np.ndarray]
SHOWN = 6  # runs drawn in one figure, at most


def table(path: Path) -> list[list[str]]:
    """The rows of a CSV file, its header first."""
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))  # what epath can open


def read(path: Path) -> Columns:
    """matches.csv: run and attack as text, all others as float64; [rows] each."""
    header, *rows = table(path)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    return {name: np.asarray(v, str if name in ("run", "attack") else np.float64) for name, v in columns.items()}


def select_run(matches: Columns, run: Run) -> Columns:
    """The images of a run."""
    chosen = matches["run"] == run.key.name
    return {name: column[chosen] for name, column in matches.items()}


def title(run: Run) -> str:
    """A run, for people."""
    key = run.key
    if key.start:
        origin = title(Run(attack=key.start, guidance_scale=key.scale)) if key.start_run else key.start
        how = f"last {key.last_steps} steps" if key.last_steps else f"noise {key.noise:g}"
        return f"{key.attack} from {origin}, {how}, {key.rounds} rounds"
    return run.attack + (f", scale {run.guidance_scale:g}" if run.guidance_scale else "")


def title_without_scale(run: Run) -> str:
    """A run, for people who see its guidance scale beside it."""
    return title(run) if run.key.start else run.attack


def shown(rows: Sequence[Row]) -> list[Row]:
    """Of each attack the best scale, the strongest attacks first and controls last."""
    bests = [phrases.best(rows, attack) for attack in dict.fromkeys(row.attack for row in rows)]
    return sorted((row for row in bests if row), key=lambda row: (get_attack(row.attack).control, -row.ams))[:SHOWN]
