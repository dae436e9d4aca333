"""A small table of what a stage found, as aligned lines of text."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table.

    Attributes:
      title: what it shows.
      columns: their names.
      rows: the cells, as text; numbers are best aligned on the right, which all columns but the first are.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def lines(self) -> list[str]:
        """The title, the names of the columns, and each row."""
        cells = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return [f"{self.title}:", *(f"  {'  '.join(_padded(row, widths))}".rstrip() for row in cells)]


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *rest = zip(row, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
