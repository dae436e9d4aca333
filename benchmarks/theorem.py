"""Tests Theorem 1 on trained models: whether labels cause memorisation, and whether divergence predicts extraction.

python benchmarks/theorem.py --config=configs/digits_128.py --workdir=runs/theorem --seeds 3 4 5

For each seed, trains one unconditional DPM, and one of equal size, steps and data for each kind of label: a single
label for all members, random groups, SIDE's clusters of the unconditional DPM's samples (each member gets its nearest
kept centroid), and the members' own labels. At draws x of q (members blurred by epsilon) shared by all models, it
prints

    difference = mean of log p_unconditional(x) - log p_labelled(x | label of x's member),

which is M(D_i; p_i) - M(D_i; p) averaged over labels by their sizes, and negative if the label raises memorisation. It
also prints the difference less that of the single label, which carries no information although its DPM is also trained
with and without a label; an upper bound of the difference for images with a random label of share w
(log sum_i w_i p_i >= log w_i p_i); the difference from the labelled DPM's own distribution without label; and the
members that equally many samples of each DPM extract, with uniformly drawn labels. Finally it prints Spearman's
correlation of divergence and extraction over all runs. Scale 1 of classifier-free guidance is the labelled DPM itself.
Overrides such as --config.train.num_steps=500 apply to every run. Run again, it continues.
"""

import argparse
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import spearmanr

from side_jax.config import from_config
from side_jax.data import member_labels
from side_jax.devices import cpu
from side_jax.diffusion import pixel_range
from side_jax.features import clustering, extractors
from side_jax.measure import records
from side_jax.memorization.theory.divergence import divergence_difference, draw, log_q
from side_jax.pipeline import saved_config
from side_jax.report.findings import best, headline
from side_jax.settings import Settings, random_streams
from side_jax.stages import stage_inputs
from side_jax.workdir import files

