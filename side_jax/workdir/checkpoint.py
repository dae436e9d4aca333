"""Orbax checkpoints: <directory>/<step>/{state,ema,meta}, shared by training, extraction and evaluation.

`state` holds what training needs to go on (parameters, optimiser), `ema` the averaged parameters that everything else
uses, `meta` a JSON with the format version, the fingerprint of the settings, the settings themselves, and a digest of
every array, so that an altered file is noticed whatever its storage format checks.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from side_jax.errors import InputError
from side_jax.workdir import files

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """What a checkpoint gave back: the step, the wanted trees by item name, and the meta JSON."""

    step: int
    trees: dict[str, Any]
    meta: dict[str, Any]


def _digest(tree: Any) -> str:
    return files.array_digest(jax.device_get(jax.tree.leaves(tree)))


class Checkpoints:
    """The checkpoints of one network. Use as a context manager: leaving it waits for the last write."""

    def __init__(self, directory: Path, *, read_only: bool = False, keep: int = 2):
        """Opens them: to read, each process for itself; to write, all processes together.

        Args:
          directory: of the checkpoints.
          read_only: whether nothing will be saved.
          keep: how many of the newest are kept.
        """
        self._directory = directory
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.LatestN(keep), read_only=read_only, create=not read_only
        )
        if read_only and jax.process_count() > 1:
            own = jax.process_index()
            options.multiprocessing_options = ocp.options.MultiprocessingOptions(
                primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
            )
        where = os.path.abspath(directory) if files.local(directory) else directory
        self._manager = ocp.CheckpointManager(epath.Path(where), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def wait(self) -> None:
        """Waits for the last write."""
        self._manager.wait_until_finished()

    def latest_step(self) -> int | None:
        """The newest complete step; a write cut short by a kill does not count."""
        return self._manager.latest_step()

    def save(self, step: int, *, meta: dict[str, Any], **trees: Any) -> None:
        """Saves a step, by item name (`state`, `ema`); the write goes on in the background."""
        meta = meta | {
            "format": FORMAT_VERSION,
            "step": step,
            "sha256": {name: _digest(tree) for name, tree in trees.items()},
        }
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        if not self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items), force=True):
            raise InputError(f"the checkpoint of step {step} was not written to {self._directory}; is it read-only?")

    def restore(self, *, fingerprint: str, **abstract: Any) -> Restored:
        """Restores the newest step.

        Args:
          fingerprint: that the checkpoint must have been written with.
          **abstract: for each wanted item (`state`, `ema`), a tree of jax.ShapeDtypeStruct with shardings.

        Raises:
          InputError: if there is no checkpoint, it is damaged or altered, or it was made with other settings.
        """
        step = self.latest_step()
        if step is None:
            raise InputError(f"there is no checkpoint in {self._directory}; run the stage that trains it first.")
        where = self._directory / str(step)
        try:
            meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            if meta["format"] != FORMAT_VERSION or meta["fingerprint"] != fingerprint:
                raise InputError(
                    f"the checkpoint {where} was made with other settings or another version; "
                    "use the config it was made with, or a new --workdir."
                )
            wanted = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
            trees = dict(self._manager.restore(step, args=ocp.args.Composite(**wanted)).items())
            altered = [name for name, tree in trees.items() if _digest(tree) != meta["sha256"][name]]
        except InputError:
            raise
        except Exception as error:  # orbax and tensorstore raise many types for a damaged file
            reason = str(error).strip().splitlines()
            reason = reason[0][:200] if reason else type(error).__name__
            raise InputError(
                f"the checkpoint {where} is damaged ({reason}); delete that folder to go on from an earlier "
                "step, or start over."
            ) from error
        if altered:
            raise InputError(
                f"the checkpoint {where} was altered: its {' and '.join(altered)} no longer match the digest in its "
                "meta; delete that folder to go on from an earlier step, or start over."
            )
        return Restored(step=step, trees=trees, meta=meta)


def latest_step(directory: Path) -> int | None:
    """The newest complete step in a folder that may not exist yet."""
    if not directory.exists():
        return None
    with Checkpoints(directory, read_only=True) as store:
        return store.latest_step()


def settings_meta(settings: Any, fingerprint: str) -> dict[str, Any]:
    """The part of `meta` that says how the checkpoint came to be."""
    return {"fingerprint": fingerprint, "settings": json.loads(json.dumps(dataclasses.asdict(settings)))}


def checkpoint_directory(workdir: Path, name: str) -> Path:
    """Where a network's checkpoints are: the DPM's in <workdir>/checkpoints, a classifier's below its unit."""
    return workdir / "checkpoints" if name == "train" else workdir / name / "checkpoints"
