"""Measures how guidance changes the generated distribution: the divergence from a cluster's members, by lambda.

python benchmarks/guided_law.py --workdir=runs/digits

Needs a finished audit with SIDE. For the kept clusters with the most members (a member belongs to its nearest kept
centroid), equally many images per cluster are generated at every guidance scale from the same noise. The guided
distribution has no known density, so its divergence is estimated from samples: q is the cluster's members blurred by
epsilon, p the equally blurred samples, both projected on the members' first principal components. log q is exact and
log p is estimated by nearest neighbours (the hybrid estimator of memorization/theory/divergence.py, whose
docstring gives its bias; see benchmarks/knn_bias.py). Projection and blur can only lower a divergence. The table also
gives the fraction of the images that match a member, and that match a member of the target cluster.
"""

import argparse
import dataclasses
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import jax
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import spearmanr
from sklearn.decomposition import PCA

from side_jax import builders
from side_jax.attacks.table import ATTACKS
from side_jax.config import from_config
from side_jax.devices import cpu
from side_jax.diffusion import pixel_range
from side_jax.features import clustering, extractors
from side_jax.memorization.matching import match, references
from side_jax.memorization.theory.divergence import draw, knn_log_prob, log_q
from side_jax.pipeline import saved_config
from side_jax.progress import progress
from side_jax.settings import Settings, random_streams
from side_jax.stages import stage_inputs
from side_jax.workdir import files

DRAWS = 2000  # of q


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """The results at one guidance scale, one number per cluster."""

    scale: float
    divergence: np.ndarray  # nats
    matched: np.ndarray  # fraction of its images that match any member
    on_target: np.ndarray  # fraction that match a member of the cluster


def clusters_of(settings: Settings, folder: Path, images: np.ndarray) -> np.ndarray:
    """The label of each member's nearest kept centroid, int [n]."""
    found = files.read_npz(folder / "label" / "labels.npz")
    embedded = extractors.extract(stage_inputs.build_extractor(settings, folder), images, folder / "features")
    return clustering.nearest_label(embedded, found["centroids"], found["kept"])


def sampled(settings: Settings, folder: Path, targets: np.ndarray, scales: list[float]) -> dict[float, np.ndarray]:
    """For each scale, uint8 images for the targets int32 [n]; image i has the same noise at every scale."""
    classifier, guide = stage_inputs.load_classifier(settings, folder, ATTACKS["side"].classifier)
    generator = builders.build_generator(settings, classifier, sampler=settings.guided_sampler)
    dpm = stage_inputs.load_target(settings, folder)
    params, base = {"dpm": dpm.trees["ema"]} | guide, random_streams.stream_key(settings, "extract")
    index, size, by_scale = np.arange(len(targets)), generator.batch_size, {}
    for scale in progress(scales, total=len(scales), description="sample", unit="scale"):
        parts = [index[i : i + size] for i in range(0, len(index), size)]
        by_scale[scale] = np.concatenate([generator(params, base, part, targets[part], scale) for part in parts])
    return by_scale


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, help="of a finished audit with SIDE; nothing is written")
    parser.add_argument("--scales", type=float, nargs="+", default=[0, 1, 3, 10, 30, 100], help="lambda")
    parser.add_argument("--clusters", type=int, default=8)
    parser.add_argument("--images", type=int, default=500, help="of each cluster at each scale")
    parser.add_argument("--dimensions", type=int, default=8, help="principal components of the members")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.15, 0.05], help="deviations of q's noise")
    parser.add_argument("--neighbours", type=int, default=5, help="k")
    parser.add_argument("--figure", type=Path, help="a PNG of the first epsilon")
    options = parser.parse_args()
    settings = from_config(saved_config.saved_config(options.workdir))
    cpu.prepare([settings.sampler.batch_size])
    members, _, _, _ = stage_inputs.load_split(settings, options.workdir)
    own = clusters_of(settings, options.workdir, members.images)
    sizes = np.bincount(own)
    chosen = np.argsort(-sizes, kind="stable")[: options.clusters]
    print(f"clusters with {', '.join(map(str, sizes[chosen]))} of {len(members)} members\n")
    targets = np.repeat(chosen, options.images).astype(np.int32)
    sampled_images = sampled(settings, options.workdir, targets, options.scales)

    metric = settings.evaluate.make_metrics()[0]
    known = references(members.images, [metric])
    flat = pixel_range.to_float(members.images).reshape(len(members), -1)
    project = PCA(options.dimensions, random_state=0).fit(flat)
    print(
        f"{100 * project.explained_variance_ratio_.sum():.0f}% of the members' variance in "
        f"{options.dimensions} of {flat.shape[1]} dimensions\n"
    )
    for number, epsilon in enumerate(options.epsilons):
        rows = []
        for scale, images in sampled_images.items():
            matches = match(images, known, [metric])[0]
            hit = matches.value < metric.below
            on = hit & (own[matches.nearest] == targets)
            divergences = []
            for i, label in enumerate(chosen):
                key = jax.random.fold_in(jax.random.key(settings.seed), i)  # the same draws at every scale
                part = slice(i * options.images, (i + 1) * options.images)
                inside = project.transform(flat[own == label]).astype(np.float32)
                x, _ = draw(inside, epsilon, key, DRAWS)
                noise = np.random.default_rng([settings.seed, i]).normal(0, epsilon, (options.images, flat.shape[1]))
                blurred = pixel_range.to_float(images[part]).reshape(options.images, -1) + noise
                log_p = knn_log_prob(x, project.transform(blurred), options.neighbours)
                divergences.append(float(np.mean(log_q(x, inside, epsilon) - log_p)))
            shares = [np.asarray(values).reshape(len(chosen), -1).mean(axis=1) for values in (hit, on)]
            rows.append(Found(scale=scale, divergence=np.asarray(divergences), matched=shares[0], on_target=shares[1]))
        print(table(rows, epsilon), flush=True)
        if options.figure and number == 0:
            draw_figure(rows, epsilon, options.figure)


