"""From settings to objects: the one place where schedule, networks, sampler and keys are made, for every binary."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

from side_jax import files, parallel, shards
from side_jax.checkpoint import Checkpoints, Restored
from side_jax.data import datasets, split
from side_jax.diffusion import guidance, steps
from side_jax.diffusion.schedule import Schedule
from side_jax.features import Extractor, denoiser, embed_all, onnx, pixels, sscd
from side_jax.manifest import Unit, unit
from side_jax.measure import Side
from side_jax.memorization.metrics import RATIO_BELOW, Metric
from side_jax.models.classifier import Classifier, log_probs
from side_jax.models.half_unet import HalfUNet
from side_jax.models.resnet import ResNet
from side_jax.models.unet import UNet
from side_jax.sampling import ApplyFn, Generator
from side_jax.settings import Evaluate, Sampler, Settings

_STREAMS = (
    *("train", "synthesize", "label", "surrogate/side", "surrogate/conditional", "extract", "probe", "monitor"),
    *("surrogate/side_random", "surrogate/side_shuffled", "surrogate/side_heldout", "surrogate/oracle"),
    *("held back", "random labels", "validation", "teacher", "evaluate", "membership/members", "membership/heldout"),
    *("suspects", "member labels", "divergence/members", "divergence/heldout"),
)


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
    return settings.diffusion.make()


def build_unet(settings: Settings) -> UNet:
    """The target DPM's network; a setting of 0 where diffusers has null becomes None."""
    options = dataclasses.asdict(settings.model)
    for name in ("attention_head_dim", "attn_norm_num_groups", "time_embedding_dim"):
        options[name] = options[name] or None
    options["dtype"] = jnp.dtype(options["dtype"])
    return UNet(out_channels=settings.data.channels, num_labels=settings.condition.num_labels, **options)


def build_classifier(settings: Settings, num_classes: int, *, time_dependent: bool) -> Classifier:
    """SIDE's surrogate (time-dependent) or the conditional baseline's classifier (not)."""
    network = settings.classifier
    options = {"num_classes": num_classes, "stage_sizes": network.stage_sizes, "width": network.width}
    options["time_dependent"] = time_dependent
    of_resnets = {"norm": network.norm, "stem_stride": network.stem_stride}
    return {
        "resnet": lambda: ResNet(**options, **of_resnets),
        "resnet_bottleneck": lambda: ResNet(**options, **of_resnets, bottleneck=True),
        "half_unet": lambda: HalfUNet(**options),
    }[network.architecture]()


def init_fn(module: Any, settings: Settings, seed: int) -> Callable[[], Any]:
    """A compiled function that makes the module's initial parameters, and its running statistics beside them."""
    x = jnp.zeros((1, *image_shape(settings)), jnp.float32)

    # Compiling the default generator once for each of a network's many leaves takes long on CPU; rbg takes a third.
    @jax.jit
    def init() -> dict:
        variables = module.init(jax.random.key(seed, impl="rbg"), x, jnp.zeros((1,), jnp.int32))
        return variables.pop("params") | variables

    return init


def parameter_count(settings: Settings, module: Any = None) -> int:
    """Of a network, by default the U-Net; computes shapes only."""
    return size(jax.eval_shape(init_fn(module or build_unet(settings), settings, 0)))


def size(params: Any) -> int:
    """How many numbers a tree of arrays, or of their shapes, holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def build_step_table(settings: Settings, by: Sampler) -> steps.StepTable:
    """A sampler's coefficients, and in which steps guidance acts."""
    options = dataclasses.asdict(by)
    for name in ("batch_size", "loop"):
        del options[name]
    interval = settings.extract.guidance_interval
    return steps.step_table(build_schedule(settings), options.pop("num_steps"), interval=interval, **options)


def build_denoise(settings: Settings) -> ApplyFn:
    """The DPM without labels: ({"dpm": parameters}, x_t, t) -> what the schedule's prediction type says."""
    unet = build_unet(settings)
    return lambda params, x, t: unet.apply({"params": params["dpm"]}, x, t)


