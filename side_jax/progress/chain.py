"""The chain of stages: which are done, how long each took, and about how long the rest will take.

The time that is left is only known for units of work with a weight: their cost, in seconds or in anything that is
proportional to them, such as evaluations of a network. What a weight takes in seconds is measured in the finished units
of this run, those of the same stage if there are any, and in the loop of the current one. A chain whose weights are
seconds already needs no measurement to begin with.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from side_jax.progress.activities import Activity, clock

LEAST = 3.0  # seconds of measured work that say what the rest takes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What is left to do.

    Attributes:
      weights: of each unit of work that is left, by its stage and name; without a stage of which nobody knows it.
      seconds: whether the weights are seconds.
    """

    weights: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    seconds: bool = False


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
    """The stages of a run."""

    def __init__(self, names: Sequence[str], work: Work, now: float):
        """Begins the chain with nothing done."""
        self.stages = [Stage(name=name) for name in names]
        self._work, self.began = work, now
        self._done: set[tuple[str, str]] = set()
        self._measured: dict[str, tuple[float, float]] = {}  # of each stage: finished weight and its seconds
        self._unit: tuple[str, float] | None = None  # the current unit, and when it began

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
        self._unit = unit, now
        if self.current:
            self.current.worked = True

    def end_unit(self, unit: str, now: float) -> None:
        """Notes that a unit is done, and what it took."""
        if not self.current or not self._unit or self._unit[0] != unit:
            return
        name, (_, began) = self.current.name, self._unit
        weight, seconds = self._measured.get(name, (0.0, 0.0))
        own = self._work.weights.get(name, {}).get(unit, 0.0)
        if own:
            self._measured[name] = weight + own, seconds + now - began
        self._done.add((name, unit))
        self._unit = None

    def position(self) -> str:
        """Where the chain is: stage 3 of 7."""
        number = next((i for i, stage in enumerate(self.stages, start=1) if stage is self.current), None)
        return f"stage {number} of {len(self.stages)}" if number else ""

    def left(self, loop: Activity | None, now: float) -> tuple[float, list[str]] | None:
        """(seconds left of all units with a weight, the stages that are not done and have none); None: nobody knows.

        Args:
          loop: the outermost loop of the current unit, if any.
          now: the time.
        """
        total, unknown = 0.0, []
        for stage in self.stages:
            if stage.ended is None and stage.name not in self._work.weights:
                unknown.append(stage.name)
            elif stage.ended is None:
                for unit, weight in self._work.weights[stage.name].items():
                    seconds = self._left_of(stage, unit, weight, loop, now)
                    if seconds is None:
                        return None
                    total += seconds
        return (total, unknown) if total else None

    def _left_of(self, stage: Stage, unit: str, weight: float, loop: Activity | None, now: float) -> float | None:
        """Seconds left of a unit; None: nobody knows."""
        if (stage.name, unit) in self._done:
            return 0.0
        rate = self._rate(stage.name, loop)
        if loop and stage is self.current and self._unit and self._unit[0] == unit:
            left = loop.left(now)
            return left if left is not None or rate is None else rate * weight * (1 - loop.share())
        return None if rate is None else rate * weight

    def _rate(self, name: str, loop: Activity | None) -> float | None:
        """Seconds per weight in a stage: as measured there, or else in all of them; None before enough is measured."""
        known = dict(self._measured)
        if self.current and self._unit and loop and loop.first is not None:
            own = self._work.weights.get(self.current.name, {}).get(self._unit[0], 0.0)
            todo, after = (loop.total or 0) - loop.done, loop.count - loop.done - 1
            weight, seconds = known.get(self.current.name, (0.0, 0.0))
            if own and todo and after > 0:
                known[self.current.name] = weight + own * after / todo, seconds + loop.last - loop.first
        whole = sum(weight for weight, _ in known.values()), sum(seconds for _, seconds in known.values())
        for weight, seconds in (known.get(name, (0.0, 0.0)), whole):
            if weight and seconds >= LEAST:
                return seconds / weight
        return 1.0 if self._work.seconds else None

    def text(self, loop: Activity | None, now: float) -> str:
        """Where the chain is, the time since it began, and about how long the rest will take."""
        parts = [self.position(), f"{clock(now - self.began)} elapsed"]
        found = self.left(loop, now)
        if found:
            seconds, unknown = found
            without = f" without {', '.join(unknown)}" if unknown else " for all"
            parts.append(f"about {clock(seconds)} left{without}")
        return ", ".join(filter(None, parts))
