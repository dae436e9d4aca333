"""Runs one config with several seeds and prints the tables of docs/results*.md: means over seeds for every run.

python benchmarks/seeds.py --config=configs/digits.py --workdir=runs/digits_seeds --seeds 0 1 2

Each seed has its own split, model and samples, in <workdir>/seed_<n>. Run again, it continues unfinished runs. The
first table has all metrics; one for each metric follows.
"""

import argparse
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy import stats

from side_jax.attacks.table import NOISE, PLAIN, get_attack
from side_jax.measure import records
from side_jax.measure.records import Results
from side_jax.report import equal_calls, matches
from side_jax.report.matches import title


def times(value: float, base: float) -> str:
    """The ratio of a value to the base, as text; "-" if the base is zero."""
    return f"{value / base:.2f}x" if base else "-"


def table(results: list[Results], metric: str) -> str:
    """A Markdown table of one metric: for each run, the values of the seeds and their mean."""
    cells, equal = defaultdict(list), defaultdict(list)
    for result in results:
        for row in result.rows:
            if (row.metric, row.level) == (metric, "high"):
                cells[title(row)].append(row)
        if metric == result.rows[0].metric and (calls := equal_calls.budget(result.rarefaction)):
            for one in result.rarefaction:
                equal[title(one)].append(equal_calls.found(one, calls))
    plain = cells[PLAIN.name]
    base, base_unique = np.mean([row.ams for row in plain]), np.mean([row.unique for row in plain])
    heads = ["run", "AMS of each seed, %", "mean AMS, %", "against unconditional", "extracted members", "mean"]
    heads += ["against unconditional", "held-out AMS, mean (largest), %", "calls"]
    heads += ["members at equal calls", "against unconditional"] if equal else []
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, rows in cells.items():
        ams, unique, heldout = ([getattr(row, key) for row in rows] for key in ("ams", "unique", "heldout_ams"))
        values = [
            name,
            ", ".join(f"{100 * a:.2f}" for a in ams),
            f"{100 * np.mean(ams):.2f}",
            times(np.mean(ams), base),
        ]
        values += [", ".join(map(str, unique)), f"{np.mean(unique):.1f}", times(np.mean(unique), base_unique)]
        values += [f"{100 * np.mean(heldout):.2f} ({100 * max(heldout):.2f})", str(rows[0].network_calls)]
        if equal:
            values += [f"{np.mean(equal[name]):.1f}", times(np.mean(equal[name]), np.mean(equal[PLAIN.name]))]
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)


