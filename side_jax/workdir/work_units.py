"""Units of work: which parts of a run are done, and whether their outputs are still valid.

A run consists of units (`train`, `synthesize`, `label`, `surrogate/side`, `extract/side_10`, ...). A unit's fingerprint
hashes the settings that it depends on and the fingerprints of the units that it reads, so a changed setting invalidates
exactly its dependents. A unit owns <workdir>/<unit>/, where manifest.json records its fingerprint, whether it is done,
and the SHA-256 of its files. A unit with a missing or changed output is not done and runs again; runs are
deterministic, so its dependents stay valid. A changed file that would not be made anew ends the run.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from side_jax import __version__
from side_jax.devices import process_group
from side_jax.errors import InputError
from side_jax.progress import WATCH
from side_jax.workdir import files

logger = logging.getLogger(__name__)


FORMAT_VERSION = 1
DIGESTS = "sha256"  # in a manifest: {file below the workdir: SHA-256}; earlier versions recorded none
META = "meta/metadata"  # in the folder of a checkpoint: the file with the digests of its arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """One unit of work in a workdir.

    Attributes:
      workdir: of the run.
      name: of the unit, and of its folder below the workdir.
      fingerprint: the hash of everything that its output depends on.
      outputs: maps the content recorded by `finish` to the paths, relative to the workdir, that a done unit must hold.
        Shards are checked separately.
      lasting: maps a file to what the user can do if it was changed, where the unit would not make it anew; else to "".
    """

    workdir: Path
    name: str
    fingerprint: str
    outputs: Callable[[dict[str, Any]], Sequence[str]] = dataclasses.field(default=lambda _: (), compare=False)
    lasting: Callable[[str], str] = dataclasses.field(default=lambda _: "", compare=False)

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
        check_format(f"{self._path}", manifest, FORMAT_VERSION)
        return manifest

    def _finished(self) -> bool:
        manifest = self._read()
        return bool(manifest and manifest["done"] and manifest["fingerprint"] == self.fingerprint)

    def _lost(self) -> list[str]:
        return [name for name in self.outputs(self.content()) if not (self.workdir / name).exists()]

    def digests(self) -> dict[str, str]:
        """{file below the workdir: SHA-256}, as recorded with this fingerprint."""
        manifest = self._read() or {}
        return recorded(manifest) if manifest.get("fingerprint") == self.fingerprint else {}

    def changed(self, *, without: Sequence[str] = (), shards: bool = False) -> list[str]:
        """The files, except those in `without`, that are there and not as recorded.

        Args:
          without: files that do not matter.
          shards: whether to read files beyond `outputs` too, which may be large.

        Raises:
          InputError: if one of them would not be made anew; says what to do.
        """
        known = self.digests()
        outputs = self.outputs(self.content()) if known else ()
        small = {name for output in outputs for name in (output, f"{output}/{META}")}
        names = [name for name in known if shards or name in small or self.lasting(name)]
        found = [name for name in names if name not in without and differs(self.workdir / name, known[name])]
        for name in found:
            if self.lasting(name):
                raise InputError(f"{change(self.workdir / name)}; {self.lasting(name)}.")
        return found

    def check(self) -> None:
        """Raises InputError if an output, shards apart, is not as the unit left it."""
        for name in self.changed():
            raise InputError(f"{change(self.workdir / name)}; run the stage that writes it again.")

    def done(self, without: Sequence[str] = ()) -> bool:
        """Whether the unit finished with this fingerprint and its outputs, except those in `without`, are as recorded.

        Raises:
          InputError: if a file was changed that would not be made anew.
        """
        return self._finished() and {*self._lost(), *self.changed(without=without)} <= set(without)

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
        fingerprint and changed files move to <workdir>/stale/; nothing is deleted. All processes must call this; the
        first one acts.

        Args:
          intact: whether a finished unit's files beyond `outputs` are intact; if not, the unit runs again.

        Raises:
          InputError: if a file was changed that would not be made anew.
        """
        if process_group.primary():
            self._begin(intact)
        process_group.barrier(f"{self.name} begun")
        left = not self.done()
        if left:
            WATCH.begin_unit(self.name)
        return left

    def _begin(self, intact: Callable[[], bool]) -> None:
        finished = self._finished()
        lost = self._lost() if finished else []
        changed = self._set_changed_aside()
        if finished and not lost and not changed and intact():
            logger.info("%s: up to date, nothing to do.", self.name)
            return
        if lost:
            logger.info("%s: %s is missing, so this unit runs again.", self.name, " and ".join(lost))
        manifest = self._read() or {}
        if manifest and manifest["fingerprint"] != self.fingerprint:
            stale = self._stale(f"{self.name.replace('/', '-')}-{manifest['fingerprint'][:12]}")
            files.move(self.directory, stale, last=self._path.name)
            logger.info("%s: its settings or inputs changed; the old results were moved to %s.", self.name, stale)
            manifest = {}
        self.directory.mkdir(parents=True, exist_ok=True)
        # Keeps the recorded content: a new split is compared with the recorded one. The files are about to change.
        manifest.pop(DIGESTS, None)
        files.write_json(self._path, manifest | self._head(done=False))

    def _set_changed_aside(self) -> list[str]:
        """Moves changed files to <workdir>/stale/changed, so that the unit makes them anew; returns their names."""
        changed = self.changed(shards=True)
        for name in changed:
            stale = self._stale(f"changed/{name}")
            stale.parent.mkdir(parents=True, exist_ok=True)
            (self.workdir / name).replace(stale)
            what = change(self.workdir / name)
            logger.warning("%s: %s; it was moved to %s, and is made anew.", self.name, what, stale)
        return changed

    def _stale(self, name: str) -> Path:
        """A path in <workdir>/stale that does not exist yet."""
        stale = self.workdir / "stale" / name
        while stale.exists():
            stale = stale.with_name(stale.name + "+")
        return stale

    def record(self, *paths: Path) -> None:
        """Records the SHA-256 of files that a unit has finished before all of its work is done."""
        known = self.digests() | {_name(path, self.workdir): files.file_digest(path) for path in paths}
        files.write_json(self._path, self.content() | {DIGESTS: known})

    def forget(self, path: Path) -> None:
        """Takes back what `record` recorded of a file, which is about to be written anew."""
        known = {name: digest for name, digest in self.digests().items() if name != _name(path, self.workdir)}
        files.write_json(self._path, self.content() | {DIGESTS: known})

    def finish(self, more: Sequence[Path] = (), **content: Any) -> None:
        """Marks the unit as done once all processes are, and records the first process's `content`.

        Args:
          more: files beyond `outputs` whose SHA-256 is recorded too, such as shards.
          **content: of the manifest.
        """
        process_group.barrier(f"{self.name} done")
        if process_group.primary():
            self._finish(content, more)
        process_group.barrier(f"{self.name} finished")
        WATCH.end_unit(self.name)

    def _finish(self, content: dict[str, Any], more: Sequence[Path]) -> None:
        base = self._head(done=True)
        outputs = (self.workdir / name for name in self.outputs(base | content))
        paths = [*(path / META if path.is_dir() else path for path in outputs), *more]
        known = {_name(path, self.workdir): files.file_digest(path) for path in paths if path.exists()}
        files.write_json(self._path, base | content | ({DIGESTS: known} if known else {}))

    def _head(self, done: bool) -> dict[str, Any]:
        """What every manifest holds, beside what `finish` records."""
        head = {"unit": self.name, "fingerprint": self.fingerprint, "done": done}
        return head | {"format": FORMAT_VERSION, "side_jax": __version__}


