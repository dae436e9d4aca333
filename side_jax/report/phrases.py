"""Phrases about runs and rates that the verdict, the findings and the tables share."""

from collections.abc import Sequence

from side_jax.attacks.table import GIVEN, get_attack
from side_jax.measure.records import Results, Row, Run, SideScore


def percent(rate: float) -> str:
    """A rate in [0, 1] for people: 0.0254 -> 2.54%."""
    return f"{100 * rate:.2f}%"


def points(low: float, high: float) -> str:
    """An interval of a difference of rates: percentage points with their signs."""
    return f"{100 * low:+.2f} to {100 * high:+.2f}"


def p_value(p: float) -> str:
    """A p-value for people."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def share(side: SideScore) -> str:
    """AMS with its interval; where nothing matched, the upper bound that this leaves."""
    if side.ams_at_most is not None:
        return f"0 (at most {percent(side.ams_at_most)})"
    low, high = side.ams_ci
    return f"{percent(side.ams)} ({percent(low)} to {percent(high)})"


def listed(words: Sequence[str]) -> str:
    """One or more words as a list: a, b and c."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" and {words[-1]}"


def headline(results: Results) -> list[Row]:
    """The rows of the first metric's nearest band."""
    return [row for row in results.rows if row.metric == results.rows[0].metric and row.level == "high"]


def best(rows: Sequence[Row], attack: str) -> Row | None:
    """The row of an attack's run with the highest AMS; on ties the smaller scale, then the earlier run."""
    candidates = [row for row in rows if row.attack == attack]
    return max(candidates, key=lambda row: (row.ams, -row.guidance_scale), default=None)


def run_phrase(run: Run) -> str:
    """The attack, for people."""
    name, key = get_attack(run.attack).phrase, run.key
    if key.start:
        origin = run_phrase(Run(attack=key.start, guidance_scale=key.scale)) if key.start_run else "Gaussian noise"
        how = f"of the last {key.last_steps} steps" if key.last_steps else f"at noise {key.noise:g}"
        return f"{name} from {origin} ({key.rounds} rounds {how})"
    return name + (f" at guidance scale {run.guidance_scale:g}" if run.guidance_scale else "")


def from_elsewhere(run: Run) -> bool:
    """Whether the images came from elsewhere, and no attack of ours made them."""
    return run.attack == GIVEN.name


def image_phrase(row: Row) -> str:
    """The images of a run, for people."""
    n = f"{row.n_generated:,}"
    return f"the {n} samples given" if from_elsewhere(row) else f"{n} images by {run_phrase(row)}"
