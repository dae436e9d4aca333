"""The plan of a run (--dry-run): remaining work, the time that it takes on this machine, and disk space.

One training step of each network and one sampling step of each kind are compiled and timed (clock.py); nothing is
written.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from side_jax.pipeline import space
from side_jax.pipeline.clock import Clock
from side_jax.settings import Settings
from side_jax.stages import stage_table
from side_jax.stages.estimates import Cost

LONG = 12 * 3600  # seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A unit of work and its remaining cost."""

    unit: str
    cost: Cost

    @property
    def seconds(self) -> float:
        """Its seconds on all devices of this run."""
        return self.cost.seconds / jax.device_count() + self.cost.host


def duration(seconds: float) -> str:
    """A time for people, such as 40 s, 2.5 min, 12 min or 3.5 h."""
    for limit, unit, digits in ((100, 1, 0), (600, 60, 1), (6000, 60, 0)):
        if seconds < limit:
            return f"{seconds / unit:.{digits}f}".removesuffix(".0") + (" s" if unit == 1 else " min")
    return f"{seconds / 3600:,.1f} h"


def lines(settings: Settings, workdir: Path, chosen: Sequence[str], clock: Clock | None = None) -> list[Line]:
    """The remaining cost of each unit of the chosen stages.

    Args:
      settings: of the run.
      workdir: of the run.
      chosen: names of the stages, in order.
      clock: has timed steps of these networks already; None: a new one.
    """
    clock = clock.for_plan(settings) if clock else Clock(settings)
    works = [work for name in chosen for work in stage_table.STAGES[name].plan(settings, workdir)]
    return [Line(unit=work.unit.name, cost=work.cost(clock)) for work in works if work.cost]


def text(settings: Settings, workdir: Path, chosen: Sequence[str]) -> str:
    """The plan as printed text."""
    planned = lines(settings, workdir, chosen)
    device = jax.devices()[0]
    rows = [f"Plan of {settings.name} in {workdir}, on {jax.device_count()} x {device.device_kind}:"]
    width = max((len(line.unit) for line in planned), default=0)
    for line in planned:
        size = f"{line.cost.size / 2**20:10,.1f} MiB" if line.cost.size else ""
        rows.append(f"  {line.unit:{width}}  {line.cost.left:42} {line.seconds:12,.1f} seconds {size}".rstrip())
    total = sum(line.seconds for line in planned)
    compiling = sum(line.cost.host for line in planned)
    rows.append(
        f"  Total: about {duration(total)}, by timed steps: {compiling:,.0f} seconds of it for compilation, tables and "
        "figures. It may take half or twice as long."
    )
    if total > LONG and settings.target.path:
        rows.append("  `side-jax audit --budget=TIME` chooses settings that take as long as you want, see its --help.")
    need, free = space.space(settings, workdir)
    rows.append(f"  Disk: at most {need / 2**20:,.0f} MiB, with {free / 2**20:,.0f} MiB free. Nothing was written.")
    return "\n".join(rows)
