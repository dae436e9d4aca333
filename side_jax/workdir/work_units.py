"""Units of work: which parts of a run are done, and whether their outputs are still valid.

A run consists of units (`train`, `synthesize`, `label`, `surrogate/side`, `extract/side_10`, ...). A unit's fingerprint
hashes the settings that it depends on and the fingerprints of the units that it reads, so a changed setting invalidates
exactly its dependents. A unit owns <workdir>/<unit>/, where manifest.json records its fingerprint and whether it is
done. A unit with a missing output is not done and runs again; runs are deterministic, so its dependents stay valid.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from side_jax import __version__
from side_jax.devices import process_group
from side_jax.errors import InputError
from side_jax.workdir import files

logger = logging.getLogger(__name__)


FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """One unit of work in a workdir.

    Attributes:
      workdir: of the run.
      name: of the unit, and of its folder below the workdir.
      fingerprint: the hash of everything that its output depends on.
      outputs: maps the content recorded by `finish` to the paths, relative to the workdir, that a done unit must hold.
        Shards are checked separately.
    """

    workdir: Path
    name: str
    fingerprint: str
    outputs: Callable[[dict[str, Any]], Sequence[str]] = dataclasses.field(default=lambda _: (), compare=False)

    @property
    def directory(self) -> Path:
        """<workdir>/<unit>."""
        return self.workdir / self.name

    @property
    def _path(self) -> Path:
        return self.directory / "manifest.json"

    def _read(self) -> dict[str, Any] | None:
        """The manifest, if there is one; InputError if a version of side_jax wrote it whose format is another."""
        if not self._path.exists():
            return None
        manifest = files.read_json(self._path)
        if manifest.get("format", FORMAT_VERSION) != FORMAT_VERSION:
            raise InputError(
                f"{self._path} was written by {written_by(manifest)} in format {manifest['format']}, but this is "
                f"side_jax {__version__}, which reads format {FORMAT_VERSION}; use that version, or a new --workdir."
            )
        return manifest

    def _finished(self) -> bool:
        manifest = self._read()
        return bool(manifest and manifest["done"] and manifest["fingerprint"] == self.fingerprint)

    def _lost(self) -> list[str]:
        return [name for name in self.outputs(self.content()) if not (self.workdir / name).exists()]

    def done(self, without: Sequence[str] = ()) -> bool:
        """Whether the unit finished with this fingerprint and its outputs, except those in `without`, still exist."""
        return self._finished() and set(self._lost()) <= set(without)

    def begun(self) -> bool:
        """Whether the unit was begun with this fingerprint."""
        manifest = self._read()
        return bool(manifest and manifest["fingerprint"] == self.fingerprint)

    def content(self) -> dict[str, Any]:
        """What `finish` last recorded."""
        return files.read_json(self._path)

    def begin(self, intact: Callable[[], bool] = lambda: True) -> bool:
        """Prepares the directory; returns whether work is left, and logs a line if none is.

        Files of an earlier run with the same fingerprint stay, and the unit continues from them. Files of another
        fingerprint move to <workdir>/stale/; nothing is deleted. All processes must call this; the first one acts.

        Args:
          intact: whether a finished unit's files beyond `outputs` are intact; if not, the unit runs again.
        """
        if process_group.primary():
            self._begin(intact)
        process_group.barrier(f"{self.name} begun")
        return not self.done()

    def _begin(self, intact: Callable[[], bool]) -> None:
        finished = self._finished()
        lost = self._lost() if finished else []
        if finished and not lost and intact():
            logger.info("%s: up to date, nothing to do.", self.name)
            return
        if lost:
            logger.info("%s: %s is missing, so this unit runs again.", self.name, " and ".join(lost))
        manifest = self._read() or {}
        if manifest and manifest["fingerprint"] != self.fingerprint:
            stale = self.workdir / "stale" / f"{self.name.replace('/', '-')}-{manifest['fingerprint'][:12]}"
            while stale.exists():
                stale = stale.with_name(stale.name + "+")
            files.move(self.directory, stale, last=self._path.name)
            logger.info("%s: its settings or inputs changed; the old results were moved to %s.", self.name, stale)
            manifest = {}
        self.directory.mkdir(parents=True, exist_ok=True)
        # Keeps the recorded content: a new split is compared with the recorded one.
        files.write_json(self._path, manifest | self._head(done=False))

    def finish(self, **content: Any) -> None:
        """Marks the unit as done once all processes are, and records the first process's `content`."""
        process_group.barrier(f"{self.name} done")
        if process_group.primary():
            self._finish(content)
        process_group.barrier(f"{self.name} finished")

    def _finish(self, content: dict[str, Any]) -> None:
        files.write_json(self._path, self._head(done=True) | content)

    def _head(self, done: bool) -> dict[str, Any]:
        """What every manifest holds, beside what `finish` records."""
        head = {"unit": self.name, "fingerprint": self.fingerprint, "done": done}
        return head | {"format": FORMAT_VERSION, "side_jax": __version__}


def written_by(record: dict[str, Any]) -> str:
    """The side_jax that wrote a manifest or a checkpoint's meta, for messages; the first versions did not record it."""
    return f"side_jax {record['side_jax']}" if "side_jax" in record else "an earlier version of side_jax"


def finish_stage(workdir: Path, stage: str, units: list[Unit]) -> None:
    """Writes <workdir>/<stage>/manifest.json for a stage whose units are all done."""
    whole = Unit(workdir=workdir, name=stage, fingerprint=files.digest([unit.fingerprint for unit in units]))
    if not whole.done():
        whole.finish(units=[unit.name for unit in units])
