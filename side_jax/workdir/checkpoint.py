"""Orbax checkpoints: <directory>/<step>/{state,ema,meta}, shared by training, extraction and evaluation.

`state` holds what training needs to resume (parameters, optimiser state), `ema` the averaged parameters that everything
else uses, and `meta` a JSON with the format version, the settings, their fingerprint, and a digest of each item, which
detects altered files regardless of the checks of the storage format.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from side_jax import __version__
from side_jax.errors import InputError
from side_jax.workdir import files
from side_jax.workdir.work_units import check_format, written_by

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """A restored checkpoint: its step, the requested trees by item name, and the meta JSON."""

    step: int
    trees: dict[str, Any]
    meta: dict[str, Any]


def _digest(tree: Any) -> str:
    return files.array_digest(jax.device_get(jax.tree.leaves(tree)))


class Checkpoints:
    """The checkpoints of one network; a context manager, whose exit waits for the last write.

    An error in a write, such as a full disk, is raised by the next call or by the exit, as an OSError that names the
    folder.
    """

    def __init__(self, directory: Path, *, read_only: bool = False, keep: int | None = 2):
        """Opens the folder: to write, all processes must call this; to read, any process may.

        Args:
          directory: the folder of the checkpoints.
          read_only: opens for reading only.
          keep: number of newest checkpoints to keep; None: all.
        """
        self._directory = directory
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.LatestN(keep) if keep else None,  # None keeps all
            read_only=read_only,
            create=not read_only,
        )
        if read_only and jax.process_count() > 1:
            process = jax.process_index()
            options.multiprocessing_options = ocp.options.MultiprocessingOptions(
                primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}"
            )
        absolute = os.path.abspath(directory) if files.local(directory) else directory
        self._manager = ocp.CheckpointManager(epath.Path(absolute), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What ended the block says more than a write that failed as well.
        with contextlib.suppress(Exception) if kind else self._writing():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    def wait(self) -> None:
        """Waits until the last write has finished."""
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Makes an OSError of what the system refused: tensorstore has the number in its message alone."""
        try:
            yield
        except Exception as error:
            known = re.search(r"os_error_code='(\d+)'", str(error))
            number = error.errno if isinstance(error, OSError) else known and int(known[1])
            if not number:
                raise
            raise OSError(number, os.strerror(number), str(self._directory)) from error

    def latest_step(self) -> int | None:
        """The newest complete step, or None; a write interrupted by a kill does not count."""
        return self._manager.latest_step()

    def save(self, step: int, *, meta: dict[str, Any], **trees: Any) -> None:
        """Saves the trees of a step by item name (`state`, `ema`); the write continues in the background."""
        # Copies on the host: orbax would compile programs to have each of several devices write a slice.
        host = {name: jax.tree.map(np.array, jax.device_get(tree)) for name, tree in trees.items()}
        digests = {name: _digest(tree) for name, tree in host.items()}
        meta = meta | {"format": FORMAT_VERSION, "side_jax": __version__, "step": step, "sha256": digests}
        items = {name: ocp.args.StandardSave(tree) for name, tree in host.items()}
        with self._writing():
            saved = self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items), force=True)
        if not saved:
            raise InputError(f"the checkpoint of step {step} was not written to {self._directory}; is it read-only?")

    def restore(self, *, fingerprint: str, step: int | None = None, **abstract: Any) -> Restored:
        """Restores a checkpoint.

        Args:
          fingerprint: the one that the checkpoint must have.
          step: of the checkpoint; None: the newest.
          **abstract: for each requested item (`state`, `ema`), a tree of jax.ShapeDtypeStruct with shardings; without
            any, only the meta is read.

        Raises:
          InputError: if there is no checkpoint, or it is damaged, altered or from other settings.
        """
        if step is not None and step not in (kept := self._manager.all_steps()):
            raise InputError(
                f"{self._directory} has no checkpoint of step {step}, only of {', '.join(map(str, kept)) or 'none'}; a "
                "training with train.keep_checkpoints keeps all."
            )
        step = self.latest_step() if step is None else step
        if step is None:
            raise InputError(f"there is no checkpoint in {self._directory}; run the stage that trains it first.")
        path = self._directory / str(step)
        try:
            meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            _check_origin(path, meta, fingerprint)
            items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
            trees = dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items()) if items else {}
            altered = [name for name, tree in trees.items() if _digest(tree) != meta["sha256"][name]]
        except InputError:
            raise
        except Exception as error:  # orbax and tensorstore raise many types for a damaged file
            raise InputError(
                f"the checkpoint {path} is damaged ({damage(error)}); delete that folder to continue from an earlier "
                "step, or to start over."
            ) from error
        if altered:
            raise InputError(
                f"the checkpoint {path} was altered: its {' and '.join(altered)} no longer match the digest in its "
                "meta; delete that folder to continue from an earlier step, or to start over."
            )
        return Restored(step=step, trees=trees, meta=meta)


def damage(error: Exception) -> str:
    """Why a checkpoint can't be read, on one line; tensorstore's text goes on with addresses in memory."""
    lines = str(error).strip().splitlines()
    return lines[0].partition(". See full")[0][:200] if lines else type(error).__name__


def _check_origin(path: Path, meta: dict[str, Any], fingerprint: str) -> None:
    """Raises InputError if another version's format, or other settings, made a checkpoint with this meta."""
    check_format(f"the checkpoint {path}", meta, FORMAT_VERSION)
    if meta["fingerprint"] != fingerprint:
        raise InputError(
            f"the checkpoint {path} was written by {written_by(meta)} with other settings than this config has in "
            f"side_jax {__version__}; use the original config and that version, or a new --workdir."
        )


def latest_step(directory: Path) -> int | None:
    """The newest complete step in a folder; None if it has none or does not exist."""
    if not directory.exists():
        return None
    with Checkpoints(directory, read_only=True) as store:
        return store.latest_step()


def settings_meta(settings: Any, fingerprint: str) -> dict[str, Any]:
    """The part of `meta` that records the settings and their fingerprint."""
    return {"fingerprint": fingerprint, "settings": json.loads(json.dumps(dataclasses.asdict(settings)))}


def checkpoint_directory(workdir: Path, name: str) -> Path:
    """The folder of a network's checkpoints: <workdir>/checkpoints for the DPM, <workdir>/<name>/checkpoints else."""
    return workdir / "checkpoints" if name == "train" else workdir / name / "checkpoints"
