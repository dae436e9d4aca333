"""Compares recipes of the attack side_lora: what adapters are fitted to, how fast, for how long, and which kernels.

python benchmarks/adapter_recipes.py --workdirs runs/adapters_10 runs/adapters_11 runs/adapters_12 \
    --samples drawn modes --rates 1e-3 1e-4 --steps 50 200

Each workdir is an audit with the attack side_lora that went at least as far as the stage label; nothing in it changes.
The rows have means over the workdirs, for images with a label and no guidance: the share of matched images (AMS), the
extracted members, AMS against held-out images, the members by RMSE and by d1 / d2, and AMS of the adapted model without
a label. All rows take equally many calls of the network. Samples are those `drawn`, the `half` that a round of mode
seeking moves least, `modes` (5 rounds), or the half of these; as references that no attacker has, the `members`, and as
a control, the samples drawn with `shuffled` labels.
"""

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from side_jax import builders
from side_jax.config import from_config
from side_jax.devices import cpu
from side_jax.memorization.matching import match, references
from side_jax.models import adapters
from side_jax.pipeline.saved_config import saved_config
from side_jax.sampling import generation
from side_jax.sampling.mode_generation import draw
from side_jax.settings import Adapters, Settings, random_streams
from side_jax.stages import fit_adapters, stage_inputs
from side_jax.training import losses, trainer

COLUMNS = ("AMS, %", "members", "held-out AMS, %", "by RMSE", "by d1 / d2", "AMS without label, %")
SAMPLES: dict[str, dict[str, Any]] = {
    "drawn": {"rounds": 0},
    "half": {"rounds": 0, "keep": 0.5},
    "modes": {"rounds": 5},
    "half of modes": {"rounds": 5, "keep": 0.5},
    "shuffled": {"rounds": 0},
    "members": {"rounds": 0},
}


class Bench:
    """An audit: its target, its samples with their labels, and both sides."""

    def __init__(self, workdir: Path, num_images: int):
        """Loads everything; draws `num_images` images for each row."""
        own: Settings = from_config(saved_config(workdir))
        cpu.prepare([own.sampler.batch_size])
        self._workdir, self._settings, self._count = workdir, own, num_images
        self._params = jax.device_get(stage_inputs.load_target(own, workdir).trees["ema"])
        self._base = random_streams.stream_key(own, "extract")
        self._metrics = own.evaluate.make_metrics()
        self._images = [side.images for side in stage_inputs.load_sides(own, workdir)]
        self._sides = [references(images, self._metrics) for images in self._images]
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._shared = dataclasses.replace(own, seed=0)  # what is compiled serves all workdirs

    def plain(self) -> list[float]:
        """The row of the target itself, with as many sampling steps; and with its own as the last value."""
        own = self._shared
        few, usual = (
            self._score(
                draw(builders.build_generator(own, sampler=one), {"dpm": self._params}, self._base, self._count)
            )
            for one in (own.guided_sampler, own.sampler)
        )
        return [*few, usual[0]]

    def rows(self, samples: str, rate: float, steps: list[int], rank: int, kernels: str) -> Iterator[list[float]]:
        """The values of COLUMNS after each number of steps."""
        images, labels = self._examples(samples)
        classes = int(labels.max()) + 1
        shared = dataclasses.replace(self._shared, adapters=Adapters(rank=rank, kernels=kernels))
        for trained in self._fit(shared, images, labels, rate, steps):
            params = {"dpm": _merge(shared, self._params, trained)}
            target = generation.target_labels(self._base, self._count, classes)
            generator = builders.build_adapted_generator(shared, classes, steered=False, sampler=shared.guided_sampler)
            given, bare = (self._draw(generator, params, one) for one in (target, np.full_like(target, -1)))
            yield [*self._score(given), self._score(bare)[0]]

    def _examples(self, samples: str) -> tuple[np.ndarray, np.ndarray]:
        """The images of a fit and their labels, the same for all recipes of these samples."""
        if samples not in self._known:
            own = dataclasses.replace(self._settings, adapters=Adapters(**SAMPLES[samples]))
            images, labels = fit_adapters.examples(own, self._workdir, {"dpm": self._params})
            if samples == "shuffled":
                labels = np.random.default_rng(0).permutation(labels)
            if samples == "members":
                images, labels = self._images[0], np.arange(len(self._images[0]), dtype=np.int32) % (labels.max() + 1)
            self._known[samples] = images, labels
        return self._known[samples]

    def _draw(self, generator: Any, params: Any, labels: np.ndarray) -> np.ndarray:
        index, size = np.arange(self._count), generator.batch_size
        parts = [index[i : i + size] for i in range(0, self._count, size)]
        return np.concatenate([generator(params, self._base, part, labels[part], 1.0) for part in parts])

    def _fit(
        self, settings: Settings, images: np.ndarray, labels: np.ndarray, rate: float, steps: list[int]
    ) -> Iterator[Any]:
        """The averaged adapters after each number of steps, trained as trainer.run does."""
        own, seed = settings.adapters, random_streams.stream_seed(self._settings, "surrogate/side_lora")
        classes = int(labels.max()) + 1
        init, size = builders.adapters_fn(settings, self._params, classes, seed), min(own.batch_size, len(labels))
        stepper = trainer.Stepper(
            _loss(settings, classes),
            lambda: init() | {adapters.FROZEN: self._params},
            _fit(own, size),
            (images[:1], labels[:1]),
        )
        state, ema = stepper.initial()
        for step in range(max(steps)):
            chosen = trainer.batch_indices(seed, step, len(labels), size)
            (batch,) = stepper.load(lambda rows: (images[rows], labels[rows]), chosen)
            state, ema = _step(settings, classes, size)(np.float32(rate), state, ema, batch, stepper.key(seed))
            if step + 1 in steps:
                yield jax.device_get(ema)

    def _score(self, images: np.ndarray) -> list[float]:
        members, heldout = (match(images, side, self._metrics) for side in self._sides)
        scores = [one.score(metric.bands["high"]) for one, metric in zip(members, self._metrics, strict=True)]
        false = heldout[0].score(self._metrics[0].bands["high"]).ams
        return [100 * scores[0].ams, scores[0].unique, 100 * false, scores[1].unique, scores[2].unique]


