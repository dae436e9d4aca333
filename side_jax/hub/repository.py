"""Repositories of the Hugging Face hub: reads ids, resolves revisions to commits, downloads files into the hub's cache.

huggingface_hub does the work, so that its HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they always do.
"""

import dataclasses
import errno
import glob
import importlib.metadata
import logging
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from side_jax.errors import InputError

logger = logging.getLogger(__name__)

SCHEME = "hf://"
COMMIT = re.compile(r"[0-9a-f]{40}")
_FORM = "hf://OWNER/NAME@REVISION/PATH for a model, or hf://datasets/OWNER/NAME@REVISION/PATH for a data set"
_ID = re.compile(
    r"hf://(?P<datasets>datasets/)?(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>refs/(pr|convert)/[^@/]+|[^@/]+))?"
    r"(/(?P<path>[^@]*))?"
)
_KINDS = ("datasets", "spaces", "models", "buckets", "kernels")  # no owner is called so
_SHOWN = 6  # at most so many names of what a repository has
_ANY = (".gitattributes",)  # a small file that repositories have; the library complains where nothing is asked for
# A full disk and the like, of which the command line has its own sentence.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


class _Unreachable(InputError):
    """The hub does not answer, which its cache may make up for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Location:
    """What an id names.

    Attributes:
      kind: "model" or "dataset".
      name: OWNER/NAME.
      revision: a branch, tag or commit; "": the main branch.
      path: of a file or folder in the repository; "": all of it.
    """

    kind: str
    name: str
    revision: str = ""
    path: str = ""

    def __str__(self) -> str:
        return f"{SCHEME}{'datasets/' * (self.kind == 'dataset')}{self.name}"


def command(where: Location) -> str:
    """What a user runs to download what an id names into the hub's cache; the installed library's program for it.

    Of a model, this is all beside it too, where its scheduler may be; of a data set, what begins with the path.
    """
    words = [f"{_program()} download {where.name}"]
    if where.kind == "dataset":
        words.append("--repo-type dataset")
    if where.revision:
        words.append(f"--revision {shlex.quote(where.revision)}")
    path = where.path if where.kind == "dataset" else where.path.rpartition("/")[0]
    if path:
        wild = "*" in path or "?" in path
        pattern = path.replace("[", "[[]") if wild else glob.escape(path) + "*"
        words.append(f"--include {shlex.quote(pattern)}")
    return " ".join(words)


def is_id(path: Any) -> bool:
    """Whether a path is an id of the hub, and not of this machine."""
    return isinstance(path, str) and path.startswith(SCHEME)


def parse(text: str) -> Location:
    """Reads an id, hf://[datasets/]OWNER/NAME[@REVISION][/PATH]; a / in REVISION is written %2F.

    Raises:
      InputError: if it is none.
    """
    match = _ID.fullmatch(text)
    path = (match["path"] or "").rstrip("/") if match else ""
    parts = path.split("/") if path else []
    if not match or match["name"].partition("/")[0] in _KINDS or not {"", ".", ".."}.isdisjoint(parts):
        raise InputError(f"{text} is no id of the hub; write {_FORM}, where @REVISION and /PATH may be left out.")
    kind = "dataset" if match["datasets"] else "model"
    return Location(kind=kind, name=match["name"], revision=unquote(match["revision"] or ""), path=path)


def commit_of(text: str) -> str:
    """The commit that an id's revision is now; without the network, the one that it was when it was downloaded.

    Raises:
      InputError: if there is no such repository or revision, or nobody can say.
    """
    where = parse(text)
    if COMMIT.fullmatch(where.revision):
        return where.revision
    try:
        _ask(where, "repo_info")  # says what is wrong, if anything is
        folder = _download(where, _ANY)  # writes into the cache which commit it is, for times without a network
    except _Unreachable as error:
        found = _cached_folder(where)
        if not found:
            raise
        folder = found
        logger.warning("%s; the hub's cache is used.", str(error).partition(";")[0])
    logger.info("%s is commit %s.", text, folder.name)
    return folder.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A repository at one commit.

    Attributes:
      where: its location; the revision is the commit.
      names: of its files, or of those in the cache.
      cached: whether only the cache is used.
    """

    where: Location
    names: tuple[str, ...]
    cached: bool

    def fetch(self, names: Sequence[str], patterns: Sequence[str] = ()) -> Path:
        """Downloads files that the cache does not hold yet; returns the folder of the repository there.

        Args:
          names: of the files, among self.names.
          patterns: of fnmatch, each file matches one; quicker than the names of very many files.

        Raises:
          InputError: if a file can't be downloaded.
        """
        folder = _download(self.where, patterns or [glob.escape(name) for name in names], cached=self.cached)
        missing = next((name for name in names if not (folder / name).is_file()), None)
        if missing:
            raise _Unreachable(
                f"{self.where} is not whole in the hub's cache: {missing} is missing; {_get(self.where)}."
            )
        return folder

    def lacks(self, text: str) -> InputError:
        """What to raise where an id names nothing of the repository; in the cache alone, more may be at the hub."""
        if self.cached:
            commit = self.where.revision[:12]
            return InputError(
                f"what {text} names at the commit {commit} is not in the hub's cache; {_get(self.where)}."
            )
        path = self.where.path
        top = list(dict.fromkeys(name.partition("/")[0] for name in self.names if not name.startswith(".")))
        shown = ", ".join(top[:_SHOWN]) + ", ..." * (len(top) > _SHOWN) or "none"
        what = f"no file or folder {path}" if path else "no files"
        return InputError(f"{text} does not exist: the repository has {what}; name one that it has ({shown}).")


