"""What a run is doing now: a loop with its count and rate, or one thing that takes time; and how lines say so."""

import dataclasses


def clock(seconds: float) -> str:
    """A duration for people: 75 -> 1:15, 7,275 -> 2:01:15."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclasses.dataclass(kw_only=True, eq=False)
class Activity:
    """One thing that takes time; a loop, if it has a total.

    Attributes:
      description: what it is, as the beginning of a line.
      began: when it began; all times are those of one clock, in seconds.
      total: the number of all items of a loop; None: no loop.
      unit: the name of one item.
      done: the number of items done before a restart.
      count: the number of items done.
      first: when the first item since the restart was done; it includes compiling, so that the rate leaves it out.
      last: when the last item was done, or when the loop began.
      compiling: since when a program is compiled for it; None: none is.
      shown: whether bars show it when nothing is compiled.
    """

    description: str
    began: float
    total: int | None = None
    unit: str = ""
    done: int = 0
    count: int = 0
    first: float | None = None
    last: float = 0.0
    compiling: float | None = None
    shown: bool = True

    def __post_init__(self) -> None:
        self.count, self.last = self.done, self.began

    def next(self, now: float) -> None:
        """Notes that an item is done."""
        self.count += 1
        self.first = now if self.first is None else self.first
        self.last, self.compiling = now, None

    @property
    def waits(self) -> bool:
        """Whether it is a loop whose first item is not done."""
        return self.total is not None and self.first is None and self.count < self.total

    def rate(self) -> float | None:
        """Items per second, after the first one; None before two are done."""
        after = self.count - self.done - 1
        return after / (self.last - self.first) if after > 0 and self.first and self.last > self.first else None

    def left(self, now: float) -> float | None:
        """Seconds to the end; None if nothing says so."""
        rate = self.rate()
        if rate is None or self.total is None:
            return None
        return max((self.total - self.count) / rate - (now - self.last), 0.0)

    def share(self) -> float:
        """The share of the work of this run that is done, in [0, 1]."""
        todo = (self.total or 0) - self.done
        return (self.count - self.done) / todo if todo else 0.0

    def counted(self) -> str:
        """How many items are done: 412 of 1,000 steps."""
        return f"{self.count:,} of {self.total:,} {self.units}"

    @property
    def units(self) -> str:
        """The name of several items."""
        return f"{self.unit}es" if self.unit.endswith("ch") else f"{self.unit}s"

    def speed(self) -> str:
        """The rate for people, or ""."""
        rate = self.rate()
        if rate is None:
            return ""
        return f"{rate:.3g} {self.units}/s" if rate >= 1 else f"{1 / rate:.3g} s/{self.unit}"

    def remaining(self, now: float) -> str:
        """The time left for people, or ""."""
        left = self.left(now)
        return "" if left is None else f"{clock(left)} left"

    def line(self, now: float, patience: float) -> str:
        """What it is doing; an item that has taken longer than `patience` seconds is named."""
        for_long = f"({clock(now - self.last)})"
        if self.compiling is not None:
            return f"{self.description}: compiling ({clock(now - self.compiling)})"
        if self.total is None:
            return f"still {self.description} {for_long}"
        if now - self.last >= patience and self.count < self.total:
            return f"{self.description}: still in {self.unit} {self.count + 1:,} of {self.total:,} {for_long}"
        parts = (self.counted(), self.speed(), self.remaining(now))
        return f"{self.description}: {', '.join(filter(None, parts))}"