def _fit(own: Adapters, size: int) -> Adapters:
    return dataclasses.replace(own, batch_size=size)


@functools.lru_cache(maxsize=4)
def _loss(settings: Settings, classes: int) -> trainer.LossFn:
    network = builders.build_adapted_network(settings, classes)
    schedule, own = builders.build_schedule(settings), settings.adapters
    return losses.adapter_loss(network, schedule, own.alpha, own.dropout)


@functools.lru_cache(maxsize=4)
def _step(settings: Settings, classes: int, size: int) -> Any:
    """A training step whose rate is an argument, so that rates share a program."""
    loss_fn, fit = _loss(settings, classes), _fit(settings.adapters, size)

    @functools.partial(jax.jit, donate_argnums=(1, 2))
    def step(rate: jax.Array, state: dict, ema: Any, batch: tuple, key: jax.Array) -> tuple[dict, Any]:
        optimizer = optax.chain(
            optax.clip_by_global_norm(fit.gradient_clip), optax.adamw(lambda count: rate, weight_decay=fit.weight_decay)
        )
        return trainer.update(optimizer, fit, state, ema, trainer.gradients(loss_fn, state, batch, key))

    return step


@functools.lru_cache(maxsize=4)
def _merging(settings: Settings) -> Any:
    network, alpha = builders.build_network(settings), settings.adapters.alpha
    return jax.jit(lambda params, trained: adapters.merge(network, params, trained, alpha))


def _merge(settings: Settings, params: Any, trained: Any) -> Any:
    return _merging(settings)(params, trained)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdirs", nargs="+", required=True, type=Path, help="audits with the attack side_lora")
    parser.add_argument("--samples", nargs="+", choices=tuple(SAMPLES), default=["drawn"])
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3])
    parser.add_argument("--steps", nargs="+", type=int, default=[50, 200])
    parser.add_argument("--ranks", nargs="+", type=int, default=[16])
    parser.add_argument("--kernels", nargs="+", choices=adapters.KERNELS, default=["all"])
    parser.add_argument("--num-images", type=int, default=1024)
    parser.add_argument("--each", action="store_true", help="the values of each workdir in brackets, after the means")
    options = parser.parse_args()
    benches = [Bench(workdir, options.num_images) for workdir in options.workdirs]
    print(f"| recipe | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    _print("the target, with as many steps; last, with its own", [bench.plain() for bench in benches], options.each)
    for rank, kernels, samples, rate in itertools.product(
        options.ranks, options.kernels, options.samples, options.rates
    ):
        found = zip(*(bench.rows(samples, rate, options.steps, rank, kernels) for bench in benches), strict=True)
        for steps, rows in zip(sorted(options.steps), found, strict=True):
            _print(f"{samples}, rank {rank}, {kernels}, rate {rate:g}, {steps} steps", list(rows), options.each)


def _print(name: str, rows: list[list[float]], each: bool) -> None:
    columns = list(zip(*rows, strict=True))
    brackets = [f" ({', '.join(f'{value:.4g}' for value in values)})" * each for values in columns]
    cells = [f"{np.mean(values):.2f}{more}" for values, more in zip(columns, brackets, strict=True)]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
