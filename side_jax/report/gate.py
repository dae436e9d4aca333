"""Decides whether an audit's results pass what a release asks for: the rules of --fail-above and --fail-on.

A rule counts only what the verdict counts: attacks, by the headline measure, with chance taken off. So a gate fails at
most as often by chance as a verdict says "Leaks".
"""

import dataclasses

from msgspec import UnsetType

from side_jax.measure.records import Results
from side_jax.report.phrases import headline, image_phrase, percent, points
from side_jax.report.verdict import LEAKS, UNDECIDED, attack_rows, verdict

FAIL_ON = {"leaks": (LEAKS,), "undecided": (LEAKS, UNDECIDED)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """What makes an audit fail.

    Attributes:
      above: the share of an attack's images that may match training images beyond chance, in [0, 1); None: any.
      on: one of FAIL_ON, the verdicts that fail; "": none does.
    """

    above: float | None = None
    on: str = ""

    @property
    def active(self) -> bool:
        """Whether it can fail."""
        return self.above is not None or bool(self.on)

    def failures(self, results: Results, confidence: float) -> tuple[str, ...]:
        """Why the results fail, a sentence each; empty: they pass.

        Args:
          results: of the audit.
          confidence: of its intervals.
        """
        status, tone, _ = verdict(results, confidence)
        found = []
        if self.on and (status, tone) in FAIL_ON[self.on]:
            found.append(f"The verdict is {status!r}, and --fail-on={self.on}.")
        if self.above is not None and (status, tone) == LEAKS:
            for row in attack_rows(headline(results)):
                if not isinstance(row.excess_ci, UnsetType) and row.excess_ci[0] > self.above:
                    found.append(
                        f"Of {image_phrase(row)}, {percent(row.ams)} match a training image, "
                        f"{100 * row.excess:.2f} points ({100 * confidence:g}% interval {points(*row.excess_ci)}) more "
                        f"than chance explains, and --fail-above={self.above:g}."
                    )
        return tuple(found)
