"""Tests extrapolations of the number of extracted members: predicts from the first N images, then counts more.

python benchmarks/budget.py --workdir runs/digits [more workdirs] --num-images 1024

An image depends on its global index alone, so the first N images of a run are those of a run of N. From how often these
extract each member (evaluate/matches.csv, headline metric), memorization/statistics/rarefaction.py predicts the number
of members that factor * N images extract, by a fitted beta law, Chao's extrapolation, and the series of Good and
Toulmin, as well as Chao's lower bound for unlimited sampling with its 95% interval. The predictions are compared with
the count among the first factor * N images of the same run. Factors that need more images than a run has are skipped.
`*`: the factor is beyond the range of the series of Good and Toulmin.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from side_jax.measure import records
from side_jax.memorization.statistics import rarefaction
from side_jax.report import matches

CONFIDENCE = 0.95
ESTIMATES = ("fit", "chao", "good_toulmin")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A prediction for one factor, and the count.

    Attributes:
      run: the name of the run.
      before: members extracted by the first N images.
      factor: multiple of N.
      found: members extracted by the first factor * N images.
      predicted: the predicted number of members, by name in ESTIMATES.
      valid: whether the factor is in the range of the series of Good and Toulmin.
      richness: Chao's lower bound for unlimited sampling.
    """

    run: str
    before: int
    factor: int
    found: int
    predicted: dict[str, float]
    valid: bool
    richness: rarefaction.Richness

    def error(self, name: str) -> float:
        """The relative error of an estimate; NaN if no member was found."""
        return self.predicted[name] / self.found - 1 if self.found else np.nan


def counts(run: matches.Columns, num_images: int, members: int) -> np.ndarray:
    """The number of the first images that extract each member, int64 [members]; extracted members come first."""
    metric = next(name for name in run if name.endswith("_member_match")).removesuffix("_match")
    first = (run["index"] < num_images) & (run[f"{metric}_match"] == 1)
    _, times = np.unique(run[f"{metric}_id"][first], return_counts=True)
    return np.pad(times, (0, members - len(times)))


def outcomes(name: str, run: matches.Columns, num_images: int, members: int, factors: list[int]) -> list[Outcome]:
    """Predicts from the first images, then counts, for every factor that the run has enough images for."""
    seen = counts(run, num_images, members)
    fit, found = rarefaction.fit(seen, num_images), []
    for factor in factors:
        if factor * num_images <= len(run["index"]):
            series = rarefaction.good_toulmin(seen, factor)
            predicted = {
                "fit": fit.expected([factor * num_images])[0],
                "chao": rarefaction.extrapolate(seen, num_images, factor),
                "good_toulmin": series.expected,
            }
            one = Outcome(
                run=name,
                before=int((seen > 0).sum()),
                factor=factor,
                found=int((counts(run, factor * num_images, members) > 0).sum()),
                predicted=predicted,
                valid=series.valid,
                richness=rarefaction.chao1(seen, num_images, CONFIDENCE),
            )
            found.append(one)
    return found


def table(found: list[Outcome]) -> str:
    """A Markdown table with a row for each run and factor."""
    lines = [
        "| run | found at N | Chao's bound (95% interval) | factor | found | beta fit | error | Chao | error | "
        "Good-Toulmin | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        bound = one.richness
        cells = [one.run, one.before, f"{bound.estimate:.1f} ({bound.low:.1f} to {bound.high:.1f})"]
        cells += [one.factor, one.found]
        for name in ESTIMATES:
            mark = "*" if name == "good_toulmin" and not one.valid else ""
            cells += [f"{one.predicted[name]:.1f}{mark}", percent(one.error(name))]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def summary(found: list[Outcome]) -> str:
    """A Markdown table with the mean and mean absolute error of each estimate over runs, for each factor."""
    lines = [
        "| factor | runs | beta fit, mean error (without sign) | Chao | Good-Toulmin | nothing more than at N |",
        "|---|---|---|---|---|---|",
    ]
    some = [one for one in found if one.found]
    for factor in dict.fromkeys(one.factor for one in some):
        own = [one for one in some if one.factor == factor]
        errors = [[one.error(name) for one in own] for name in ESTIMATES]
        errors.append([one.before / one.found - 1 for one in own])
        cells = [f"{percent(np.mean(e))} ({percent(np.abs(e).mean(), '')})" for e in errors]
        lines.append(f"| {factor} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(value: float, sign: str = "+") -> str:
    """A formatted percentage; "-" if not finite."""
    return f"{100 * value:{sign}.1f}%" if np.isfinite(value) else "-"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, nargs="+", help="audited, with many images for each run")
    parser.add_argument("--num-images", type=int, default=1024, help="N, from which to predict")
    parser.add_argument("--factors", type=int, nargs="+", default=[2, 5, 10])
    options = parser.parse_args()
    found: list[Outcome] = []
    for workdir in options.workdir:
        columns = matches.read(workdir / "evaluate" / "matches.csv")
        results = records.read(workdir / "evaluate" / "results.json")
        for run in results.rarefaction:
            name, members = f"{workdir.name}: {matches.title(run)}", results.dataset.members
            found += outcomes(name, matches.select_run(columns, run), options.num_images, members, options.factors)
    print(f"{table(found)}\n\n{summary(found)}")


if __name__ == "__main__":
    main()