def build_conditional_denoise(settings: Settings) -> Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]:
    """As build_denoise, of (params, x_t, t, labels int32 [b]), where -1 is no label."""
    unet = build_unet(settings)
    return lambda params, x, t, labels: unet.apply({"params": params["dpm"]}, x, t, labels=labels)


def build_log_prob(settings: Settings, classifier: Classifier, *, at_x0: bool) -> ApplyFn:
    """The log-probabilities that guide, [b, classes], of (the generator's parameters, x_t, t)."""
    denoise, schedule = build_denoise(settings), build_schedule(settings)

    def calibrated(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        found = log_probs(classifier, params["classifier"], x, t)
        return jax.nn.log_softmax(found / params["temperature"][t][:, None])

    def at_clean(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        own, dpm = functools.partial(calibrated, params), functools.partial(denoise, params)
        return guidance.at_predicted_x0(own, dpm, schedule)(x, t)

    return at_clean if at_x0 else calibrated


def build_generator(
    settings: Settings,
    classifier: Classifier | None = None,
    *,
    at_x0: bool = False,
    own_labels: bool = False,
    by: Sampler | None = None,
) -> Generator:
    """The sampler of the DPM, guided where a classifier is given, or by its own labels.

    Its parameters are {"dpm": the U-Net's} and, guided, "classifier" and "temperature", float32 [T], by which the
    classifier's log-probabilities at each timestep are divided.

    Args:
      settings: of the run.
      classifier: that guides.
      at_x0: whether it looks at the predicted clean image; else at x_t.
      own_labels: whether the labels that the DPM was trained with guide, in place of a classifier.
      by: the sampler; None: that of synthetic images.
    """
    by = by or settings.sampler
    log_prob = build_log_prob(settings, classifier, at_x0=at_x0) if classifier else None
    conditional, schedule = build_conditional_denoise(settings), build_schedule(settings)

    def guide(params: Any, labels: jax.Array, scale: jax.Array) -> guidance.Guidance:
        if own_labels:
            gradient = guidance.implicit_gradient(functools.partial(conditional, params), labels, schedule)
        else:
            gradient = guidance.classifier_gradient(functools.partial(log_prob, params), labels)
        if settings.extract.normalize_gradient:
            gradient = guidance.normalized(gradient)
        return guidance.Guidance(gradient_fn=gradient, scale=scale, form=settings.extract.guidance_form)

    return Generator(
        denoise=build_denoise(settings),
        guide=guide if classifier or own_labels else None,
        table=build_step_table(settings, by),
        shape=image_shape(settings),
        batch_size=by.batch_size,
        loop=by.loop,
    )


def build_extractor(settings: Settings, workdir: Path) -> Extractor:
    """What turns synthetic images into features; it may read the target's checkpoint and write <workdir>/features.

    Raises:
      InputError: if a file that label.features reads can't be used.
    """
    label, batch = settings.label, {"batch_size": settings.sampler.batch_size}

    def build_denoiser() -> Extractor:
        unet, seed = build_unet(settings), stream_seed(settings, "label")
        params = restore_ema(settings, train_unit(settings, workdir), unet).trees["ema"]
        return denoiser.extractor(unet, params, build_schedule(settings), label, seed=seed, **batch)

    known = modelless_extractors(settings, settings.data.channels, workdir / "features")
    return (known | {"denoiser": build_denoiser})[label.features]()


def modelless_extractors(settings: Settings, channels: int, cache: Path) -> dict[str, Callable[[], Extractor]]:
    """Those of label.features that need no target, for images of so many channels; converted weights go to `cache`."""
    label, batch = settings.label, {"batch_size": settings.sampler.batch_size}
    return {
        "pixels": lambda: pixels.extractor(**batch),
        "sscd": lambda: sscd.extractor(label, cache, **batch),
        "onnx": lambda: onnx.extractor(label, channels, **batch),
    }


def build_teacher(settings: Settings) -> Callable[[np.ndarray], np.ndarray]:
    """The given teacher of TDKD: uint8 images [n, h, w, c] to log-probabilities float32 [n, C].

    Raises:
      InputError: if the file that surrogate.teacher_path names can't be used.
    """
    s = settings.surrogate
    label = dataclasses.replace(settings.label, weights=s.teacher_path, weights_sha256=s.teacher_sha256)
    model = onnx.extractor(label, settings.data.channels, batch_size=settings.sampler.batch_size)
    return lambda images: log_softmax(embed_all(model, images), axis=1).astype(np.float32)


def build_metrics(evaluate: Evaluate) -> list[Metric]:
    """What evaluation computes, with its bands fixed by the settings."""
    e = evaluate
    of_l2 = {
        "num_neighbors": e.normalized_l2_neighbors,
        "alpha": e.normalized_l2_alpha,
        "around": e.normalized_l2_around,
    }
    options = {
        "normalized_l2": {"below": e.normalized_l2_below, "factors": e.band_factors} | of_l2,
        "rmse": {"below": e.rmse_below, "factors": e.band_factors},
        "tiled_l2": {"below": e.tiled_l2_below, "factors": e.band_factors, "grid": e.tiled_l2_grid},
        "distance_ratio": {"below": RATIO_BELOW},
        "cosine": {"below": 1 - e.cosine_above, "factors": e.band_factors},
    }
    return [Metric(name=name, **options[name]) for name in e.metrics]


def train_unit(settings: Settings, workdir: Path) -> Unit:
    """The unit of work that trains the DPM."""
    return unit(settings, workdir, "train")


def checkpoint_directory(workdir: Path, name: str) -> Path:
    """Where a network's checkpoints are: the DPM's in <workdir>/checkpoints, a classifier's below its unit."""
    return workdir / "checkpoints" if name == "train" else workdir / name / "checkpoints"


def restore_ema(settings: Settings, unit_of: Unit, module: Any, directory: Path | None = None) -> Restored:
    """The averaged parameters that a unit of work trained, on this process's devices, and the checkpoint's meta.

    Args:
      settings: of the run.
      unit_of: whose fingerprint the checkpoint must carry.
      module: whose parameters they are.
      directory: of the checkpoints; None: what checkpoint_directory says.
    """
    abstract = parallel.abstract(init_fn(module, settings, 0), parallel.local_mesh())
    with Checkpoints(directory or checkpoint_directory(unit_of.workdir, unit_of.name), read_only=True) as store:
        return store.restore(fingerprint=unit_of.fingerprint, ema=abstract)


def synthetic_shards(settings: Settings, workdir: Path) -> list[shards.Shard]:
    """Where the synthetic images are."""
    return shards.layout(workdir / "synthesize", settings.synthesize.num_images, settings.sampler.batch_size)


def extracted_shards(settings: Settings, work: Unit) -> list[shards.Shard]:
    """Where the images of an extraction unit are."""
    return shards.layout(work.directory, settings.extract.num_images, settings.sampler.batch_size)


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


def load_sides(settings: Settings, workdir: Path) -> tuple[Side, Side]:
    """(members, held-out images) as the train stage split them, all in memory."""
    by_identity = settings.data.split_by == "identity"
    *parts, member_ids, heldout_ids = load_split(settings, workdir)
    rows = files.read_json(workdir / "train" / "split.json")  # whose hashes load_split has found to hold
    members, heldout = (
        Side(
            images=part.images,
            ids=ids,
            names=part.names,
            digests=tuple(row["sha256"] for row in rows[name]),
            groups=part.labels if by_identity else None,
        )
        for name, part, ids in zip(("members", "heldout"), parts, (member_ids, heldout_ids), strict=True)
    )
    return members, heldout
