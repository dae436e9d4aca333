"""Lists the images in the rows of Parquet files, as data sets of the Hugging Face hub have them; decoded on demand."""

import dataclasses
import functools
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from side_jax.data.decode import Picture, read_picture
from side_jax.data.printable import reason, short
from side_jax.data.stream import THREADS
from side_jax.errors import InputError

SUFFIX = ".parquet"
_IMAGES = ("image", "img")  # the names of which one counts where several columns hold images
_LABELS = ("label", "labels")
_SPLIT = re.compile(r"(?<![a-z])(?:train|test|val|valid|validation|dev|eval)(?![a-z])")
_MAX_GROUP = 2**32  # bytes of the rows that are read at a time
_MAX_IMAGE = 2**28  # bytes of one picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Table:
    """A Parquet file: its rows are in groups, which are read as a whole.

    Attributes:
      path: of the file.
      metadata: pyarrow's.
      column: name of the column of images.
      field: name of the column's field that holds their bytes; "": the column itself does.
      labels: of the rows, integers or text; None: it has none.
    """

    path: Path
    metadata: Any
    column: str
    field: str
    labels: np.ndarray | None

    def group(self, number: int) -> Any:
        """The bytes of the images in a group of rows, an array of pyarrow."""
        import pyarrow.parquet

        size = self.metadata.row_group(number).total_byte_size
        if size > _MAX_GROUP:
            raise ValueError(f"its rows are in groups of {size} bytes, more than the {_MAX_GROUP} that are read")
        name = f"{self.column}.{self.field}" if self.field else self.column
        file = pyarrow.parquet.ParquetFile(self.path, metadata=self.metadata)
        images = file.read_row_group(number, columns=[name]).column(self.column)
        return pyarrow.compute.struct_field(images, self.field) if self.field else images


def open_rows(
    root: Path, names: Sequence[str], where: str, orientation: str
) -> tuple[Callable[[int], Picture], np.ndarray, list[str]]:
    """Lists the rows of files, one file after the other.

    The column of images holds the bytes of a file, or a struct with a field `bytes`. The label is `label` or `labels`,
    an integer or text; without one it is 0, and -1 or "" where it is null.

    Args:
      root: the files' folder.
      names: of the files in it.
      where: what sentences call the set.
      orientation: as of decode.Rules.

    Returns:
      `read`, `labels` and `names` of sources.Source; a row is called FILE:ROW, from 0.

    Raises:
      InputError: if pyarrow is missing, a file is damaged or has no images, or the files are of several splits.
    """
    splits = {name: found[-1] for name in names if (found := _SPLIT.findall(name.lower()))}
    if len(set(splits.values())) > 1:
        listed = ", ".join(sorted(set(splits.values())))
        raise InputError(
            f"{where} holds Parquet files of several splits ({listed}), which a model has not all seen; name the files "
            "of one, such as hf://datasets/OWNER/NAME/data/train-*, or its folder."
        )
    tables = [_open(root / name, f"{name} of {where}") for name in names]
    kinds = {None if table.labels is None else table.labels.dtype.kind for table in tables}
    if len(kinds) > 1:
        raise InputError(f"the labels in the Parquet files of {where} are of different kinds; name files of one kind.")
    counts = [[table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)] for table in tables]
    groups = [(number, i) for number, rows in enumerate(counts) for i in range(len(rows))]
    ends = np.cumsum([0, *(rows for of in counts for rows in of)])

    @functools.lru_cache(maxsize=THREADS)  # images are read in order, so each group is read about once
    def load(group: int) -> Any:
        number, i = groups[group]
        return tables[number].group(i)

    def read(row: int) -> Picture:
        group = int(np.searchsorted(ends, row, side="right")) - 1
        content = load(group)[row - int(ends[group])].as_py()
        if content is None:
            raise ValueError("its row holds no bytes of an image")
        if len(content) > _MAX_IMAGE:
            raise ValueError(f"it has {len(content)} bytes, more than the {_MAX_IMAGE} that are read")
        return read_picture(io.BytesIO(content), orientation=orientation)

    rows = [sum(of) for of in counts]
    labels = [np.zeros(n, np.int64) if t.labels is None else t.labels for t, n in zip(tables, rows, strict=True)]
    listed = [f"{name}:{row}" for name, n in zip(names, rows, strict=True) for row in range(n)]
    return read, np.concatenate(labels), listed


def _open(path: Path, where: str) -> _Table:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise InputError(
            f"{where} is a Parquet file, which needs pyarrow; run `pip install 'side_jax[hub]'`."
        ) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            column, field = _image_column(schema, where)
            return _Table(
                path=path, metadata=file.metadata, column=column, field=field, labels=_read_labels(file, schema)
            )
    except (pyarrow.ArrowException, OSError) as error:
        why = reason(error).partition(". ")[0]
        raise InputError(
            f"{where} can't be read as Parquet ({why}); replace it with a whole copy of the original."
        ) from None


def _image_column(schema: Any, where: str) -> tuple[str, str]:
    """(name of the column of images, name of the field with their bytes)."""
    from pyarrow import types

    def binary(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    found = {}
    for column in schema:
        if binary(column.type):
            found[column.name] = ""
        elif types.is_struct(column.type) and any(part.name == "bytes" and binary(part.type) for part in column.type):
            found[column.name] = "bytes"
    chosen = next((name for name in _IMAGES if name in found), None) or (next(iter(found)) if len(found) == 1 else None)
    if chosen is None:
        held = ", ".join(schema.names) if not found else ", ".join(found)
        what = "several columns that may hold images" if found else "no column of images"
        raise InputError(
            f"{where} has {what} ({short(held)}); give files whose column `image` holds the bytes of pictures."
        )
    return chosen, found[chosen]


def _read_labels(file: Any, schema: Any) -> np.ndarray | None:
    """The labels of all rows; None if no column has a usual name and a usable type."""
    from pyarrow import types

    for name in _LABELS:
        if name in schema.names:
            kind = schema.field(name).type
            if types.is_integer(kind):
                return file.read(columns=[name]).column(name).cast("int64").fill_null(-1).to_numpy()
            if types.is_string(kind) or types.is_large_string(kind):
                return np.asarray([value or "" for value in file.read(columns=[name]).column(name).to_pylist()], str)
    return None