def table(rows: list[Found], epsilon: float) -> str:
    """A Markdown table with a row for each scale: means over clusters; changes against no guidance are paired."""
    lines = [
        f"### epsilon = {epsilon:g}: means over {len(rows[0].divergence)} clusters (standard error over them)\n",
        "| lambda | divergence, nats | less that of the first row | AMS, % | match of the cluster's own, % |",
        "|---|---|---|---|---|",
    ]

    def cell(values: np.ndarray, digits: int) -> str:
        return f"{values.mean():.{digits}f} ({values.std(ddof=1) / len(values) ** 0.5:.{digits}f})"

    for row in rows:
        change = row.divergence - rows[0].divergence
        lines.append(
            f"| {row.scale:g} | {cell(row.divergence, 2)} | {cell(change, 2)} | {cell(100 * row.matched, 1)} | "
            f"{cell(100 * row.on_target, 1)} |"
        )
    for name in ("matched", "on_target"):
        overall = spearmanr([r.divergence.mean() for r in rows], [getattr(r, name).mean() for r in rows]).statistic
        within = [
            spearmanr([r.divergence[i] for r in rows], [getattr(r, name)[i] for r in rows]).statistic
            for i in range(len(rows[0].divergence))
        ]
        lines.append(
            f"\nSpearman's correlation of the divergence and `{name}` over the scales: {overall:+.2f} of the means; of "
            f"each cluster {', '.join(f'{value:+.2f}' for value in within)}"
        )
    return "\n".join(lines) + "\n"


def draw_figure(rows: list[Found], epsilon: float, path: Path) -> None:
    """Plots divergence and AMS against lambda."""
    figure, left = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    right, x = left.twinx(), range(len(rows))
    count = len(rows[0].divergence) ** 0.5
    left.errorbar(
        x,
        [row.divergence.mean() for row in rows],
        [row.divergence.std(ddof=1) / count for row in rows],
        fmt="o-",
        color="tab:blue",
        label="divergence (left)",
    )
    right.plot(x, [100 * row.matched.mean() for row in rows], "s-", color="tab:red", label="AMS (right)")
    right.plot(x, [100 * row.on_target.mean() for row in rows], "s:", color="tab:red", label="of its own cluster")
    left.set_xticks(x, [f"{row.scale:g}" for row in rows])
    left.set_xlabel("guidance scale lambda")
    left.set_ylabel(f"divergence from the cluster, nats, epsilon = {epsilon:g}")
    right.set_ylabel("images that match, %")
    figure.legend(loc="outside upper center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
