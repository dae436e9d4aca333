"""What each stage has done, and whether it still holds.

The work of a run is cut into units (`train`, `synthesize`, `label`, `surrogate/side`, `extract/side_10`, ...). A unit's
fingerprint is a hash of the settings that it depends on and of the fingerprints of the units it reads from, so a
changed setting reaches exactly what depends on it. A unit owns <workdir>/<unit>/; its manifest.json there says with
which fingerprint it was begun and whether it is done. A unit that lost an output is not done: it is run again,
and since it comes out the same, what was made from it stays.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from side_jax.devices import process_group
from side_jax.workdir import files

logger = logging.getLogger(__name__)


FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """One unit of work in a workdir.

    Attributes:
      workdir: of the run.
      name: of the unit, and of its folder below the workdir.
      fingerprint: the hash of all that its output depends on.
      outputs: what it must hold once it is done, as paths below the workdir, given what `finish` recorded. Shards have
        a check of their own.
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
        return files.read_json(self._path) if self._path.exists() else None

    def _finished(self) -> bool:
        manifest = self._read()
        return bool(manifest and manifest["done"] and manifest["fingerprint"] == self.fingerprint)

    def _lost(self) -> list[str]:
        return [name for name in self.outputs(self.content()) if not (self.workdir / name).exists()]

    def done(self, without: Sequence[str] = ()) -> bool:
        """Whether the unit is finished with this very fingerprint, and its outputs, but for some, are still there."""
        return self._finished() and set(self._lost()) <= set(without)

    def begun(self) -> bool:
        """Whether what is there, if anything, was made with this very fingerprint."""
        manifest = self._read()
        return bool(manifest and manifest["fingerprint"] == self.fingerprint)

    def content(self) -> dict[str, Any]:
        """What `finish` recorded, the last time."""
        return files.read_json(self._path)

    def begin(self, intact: Callable[[], bool] = lambda: True) -> bool:
        """Prepares the directory; returns False, and says so, where there is nothing left to do.

        What an earlier run left with the same fingerprint stays, to be continued. What another fingerprint left is
        moved to <workdir>/stale/, never deleted. With several processes all call this together, and the first one acts.

        Args:
          intact: whether what a finished unit wrote beside its outputs is still whole; if not, it is begun again.
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
            logger.info("%s: %s is missing: made again.", self.name, " and ".join(lost))
        manifest = self._read() or {}
        if manifest and manifest["fingerprint"] != self.fingerprint:
            aside = self.workdir / "stale" / f"{self.name.replace('/', '-')}-{manifest['fingerprint'][:12]}"
            while aside.exists():
                aside = aside.with_name(aside.name + "+")
            files.move(self.directory, aside, last=self._path.name)
            logger.info("%s: its settings or inputs changed; the old results are now in %s.", self.name, aside)
            manifest = {}
        self.directory.mkdir(parents=True, exist_ok=True)
        # What was recorded the last time stays: the split is compared with it.
        begun = {"unit": self.name, "fingerprint": self.fingerprint, "done": False}
        files.write_json(self._path, manifest | begun)

    def finish(self, **content: Any) -> None:
        """Marks the unit as done, once every process is, and records what the first one has to say."""
        process_group.barrier(f"{self.name} done")
        if process_group.primary():
            self._finish(content)
        process_group.barrier(f"{self.name} finished")

    def _finish(self, content: dict[str, Any]) -> None:
        base = {"unit": self.name, "fingerprint": self.fingerprint, "format": FORMAT_VERSION, "done": True}
        files.write_json(self._path, base | content)


def finish_stage(workdir: Path, stage: str, units: list[Unit]) -> None:
    """Writes <workdir>/<stage>/manifest.json for a stage of several units, all of them done."""
    whole = Unit(workdir=workdir, name=stage, fingerprint=files.digest([unit.fingerprint for unit in units]))
    if not whole.done():
        whole.finish(units=[unit.name for unit in units])
