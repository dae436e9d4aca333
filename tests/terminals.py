"""A terminal for tests: a pseudo-terminal in place of stderr, and the lines that a reader of it would see."""

import contextlib
import os
import re
import sys
import threading
import time

import pytest

pty = pytest.importorskip("pty")  # Windows has none

TOKENS = re.compile(r"\x1b\[\??(\d*)(?:;\d+)*([A-Za-z])|([\r\n])|([^\x1b\r\n]+)|(\x1b)")


class Screen:
    """What stands on a terminal; knows what bars are drawn with, and fails on anything else."""

    def __init__(self, text):
        self.lines, self.row, self.column = [""], 0, 0
        self.hidden = False
        for token in TOKENS.finditer(text):
            number, command, end, words, strange = token.groups()
            assert not strange, text[token.start() : token.start() + 20]
            if words:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + words + line[self.column + len(words) :]
                self.column += len(words)
            elif end == "\r":
                self.column = 0
            elif end == "\n":
                self.row += 1
                self.lines += [""] * (self.row == len(self.lines))
            elif command == "A":
                self.row -= int(number or 1)
                assert self.row >= 0
            elif command == "K":
                self.lines[self.row] = ""
            elif command in "hl":
                self.hidden = command == "l"
            else:
                assert command == "m", token[0]

    def text(self):
        return "\n".join(line.rstrip() for line in self.lines)


class Reader:
    """Reads a pseudo-terminal in a thread, so that what writes to it never waits."""

    def __init__(self, master):
        self._master, self._parts = master, []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self):
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(self._master, 2**16):
                self._parts.append(part)

    @property
    def written(self):
        return b"".join(self._parts).decode(errors="replace")

    def wait_for(self, words, timeout=10):
        deadline = time.monotonic() + timeout
        while words not in self.written:
            assert time.monotonic() < deadline, self.written
            time.sleep(0.001)

    def end(self):
        self._thread.join(10)
        os.close(self._master)


@contextlib.contextmanager
def stderr(monkeypatch, term="xterm-256color"):
    """In this block, stderr is a terminal of 100 columns; yields its reader, which is complete after the block."""
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)
    master, slave = pty.openpty()
    reader = Reader(master)
    with os.fdopen(slave, "w", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stderr", file)
        yield reader
        monkeypatch.undo()
    reader.end()
