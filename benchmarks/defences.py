"""What lowers extraction? Compares defences at equal sample quality, on one config.

python benchmarks/defences.py --config=configs/digits.py --seeds 3 4 5

Every defence trains the config's model anew, on members of one split for all. Every --every steps, samples of it, and
the modes that they lead to, are compared with the members, and with as many images that no model has seen; the Frechet
distance of the samples to --references other unseen images, in pixels, is their quality. The table has each defence at
the first step where that distance is at most 1.05 times that of the undefended model at the config's last step, or at
its best step if it gets no nearer. First come the undefended model's own steps, and then the first of them that is
within that distance: what a defence adds to it is its own. DP-SGD (Abadi et al. 2016; optax.contrib) takes all members
in each step, for which epsilon follows from the composition of Gaussian mechanisms (dp-accounting, at
delta = 1 / (10 m)).

pip install dp-accounting
"""

import argparse
import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import differentially_private_aggregate

from side_jax import builders
from side_jax.config import from_config, load_config
from side_jax.data import datasets, split
from side_jax.devices import cpu
from side_jax.diffusion import mode_seeking, pixel_range
from side_jax.memorization.distribution.frechet import frechet_distance
from side_jax.memorization.matching import match, references
from side_jax.models import unet as unet_module
from side_jax.sampling.mode_generation import draw
from side_jax.settings import Settings, random_streams
from side_jax.stages import train_dpm
from side_jax.training import trainer
from side_jax.training.losses import build_loss
from side_jax.workdir.work_units import Unit

CLIP = 1.0  # largest gradient of an image in DP-SGD
SLACK = 1.05  # of the Frechet distance at equal quality


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defence:
    """One way to train the model.

    Attributes:
      name: for the table.
      members: over those of the config.
      flip: whether images are mirrored at random.
      dropout: of the network.
      copies: how often an eighth of the members occur; the others once.
      noise: of DP-SGD, over the largest gradient; 0: plain training.
    """

    name: str
    members: int = 1
    flip: bool = False
    dropout: float = 0.0
    copies: int = 1
    noise: float = 0.0


DEFENCES = (
    Defence(name="none"),
    Defence(name="mirrored at random", flip=True),
    Defence(name="dropout 0.1", dropout=0.1),
    Defence(name="dropout 0.3", dropout=0.3),
    Defence(name="2 times the images", members=2),
    Defence(name="4 times the images", members=4),
    Defence(name="8 times the images", members=8),
    Defence(name="no deduplication: an eighth of the images 8 times", copies=8),
    Defence(name="DP-SGD, noise 0.01", noise=0.01),
    Defence(name="DP-SGD, noise 0.1", noise=0.1),
    Defence(name="DP-SGD, noise 1", noise=1.0),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A model at one step: its samples' distance, and what plain samples and modes match."""

    step: int
    frechet: float
    plain_ams: float
    plain_members: float
    modes_ams: float
    modes_members: float
    heldout_ams: float


class Judge:
    """Measures models of one seed and number of members."""

    def __init__(self, settings: Settings, members: np.ndarray, unseen: np.ndarray, far: np.ndarray, count: int):
        """Takes uint8 images: those to find, as many unseen ones, and those to which the distance is measured."""
        self._settings, self._count = settings, count
        self._metrics = settings.evaluate.make_metrics()[:1]
        self._sides = [references(side, self._metrics) for side in (members, unseen)]
        self._far = pixel_range.to_float(far).reshape(len(far), -1)
        spread = mode_seeking.spread(pixel_range.to_float(members))
        modes = settings.modes
        self._levels = builders.mode_noise_levels(settings, modes.noise_levels[0], modes.rounds[0], spread)
        self._plain = builders.build_generator(settings)
        self._base = random_streams.stream_key(settings, "extract")

    def __call__(self, step: int, params: Any) -> Measured:
        """Measures the averaged parameters of a step."""
        common = {"dpm": params}, self._base, self._count
        images = draw(self._plain, *common)
        modes = draw(builders.build_mode_generator(self._settings, self._levels, lambda index: images[index]), *common)
        band = self._metrics[0].bands["high"]
        plain, sought, false = (
            match(drawn, side, self._metrics)[0].score(band)
            for drawn, side in ((images, self._sides[0]), (modes, self._sides[0]), (modes, self._sides[1]))
        )
        return Measured(
            step=step,
            frechet=frechet_distance(pixel_range.to_float(images).reshape(len(images), -1), self._far),
            plain_ams=100 * plain.ams,
            plain_members=plain.unique,
            modes_ams=100 * sought.ams,
            modes_members=sought.unique,
            heldout_ams=100 * false.ams,
        )


def train(settings: Settings, images: np.ndarray, watch: Callable[[int, Any], bool], every: int) -> None:
    """Trains the model on uint8 images [n, h, w, c], as the stage does; calls `watch` every so many steps."""
    with tempfile.TemporaryDirectory() as folder:
        unit = Unit(workdir=Path(folder), name="train", fingerprint="", outputs=lambda _: ())
        train_dpm.train(settings, unit, images, description="train", watch=watch, watch_every=every)


def train_privately(
    settings: Settings, images: np.ndarray, noise: float, watch: Callable[[int, Any], bool], every: int
) -> None:
    """Trains by DP-SGD with Adam, all images in each step; the averages and learning rate are the stage's."""
    fit, seed = settings.train, random_streams.stream_seed(settings, "train")
    unet = builders.build_network(settings)
    loss_fn = build_loss(settings, unet, builders.build_schedule(settings))
    private = differentially_private_aggregate(CLIP, noise, key=jax.random.key(seed))
    optimizer = optax.chain(private, optax.adam(fit.learning_rate))
    params = builders.init_fn(unet, settings, seed)()

    def one(params: Any, image: jax.Array, key: jax.Array) -> jax.Array:
        return loss_fn(params, (image[None],), key[None], key)[0]

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: Any, state: Any, ema: Any, number: jax.Array, images: jax.Array) -> tuple:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), len(images))
        gradients = jax.vmap(jax.grad(one), in_axes=(None, 0, 0))(params, images, keys)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        d = trainer.ema_decay(number, fit.ema_decay)
        return params, state, jax.tree.map(lambda e, p: d * e + (1 - d) * p, ema, params)

    state, ema = optimizer.init(params), jax.tree.map(jnp.array, params)
    for done in range(1, fit.num_steps + 1):
        # Our own attention has no rule for a batch of gradients.
        with mock.patch.object(unet_module, "attention", jax.nn.dot_product_attention):
            params, state, ema = step(params, state, ema, np.int32(done - 1), images)
        if done % every == 0 and watch(done, jax.device_get(ema)):
            return