KINDS = ("single", "random_2", "random_10", "random_50", "clusters", "true")
# The unguided sampler's steps for all runs, and no measurements that are not needed here.
COMMON = {
    "extract.num_steps": 0,
    "extract.solver": "",
    "extract.guidance_interval": "()",
    "extract.guidance_scales": "(1.0,)",
    **{f"evaluate.{name}": False for name in ("distribution", "membership", "divergence", "controls")},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The results of one labelled DPM of one seed."""

    seed: int
    kind: str
    labels: int
    difference: float  # M(D_i; p_i) - M(D_i; p), nats
    error: float  # its standard error over draws
    mixture: float  # upper bound for images with a random label: difference - log of its share
    own: float  # difference from the labelled DPM's own distribution without label
    divergence: float  # M(D; p_i) averaged over labels, nats: log q is that of all members
    ams: float
    unique: int
    free_ams: float  # of the same DPM, sampled without label
    free_unique: int


def run(config: str, folder: Path, seed: int, stages: str, values: dict[str, Any], overrides: list[str]) -> None:
    """Runs the command line of the audit, unless the run is complete."""
    given = [f"--config.{key}={value}" for key, value in (COMMON | values).items()]
    command = [sys.executable, "-m", "side_jax.main", f"--config={config}", f"--workdir={folder}", f"--stages={stages}"]
    subprocess.run([*command, f"--config.seed={seed}", *given, *overrides], check=True, stdout=subprocess.DEVNULL)


def settings_of(folder: Path) -> Settings:
    """The settings of a finished run."""
    return from_config(saved_config.saved_config(folder))


def write_clusters(free: Path, path: Path) -> None:
    """Writes each member's label, its nearest kept centroid of SIDE, numbered without empty labels."""
    settings = settings_of(free)
    members, _, ids, _ = stage_inputs.load_split(settings, free)
    found = files.read_npz(free / "label" / "labels.npz")
    embedded = extractors.extract(stage_inputs.build_extractor(settings, free), members.images, free / "features")
    nearest = clustering.nearest_label(embedded, found["centroids"], found["kept"])
    _, labels = np.unique(nearest, return_inverse=True)
    files.write_npz(path, id=ids.astype(np.int64), label=labels.astype(np.int32))


def extracted(folder: Path, attack: str) -> tuple[float, int]:
    """(AMS, members) by the headline metric."""
    row = best(headline(records.read(folder / "evaluate" / "results.json")), attack)
    return row.ams, row.unique


def log_probs(folder: Path, x: np.ndarray, of: dict[Path, np.ndarray | None]) -> list[np.ndarray]:
    """Log p of the draws under a run's DPM, with its labels or without, cached in a file."""
    if not all(path.exists() for path in of):
        witness = stage_inputs.load_target_scores(settings_of(folder), folder)  # compiles once for all runs
        for path, labels in of.items():
            files.write_npz(path, log_prob=witness.log_prob(x, "divergence/members", labels))
    return [files.read_npz(path)["log_prob"] for path in of]


def one_seed(options: argparse.Namespace, overrides: list[str], seed: int, epsilon: float) -> list[Row]:
    """Trains, samples and measures all models of a seed, unless done."""
    base = options.workdir / f"seed_{seed}"
    free = base / "unconditional"
    if not (base / "clusters.npz").exists():
        values = {"extract.attacks": "('unconditional','side')"}
        run(options.config, free, seed, "train,synthesize,label", values, overrides)
        base.mkdir(parents=True, exist_ok=True)
        write_clusters(free, base / "clusters.npz")
    run(options.config, free, seed, "train,extract,evaluate", {"extract.attacks": "('unconditional',)"}, overrides)
    settings = settings_of(free)
    members, _, _, _ = stage_inputs.load_split(settings, free)
    images = pixel_range.to_float(members.images)
    x, which = draw(images, epsilon, random_streams.stream_key(settings, "divergence/members"), options.draws)
    mark = f"{epsilon:g}_{options.draws}"
    (free_log_p,) = log_probs(free, x, {base / f"log_prob_unconditional_{mark}.npz": None})
    clusters = int(files.read_npz(base / "clusters.npz")["label"].max()) + 1
    rows = []
    for kind in KINDS:
        name, _, groups = kind.partition("_")
        count = {"single": 1, "clusters": clusters, "true": members.num_classes}.get(name) or int(groups)
        values = {
            "condition.labels": "file" if name == "clusters" else name,
            "condition.num_labels": count,
            "extract.attacks": "('unconditional','conditional_model')",
        }
        values |= {"condition.path": base / "clusters.npz"} if name == "clusters" else {}
        folder = base / kind
        run(options.config, folder, seed, "train,extract,evaluate", values, overrides)
        members, _, ids, _ = stage_inputs.load_split(settings_of(folder), folder, stream=True)
        of_members = member_labels.member_labels(settings_of(folder), members, ids)
        labels, share = of_members[which], np.bincount(of_members) / len(of_members)
        kept = {base / f"log_prob_{kind}_{mark}.npz": labels, base / f"log_prob_{kind}_free_{mark}.npz": None}
        labelled, own = log_probs(folder, x, kept)
        found = divergence_difference(labelled, free_log_p)
        ams, unique = extracted(folder, "conditional_model")
        free_ams, free_unique = extracted(folder, "unconditional")
        row = Row(
            seed=seed,
            kind=kind,
            labels=count,
            difference=found.estimate,
            error=found.standard_error,
            mixture=found.estimate - float(np.log(share[labels]).mean()),
            own=divergence_difference(labelled, own).estimate,
            divergence=float(np.mean(log_q(x, images, epsilon) - labelled)),
            ams=ams,
            unique=unique,
            free_ams=free_ams,
            free_unique=free_unique,
        )
        rows.append(row)
    ams, unique = extracted(free, "unconditional")
    m = float(np.mean(log_q(x, images, epsilon) - free_log_p))
    return [
        Row(
            seed=seed,
            kind="none",
            labels=0,
            difference=0.0,
            error=0.0,
            mixture=0.0,
            own=0.0,
            divergence=m,
            ams=ams,
            unique=unique,
            free_ams=ams,
            free_unique=unique,
        ),
        *rows,
    ]


def spread(values: list[float], digits: int = 1) -> str:
    """Mean and standard error over seeds, as text."""
    error = f" ({np.std(values, ddof=1) / len(values) ** 0.5:.{digits}f})" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{error}"


def table(rows: list[Row], epsilon: float) -> str:
    """A Markdown table with a row for each kind of label: means over seeds with standard errors."""
    shared = {row.seed: row.difference for row in rows if row.kind == "single"}
    columns: dict[str, Callable[[list[Row]], str]] = {
        "labels": lambda own: own[0].kind,
        "number": lambda own: ", ".join(str(n) for n in sorted({row.labels for row in own})),
        "M, nats": lambda own: spread([row.divergence for row in own]),
        "difference of each seed": lambda own: ", ".join(f"{row.difference:+.1f} ({row.error:.1f})" for row in own),
        "mean": lambda own: spread([row.difference for row in own]),
        "less that of `single`": lambda own: spread([row.difference - shared[row.seed] for row in own]),
        "label drawn, at most": lambda own: spread([row.mixture for row in own]),
        "from its own law without label": lambda own: spread([row.own for row in own]),
        "AMS, %": lambda own: spread([100 * row.ams for row in own], 2),
        "extracted": lambda own: spread([row.unique for row in own]),
        "without label: AMS, %": lambda own: spread([100 * row.free_ams for row in own], 2),
        "extracted ": lambda own: spread([row.free_unique for row in own]),
    }
    lines = [
        f"\n### epsilon = {epsilon:g}: mean (standard error) over {len(shared)} seeds\n",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for kind in ("none", *KINDS):
        own = [row for row in rows if row.kind == kind]
        lines.append(f"| {' | '.join(cell(own) for cell in columns.values())} |")
    return "\n".join(lines)


def correlations(rows: list[Row]) -> str:
    """Spearman's rank correlation of divergence and extraction, over all runs and within each seed."""
    lines = []
    for x in ("difference", "mixture"):
        for y in ("ams", "unique"):
            values = [[getattr(row, name) for row in rows] for name in (x, y)]
            found = spearmanr(*values)
            each = []
            for seed in sorted({row.seed for row in rows}):
                own = [row for row in rows if row.seed == seed]
                each.append(f"{spearmanr(*([getattr(row, n) for row in own] for n in (x, y))).statistic:+.2f}")
            lines.append(
                f"{x} and {y}: {found.statistic:+.2f} over {len(rows)} runs (p = {found.pvalue:.2g} if they were "
                f"independent); of each seed {', '.join(each)}"
            )
    return "\n".join(lines)


def draw_figure(rows: list[Row], epsilon: float, path: Path) -> None:
    """Plots divergence against extraction, one point per run."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for kind in ("none", *KINDS):
        own = [row for row in rows if row.kind == kind]
        x = [row.difference for row in own]
        axes[0].plot(x, [100 * row.ams for row in own], "o", label=kind.replace("_", " "))
        axes[1].plot(x, [row.unique for row in own], "o")
    for ax, title in zip(axes, ("AMS, %", "extracted members"), strict=True):
        ax.set_xlabel(f"M(D_i; p_i) - M(D_i; p), nats, epsilon = {epsilon:g}")
        ax.set_ylabel(title)
    axes[0].legend(title="labels", fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a config file of an unconditional target")
    parser.add_argument("--workdir", required=True, type=Path, help="holds a folder for each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.05], help="deviations of q's noise")
    parser.add_argument("--draws", type=int, default=128, help="of q")
    options, overrides = parser.parse_known_args()
    cpu.prepare([64])
    for epsilon in options.epsilons:
        rows = [row for seed in options.seeds for row in one_seed(options, overrides, seed, epsilon)]
        print(table(rows, epsilon), correlations(rows), sep="\n\n", flush=True)
        draw_figure(rows, epsilon, options.workdir / f"theorem_{epsilon:g}.png")


if __name__ == "__main__":
    main()
