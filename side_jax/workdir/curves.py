"""Curves of a run, as JSON lines and on boards (boards.py); a restarted run continues them.

Every row rewrites the whole file, since object stores cannot append; thus a kill never leaves a partial row.
"""

import json
from pathlib import Path
from typing import Any

from side_jax.errors import InputError
from side_jax.workdir import files
from side_jax.workdir.boards import Board, boards


class Curves:
    """Appends rows to a .jsonl file, after dropping those that an earlier run wrote beyond the restored step.

    Attributes:
      rows: all rows so far, each a dict with its `step`.
    """

    def __init__(self, path: Path, *, first_step: int, board: Path | None = None, write: bool = True):
        """Opens the file.

        Args:
          path: the .jsonl file.
          first_step: the step from which the run continues; 0 for a new run.
          board: the folder for TensorBoard, if any.
          write: whether this process writes the files; only one process should.
        """
        self._path, self._write, self._boards = path, write, list[Board]()
        self.rows = [row for row in read(path) if row["step"] <= first_step]
        if not write:
            return
        self._save()
        self._boards = boards(path, board, first_step)

    def __enter__(self) -> "Curves":
        return self

    def __exit__(self, *_: object) -> None:
        for board in self._boards:
            board.close()

    def _save(self) -> None:
        with files.atomic(self._path, "w") as file:
            file.writelines([json.dumps(row) + "\n" for row in self.rows])

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row, which must hold `step`; boards get each number, and each entry of a list as `name/i`."""
        self.rows.append(row)
        if self._write:
            self._save()
        for board in self._boards:
            board.add(row["step"], _flat(row))


def _flat(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row by name."""
    values = {}
    for name, value in row.items():
        if isinstance(value, list):
            values |= {f"{name}/{i}": one for i, one in enumerate(value)}
        else:
            values[name] = value
    return {name: value for name, value in values.items() if value is not None}


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file; empty if there is no file.

    Raises:
      InputError: if it is damaged.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); delete it and run the stage that writes it again.") from None