def epsilon(noise: float, steps: int, members: int) -> float:
    """The privacy loss of so many full-batch steps, at delta = 1 / (10 members)."""
    import dp_accounting

    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(noise), steps)
    return dp_accounting.rdp.RdpAccountant().compose(event).get_epsilon(1 / (10 * members))


def at_quality(course: list[Measured], limit: float) -> Measured:
    """The first step whose distance is at most the limit; the best one if there is none."""
    good = [one for one in course if one.frechet <= limit]
    return good[0] if good else min(course, key=lambda one: one.frechet)


def course(config: Settings, defence: Defence, options: argparse.Namespace, limit: float) -> list[Measured]:
    """Trains with a defence, and measures it along the way, until the distance is at most the limit."""
    count = config.data.num_members
    data = dataclasses.replace(
        config.data, num_members=count * max(one.members for one in DEFENCES), num_heldout=options.references
    )
    loaded = datasets.load(data)
    drawn = split.make_split(loaded, data, config.seed)
    pool, far = (
        np.asarray(loaded.take(np.asarray([row["id"] for row in drawn[side]])).images)
        for side in ("members", "heldout")
    )
    own = pool[: count * defence.members]
    images = np.concatenate([own, *[own[: len(own) // 8]] * (defence.copies - 1)])
    rows = max(len(images), config.train.batch_size)
    settings = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dropout=defence.dropout),
        train=dataclasses.replace(config.train, horizontal_flip=defence.flip, num_steps=options.steps),
        data=dataclasses.replace(config.data, num_members=rows, num_heldout=rows),
    )
    judge = Judge(settings, own, far[: len(own)], far, options.num_images)
    found: list[Measured] = []

    def watch(step: int, params: Any) -> bool:
        found.append(judge(step, params))
        return found[-1].frechet <= limit

    if defence.noise:
        train_privately(settings, images, defence.noise, watch, options.every)
    else:
        train(settings, images, watch, options.every)
    return found


def line(name: str, parts: list[Measured], members: int, private: float | None) -> str:
    """A row of the table: means over the seeds."""
    mean = {field.name: np.mean([getattr(one, field.name) for one in parts]) for field in dataclasses.fields(Measured)}
    share = 100 * mean["modes_members"] / members
    cells = [name, f"{mean['step']:.0f}", f"{mean['frechet']:.2f}", f"{mean['plain_ams']:.2f}"]
    cells += [f"{mean['plain_members']:.1f}", f"{mean['modes_ams']:.2f}", f"{mean['modes_members']:.1f} ({share:.0f}%)"]
    cells += [f"{mean['heldout_ams']:.2f}", "" if private is None else f"{private:.3g}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a config file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--num-images", type=int, default=1024, help="at each step")
    parser.add_argument("--references", type=int, default=800, help="unseen images")
    parser.add_argument("--steps", type=int, default=1500, help="the longest training")
    parser.add_argument("--every", type=int, default=50, help="steps between measurements")
    parser.add_argument("--only", nargs="+", choices=[one.name for one in DEFENCES[1:]], help="these defences alone")
    options = parser.parse_args()
    config = from_config(load_config(options.config))
    cpu.prepare([config.sampler.batch_size])
    last, members = config.train.num_steps, config.data.num_members
    heads = ("defence", "step", "Frechet distance", "AMS of plain samples, %", "members", "AMS of modes, %")
    heads += ("members (share)", "held-out AMS of modes, %", "epsilon")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    seeds = [dataclasses.replace(config, seed=seed) for seed in options.seeds]
    short = argparse.Namespace(**{**vars(options), "steps": last})
    undefended = [course(one, DEFENCES[0], short, 0.0) for one in seeds]
    limits = [SLACK * found[-1].frechet for found in undefended]
    for at_step in zip(*undefended, strict=True):
        print(line(f"none, {at_step[0].step} steps", list(at_step), members, None), flush=True)
    early = [at_quality(found, limit) for found, limit in zip(undefended, limits, strict=True)]
    print(line("fewer steps", early, members, None), flush=True)
    for defence in DEFENCES[1:]:
        if options.only and defence.name not in options.only:
            continue
        courses = [course(one, defence, options, limit) for one, limit in zip(seeds, limits, strict=True)]
        chosen = [at_quality(found, limit) for found, limit in zip(courses, limits, strict=True)]
        steps = math.ceil(np.mean([one.step for one in chosen]))
        private = epsilon(defence.noise, steps, members) if defence.noise else None
        print(line(defence.name, chosen, members * defence.members, private), flush=True)


if __name__ == "__main__":
    main()