def summary(results: list[Results], early: list[dict[str, int]], first: int) -> str:
    """A Markdown table of all metrics: for each run, means over the seeds.

    Args:
      results: of each seed.
      early: for each seed, the members among the first images of each run, by its title; see `among_first`.
      first: number of those images; 0: no such column.
    """
    metrics = list(dict.fromkeys(row.metric for row in results[0].rows))
    cells = defaultdict(lambda: defaultdict(list))
    for result in results:
        for row in (row for row in result.rows if row.level == "high"):
            cells[title(row)][row.metric].append(row)
    calls = equal_calls.budget(results[0].rarefaction)
    heads = ["run", "calls", "matched (AMS), %", "members", *([f"members at {calls:,} calls"] if calls else [])]
    heads += [f"members of the first {first} images, each seed"] * bool(first)
    heads += [f"members by {name}" for name in metrics[1:]] + ["held-out matched, %"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    base = {}
    for name, by_metric in cells.items():
        rows = by_metric[metrics[0]]
        means = {"ams": 100 * np.mean([row.ams for row in rows]), "members": np.mean([row.unique for row in rows])}
        if calls:
            curves = [next(one for one in result.rarefaction if title(one) == name) for result in results]
            means["equal"] = np.mean([equal_calls.found(one, calls) for one in curves])
        base = base or means
        values = [name, str(rows[0].network_calls), f"{means['ams']:.2f} ({times(means['ams'], base['ams'])})"]
        values += [f"{means[key]:.1f} ({times(means[key], base[key])})" for key in ("members", "equal") if key in means]
        values += [", ".join(str(one[name]) for one in early)] if first else []
        values += [f"{np.mean([row.unique for row in by_metric[other]]):.1f}" for other in metrics[1:]]
        lines.append(f"| {' | '.join([*values, f'{100 * np.mean([row.heldout_ams for row in rows]):.2f}'])} |")
    return "\n".join(lines)


def differences(results: list[Results], metric: str) -> str:
    """A Markdown table of one metric: each run's members less those of plain sampling, paired by seed.

    The interval is Student's, of the mean over two or more seeds.
    """
    cells = defaultdict(list)
    for result in results:
        for row in result.rows:
            if (row.metric, row.level) == (metric, "high"):
                cells[title(row)].append(row)
    lines = ["| run | members less those of unconditional, each seed | mean (95% interval) |", "|---|---|---|"]
    for name, rows in cells.items():
        less = [row.unique - base.unique for row, base in zip(rows, cells[PLAIN.name], strict=True)]
        mean, half = np.mean(less), stats.t.ppf(0.975, len(less) - 1) * stats.sem(less)
        lines.append(f"| {name} | {', '.join(map(str, less))} | {mean:.1f} ({mean - half:.1f} to {mean + half:.1f}) |")
    return "\n".join(lines)


def among_first(result: Results, workdir: Path, first: int) -> dict[str, int]:
    """The different members that the first images of each run match, by its title and the headline metric."""
    columns, found = matches.read(workdir / "evaluate" / "matches.csv"), {}
    metric = result.rows[0].metric
    for row in (row for row in result.rows if (row.metric, row.level) == (metric, "high")):
        own = matches.select_run(columns, row)
        matched = (own[f"{metric}_member_match"] > 0) & (own["index"] < first)
        found[title(row)] = len(np.unique(own[f"{metric}_member_id"][matched]))
    return found


def figure(results: list[Results], metric: str, path: Path) -> None:
    """A PNG: AMS against calls of the network for one image, and members against calls in all; means over the seeds.

    Mode seeking has the colour of what it starts from, a solid line, and a marker for each number of rounds.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    high = [[row for row in result.rows if (row.metric, row.level) == (metric, "high")] for result in results]
    rounds = sorted({row.key.rounds for row in high[0]} - {0})
    fig, (rates, reach) = plt.subplots(1, 2, figsize=(11, 4.2))
    for i, row in enumerate(high[0]):
        name, start = title(row), row.key.start or row.attack
        colour = "black" if start == NOISE else get_attack(start).colour
        marker = "Ds^v"[rounds.index(row.key.rounds) % 4] if row.key.rounds else "o"
        style = {"color": colour, "marker": marker, "linestyle": "-" if row.key.rounds else ":"}
        rate = 100 * np.mean([rows[i].ams for rows in high])
        rates.plot(row.network_calls, rate, label=name, markersize=7, **style)
        curves = [next(one for one in result.rarefaction if title(one) == name) for result in results]
        calls = np.asarray(curves[0].sizes) * curves[0].network_calls
        reach.plot(calls, np.mean([one.expected for one in curves], axis=0), markevery=[-1], **style)
    rates.set(xlabel="calls of the network for one image", ylabel="images that match a member, %", ylim=(0, None))
    reach.set(xscale="log", xlabel="calls of the network in all", ylabel="members extracted", ylim=(0, None))
    reach.set_xlim(left=100)
    fig.tight_layout()
    fig.legend(*rates.get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, fontsize=9)
    fig.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(fig)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a config file")
    parser.add_argument("--workdir", required=True, type=Path, help="holds one workdir for each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--first", type=int, default=0, help="also count the members among so many first images")
    parser.add_argument("--figure", type=Path, help="a PNG of rates and members against calls of the network")
    parser.add_argument("--differences", action="store_true", help="also members less those of plain sampling")
    options, overrides = parser.parse_known_args()
    results, early = [], []
    for seed in options.seeds:
        workdir = options.workdir / f"seed_{seed}"
        command = [sys.executable, "-m", "side_jax.main", f"--config={options.config}", f"--workdir={workdir}"]
        subprocess.run([*command, f"--config.seed={seed}", *overrides], check=True, stdout=subprocess.DEVNULL)
        results.append(records.read(workdir / "evaluate" / "results.json"))
        early.append(among_first(results[-1], workdir, options.first) if options.first else {})
    print(summary(results, early, options.first))
    for metric in dict.fromkeys(row.metric for row in results[0].rows):
        band = next(row.band for row in results[0].rows if row.metric == metric)
        print(f"\n### {metric} in [{band[0]:.3g}, {band[1]:.3g})\n\n{table(results, metric)}")
    if options.differences:
        print(f"\n### Differences\n\n{differences(results, results[0].rows[0].metric)}")
    if options.figure:
        figure(results, results[0].rows[0].metric, options.figure)


if __name__ == "__main__":
    main()
