"""Measures how well evidence without training data finds copies: average precision of each score and of all combined.

python -m side_jax.evaluate --suspects --workdir=runs/digits
python benchmarks/suspects.py --workdir runs/digits [more workdirs] --plot suspects.png

An image is a copy if it matches a member by the headline metric in evaluate/matches.csv; the run must also have been
evaluated. At chance, average precision and precision of the first images equal the base rate, the fraction of images
that match. Intervals are 95% bootstrap percentiles over images. Ties are averaged over all orders. Beside single runs,
the table shows the runs of an attack pooled over workdirs and guidance scales; an image keeps its rank within its run,
as an attacker has it. The distinct modes of mode seeking are ranked by themselves, one row a mode: by the images that
came to it, by what one more round would change, and by the posterior variance.
"""

import argparse
import functools
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap, rankdata
from sklearn.metrics import average_precision_score, precision_recall_curve

from side_jax.report import matches
from side_jax.stages.suspects import KINDS, MODE_KINDS

FIRST = (10, 50, 100)
COMBINED = "all together"
DISTINCT = "distinct modes"
Run = dict[str, np.ndarray]  # "right" bool [n]; for each score, the suspicion float64 [n] in (0, 1]


def runs(workdir: Path) -> dict[tuple[str, str], Run]:
    """Maps each ranked run's (name, attack) to the ground truth and the scores of its images."""
    right, suspected, found = truth(workdir), _columns(workdir / "suspects/suspects.csv"), {}
    for name in dict.fromkeys(zip(suspected["run"].tolist(), suspected["attack"].tolist(), strict=True)):
        own = suspected["run"] == name[0]
        part = {column: values[own] for column, values in suspected.items()}
        one = {"right": np.asarray([right[key] for key in _keys(part)])}
        for kind, much in KINDS.items():
            if (part[kind] != "").all():
                value = part[kind].astype(float)
                one[kind] = rankdata(value if much else -value) / len(value)
        found[name] = one | {COMBINED: rankdata(-part["rank"].astype(int)) / len(part["rank"])}
    return found


def modes(workdir: Path) -> dict[str, Run]:
    """Maps each run of mode seeking to the ground truth and the scores of its distinct modes; none without any.

    A mode is right if its centre matches a member. `all together` is the mean rank.
    """
    path = workdir / "suspects" / "modes.csv"
    if not path.exists():
        return {}
    right, listed, found = truth(workdir), _columns(path), {}
    for name in dict.fromkeys(listed["run"].tolist()):
        part = {column: values[listed["run"] == name] for column, values in listed.items()}
        one = {kind: part[kind].astype(float) * (1 if much else -1) for kind, much in MODE_KINDS.items()}
        one = {kind: rankdata(value) / len(value) for kind, value in one.items()}
        found[name] = {"right": np.asarray([right[key] for key in _keys(part)])} | one
        found[name][COMBINED] = rankdata(np.mean(list(one.values()), axis=0)) / len(part["index"])
    return found


@functools.lru_cache(maxsize=1)  # images and modes of a workdir share it
def truth(workdir: Path) -> dict[tuple[str, int], bool]:
    """Whether each image of each run, (run, index), matches a member by the headline metric."""
    columns = _columns(workdir / "evaluate/matches.csv")
    headline = next(name for name in columns if name.endswith("_member_match"))
    return dict(zip(_keys(columns), (columns[headline] == "1").tolist(), strict=True))


def _columns(path: Path) -> dict[str, np.ndarray]:
    header, *rows = matches.table(path)
    return dict(zip(header, map(np.asarray, zip(*rows, strict=True)), strict=True))


def _keys(columns: dict[str, np.ndarray]) -> list[tuple[str, int]]:
    return [(run, int(index)) for run, index in zip(columns["run"].tolist(), columns["index"].tolist(), strict=True)]


def pooled(parts: Iterable[Run]) -> Run:
    """Pools several runs into one, with the scores that all have."""
    parts = list(parts)
    return {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0] if all(kind in p for p in parts)}


