"""Bars on a terminal: the stages with a tick, the loops of the running one, and the time left; lines go above them.

The cursor is never hidden, so that nothing has to show it again after a kill.
"""

import logging
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid
from rich.text import Text

from side_jax.progress.activities import Activity, clock
from side_jax.progress.chain import Chain, Stage
from side_jax.progress.small_table import Table

PER_SECOND = 4  # how often it is drawn
BAR = 28  # characters


class Watched(Protocol):
    """What is shown; see watch.py."""

    @property
    def stages(self) -> Chain | None:
        """The chain of stages."""

    @property
    def activities(self) -> Sequence[Activity]:
        """What is going on."""

    def now(self) -> float:
        """The time."""


class _Console(Console):
    def show_cursor(self, show: bool = True) -> bool:
        """The cursor stays where it is seen."""
        return False


class _Above:
    """A stream for log handlers, whose lines appear above the bars."""

    def __init__(self, console: Console):
        self._console = console

    def write(self, text: str) -> int:
        """Shows complete lines."""
        self._console.print(Text(text.removesuffix("\n")), soft_wrap=True)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


class Screen:
    """The bars, from its construction until `close`."""

    def __init__(self, watch: Watched):
        """Takes the terminal, and turns log handlers that write to it to the lines above the bars."""
        self._watch = watch
        self._console = _Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
        loggers = (logging.getLogger(), logging.getLogger("side_jax"))
        self._handlers = [
            (handler, handler.stream)
            for logger in loggers
            for handler in logger.handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
        ]
        self._live = Live(
            console=self._console,
            get_renderable=self.render,
            refresh_per_second=PER_SECOND,
            redirect_stdout=False,
            transient=watch.stages is None,
        )
        for handler, _ in self._handlers:
            handler.setStream(_Above(self._console))
            handler.addFilter(_not_shown)
        self._live.start()

    def close(self) -> None:
        """Draws the bars for the last time, and gives the terminal back."""
        self._live.stop()
        for handler, stream in self._handlers:
            handler.removeFilter(_not_shown)
            handler.setStream(stream)

    def say(self, sentence: str) -> None:
        """Shows a sentence above the bars."""
        self._console.print(Text(sentence), soft_wrap=True)

    def table(self, table: Table) -> None:
        """Shows a table above the bars."""
        grid = Grid(title=table.title, title_justify="left", title_style="bold", box=None, header_style="dim")
        for i, name in enumerate(table.columns):
            grid.add_column(name, justify="right" if i else "left")
        for row in table.rows:
            grid.add_row(*row)
        self._console.print(grid)

    def render(self) -> RenderableType:
        """What stands on the terminal now."""
        now, chain = self._watch.now(), self._watch.stages
        activities = [one for one in self._watch.activities if one.shown or one.compiling is not None]
        bars = self._bars(activities, now)
        if chain is None:
            return bars
        lines: list[RenderableType] = []
        whole = self._console.height > len(chain.stages) + len(activities) + 2
        for stage in chain.stages:
            if whole or stage is chain.current:
                lines.append(self._stage(stage, max(len(one.name) for one in chain.stages), now))
            if stage is chain.current:
                lines.append(bars)
        return Group(*lines, Text(chain.text(now), style="dim"))

    def _stage(self, stage: Stage, width: int, now: float) -> Text:
        plain = self._console.options.ascii_only
        if stage.began is None:
            return Text(f"{'-' if plain else '·'} {stage.name}", style="dim")
        took = clock((now if stage.ended is None else stage.ended) - stage.began)
        if stage.ended is None:
            mark, style = (">" if plain else "▸"), "bold"
        elif stage.failed:
            mark, style = ("x" if plain else "✗"), "red"
        else:
            mark, style = ("+" if plain else "✓"), "green"
        return Text.assemble((f"{mark} {stage.name:{width}}", style), f"  {took:>7}", no_wrap=True, overflow="ellipsis")

    def _bars(self, activities: list[Activity], now: float) -> Grid:
        grid = Grid.grid(padding=(0, 2, 0, 0))
        for _ in range(5):
            grid.add_column(no_wrap=True, overflow="ellipsis")
        for one in activities:
            grid.add_row(f"  {one.description if one.shown else ''}", *self._cells(one, now))
        return grid

    def _cells(self, one: Activity, now: float) -> tuple[RenderableType, ...]:
        what: tuple[RenderableType, ...] = (clock(now - one.last),)
        if one.compiling is not None:
            what = Text("compiling", style="yellow"), clock(now - one.compiling)
        elif one.total is not None:
            what = one.counted(), one.speed(), one.remaining(now)
        if one.total is None:
            return what
        width = min(BAR, max(self._console.width - 70, 8))
        return ProgressBar(total=max(one.total, 1), completed=one.count, width=width), *what


def _not_shown(record: Any) -> bool:
    """Whether the bars do not show what a log record says."""
    return not getattr(record, "shown_by_bars", False)
