r"""Prints the table of docs/results_evidence.md on how well a model's scores tell members from held-out images.

python benchmarks/seeds.py --config=configs/digits_128.py --workdir=runs/membership --seeds 3 4 5 \
    --config.data.num_heldout=1600 --config.extract.attacks="('unconditional',)"
python benchmarks/membership.py --workdir runs/membership/seed_3 runs/membership/seed_4 runs/membership/seed_5

The threshold for each false-positive rate is set on one half of the held-out images; the table gives the fractions of
members and of the other half that exceed it. Scores use one timestep, by default a tenth of num_timesteps.
"""

import argparse
import json
from pathlib import Path
from typing import Any


def table(found: dict[str, dict[str, Any]]) -> str:
    """A Markdown table of the `membership` of results.json, by run name."""
    kinds = {name: [kind for kind, one in run.items() if isinstance(one, dict)] for name, run in found.items()}
    first = next(iter(found))
    rates = [f"{100 * at['false_positive_rate']:g}%" for at in found[first][kinds[first][0]]["at"]]
    heads = [f"members called at {rate} | held-out images called" for rate in rates]
    lines = [f"| run | evidence | AUC | {' | '.join(heads)} |", "|" + "---|" * (3 + 2 * len(rates))]
    for name, run in found.items():
        for kind in kinds[name]:
            one = run[kind]
            cells = [name, kind, f"{one['auc']:.3f} ({one['auc_ci'][0]:.3f} to {one['auc_ci'][1]:.3f})"]
            for at in one["at"]:
                cells += _called(one, at)
            lines.append(f"| {' | '.join(cells)} |")
    ats = [at for name, run in found.items() for kind in kinds[name] for at in run[kind]["at"]]
    notes = dict.fromkeys(f"-: {at['note']}." for at in ats if at["note"])
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _called(one: dict[str, Any], at: dict[str, Any]) -> list[str]:
    """The cells of a threshold: members called members, with their interval, and held-out images called members."""
    if at["threshold"] is None:
        return ["-", "-"]
    low, high = (100 * end for end in at["true_positive_rate_ci"])
    return [
        f"{at['called_members']} of {one['members']} ({low:.1f}% to {high:.1f}%)",
        f"{at['called_heldout']} of {one['evaluation']} ({100 * at['realised_rate']:.2f}%)",
    ]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, nargs="+", help="evaluated runs")
    read = lambda path: json.loads((path / "evaluate" / "results.json").read_text())["membership"]  # noqa: E731
    print(table({path.name: read(path) for path in parser.parse_args().workdir}))


if __name__ == "__main__":
    main()
