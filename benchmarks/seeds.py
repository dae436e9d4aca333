"""Runs one config with several seeds and prints the table of docs/results.md: means over seeds for every scale.

python benchmarks/seeds.py --config=configs/digits.py --workdir=runs/digits_seeds --seeds 0 1 2

Each seed has its own split, model and samples, in <workdir>/seed_<n>. Run again, it continues unfinished runs.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np


def times(value: float, base: float) -> str:
    """The ratio of a value to the base, as text; "-" if the base is zero."""
    return f"{value / base:.2f}x" if base else "-"


def table(results: list[dict], metric: str) -> str:
    """A Markdown table of one metric: for each attack and scale, the values of the seeds and their mean."""
    cells = defaultdict(list)
    for result in results:
        for row in result["rows"]:
            if (row["metric"], row["level"]) == (metric, "high"):
                cells[row["attack"], row["guidance_scale"]].append(row)
    plain = cells["unconditional", 0.0]
    base, base_unique = (np.mean([row[key] for row in plain]) for key in ("ams", "unique"))
    lines = [
        "| attack | scale | AMS of each seed, % | mean AMS, % | against unconditional | extracted members | mean | "
        "against unconditional | held-out AMS, mean (largest), % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (attack, scale), rows in cells.items():
        ams, unique, heldout = ([row[key] for row in rows] for key in ("ams", "unique", "heldout_ams"))
        lines.append(
            f"| {attack} | {scale:g} | {', '.join(f'{100 * a:.2f}' for a in ams)} | {100 * np.mean(ams):.2f} | "
            f"{times(np.mean(ams), base)} | {', '.join(map(str, unique))} | {np.mean(unique):.1f} | "
            f"{times(np.mean(unique), base_unique)} | {100 * np.mean(heldout):.2f} ({100 * max(heldout):.2f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a config file")
    parser.add_argument("--workdir", required=True, type=Path, help="holds one workdir for each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options, overrides = parser.parse_known_args()
    results = []
    for seed in options.seeds:
        workdir = options.workdir / f"seed_{seed}"
        command = [sys.executable, "-m", "side_jax.main", f"--config={options.config}", f"--workdir={workdir}"]
        subprocess.run([*command, f"--config.seed={seed}", *overrides], check=True, stdout=subprocess.DEVNULL)
        results.append(json.loads((workdir / "evaluate" / "results.json").read_text()))
    for metric in dict.fromkeys(row["metric"] for row in results[0]["rows"]):
        band = next(row["band"] for row in results[0]["rows"] if row["metric"] == metric)
        print(f"\n### {metric} in [{band[0]:.3g}, {band[1]:.3g})\n\n{table(results, metric)}")


if __name__ == "__main__":
    main()
