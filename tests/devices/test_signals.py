"""Ctrl-C and SIGTERM: noted for loops, the end of a command elsewhere, and of use in Python too."""

import os
import signal
import subprocess
import sys

import pytest
import runs

from side_jax.devices import signals

WAITING = """
import hashlib, time
from side_jax.devices import signals
with signals.handled():
    print("ready", flush=True)
    {work}
"""


COMPILING = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # minutes, in which no handler runs
SAVING = "signals.look(); [time.sleep(0.01) for _ in range(10**5)]"  # a loop, not done with its step


def waiting(work):
    """A command at work."""
    command = [sys.executable, "-c", WAITING.format(work=work)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # What is ignored here, as in a background job of a shell, would be ignored there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=runs.ROOT, **pipes)
    signal.signal(signal.SIGINT, before)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_does_not_save(number):
    process = waiting(COMPILING)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.count("\n")) == (128 + number, 1)
    assert said.startswith(f"side_jax: stopped by {signals.NAMES[number]}; ")


def test_a_second_ctrl_c_ends_what_saves():
    process = waiting(SAVING)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGTERM)  # repeated by what watches over a machine: no reason to lose a step
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("side_jax: stopped by Ctrl-C; ")


def test_in_python_the_second_ctrl_c_is_a_keyboard_interrupt():
    handlers = [signal.getsignal(number) for number in signals.NAMES]
    with signals.noted():
        assert not signals.look()
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.look()
        assert (signals.cause(), signals.exit_code()) == ("Ctrl-C", 130)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in signals.NAMES] == handlers
    assert not signals.look()
    signals.leave()


def test_what_the_shell_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.noted():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