def recorded(manifest: dict[str, Any]) -> dict[str, str]:
    """{file below the workdir: SHA-256}, as a manifest has it; {} for one of an earlier version.

    Raises:
      InputError: if a file would lie elsewhere.
    """
    known = manifest.get(DIGESTS, {})
    for name in known:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise InputError(
                f"the manifest of {manifest.get('unit')} names {name}, which is outside the workdir; copy it anew."
            )
    return known


def differs(path: Path, digest: str) -> bool:
    """Whether a file is there and has another SHA-256."""
    return path.exists() and files.file_digest(path) != digest


def change(path: Path) -> str:
    """What happened to a file that differs from its record, as the beginning of a sentence."""
    return f"{path} was changed after it was written, as its SHA-256 in the manifest shows"


def _name(path: Path, workdir: Path) -> str:
    return path.relative_to(workdir).as_posix()


def check_format(what: str, record: dict[str, Any], reads: int) -> None:
    """Raises InputError if another version wrote `what`, a manifest or a checkpoint, in another format."""
    if record.get("format", reads) != reads:
        raise InputError(
            f"{what} was written by {written_by(record)} in format {record['format']}, but this is side_jax "
            f"{__version__}, which reads format {reads}; use that version, or a new --workdir."
        )


def written_by(record: dict[str, Any]) -> str:
    """The side_jax that wrote a manifest or a checkpoint's meta, for messages; the first versions did not record it."""
    return f"side_jax {record['side_jax']}" if "side_jax" in record else "an earlier version of side_jax"


def finish_stage(workdir: Path, stage: str, units: list[Unit]) -> None:
    """Writes <workdir>/<stage>/manifest.json for a stage whose units are all done."""
    whole = Unit(workdir=workdir, name=stage, fingerprint=files.digest([unit.fingerprint for unit in units]))
    if not whole.done():
        whole.finish(units=[unit.name for unit in units])
