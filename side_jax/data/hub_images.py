"""Downloads the images of a data set on the Hugging Face hub: of all files at a path, only those that are read."""

import dataclasses
import functools
import glob
import posixpath
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from side_jax.data.decode import suffix_of
from side_jax.hub import repository

_FEW = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """Files in the hub's cache.

    Attributes:
      folder: on this machine; the cache may hold other files there too.
      names: of the files, sorted paths relative to the folder.
      others: of the files that were left at the hub.
      commit: of the repository.
      alone: whether the id names a file, the only one.
    """

    folder: Path
    names: tuple[str, ...]
    others: tuple[str, ...]
    commit: str
    alone: bool = False


@functools.lru_cache(maxsize=8)  # a set is listed more than once, and must stay the same
def fetch(text: str, commit: str, kinds: Sequence[Sequence[str]]) -> Files:
    """Downloads the files at a path of a repository; without a network, takes those in the cache.

    Args:
      text: the id, whose path names a file, a folder, or several files by * and ?, which match / too; a . at the
        beginning of a name hides the file, or all files of a folder.
      commit: to read; "": that of the id's revision, asked for once in a process.
      kinds: groups of suffixes in lower case: files of the first group that any file has are downloaded.

    Raises:
      InputError: if there are no such files, or they can't be downloaded.
    """
    found = repository.snapshot(text, commit or repository.commit_of(text))
    path = repository.parse(text).path
    if path in found.names:
        folder, name = posixpath.split(path)
        root = found.fetch([path])
        return Files(folder=root / folder, names=(name,), others=(), commit=found.where.revision, alone=True)
    wild = [path.find(mark) for mark in "*?" if mark in path]
    pattern = path.replace("[", "[[]") if wild else posixpath.join(glob.escape(path), "*")
    folder = posixpath.dirname(path[: min(wild)]) if wild else path
    names = [posixpath.relpath(name, folder or ".") for name in sorted(found.names) if fnmatchcase(name, pattern)]
    if not names:
        raise found.lacks(text)
    shown = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    chosen = next(filter(None, ([name for name in shown if suffix_of(name) in kind] for kind in kinds)), [])
    # The library compares each file with each pattern, so names are too many where there are many files.
    ends = {name[len(name) - len(suffix_of(name)) :] for name in chosen}
    patterns = [] if len(chosen) <= _FEW else [pattern] if wild else [pattern + end for end in sorted(ends)]
    root = found.fetch([posixpath.join(folder, name) for name in chosen], patterns) if chosen else Path()
    others = tuple(sorted({*names} - {*chosen}))
    return Files(folder=root / folder, names=tuple(chosen), others=others, commit=found.where.revision)
