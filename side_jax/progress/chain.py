"""The chain of stages: which are done, how long each took, and about how long the rest will take.

The time that is left is known for units of work whose amounts of work are: numbers that are proportional to seconds, of
one or more kinds, such as evaluations of a network for one image. What an amount takes is measured in this run: in the
finished units of the same stage with the same kinds of work, or else for each kind in all units that are of it alone;
the loop of the current unit counts as far as it is done. Seconds are a kind too, which needs no measurement to begin
with.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from side_jax.progress.activities import Activity, clock

LEAST = 3.0  # seconds of measured work that say what the rest takes
SECONDS = "seconds"  # the kind of work whose amounts are seconds

Amounts = Mapping[str, float]  # the amount of each kind of work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What is left to do.

    Attributes:
      units: the amounts of each unit of work that is left, by its stage and name; without a stage of which nobody knows
        them, and with an empty one of which nothing is left.
    """

    units: Mapping[str, Mapping[str, Amounts]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(kw_only=True)
class Stage:
    """A stage of the chain.

    Attributes:
      name: of the stage.
      began: when it began; None: it has not.
      ended: when it ended; None: it has not.
      failed: whether it ended by an error or a signal.
      worked: whether a unit of it had work left.
    """

    name: str
    began: float | None = None
    ended: float | None = None
    failed: bool = False
    worked: bool = False


class Chain:
    """The stages of a run; other threads read it while the main thread writes, so that they look at each thing once."""

    def __init__(self, names: Sequence[str], work: Work, now: float):
        """Begins the chain with nothing done."""
        self.stages = [Stage(name=name) for name in names]
        self._work, self.began = work, now
        self._done: set[tuple[str, str]] = set()
        self._finished: list[tuple[str, Amounts, float]] = []  # a stage, the amounts of a unit, its seconds
        self._unit: tuple[str, float] | None = None  # the current unit, and when it began
        self._loop: Activity | None = None  # that does its work

    @property
    def current(self) -> Stage | None:
        """The running stage."""
        return next((stage for stage in self.stages if stage.began is not None and stage.ended is None), None)

    def begin(self, name: str, now: float) -> Stage:
        """Begins a stage."""
        stage = next(stage for stage in self.stages if stage.name == name)
        stage.began = now
        return stage

    def begin_unit(self, unit: str, now: float) -> None:
        """Notes that work on a unit of the current stage begins."""
        self._unit, self._loop = (unit, now), None
        if self.current:
            self.current.worked = True

    def begin_loop(self, loop: Activity) -> None:
        """Notes that a loop does the work of the current unit."""
        self._loop = loop

    def end_unit(self, unit: str, now: float) -> None:
        """Notes that a unit is done, and what it took."""
        if not self.current or not self._unit or self._unit[0] != unit:
            return
        name, (_, began) = self.current.name, self._unit
        self._finished.append((name, self._work.units.get(name, {}).get(unit, {}), now - began))
        self._done.add((name, unit))
        self._unit = self._loop = None

    def position(self) -> str:
        """Where the chain is: stage 3 of 7."""
        number = next((i for i, stage in enumerate(self.stages, start=1) if stage is self.current), None)
        return f"stage {number} of {len(self.stages)}" if number else ""

    def left(self, now: float) -> tuple[float, list[str]] | None:
        """(seconds left, the stages of which nobody knows them); None: of more stages than not."""
        total, unknown, known = 0.0, [], 0
        measured = self._measured()
        for stage in self.stages:
            if stage.ended is not None:
                continue
            units = self._work.units.get(stage.name)
            left = [self._left(stage, name, units[name], measured, now) for name in units or ()]
            if units is None or None in left:
                unknown.append(stage.name)
            else:
                total += sum(left)
                known += 1
        return (total, unknown) if total and known >= len(unknown) else None

    def _left(self, stage: Stage, name: str, amounts: Amounts, measured: "_Measured", now: float) -> float | None:
        """Seconds left of a unit; None: nobody knows."""
        if (stage.name, name) in self._done:
            return 0.0
        seconds = measured.seconds(stage.name, amounts)
        loop, unit = self._loop, self._unit
        if loop and unit and stage is self.current and unit[0] == name:
            left = loop.left(now)
            return left if left is not None or seconds is None else seconds * (1 - loop.share())
        return seconds

    def _measured(self) -> "_Measured":
        """What the finished units took, and the current one as far as its loop is done, without the first item."""
        finished, loop, unit, stage = list(self._finished), self._loop, self._unit, self.current
        if stage and unit and loop and loop.first is not None:
            amounts = self._work.units.get(stage.name, {}).get(unit[0], {})
            share = max(loop.count - loop.done - 1, 0) / max((loop.total or 0) - loop.done, 1)
            part = {kind: share * amount for kind, amount in amounts.items()}
            finished.append((stage.name, part, loop.last - loop.first))
        return _Measured(finished)

    def text(self, now: float) -> str:
        """Where the chain is, the time since it began, and about how long the rest will take."""
        parts = [self.position(), f"{clock(now - self.began)} elapsed"]
        found = self.left(now)
        if found:
            seconds, unknown = found
            without = f" without {', '.join(unknown)}" if unknown else " for all"
            parts.append(f"about {clock(seconds)} left{without}")
        return ", ".join(filter(None, parts))


class _Measured:
    """What amounts of work take."""

    def __init__(self, finished: Sequence[tuple[str, Amounts, float]]):
        """Takes finished units: of a stage, with these amounts, in so many seconds."""
        self._finished = [one for one in finished if sum(one[1].values())]
        kinds = {kind for _, amounts, _ in self._finished for kind in amounts}
        alone = {kind: self._rate([one for one in self._finished if one[1].keys() == {kind}]) for kind in kinds}
        self._rates = {SECONDS: 1.0} | {kind: rate for kind, rate in alone.items() if rate is not None}

    def seconds(self, stage: str, amounts: Amounts) -> float | None:
        """What these amounts take in a stage; None: nobody knows."""
        alike = self._rate([one for one in self._finished if one[0] == stage and one[1].keys() == amounts.keys()])
        if alike is not None:
            return alike * sum(amounts.values())
        if not amounts.keys() <= self._rates.keys():
            return None
        return sum(self._rates[kind] * amount for kind, amount in amounts.items())

    @staticmethod
    def _rate(finished: Sequence[tuple[str, Amounts, float]]) -> float | None:
        """Seconds per amount; None before enough is measured."""
        seconds = sum(took for _, _, took in finished)
        return seconds / sum(sum(amounts.values()) for _, amounts, _ in finished) if seconds >= LEAST else None
