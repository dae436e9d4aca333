"""Compares all that a run has written with its manifests, and its checkpoints with the digests in their meta."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from side_jax.errors import InputError
from side_jax.workdir import files, work_units
from side_jax.workdir.checkpoint import damage
from side_jax.workdir.work_units import META


@dataclasses.dataclass(kw_only=True)
class Findings:
    """What a comparison found.

    Attributes:
      wrong: a line for each thing that is not as recorded, which names it.
      unknown: a line for each unit of which nothing or not all can be said.
      files: number of files that match.
      checkpoints: number of checkpoints whose arrays match their meta.
      units: number of units that recorded files.
      digest: SHA-256 of all manifests.
    """

    wrong: list[str] = dataclasses.field(default_factory=list)
    unknown: list[str] = dataclasses.field(default_factory=list)
    files: int = 0
    checkpoints: int = 0
    units: int = 0
    digest: str = ""


def manifests(workdir: Path) -> list[Path]:
    """The manifests of a workdir's units and stages, without stale ones, in the order of their names."""
    found = [path for pattern in ("*/manifest.json", "*/*/manifest.json") for path in workdir.glob(pattern)]
    return sorted(path for path in found if path.relative_to(workdir).parts[0] != "stale")


def verify(workdir: Path, outputs: Callable[[dict[str, Any]], Sequence[str]]) -> Findings:
    """Reads every recorded file and the arrays of every checkpoint once.

    Args:
      workdir: of the run.
      outputs: maps a manifest to the paths, relative to the workdir, that the finished unit must hold.

    Raises:
      InputError: if the folder holds no manifest.
    """
    paths = manifests(workdir)
    if not paths:
        raise InputError(f"--workdir={workdir} holds no manifest; name the workdir of a run.")
    found = Findings(digest=files.digest({_name(path, workdir): files.file_digest(path) for path in paths}))
    for path in paths:
        try:
            _compare(workdir, files.read_json(path), outputs, found)
        except (InputError, AttributeError, KeyError, TypeError) as error:
            found.wrong.append(f"{_name(path, workdir)} can't be read as a manifest ({error})")
    return found


def _compare(
    workdir: Path, manifest: dict[str, Any], outputs: Callable[[dict[str, Any]], Sequence[str]], found: Findings
) -> None:
    """Adds what the manifest of a unit, or of a stage with several, says."""
    unit, known = manifest["unit"], work_units.recorded(manifest)
    must = outputs(manifest) if manifest["done"] and "units" not in manifest else ()
    for part in manifest.get("units", ()):
        if not (workdir / part / "manifest.json").exists():
            found.wrong.append(f"{part}/manifest.json is missing")
    for name, digest in known.items():
        if not (workdir / name).is_file():
            found.wrong.append(f"{name} is missing")
        elif work_units.differs(workdir / name, digest):
            found.wrong.append(f"{name} was changed: it has another SHA-256 than in {unit}/manifest.json")
        else:
            found.files += 1
    found.wrong += [f"{name} is missing" for name in must if name not in known and not (workdir / name).exists()]
    found.units += bool(known)
    if not manifest["done"]:
        found.unknown.append(f"{unit} is not finished; its files can't be checked yet")
    elif not known and "units" not in manifest:
        found.unknown.append(f"{unit} was written by an earlier version, which recorded no SHA-256: unverified")
    for folder in {(workdir / name).parent for name in must if (workdir / name).is_dir()}:
        for step in sorted(path for path in folder.iterdir() if path.name.isdigit()):
            _read(step, _name(step, workdir), found)


def _read(folder: Path, name: str, found: Findings) -> None:
    """Compares the arrays of a checkpoint with its meta."""
    try:
        with ocp.PyTreeCheckpointer() as reader:
            for item, digest in files.read_json(folder / META)["sha256"].items():
                tree = reader.restore(folder / item)
                if files.array_digest(jax.tree.leaves(tree)) != digest:
                    found.wrong.append(f"{name}/{item} was changed: its arrays have another SHA-256 than in {META}")
                    return
    except Exception as error:  # orbax and tensorstore raise many types for a damaged file
        found.wrong.append(f"{name} is damaged ({damage(error)})")
        return
    found.checkpoints += 1


def _name(path: Path, workdir: Path) -> str:
    return path.relative_to(workdir).as_posix()
