"""Preemption (SIGTERM before a machine is taken away), noticed by all processes; in training, at the same step."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

from side_jax.devices import process_group


class Preemption:
    """A context manager around a loop that calls `reached` after each training step, or `requested` in other loops.

    Attributes:
      happened: whether a preemption was noticed.
    """

    def __init__(self) -> None:
        self.happened = False
        self._before = None

    def __enter__(self) -> "Preemption":
        # With several processes, JAX's coordination service handles the signal, notifies all processes and agrees on a
        # step; our handler would replace it. Only the main thread may install a handler.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.happened = True

    def requested(self) -> bool:
        """Whether any process received SIGTERM; for loops whose processes are not in step."""
        self.happened = self.happened or process_group.sigterm_received()
        return self.happened

    def reached(self, step: int) -> bool:
        """Whether training must save and stop after this step; the same answer on all processes."""
        if jax.process_count() > 1:
            self.happened = self.happened or multihost_utils.reached_preemption_sync_point(step)
        return self.happened
