"""Compares finished audits: two checkpoints, before and after deduplication, two seeds."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path

from side_jax.commands import out_folder
from side_jax.data.printable import printable
from side_jax.errors import InputError
from side_jax.report import comparison, comparison_page, ending
from side_jax.report.page import render
from side_jax.workdir import files

PAGE, JSON, TABLE = "index.html", "compare.json", "compare.csv"


def run(folders: Sequence[Path], out: Path, as_json: bool = False) -> str:
    """Compares the audits in folders with the first, writes the page and tables into `out`, and returns what to print.

    Raises:
      InputError: if a folder holds no finished audit, two are the same, the audits measured different things, or `out`
        is in one of them or holds something else; then nothing is written.
    """
    places = [comparison.locate(folder) for folder in folders]
    _check_different(folders, places)
    inputs = [(os.fspath(path), os.fspath(path)) for path in (*folders, *places)]
    out_folder.check(out, inputs, "an audit, which stays as it is", mark=(JSON, "pairs"))
    read = [comparison.read(*one) for one in zip(places, distinct_names(folders), strict=True)]
    compared = comparison.compare(read)
    content = comparison_page.as_json(compared)
    html = render.render(comparison_page.page(compared))
    with out_folder.replaced(out, (PAGE, JSON, TABLE), JSON) as work:
        files.write_json(work / JSON, content)
        with files.atomic(work / TABLE, "w") as file:
            csv.writer(file).writerows(comparison_page.member_rows(compared))
        with files.atomic(work / PAGE, "w") as file:
            file.write(html)
    if as_json:
        return json.dumps(content, indent=2)
    return ending.conclusion(content["status"], content["reasons"], content["findings"], out / PAGE)


def _check_different(folders: Sequence[Path], places: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for folder, place in zip(folders, places, strict=True):
        real = os.path.realpath(place) if files.local(place) else os.fspath(place).rstrip("/")
        if real in seen:
            raise InputError(f"{seen[real]} and {folder} are the same audit; name different ones.")
        seen[real] = folder


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of different paths, as many as tell them apart."""
    paths = [os.path.abspath(path) if files.local(path) else os.fspath(path) for path in folders]
    parts = [[part for part in path.split("/") if part] for path in paths]
    depths = range(1, max(map(len, parts)) + 1)
    tried = ([printable("/".join(part[-depth:])) for part in parts] for depth in depths)
    return next(names for names in tried if len(set(names)) == len(names))
