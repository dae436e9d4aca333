"""matches.csv as columns."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np

from side_jax.attacks.table import attack_of
from side_jax.report import findings

Row = dict[str, Any]  # of results.json
Columns = dict[str, np.ndarray]
SHOWN = 6  # runs drawn in one figure, at most


def table(path: Path) -> list[list[str]]:
    """The rows of a CSV file, its header first."""
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))  # what epath can open


def read(path: Path) -> Columns:
    """matches.csv: attack as text, all others as float64; [rows] each."""
    header, *rows = table(path)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    return {name: np.asarray(v, str if name == "attack" else np.float64) for name, v in columns.items()}


def of(matches: Columns, row: Row) -> Columns:
    """The images of a run."""
    own = (matches["attack"] == row["attack"]) & (matches["guidance_scale"] == row["guidance_scale"])
    return {name: column[own] for name, column in matches.items()}


def title(row: Row) -> str:
    """A run, for people."""
    return row["attack"] + (f", scale {row['guidance_scale']:g}" if row["guidance_scale"] else "")


def slug(row: Row) -> str:
    """A run, for the name of a file."""
    return row["attack"] + (f"_{row['guidance_scale']:g}" if row["guidance_scale"] else "")


def shown(rows: list[Row]) -> list[Row]:
    """Of each attack the best scale, the strongest attacks first and controls last."""
    found = [findings.best(rows, attack) for attack in dict.fromkeys(row["attack"] for row in rows)]
    return sorted(found, key=lambda row: (attack_of(row["attack"]).control, -row["ams"]))[:SHOWN]
