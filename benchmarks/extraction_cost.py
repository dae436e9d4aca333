"""Measures extracted members per device-second over solvers, steps, time grids, guidance intervals and scales.

python benchmarks/extraction_cost.py --config=configs/digits_128.py --workdir=runs/digits_cost --seeds 10 11 12 \
    --solvers ddim dpmpp_2m --steps 5 10 20 --spacings trailing log_snr --intervals all 300-799 --scales 3 10 30

The pipeline first trains each seed's target and surrogate in <workdir>/seed_<n>. Then every recipe generates images
from the same noise and target clusters, which are scored against members and held-out images. The baseline is the
recipe of Chen et al. 2024: DDIM, 50 steps, all guided. The interval "none" is the unguided recipe. A recipe may end in
mode seeking from its images: ddim-20-trailing-none+modes-0.4x5, with 5 rounds at noise 0.4. Seconds are those of
sampling without compilation, the median batch times the number of devices, so the machine must be idle. Each row is
compared with the baseline at the scale of its highest AMS over all seeds: by members per second for equally many
images, and by the seconds until as many members are extracted as the baseline extracts in all. To avoid selection
effects, choose on some seeds and evaluate the choice on others, with --recipes and --scales. Images of an unchanged
surrogate are not generated again.
"""

import argparse
import dataclasses
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from side_jax import builders
from side_jax.attacks.table import ATTACKS
from side_jax.config import from_config
from side_jax.devices import cpu
from side_jax.memorization.matching import match, references
from side_jax.pipeline.saved_config import saved_config
from side_jax.sampling import generation
from side_jax.settings import Settings, random_streams
from side_jax.stages import stage_inputs
from side_jax.stages.stage_table import unit
from side_jax.workdir import files

PAPER = "ddim-50-trailing-all"
UNGUIDED = "ddim-50-trailing-none"
STAGES = "train,synthesize,label,surrogate"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe; its name is <solver>-<steps>-<spacing>-<interval>, and +modes-<noise>x<rounds> with mode seeking."""

    name: str

    @property
    def sampling(self) -> str:
        """The name without mode seeking."""
        return self.name.partition("+")[0]

    @property
    def unguided(self) -> bool:
        """Whether no step is guided."""
        return self.sampling.endswith("-none")

    @property
    def rounds(self) -> tuple[float, int] | None:
        """(noise, number of rounds) of mode seeking; None without it."""
        noise, _, rounds = self.name.partition("+")[2].removeprefix("modes-").partition("x")
        return (float(noise), int(rounds)) if rounds else None

    def apply(self, settings: Settings) -> Settings:
        """The settings of a run with this recipe."""
        solver, num_steps, spacing, interval = self.sampling.split("-", 3)
        between = () if interval in ("all", "none") else tuple(int(end) for end in interval.split("-"))
        options = {"solver": solver, "num_steps": int(num_steps), "guidance_interval": between}
        return dataclasses.replace(
            settings,
            sampler=dataclasses.replace(settings.sampler, spacing=spacing),
            extract=dataclasses.replace(settings.extract, **options),
        )


class Bench:
    """One seed's target, surrogate, members and held-out images."""

    def __init__(self, config: str, workdir: Path, seed: int, overrides: list[str]):
        """Runs the missing stages of the pipeline and loads their outputs."""
        command = [sys.executable, "-m", "side_jax.main", f"--config={config}", f"--workdir={workdir}"]
        attacks = "--config.extract.attacks=('unconditional','side')"
        command += [f"--config.seed={seed}", f"--stages={STAGES}", attacks, *overrides]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        self.settings = settings = from_config(saved_config(workdir))
        cpu.prepare([settings.sampler.batch_size])
        surrogate_unit = unit(settings, workdir, "surrogate/side")
        self.drawn = workdir / "cost" / surrogate_unit.fingerprint[:12]
        members, heldout, *_ = stage_inputs.load_split(settings, workdir)
        self._metric = settings.evaluate.make_metrics()[:1]
        self._sides = [
            references(side.images, self._metric) for side in (members, heldout.take(np.arange(len(members))))
        ]
        dpm = stage_inputs.load_target(settings, workdir)
        self._classifier, guide = stage_inputs.load_classifier(settings, workdir, ATTACKS["side"].classifier)
        self._params = {"dpm": dpm.trees["ema"]} | guide
        self._base = random_streams.stream_key(settings, "extract")
        self._spread = stage_inputs.training_spread(settings, workdir)

    def run(self, recipe: Recipe, scales: list[float], num_images: int, save: Any, even: bool = False) -> None:
        """Generates and scores images by a recipe at each scale; calls `save` with (scale, arrays).

        The target classes are those of a run or, with `even`, cycle through the clusters.
        """
        settings = recipe.apply(self.settings)
        classifier = None if recipe.unguided else self._classifier
        sampled = builders.build_generator(settings, classifier, sampler=settings.guided_sampler)
        generator = sampled
        if recipe.rounds:
            generator = _seeking(settings, sampled, builders.mode_noise_levels(settings, *recipe.rounds, self._spread))
        size = settings.sampler.batch_size
        classes = self._classifier.num_classes
        labels = generation.target_labels(self._base, num_images, classes)
        if even:
            labels = np.arange(num_images, dtype=np.int32) % classes
        parts = [np.arange(i, min(i + size, num_images)) for i in range(0, num_images, size)]
        generator(self._params, self._base, parts[0], labels[parts[0]], scales[0])  # compiles
        for scale in scales:
            images, seconds = [], []
            for part in parts:
                start = time.perf_counter()
                images.append(generator(self._params, self._base, part, labels[part], scale))
                seconds.append(time.perf_counter() - start)
            found = [match(np.concatenate(images), side, self._metric)[0] for side in self._sides]
            to_members, to_heldout = (one.score(self._metric[0].bands["high"]) for one in found)
            per_image = statistics.median(seconds) * jax.local_device_count() / size
            save(
                scale,
                {
                    "images": np.concatenate(images),
                    "matched": to_members.matched,
                    "nearest": to_members.nearest,
                    "heldout_matched": to_heldout.matched,
                    "heldout_nearest": to_heldout.nearest,
                    "labels": labels,
                    "seconds_per_image": np.float64(per_image),
                },
            )


