"""Local files that a config names, of weights or labels: that they are there, and still the ones used before."""

from pathlib import Path

from side_jax.errors import InputError
from side_jax.workdir import files


def digest(path: str, recorded: str, key: str) -> str:
    """SHA-256 of the file; where it is gone, the recorded one, since a workdir may need it no longer.

    Args:
      path: of the file.
      recorded: its SHA-256 as recorded earlier, or "".
      key: of the setting that names it, for messages, such as "label.weights".

    Raises:
      InputError: if the file is missing and no hash is recorded, or has another hash than recorded.
    """
    if not Path(path).is_file():
        if recorded:
            return recorded
        raise InputError(
            f"config.{key} is {path!r}, which is no file; give the path of a local one (download it first)."
        )
    found = files.file_digest(Path(path))
    if recorded not in ("", found):
        raise InputError(
            f"{path} (config.{key}) has the SHA-256 {found[:12]}..., but {recorded[:12]}... is recorded: it is not the "
            "file used before; put that one back, or use a new --workdir for this one."
        )
    return found
