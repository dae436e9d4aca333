"""Curves of a run: one JSON object a line and, where wanted, TensorBoard scalars; a restart goes on where it was."""

import json
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from side_jax import files


class Curves:
    """Appends rows to a .jsonl file; what an earlier run wrote beyond the restored step is dropped first."""

    def __init__(self, path: Path, *, first_step: int, board: Path | None = None, write: bool = True):
        """Opens the file.

        Args:
          path: of the .jsonl file.
          first_step: the step that the run goes on from; 0 for a new one.
          board: the folder for TensorBoard, if any.
          write: False on processes that only keep the others company.
        """
        self._file = self._board = None
        self.rows = [row for row in read(path) if row["step"] <= first_step]
        if not write:
            return
        with files.atomic(path, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 closed by __exit__
        self._board = SummaryWriter(str(board), purge_step=first_step + 1) if board else None

    def __enter__(self) -> "Curves":
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._file, self._board):
            if stream:
                stream.close()

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row, which holds its `step`; TensorBoard gets the numbers, and lists under a number each."""
        self.rows.append(row)
        if self._file:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        if self._board:
            for name, value in row.items():
                for i, one in enumerate(value if isinstance(value, list) else [value]):
                    if one is not None:
                        self._board.add_scalar(f"{name}/{i}" if isinstance(value, list) else name, one, row["step"])


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file, of which a kill may have cut the last one short; none where there is no file."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
