"""Ctrl-C (SIGINT) and SIGTERM: noted for loops that save their progress; elsewhere they end a command at once.

Nothing is raised where a signal arrives. An exception amid a compilation would have the interpreter end while XLA's
threads still run, which is a segmentation fault. A loop that saves its progress looks for signals after each step or
batch (preemption.py), and stops in an orderly way. Everywhere else a thread ends the process by os._exit: all files are
written atomically, so nothing finished is lost. It takes a thread, since Python's handlers wait for the main thread to
return from a compilation, which may take minutes.

Only the standard library and what is made of it is imported here: a command handles signals before it loads the rest.
"""

import contextlib
import dataclasses
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from side_jax.progress import WATCH

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
PATIENCE = 3.0  # seconds that a loop may take to save before a line says that it does
_OVER = 0  # tells the thread to end; no signal has this number


@dataclasses.dataclass
class _State:
    """What is known since the handlers were installed.

    Attributes:
      first: the first signal.
      noted: whether the handlers are installed.
      watched: whether a thread ends the process.
      saving: whether a loop looks for signals after each step.
      heeded: whether it has seen one, so that it ends.
      shared: whether several processes stop together.
    """

    first: int | None = None
    noted: bool = False
    watched: bool = False
    saving: bool = False
    heeded: bool = False
    shared: bool = False


_state = _State()


def look() -> bool:
    """Whether a signal came; called by a loop that saves its progress, after each step, until it calls `leave`."""
    _state.saving = True
    _state.heeded = _state.heeded or _state.first is not None
    return _state.heeded


def leave() -> None:
    """Ends what `look` begins."""
    _state.saving = False


def share() -> None:
    """Lets several processes stop together: JAX tells all of them of a SIGTERM, and Ctrl-C becomes one."""
    _state.shared = True


def cause() -> str:
    """What stops the run, for messages; another process's signal is a SIGTERM."""
    return NAMES[signal.Signals(_state.first or signal.SIGTERM)]


def exit_code() -> int:
    """The exit code of a stopped command: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (_state.first or signal.SIGTERM)


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Notes signals in the block; without effect in another such block, or outside the main thread."""
    global _state
    if _state.noted or threading.current_thread() is not threading.main_thread():
        yield
        return
    # What the shell ignores for a background job stays ignored; None is a handler that Python can't put back.
    before = {number: signal.getsignal(number) for number in NAMES}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    _state = _State(noted=True)
    for number in before:
        signal.signal(number, _note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _state = _State()


def _note(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and _state.first is not None and not _state.watched:
        signal.default_int_handler(number, frame)  # a second Ctrl-C in Python; a command's thread ends the process
    _state.first = _state.first or number


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """For a command: notes signals in the block, and ends the process where no loop saves its progress."""
    with noted(), contextlib.ExitStack() as stack:
        heard, told = (stack.enter_context(end) for end in socket.socketpair())
        told.setblocking(False)
        signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)  # Python writes a signal's number at once
        watcher = threading.Thread(target=_watch, args=(heard,), daemon=True)
        watcher.start()
        _state.watched = True
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            told.send(bytes([_OVER]))
            watcher.join()


def _watch(heard: socket.socket) -> None:
    """Ends the process at a signal where no loop saves, and at a second Ctrl-C."""
    first, since = None, 0.0
    while True:
        ready, _, _ = select.select([heard], [], [], None if first is None else 0.1)
        number = heard.recv(1)[0] if ready else None
        if number == _OVER:
            return
        if first is None:
            if number in NAMES:
                first, since = number, time.monotonic()
                _state.first = _state.first or first  # the handler may be waiting for the main thread
                if _state.shared and number == signal.SIGINT:
                    os.kill(os.getpid(), signal.SIGTERM)
        elif number == signal.SIGINT or not (_state.saving or _state.heeded or _state.shared):
            WATCH.close()
            _say(f"stopped by {cause()}; what is finished is kept, and the same command goes on from there.")
            os._exit(128 + first)
        elif time.monotonic() - since > PATIENCE:
            since = float("inf")
            _say("stops as soon as this step or batch is saved; Ctrl-C ends it at once.")


def _say(sentence: str) -> None:
    """Writes a line to stderr, whatever the main thread is doing with sys.stderr."""
    if WATCH.say(f"side_jax: {sentence}"):
        return
    typed = "\n" if sys.stderr.isatty() else ""  # a terminal shows ^C
    os.write(2, f"{typed}side_jax: {sentence}\n".encode())