def _seeking(settings: Settings, sampled: generation.Generator, levels: np.ndarray) -> Callable[..., np.ndarray]:
    """A generator that takes the images of another one to modes, by rounds at these noise levels."""

    def generate(params: Any, base: jax.Array, index: np.ndarray, labels: np.ndarray, scale: float) -> np.ndarray:
        images = sampled(params, base, index, labels, scale)
        seek = builders.build_mode_generator(settings, levels, lambda _: images)
        return seek(params, base, index, labels, scale)

    return generate


def unique(found: dict[str, np.ndarray], first: int | None = None) -> int:
    """The number of members extracted by the first images of a run, or by all."""
    return len(np.unique(found["nearest"][:first][found["matched"][:first]]))


def seconds_to(found: dict[str, np.ndarray], members: int) -> float:
    """Device-seconds until a number of members is extracted; infinite if never."""
    matched = np.flatnonzero(found["matched"])
    _, first = np.unique(found["nearest"][matched], return_index=True)
    if len(first) < members:
        return np.inf
    return float((np.sort(matched[first])[members - 1] + 1) * found["seconds_per_image"]) if members else 0.0


def sooner(ours: list[dict], theirs: list[dict]) -> str:
    """The speed-up until ours has as many members as theirs finds in all, from mean seconds over seeds."""
    goals = [unique(one) for one in theirs]
    times = [np.mean([seconds_to(one, n) for one, n in zip(side, goals, strict=True)]) for side in (theirs, ours)]
    return f"{times[0] / times[1]:.2f}x" if np.isfinite(times[1]) and times[1] > 0 else "never"


def ratio_interval(ours: list[np.ndarray], theirs: list[np.ndarray], repeats: int = 2000) -> tuple[float, float]:
    """The 95% bootstrap interval of the ratio of two mean rates; resamples the images of each seed, paired."""
    random = np.random.default_rng(0)
    tops, bottoms = np.zeros(repeats), np.zeros(repeats)
    for one, other in zip(ours, theirs, strict=True):
        for r in range(repeats):
            drawn = random.integers(len(one), size=len(one))
            tops[r] += one[drawn].mean()
            bottoms[r] += other[drawn].mean()
    low, high = np.quantile(tops / np.maximum(bottoms, 1e-9), [0.025, 0.975])
    return float(low), float(high)


