"""From settings to objects: the one place where schedule, networks, sampler and keys are made, for every binary."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax import parallel
from side_jax.checkpoint import Checkpoints, Restored
from side_jax.data import datasets, split
from side_jax.diffusion import sampler
from side_jax.diffusion.schedule import Schedule, make_schedule
from side_jax.manifest import Unit, unit
from side_jax.memorization.metrics import RATIO_BELOW, Metric
from side_jax.models.classifier import Classifier
from side_jax.models.unet import UNet
from side_jax.sampling import Generator
from side_jax.settings import Settings

_STREAMS = ("train", "synthesize", "label", "surrogate/side", "surrogate/conditional", "extract", "probe", "monitor")


def stream_seed(settings: Settings, name: str) -> int:
    """A seed of its own for each purpose, derived from config.seed."""
    return int(np.random.SeedSequence([settings.seed, 1 + _STREAMS.index(name)]).generate_state(1)[0])


def base_key(settings: Settings, name: str) -> jax.Array:
    """The typed key from which a purpose's per-sample keys are folded."""
    return jax.random.key(stream_seed(settings, name))


def image_shape(settings: Settings) -> tuple[int, int, int]:
    """(height, width, channels)."""
    return settings.data.image_size, settings.data.image_size, settings.data.channels


def build_schedule(settings: Settings) -> Schedule:
    """The DPM's noise schedule."""
    options = dataclasses.asdict(settings.diffusion)
    return make_schedule(options.pop("schedule"), **options)


def build_unet(settings: Settings) -> UNet:
    """The target DPM's network; a setting of 0 where diffusers has null becomes None."""
    options = dataclasses.asdict(settings.model)
    for name in ("attention_head_dim", "attn_norm_num_groups", "time_embedding_dim"):
        options[name] = options[name] or None
    options["dtype"] = jnp.dtype(options["dtype"])
    return UNet(out_channels=settings.data.channels, **options)


def build_classifier(settings: Settings, num_classes: int, *, time_dependent: bool) -> Classifier:
    """SIDE's surrogate (time-dependent) or the conditional baseline's classifier (not)."""
    return Classifier(num_classes=num_classes, time_dependent=time_dependent, **dataclasses.asdict(settings.classifier))


def init_fn(module: Any, settings: Settings, seed: int) -> Callable[[], Any]:
    """A compiled function that makes the module's initial parameters."""
    x = jnp.zeros((1, *image_shape(settings)), jnp.float32)
    # Compiling the default generator once for each of a network's many leaves takes long on CPU; rbg takes a third.
    return jax.jit(lambda: module.init(jax.random.key(seed, impl="rbg"), x, jnp.zeros((1,), jnp.int32))["params"])


def parameter_count(settings: Settings) -> int:
    """Of the U-Net; computes shapes only."""
    return size(jax.eval_shape(init_fn(build_unet(settings), settings, 0)))


def size(params: Any) -> int:
    """How many numbers a tree of arrays, or of their shapes, holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def build_step_table(settings: Settings) -> sampler.StepTable:
    """The sampler's coefficients."""
    s = settings.sampler
    return sampler.step_table(build_schedule(settings), s.num_steps, eta=s.eta, variance=s.variance, spacing=s.spacing)


def build_generator(settings: Settings, classifier: Classifier | None = None) -> Generator:
    """The sampler of the DPM, guided where a classifier is given."""
    unet = build_unet(settings)
    return Generator(
        denoise=lambda params, x, t: unet.apply({"params": params}, x, t),
        log_prob=classifier and (lambda params, x, t: classifier.apply({"params": params}, x, t)),
        table=build_step_table(settings),
        shape=image_shape(settings),
        batch_size=settings.sampler.batch_size,
        loop=settings.sampler.loop,
    )


def build_metrics(settings: Settings) -> list[Metric]:
    """What evaluation computes, with its bands fixed by the config."""
    e = settings.evaluate
    known = {
        "normalized_l2": Metric(
            name="normalized_l2",
            band=(0.0, e.normalized_l2_below),
            num_neighbors=e.normalized_l2_neighbors,
            alpha=e.normalized_l2_alpha,
        ),
        "rmse": Metric(name="rmse", band=(0.0, e.rmse_below)),
        "distance_ratio": Metric(name="distance_ratio", band=(0.0, RATIO_BELOW)),
    }
    return [known[name] for name in e.metrics]


def train_unit(settings: Settings, workdir: Path) -> Unit:
    """The unit of work that trains the DPM."""
    return unit(settings, workdir, "train")


def checkpoint_directory(workdir: Path, name: str) -> Path:
    """Where a network's checkpoints are: the DPM's in <workdir>/checkpoints, a classifier's below its unit."""
    return workdir / "checkpoints" if name == "train" else workdir / name / "checkpoints"


def restore_ema(settings: Settings, unit_of: Unit, module: Any) -> Restored:
    """The averaged parameters that a unit of work trained, and the checkpoint's meta."""
    abstract = parallel.abstract(init_fn(module, settings, 0), parallel.mesh())
    with Checkpoints(checkpoint_directory(unit_of.workdir, unit_of.name), read_only=True) as store:
        return store.restore(fingerprint=unit_of.fingerprint, ema=abstract)


def load_split(
    settings: Settings, workdir: Path, *, stream: bool = False
) -> tuple[datasets.Dataset, datasets.Dataset, np.ndarray, np.ndarray]:
    """(members, held-out, member ids, held-out ids) as the train stage split them.

    Args:
      settings: of the run.
      workdir: of the run.
      stream: whether images that are not in memory may stay streams; else all of them are read now.
    """
    *parts, member_ids, heldout_ids = split.apply_split(datasets.load(settings.data), workdir / "train" / "split.json")
    if not stream:
        parts = [dataclasses.replace(part, images=np.asarray(part.images)) for part in parts]
    return *parts, member_ids, heldout_ids
