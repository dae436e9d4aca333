"""What the owner of a finished run does with its workdir: verify it, clean it, and share what names no image."""

import dataclasses
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from side_jax.config import from_config
from side_jax.devices import compilation_cache
from side_jax.errors import InputError
from side_jax.pipeline.saved_config import saved_config
from side_jax.report import one_page
from side_jax.settings import Settings
from side_jax.stages import report, stage_table
from side_jax.workdir import files, lock, verification

LIMITS = (
    "Who can rewrite a file can rewrite its manifest too, and this does not show it. Keep a copy of the digest "
    "elsewhere: while it stays the same, so do the manifests. config.json, features/, TensorBoard's files and "
    "unfinished units are not covered."
)
_HALF = re.compile(r"\.\d+\.tmp$")  # the end of a name that files.atomic gives, which only a kill leaves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command on a workdir: its description, its run(workdir, options), and its options beyond --workdir.

    Each option is (name, default, what stands for its value, meaning); one with the default False is a switch.
    """

    description: str
    run: Callable[[Path, Any], None]
    options: tuple[tuple[str, Any, str, str], ...] = ()


def verify(workdir: Path) -> None:
    """Prints what is not as the manifests record it, or that all is; and the digest of all manifests.

    Raises:
      InputError: if anything is wrong, or there is no manifest.
    """
    found = verification.verify(workdir, _outputs)
    for line in (*found.wrong, *found.unknown):
        print(line)
    if not found.wrong:
        checkpoints = f", and {found.checkpoints} checkpoints the digests in their meta" if found.checkpoints else ""
        print(f"{found.files} files of {found.units} units match their manifests{checkpoints}.")
    print(f"Digest of all manifests: {found.digest}")
    print(LIMITS)
    if found.wrong:
        raise InputError(
            f"{len(found.wrong)} of the things in {workdir} are not as they were written; run the command that made it "
            "again: it makes them anew, or says what to do."
        )


def _outputs(manifest: dict[str, Any]) -> list[str]:
    return list(stage_table.unit_stage(manifest["unit"]).outputs(manifest))


def clean(workdir: Path, dry_run: bool) -> None:
    """Prints the files and folders that the run of the saved config no longer owns, and removes them unless dry_run.

    Raises:
      InputError: if the folder is no workdir, or another run uses it.
    """
    settings = from_config(saved_config(workdir))
    with lock.locked(workdir):
        found = sorted(_unowned(settings, workdir))
        for path in found:
            print(path)
        for path in () if dry_run else found:
            path.rmtree() if path.is_dir() and not _is_link(path) else path.unlink()
    print(
        f"{'Would remove' if dry_run else 'Removed'} {len(found)} files and folders." if found else "Nothing to remove."
    )


def _unowned(settings: Settings, workdir: Path) -> Iterator[Path]:
    """Yields what lies in stale/, folders of units that the settings do not have, and what a kill left half written."""
    owned = {work.unit.name for stage in stage_table.STAGES.values() for work in stage.plan(settings, workdir)}
    if (workdir / "stale").exists() and not _is_link(workdir / "stale"):
        yield from (workdir / "stale").iterdir()
    for path in verification.manifests(workdir):
        folder, manifest = path.parent, files.read_json(path)
        name = folder.relative_to(workdir).as_posix()
        ours = isinstance(manifest, dict) and manifest.get("unit") == name and "units" not in manifest
        if ours and name.partition("/")[0] in stage_table.STAGES and name not in owned and not _is_link(folder):
            yield folder
    for folder in (workdir, *(workdir / name for name in owned)):
        if folder.exists():
            yield from (path for path in folder.iterdir() if _HALF.search(path.name))


def _is_link(path: Path) -> bool:
    return files.local(path) and os.path.islink(path)


def share(workdir: Path, out: str) -> None:
    """Writes a ZIP file of what neither names nor shows an image: results.json, a private page, the settings.

    Raises:
      InputError: if `out` is empty, the evaluation is not done, or the data are not there for the page.
    """
    if not out:
        raise InputError("--out=FILE.zip is missing: the file to write.")
    settings = from_config(saved_config(workdir))
    if not stage_table.evaluation_unit(settings, workdir).done():
        raise InputError(f"{workdir} holds no finished evaluation; run the audit to its end, then share it.")
    compilation_cache.prepare()
    private = dataclasses.replace(settings, report=dataclasses.replace(settings.report, private=True))
    with tempfile.TemporaryDirectory() as folder:
        report.write(private, workdir, Path(folder))
        bundle = {
            **{name: (Path(folder) / name).read_bytes() for name in ("index.html", one_page.NAME)},
            "results.json": (workdir / "evaluate" / "results.json").read_bytes(),
            "config.json": json.dumps(report.displayed_config(private), indent=2).encode(),
        }
    with files.atomic(files.as_path(out)) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in bundle.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # without the time of day
    print(f"{out} holds {', '.join(bundle)}: no name and no unblurred picture of an image.")


COMMANDS = {
    "verify": Command(
        description="Compares every file of a run with the SHA-256 in its manifest, and checkpoints with their meta. "
        "The exit code is 1 if anything differs.",
        run=lambda workdir, _: verify(workdir),
    ),
    "clean": Command(
        description="Lists and removes what the run of the saved config no longer owns: stale files, and folders of "
        "attacks, scales and classifiers that it does not have.",
        run=lambda workdir, values: clean(workdir, values.dry_run),
        options=(("dry_run", False, "", "Only list it."),),
    ),
    "share": Command(
        description="Writes a ZIP file for others, without names and pictures of images: results.json, the page in its "
        "private form, and the settings without paths.",
        run=lambda workdir, values: share(workdir, values.out),
        options=(("out", "", "FILE", "The ZIP file to write."),),
    ),
}