def table(results: dict[tuple[str, float], list[dict]]) -> str:
    """A Markdown table of each recipe at each scale beside the baseline's best, sorted by members per second."""

    def rate(found: list[dict]) -> float:
        return float(np.mean([unique(one) / (len(one["matched"]) * one["seconds_per_image"]) for one in found]))

    def ams(found: list[dict]) -> float:
        return float(np.mean([one["matched"].mean() for one in found]))

    paper = max((found for (name, _), found in results.items() if name == PAPER), key=ams)
    lines = [
        "| recipe | scale | AMS, % | of the paper's (95% interval) | held-out, % | members, each seed | ms per image | "
        "members per second | of the paper's | the paper's members, sooner by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, scale), found in sorted(results.items(), key=lambda option: -rate(option[1])):
        low, high = ratio_interval(*([one["matched"] for one in side] for side in (found, paper)))
        heldout = np.mean([one["heldout_matched"].mean() for one in found])
        cost = np.mean([one["seconds_per_image"] for one in found])
        lines.append(
            f"| {name} | {scale:g} | {100 * ams(found):.2f} | {ams(found) / ams(paper):.2f} ({low:.2f} to "
            f"{high:.2f}) | {100 * heldout:.2f} | {', '.join(str(unique(one)) for one in found)} | {1000 * cost:.2f} | "
            f"{rate(found):.2f} | {rate(found) / rate(paper):.2f}x | {sooner(found, paper)} |"
        )
    return "\n".join(lines)


def figure(results: dict[tuple[str, float], list[dict]], path: Path) -> None:
    """Plots members (solid) and held-out images (dashed) against device-seconds, as means over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(figsize=(7, 4.5))
    for (name, scale), found in results.items():
        counts = np.unique(np.geomspace(16, len(found[0]["matched"]), 40).astype(int))
        seconds = counts * np.mean([one["seconds_per_image"] for one in found])
        members = [np.mean([unique(one, count) for one in found]) for count in counts]
        (line,) = axes.plot(seconds, members, label=f"{name}, scale {scale:g}")
        heldout = [one | {"matched": one["heldout_matched"], "nearest": one["heldout_nearest"]} for one in found]
        controls = [np.mean([unique(one, count) for one in heldout]) for count in counts]
        axes.plot(seconds, controls, color=line.get_color(), linestyle="dashed")
    axes.set(xscale="log", xlabel="device-seconds of sampling", ylabel="members (dashed: held-out images) extracted")
    axes.legend(fontsize=7)
    fig.tight_layout()
    fig.savefig(path, dpi=110)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a config file")
    parser.add_argument("--workdir", required=True, type=Path, help="holds one workdir for each seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--num-images", type=int, default=1024, help="for each recipe, scale and seed")
    parser.add_argument("--solvers", nargs="+", default=["ddim", "dpmpp_2m"])
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 8, 10, 20])
    parser.add_argument("--spacings", nargs="+", default=["trailing", "log_snr"])
    parser.add_argument("--intervals", nargs="+", default=["all"], help="all, none, or such as 300-799")
    parser.add_argument("--scales", type=float, nargs="+", default=[3.0, 10.0, 30.0])
    parser.add_argument("--recipes", nargs="+", help="by name, in place of the product of the others")
    parser.add_argument("--figure", type=Path, help="a PNG of the recipes' curves")
    options, overrides = parser.parse_known_args()
    grid = itertools.product(options.solvers, options.steps, options.spacings, options.intervals)
    names = options.recipes or ["-".join(map(str, point)) for point in grid]
    names = list(dict.fromkeys([PAPER, UNGUIDED, *names]))
    results: dict[tuple[str, float], list[dict]] = {}
    for seed in options.seeds:
        bench = Bench(options.config, options.workdir / f"seed_{seed}", seed, overrides)
        for name in names:
            recipe, folder = Recipe(name=name), bench.drawn / str(options.num_images)
            scales = [0.0] if recipe.unguided else options.scales
            paths = {scale: folder / f"{name}_{scale:g}.npz" for scale in scales}
            absent = [scale for scale, path in paths.items() if not path.exists()]
            if absent:
                bench.run(
                    recipe,
                    absent,
                    options.num_images,
                    lambda scale, arrays, paths=paths: files.write_npz(paths[scale], **arrays),
                )
            for scale, path in paths.items():
                results.setdefault((name, scale), []).append(files.read_npz(path))
            print(f"seed {seed}: {name}", file=sys.stderr, flush=True)
    print(table(results))
    if options.figure:
        figure(results, options.figure)


if __name__ == "__main__":
    main()
