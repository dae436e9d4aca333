"""The folder that receives a command's results: checked before anything is computed, and replaced as a whole."""

import contextlib
import json
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from side_jax.data.listed import describe
from side_jax.errors import InputError
from side_jax.workdir import files

UNFINISHED = ".unfinished"  # holds the files until all are made


def check(
    out: Path,
    inputs: Iterable[tuple[str, str]],
    where: str,
    mark: tuple[str, str],
    beside: Collection[str] = (),
) -> None:
    """Checks that results may be written; leaves no trace.

    Args:
      out: the value of --out.
      inputs: what the command reads: its name in messages, and its path.
      where: what is wrong with results in an input, such as "where its figures would count as images".
      mark: a JSON file, and a key in it, by which a folder holds earlier results of the command: these are replaced.
      beside: names of what may lie in an otherwise empty folder.

    Raises:
      InputError: if the folder can't be written, lies in an input or holds something else.
    """
    named = describe("--out", os.fspath(out))
    for name, path in inputs:
        real, within = _real(out), _real(path)
        holds = not files.local(path) or os.path.isdir(within)
        if real == within or (holds and real.startswith(f"{within.rstrip('/')}/")):
            raise InputError(f"{named} lies in {name}, {where}; choose another folder.")
    try:
        held = {path.name for path in out.iterdir()} - set(beside) if out.exists() else set()
        if held and UNFINISHED not in held and not _is_marked(out, *mark):
            raise InputError(f"{named} holds other files; name a new or an empty folder.")
        new = [path for path in (out, *out.parents) if not path.exists()] if files.local(out) else []
        with files.atomic(out / UNFINISHED / "probe"):
            pass
        (out / UNFINISHED).rmtree()
        for path in new:
            path.rmdir()
    except OSError as error:
        raise InputError(f"{named} can't be written ({error.strerror or error}); choose another folder.") from None


def _is_marked(out: Path, name: str, key: str) -> bool:
    try:
        return key in json.loads((out / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _real(path: str | Path) -> str:
    """What identifies a path: without links, and without an end that says nothing."""
    return os.path.realpath(path) if files.local(path) else os.fspath(path).rstrip("/")


@contextlib.contextmanager
def replaced(out: Path, names: Collection[str], last: str) -> Iterator[Path]:
    """A folder for new results, which replace those of an earlier run if the block ends without an error.

    Args:
      out: where they will lie; created for its owner alone.
      names: of every file that a run may leave there: those that were not made anew are removed.
      last: the file that marks a folder as holding results, which therefore comes last.
    """
    created = [path for path in (out, *out.parents) if not path.exists()] if files.local(out) else []
    files.make_private(out)
    work = out / UNFINISHED
    try:
        yield work
        made = sorted((path.name for path in work.iterdir()), key=lambda name: name == last)
        for name in set(names) - set(made):
            (out / name).unlink(missing_ok=True)
        for name in made:
            (work / name).replace(out / name)
    finally:
        work.rmtree(missing_ok=True)
        with contextlib.suppress(OSError):  # they hold results, unless something failed
            for path in created:
                os.rmdir(path)