def precision_of_first(right: np.ndarray, suspicion: np.ndarray, count: int) -> float:
    """The fraction of copies, bool [n], among the `count` most suspicious images, averaged over orders of ties."""
    last = np.sort(suspicion)[-count]
    sure, tied = suspicion > last, suspicion == last
    return float((right[sure].sum() + (count - sure.sum()) * right[tied].mean()) / count)


def average_precision(right: np.ndarray, suspicion: np.ndarray) -> float:
    """scikit-learn's average precision; 0 without any copy, as in some resamples."""
    return float(average_precision_score(right, suspicion)) if right.any() else 0.0


def interval(right: np.ndarray, suspicion: np.ndarray, resamples: int) -> tuple[float, float]:
    """The bootstrap interval of the average precision, over images."""
    found = bootstrap(
        (right, suspicion),
        average_precision,
        paired=True,
        vectorized=False,
        n_resamples=resamples,
        batch=50,
        method="percentile",
        random_state=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def lines(name: str, one: Run, resamples: int) -> list[str]:
    """The table's rows for one run."""
    right, rows = one["right"], []
    for kind in [kind for kind in one if kind != "right"]:
        cells = [name, str(len(right)), f"{100 * right.mean():.2f}", kind]
        if right.any():
            value, (low, high) = average_precision(right, one[kind]), interval(right, one[kind], resamples)
            cells += [f"{100 * value:.2f} ({100 * low:.2f} to {100 * high:.2f})", f"{value / right.mean():.2f}x"]
            firsts = [count for count in FIRST if count <= len(right)]
            shares = [f"{100 * precision_of_first(right, one[kind], count):.1f}" for count in firsts]
            cells += shares + ["-"] * (len(FIRST) - len(shares))
        else:
            cells += ["-"] * (2 + len(FIRST))
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def table(found: dict[str, Run], resamples: int) -> str:
    """A Markdown table of runs, by name."""
    firsts = " | ".join(f"of the first {count}, %" for count in FIRST)
    head = f"| run | images | base rate, % | evidence | average precision, % | of the base rate | {firsts} |"
    rows = [row for name, one in found.items() for row in lines(name, one, resamples)]
    return "\n".join([head, "|" + "---|" * (6 + len(FIRST)), *rows])


def figure(found: dict[str, Run], path: Path) -> None:
    """Precision-recall curves, one panel per run; the dashed line is the base rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, panels = plt.subplots(1, len(found), figsize=(4.5 * len(found), 4), sharey=True, squeeze=False)
    for axes, (name, one) in zip(panels[0], found.items(), strict=True):
        for kind in [kind for kind in one if kind != "right" and one["right"].any()]:
            precision, recall, _ = precision_recall_curve(one["right"], one[kind])
            # The last point, without any image, is 1 by definition.
            axes.plot(recall[:-1], precision[:-1], label=kind, linewidth=2 if kind == COMBINED else 1)
        axes.axhline(one["right"].mean(), color="grey", linestyle="dashed", label="base rate")
        axes.set(title=name, xlabel="recall", ylim=(0, 1.02))
    panels[0][0].set_ylabel("precision")
    panels[0][-1].legend(fontsize=7)
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, nargs="+", help="audited, and with suspects")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--plot", type=Path, help="a PNG of precision-recall curves, each attack's runs pooled")
    options = parser.parse_args()
    single, attacks = {}, {}
    for workdir in options.workdir:
        for (run, attack), one in runs(workdir).items():
            single[f"{workdir.name}: {run}"] = one
            attacks.setdefault(attack, []).append(one)
        for run, one in modes(workdir).items():
            single[f"{workdir.name}: {DISTINCT} of {run}"] = one
            attacks.setdefault(DISTINCT, []).append(one)
        print(f"{workdir} is read", file=sys.stderr, flush=True)
    whole = {
        f"{attack}, {len(parts)} run{'s' if len(parts) > 1 else ''}": pooled(parts) for attack, parts in attacks.items()
    }
    print(table(single | {name: one for name, one in whole.items() if len(single) > len(whole)}, options.resamples))
    if options.plot:
        figure(whole, options.plot)


if __name__ == "__main__":
    main()
