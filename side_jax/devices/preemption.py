"""SIGTERM, which machines that can be taken away send shortly before: all processes notice, in training at one step."""

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

from side_jax.devices import process_group


class Preemption:
    """Use as a context manager around a loop that asks `reached` after each step of training, or else `told`."""

    def __init__(self) -> None:
        self.happened = False
        self._before = None

    def __enter__(self) -> "Preemption":
        # With several processes, JAX's coordination service catches the signal, tells all and agrees on a step; a
        # handler of ours would take its place. Only the main thread may set one.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.happened = True

    def told(self) -> bool:
        """Whether any process was told to end: for what each does at its own pace."""
        self.happened = self.happened or process_group.sigterm_received()
        return self.happened

    def reached(self, step: int) -> bool:
        """Whether training should save and stop after this step."""
        if jax.process_count() > 1:
            self.happened = self.happened or multihost_utils.reached_preemption_sync_point(step)
        return self.happened
