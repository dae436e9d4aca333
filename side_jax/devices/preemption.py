"""Loops that save their progress and stop on SIGTERM (the machine is taken away) or Ctrl-C.

All processes notice; in training, at the same step.
"""

import contextlib

import jax
from jax.experimental import multihost_utils

from side_jax.devices import process_group, signals


class Preemption:
    """A context manager around a loop that calls `reached` after each training step, or `requested` in other loops.

    Attributes:
      happened: whether a signal was noticed; then the loop must save its progress and raise StoppedError.
    """

    def __init__(self) -> None:
        self.happened = False
        self._noting = contextlib.ExitStack()

    def __enter__(self) -> "Preemption":
        # With several processes, JAX's coordination service handles SIGTERM, notifies all processes and agrees on a
        # step; our handler would replace it.
        if jax.process_count() == 1:
            self._noting.enter_context(signals.noted())
        return self

    def __exit__(self, *_: object) -> None:
        signals.leave()
        self._noting.close()

    def begins(self, step: int) -> None:
        """Must precede the first step of training: JAX's processes agree on a step after the last one passed here."""
        if jax.process_count() > 1:
            self.reached(step)

    def requested(self) -> bool:
        """Whether any process received a signal; for loops whose processes are not in step."""
        several = jax.process_count() > 1
        self.happened = self.happened or (process_group.sigterm_received() if several else signals.look())
        return self.happened

    def reached(self, step: int) -> bool:
        """Whether training must save and stop after this step; the same answer on all processes."""
        if jax.process_count() > 1:
            self.happened = self.happened or multihost_utils.reached_preemption_sync_point(step)
            return self.happened
        return self.requested()
