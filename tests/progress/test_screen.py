"""Bars on a pseudo-terminal: what a reader sees, lines above the bars, and a terminal that is left as it was."""

import contextlib
import logging
import signal
import subprocess
import sys

import pytest
import runs
import terminals

from side_jax.commands import cli
from side_jax.progress import Table, Watch

logger = logging.getLogger("side_jax.stages.train")


@pytest.fixture(autouse=True)
def handlers():
    """The log goes where a command has it go; afterwards as before."""
    package = logging.getLogger("side_jax")
    before = package.handlers, package.propagate, package.level
    yield
    package.handlers[:], package.propagate = before[:2]
    package.setLevel(before[2])


def seen(monkeypatch, work, **options):
    """(what stands on the terminal at last, what was written to it, what `work` returned)."""
    with terminals.stderr(monkeypatch, **options) as reader:
        cli.log_to_stderr()
        result = work()
    return terminals.Screen(reader.written).text(), reader.written, result


def work():
    """A run of two stages."""
    one = Watch()
    with one.chain(["train", "report"]):
        with one.stage("train"):
            for i in one.progress(range(3), total=3, description="train the DPM", unit="step"):
                logger.info("a [bold]line[/bold] of %d words, %s", i, "x" * 120)
                one.compiles(True)
            logging.getLogger("side_jax.progress").info("a minute", extra={"shown_by_bars": True})
            one.table(Table(title="train", columns=["model", "loss"], rows=[["target", "0.25"]]))
        with contextlib.suppress(KeyError), one.stage("report"):
            print("from a library", file=sys.stderr)
            raise KeyError
    return one


def test_the_chain_stands_there_once_with_lines_above(monkeypatch):
    text, written, _ = seen(monkeypatch, work)
    *above, train, report, elapsed, end = [*text.splitlines(), ""]
    assert [line[9:] for line in above if "words" in line] == [
        f"a [bold]line[/bold] of {i} words, {'x' * 120}" for i in range(3)
    ]
    assert [line.split() for line in above[3:6]] == [["train"], ["model", "loss"], ["target", "0.25"]]
    assert above[6:] == ["from a library"]
    assert train.split() == ["✓", "train", "0:00"]
    assert report.split() == ["✗", "report", "0:00"]
    assert elapsed == "0:00 elapsed"
    assert not end
    assert written.endswith("\n")
    assert "\x1b[?25l" not in written  # the cursor is never hidden
    assert "a minute" not in written


def test_a_running_chain(monkeypatch):
    """As it stands while the second step compiles, and what a signal says from another thread."""
    one = Watch()
    with terminals.stderr(monkeypatch) as found:
        cli.log_to_stderr()
        with one.chain(["train", "synthesize", "report"]), one.stage("train"):
            for i in one.progress(range(3), total=3, description="train the DPM", unit="step"):
                if i == 1:
                    one.compiles(True)
                    assert one.say("side_jax: stops soon.")
                    found.wait_for("stops soon.")
                    one.close()
                    assert not one.say("not shown by bars")
    said, train, bar, *others = terminals.Screen(found.written).text().splitlines()
    assert said == "side_jax: stops soon."
    assert train.split() == ["▸", "train", "0:00"]
    assert bar.split()[:3] == ["train", "the", "DPM"]
    assert bar.split()[-2:] == ["compiling", "0:00"]
    assert others == ["· synthesize", "· report", "stage 1 of 3, 0:00 elapsed"]


@pytest.mark.parametrize("how", ["TERM", "NO_COLOR", "bars"])
def test_plain_lines_without_a_code(monkeypatch, how):
    with contextlib.ExitStack() as around:
        found = around.enter_context(terminals.stderr(monkeypatch, term="dumb" if how == "TERM" else "xterm"))
        if how == "NO_COLOR":
            monkeypatch.setenv("NO_COLOR", "1")
        cli.log_to_stderr()
        one = Watch()
        one.bars = how != "bars"
        with one.chain(["train"]), one.stage("train"):
            logger.info("a line")
    assert [line[9:] for line in found.written.splitlines()] == ["stage train.", "a line"]
    assert "\x1b" not in found.written


INTERRUPTED = """
import hashlib
from side_jax.devices import signals
from side_jax.progress import WATCH
with signals.handled(), WATCH.chain(["train"]), WATCH.stage("train"):
    for _ in WATCH.progress([1], total=1, description="work", unit="step"):
        print("ready", flush=True)
        hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)
"""


def test_ctrl_c_leaves_the_terminal_clean(monkeypatch):
    """Amid a compilation, say: a thread ends the process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with terminals.stderr(monkeypatch) as found:
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED], cwd=runs.ROOT, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
        )
        signal.signal(signal.SIGINT, before)
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        process.stdout.close()
    lines = [line for line in terminals.Screen(found.written).text().splitlines() if line]
    assert lines[-1].startswith("side_jax: stopped by Ctrl-C; ")
    assert [line.split()[:2] for line in lines[:-2]] == [["▸", "train"], ["work", lines[1].split()[1]]]
    assert found.written.endswith("\n")
    assert "\x1b[?25l" not in found.written
