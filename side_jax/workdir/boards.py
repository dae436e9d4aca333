"""Where curves are drawn beside their files: TensorBoard, and Weights & Biases for those who ask for it.

Weights & Biases gets figures, and unless the report is private the settings and the name of the run; never an image,
the machine's name, the command, the code or what the run prints. Its run is found again by a digest of the settings, so
that an audit that continues also continues its curves.
"""

import contextlib
import dataclasses
import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from tensorboardX import SummaryWriter

from side_jax.errors import InputError
from side_jax.settings import Settings
from side_jax.settings.track import TENSORBOARD, WANDB
from side_jax.workdir import files

PROJECT = "side_jax"  # of Weights & Biases, unless WANDB_PROJECT names another
# What Weights & Biases would else collect by itself: the host's name, the user's, the command, the packages, the code.
_SILENT = {"console": "off", "disable_git": True, "save_code": False, "x_save_requirements": False, "quiet": True}
_SILENT |= {"host": "", "username": "", "program": PROJECT}
_SILENT |= dict.fromkeys(("x_disable_meta", "x_disable_stats", "x_disable_machine_info"), True)


class Board(Protocol):
    """Draws one curve."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Draws the figures of a step."""

    def close(self) -> None:
        """Ends the curve."""


class _TensorBoard:
    def __init__(self, folder: Path, first_step: int):
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A curve of a run of Weights & Biases; each has steps of its own."""

    def __init__(self, run: Any, name: str):
        self._run, self._name = run, name
        run.define_metric(f"{name}/*", step_metric=f"{name}/step")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"{self._name}/step": step} | {f"{self._name}/{name}": value for name, value in values.items()})

    def close(self) -> None:
        """The run goes on."""


@dataclasses.dataclass(kw_only=True)
class _Open:
    """Where the curves of the current audit are drawn."""

    workdir: Path
    to: tuple[str, ...] = (TENSORBOARD,)
    run: Any = None


_open: list[_Open] = []


def boards(path: Path, folder: Path | None, first_step: int) -> list[Board]:
    """The boards of a curve.

    Args:
      path: its .jsonl file.
      folder: for TensorBoard, if any.
      first_step: from which the curve goes on; 0 for a new one.
    """
    place = _open[-1] if _open else None
    found: list[Board] = []
    if folder and (place is None or TENSORBOARD in place.to):
        found.append(_TensorBoard(folder, first_step))
    if place and place.run:
        found.append(_Wandb(place.run, path.relative_to(place.workdir).with_suffix("").as_posix()))
    return found


def check(settings: Settings) -> None:
    """Raises InputError if Weights & Biases is asked for and not installed."""
    if WANDB not in settings.track.to:
        return
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # reports of its errors hold paths
    try:
        found = hasattr(importlib.import_module("wandb"), "init")  # without it, a folder of its runs has that name
    except ImportError:
        found = False
    if not found:
        raise InputError(
            "config.track.to holds wandb, which is not installed; pip install 'side_jax[wandb]', or leave it out."
        )


@contextlib.contextmanager
def open_for(settings: Settings, workdir: Path, *, write: bool) -> Iterator[None]:
    """In this block, curves are drawn where the settings say; only one process should write.

    Raises:
      InputError: if Weights & Biases can't be used.
    """
    run = _begin(settings, workdir) if write and WANDB in settings.track.to else None
    _open.append(_Open(workdir=workdir, to=settings.track.to, run=run))
    try:
        yield
    except BaseException:
        if run:
            run.finish(exit_code=1)
        raise
    else:
        if run:
            run.finish()
    finally:
        _open.pop()


def _begin(settings: Settings, workdir: Path) -> Any:
    """The run of Weights & Biases, begun or continued."""
    check(settings)
    wandb = importlib.import_module("wandb")
    values = dataclasses.asdict(settings)
    del values["track"]
    options = {"project": os.environ.get("WANDB_PROJECT", PROJECT), "id": files.digest(values)[:16], "resume": "allow"}
    if files.local(workdir) and not os.environ.get("WANDB_DIR"):
        options["dir"] = str(workdir)
    if not settings.report.private:
        options |= {"name": settings.name, "config": values}
    try:
        return wandb.init(**options, settings=wandb.Settings(**_SILENT))
    except Exception as error:  # its own kinds, and those of the network
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"Weights & Biases, which config.track.to asks for, can't begin ({reason}); run `wandb login`, set "
            "WANDB_MODE=offline, or leave it out."
        ) from None
