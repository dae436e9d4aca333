"""A thread that calls a function at regular times, so that no step of a run is silent for long."""

import threading
from collections.abc import Callable


class Heartbeat:
    """Calls `beat` every few seconds until it is stopped; never keeps the process alive."""

    def __init__(self, beat: Callable[[], None], seconds: float):
        """Starts the thread."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(beat, seconds), name="side_jax progress", daemon=True)
        self._thread.start()

    def _run(self, beat: Callable[[], None], seconds: float) -> None:
        while not self._over.wait(seconds):
            beat()

    def stop(self) -> None:
        """Ends the thread; waits for a line that is being written, unless nobody reads it."""
        self._over.set()
        self._thread.join(1.0)


def within(seconds: float, work: Callable[[], None]) -> bool:
    """Does the work in a thread; returns whether it was done in time, whatever holds the lock of the terminal."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()