def snapshot(text: str, commit: str, *, cached: bool = False) -> Snapshot:
    """The repository of an id at a commit: its files, asked of the hub, or without the network those in the cache.

    Args:
      text: the id, whose revision does not matter.
      commit: as commit_of gives it.
      cached: whether only to look into the cache.

    Raises:
      InputError: if there is no such commit, or neither the hub nor the cache has it.
    """
    where = dataclasses.replace(parse(text), revision=commit)
    unreachable = _Unreachable(f"{where} at the commit {commit[:12]} is not in the hub's cache; {_get(where)}.")
    if not cached:
        try:
            _ask(where, "repo_info")  # fails at once without a network; the next question tries for half a minute
            return Snapshot(where=where, names=tuple(_ask(where, "list_repo_files")), cached=False)
        except InputError as error:  # a repository that is gone or closed by now may still be in the cache
            unreachable = error
    folder = _cached_folder(where)
    if not folder:
        raise unreachable
    files = (Path(place, name) for place, _, found in os.walk(folder) for name in found)
    names = sorted(file.relative_to(folder).as_posix() for file in files if file.is_file())
    if not cached:
        why = str(unreachable).partition(";")[0]
        logger.warning("%s; the %d files of the commit in the hub's cache are used.", why, len(names))
    return Snapshot(where=where, names=tuple(names), cached=True)


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(f"an id of {SCHEME} needs huggingface_hub; run `pip install 'side_jax[hub]'`.") from None
    return huggingface_hub


def _program() -> str:
    """The program of the library; versions before 0.34 had one of another name."""
    return "hf" if importlib.metadata.entry_points(group="console_scripts", name="hf") else "huggingface-cli"


def _get(where: Location) -> str:
    """What to do where the hub can't be asked, as the end of a sentence."""
    constants = _library().constants
    online = "HF_HUB_OFFLINE=0 " * bool(constants.HF_HUB_OFFLINE)
    return (
        f"run `{online}{command(where)}` where there is a network (another machine's cache may be copied to "
        f"{constants.HF_HUB_CACHE}), or give a local path"
    )


def _log_in(where: Location) -> str:
    """What to do where the hub asks who one is, as the end of a sentence."""
    login = {"hf": "hf auth login"}.get(_program(), f"{_program()} login")
    account = f"run `{login}` with an account that may read it (or set HF_TOKEN)"
    return f"{account}, then `{command(where)}` or the same command again"


def _ask(where: Location, question: str) -> Any:
    """What the hub answers to a question about a repository, which is a method of its library."""
    api = _library().HfApi()
    try:
        return getattr(api, question)(where.name, repo_type=where.kind, revision=where.revision or None)
    except Exception as error:
        raise _sentence(where, error) from error


def _download(where: Location, patterns: Sequence[str], *, cached: bool = False) -> Path:
    """Downloads what matches any pattern of fnmatch; returns the folder of the revision, named by its commit."""
    library = _library()
    try:
        folder = library.snapshot_download(
            where.name,
            repo_type=where.kind,
            revision=where.revision or None,
            allow_patterns=list(patterns),
            local_files_only=cached,
        )
    except Exception as error:  # of the libraries of the network too, which differ by version
        raise _sentence(where, error) from error
    return Path(folder)


def _cached_folder(where: Location) -> Path | None:
    """The folder of a revision in the cache; None if it holds none."""
    try:
        return _download(where, [], cached=True)
    except _Unreachable:
        return None


def _sentence(where: Location, error: Exception) -> InputError:
    """What to raise for an error of the library; raises that of a full disk itself."""
    errors, address = _library().errors, _library().constants.ENDPOINT
    if isinstance(error, OSError) and error.errno in _DISK:
        raise error
    if isinstance(error, errors.GatedRepoError):
        page = f"{address}/{str(where).removeprefix(SCHEME)}"
        return InputError(
            f"{where} is open only to those who accepted its terms; do so at {page}, and {_log_in(where)}."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        other = "models have no datasets/" if where.kind == "dataset" else "data sets are hf://datasets/OWNER/NAME"
        return InputError(
            f"{where} does not exist at {address}, or is private; correct the name ({other}), or {_log_in(where)}."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(
            f"{where} has no revision {where.revision}; name a branch, tag or commit of it after @, or leave @ out for "
            "its main branch."
        )
    if isinstance(error, errors.HFValidationError):
        return InputError(f"{where} is no id of the hub ({_reason(error)}); write {_FORM}.")
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status in (401, 403):
        return InputError(f"{address} refused to show {where} ({_reason(error)}); {_log_in(where)}.")
    if isinstance(error, errors.OfflineModeIsEnabled):
        why = "HF_HUB_OFFLINE is set"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        why = "it is not whole in the hub's cache"
    else:
        why = _reason(error)
    return _Unreachable(f"{where} can't be asked of {address} ({why}); {_get(where)}.")


def _reason(error: Exception) -> str:
    """The first sentence of an error's text, or its type."""
    first = str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")
    return first[:160] or type(error).__name__
