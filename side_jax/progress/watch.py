"""What a run is doing, and who is told: bars on a terminal, and otherwise one log line a minute.

The lines are logged in every mode, for run.log; while bars show the same, the terminal does not get them. A thread logs
them, so that a step of an hour is not silent either.
"""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from side_jax.progress.activities import Activity
from side_jax.progress.chain import Chain, Stage, Work
from side_jax.progress.heartbeat import Heartbeat, within
from side_jax.progress.small_table import Table

logger = logging.getLogger(__name__)

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 60.0
PATIENCE = 1.0  # seconds that a signal waits for the terminal
BARS = {"shown_by_bars": True}  # marks a record that the terminal need not get while it has bars


def terminal() -> bool:
    """Whether stderr is a terminal that can redraw lines, and nobody asked for none of that."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in ("dumb", "unknown")
    return not plain and sys.stderr is not None and sys.stderr.isatty()


class Watch:
    """Knows the stages and what is going on in the current one; all calls but `say` and `close` are the main thread's.

    Attributes:
      now: the clock.
      bars: whether a terminal gets bars.
      stages: the chain of stages that is run, if one is.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        """Watches nothing yet."""
        self.now, self.bars = now, True
        self.stages: Chain | None = None
        self._activities: list[Activity] = []
        self._screen: Any = None  # a Screen, whose library takes a while to import
        self._is_awake = False

    @property
    def activities(self) -> tuple[Activity, ...]:
        """What is going on, the outermost first; a stage is among them."""
        return tuple(self._activities)

    def progress(
        self, items: Iterable[T], *, total: int, description: str, unit: str, done: int = 0, main: bool = False
    ) -> Iterator[T]:
        """Yields the items while showing how many of `total` are done, the rate and the time left.

        Args:
          items: the remaining items.
          total: the number of all items, including those done before a restart.
          description: the name of the loop.
          unit: the name of one item, such as "step".
          done: the number of items done before a restart.
          main: whether it does the work of the current unit, so that its time left is the unit's.
        """
        loop = Activity(description=description, began=self.now(), total=total, unit=unit, done=done)
        with self._during(loop):
            if main and self.stages:
                self.stages.begin_loop(loop)
            for item in items:
                yield item
                loop.next(self.now())

    @contextlib.contextmanager
    def doing(self, description: str) -> Iterator[None]:
        """In this block, the run does one thing that may take long, such as "clustering the features"."""
        with self._during(Activity(description=description, began=self.now())):
            yield

    @contextlib.contextmanager
    def chain(self, names: Sequence[str], *, work: Work | None = None, bars: bool = True) -> Iterator[Chain]:
        """In this block, stages are run.

        Args:
          names: of the stages.
          work: what is left to do, for the time that is left.
          bars: whether this process may show bars.
        """
        before, self.bars = self.bars, self.bars and bars
        self.stages = Chain(names, work or Work(), self.now())
        try:
            with self._awake():
                yield self.stages
        finally:
            self.stages, self.bars = None, before

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """In this block of a chain, a stage is run."""
        assert self.stages
        logger.info("stage %s.", name, extra=BARS)
        stage = self.stages.begin(name, self.now())
        stage.failed = True
        try:
            with self._during(Activity(description=f"in stage {name}", began=self.now(), shown=False)):
                yield stage
                stage.failed = False
        finally:
            stage.ended = self.now()

    def begin_unit(self, name: str) -> None:
        """Notes that work on a unit begins."""
        if self.stages:
            self.stages.begin_unit(name, self.now())

    def end_unit(self, name: str) -> None:
        """Notes that a unit is done."""
        if self.stages:
            self.stages.end_unit(name, self.now())

    def compiles(self, begins: bool, *, sure: bool = True) -> None:
        """Notes that a program begins to be compiled, or is compiled.

        Args:
          begins: whether it begins.
          sure: False if it may only be traced, which counts for the first item of a loop.
        """
        if not self._activities:
            return
        inner = self._activities[-1]
        if not begins:
            inner.compiling = None
        elif inner.compiling is None and (sure or inner.waits):
            inner.compiling = self.now()

    def table(self, table: Table) -> None:
        """Shows a table, and logs its lines."""
        screen = self._screen
        if screen:
            screen.table(table)
        for line in table.lines():
            logger.info("%s", line, extra=BARS if screen else None)

    def line(self) -> str:
        """What is going on, as a line of the log; "" if nothing is."""
        now, activities, chain = self.now(), self.activities, self.stages
        if not activities:
            return ""
        *outer, inner = activities
        around = [f"{one.description} {one.count + 1:,} of {one.total:,}: " for one in outer if one.total is not None]
        where = f" ({chain.text(now)})" if chain else ""
        return f"{''.join(around)}{inner.line(now, SECONDS_BETWEEN_LINES)}{where}"

    def say(self, sentence: str) -> bool:
        """Shows a sentence above the bars, from any thread; returns False if there are none."""
        screen = self._screen
        return bool(screen) and within(PATIENCE, lambda: screen.say(sentence))

    def close(self) -> None:
        """Leaves the terminal as it was, from any thread; for a process that is about to end."""
        within(PATIENCE, self._close)

    def _beat(self) -> None:
        if line := self.line():
            logger.info("%s", line, extra=BARS)

    @contextlib.contextmanager
    def _during(self, activity: Activity) -> Iterator[None]:
        with self._awake():
            self._activities.append(activity)
            try:
                yield
            finally:
                if activity in self._activities:
                    self._activities.remove(activity)

    @contextlib.contextmanager
    def _awake(self) -> Iterator[None]:
        """In the outermost of these blocks, the thread writes lines, and a terminal has bars.

        A loop that an error left may end later than the blocks around it, when its error is forgotten.
        """
        if self._is_awake:
            yield
            return
        self._is_awake = True
        with contextlib.ExitStack() as around:
            around.callback(self._sleep)
            if self.bars and terminal():
                from side_jax.progress.screen import Screen

                self._screen = Screen(self)
                around.callback(self._close)
            around.callback(Heartbeat(self._beat, SECONDS_BETWEEN_LINES).stop)
            yield

    def _sleep(self) -> None:
        self._is_awake = False
        self._activities.clear()

    def _close(self) -> None:
        screen, self._screen = self._screen, None
        if screen:
            screen.close()


WATCH = Watch()
