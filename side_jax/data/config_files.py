"""Checks local files named in the config (weights or labels): each must exist and be unchanged."""

from pathlib import Path

from side_jax.errors import InputError
from side_jax.workdir import files


def digest(path: str, recorded: str, key: str) -> str:
    """Returns the SHA-256 of the file, or the recorded one if the file is gone.

    A finished workdir may not need the file any more.

    Args:
      path: the file.
      recorded: its SHA-256 recorded earlier, or "".
      key: the setting that names the file, such as "label.weights", for messages.

    Raises:
      InputError: if the file is missing and no hash is recorded, or if its hash differs from the recorded one.
    """
    if not Path(path).is_file():
        if recorded:
            return recorded
        raise InputError(
            f"config.{key} is {path!r}, which is not a file; give the path of a local file (download it first)."
        )
    current = files.file_digest(Path(path))
    if recorded not in ("", current):
        raise InputError(
            f"{path} (config.{key}) has the SHA-256 {current[:12]}..., but {recorded[:12]}... is recorded: it is not "
            "the file used before; restore that file, or use a new --workdir for this one."
        )
    return current
