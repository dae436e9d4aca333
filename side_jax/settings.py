"""Every setting of a run: its name, meaning, default and limits, in one place.

The dataclasses are the single list of fields; config.py turns them into the ConfigDict that files in configs/ override,
and back. Defaults suit small images; each config file says what it changes.
"""

import dataclasses
from typing import Any

from side_jax.diffusion.schedule import SCHEDULES, SPACINGS
from side_jax.errors import InputError

ATTACKS = ("unconditional", "conditional", "side")
DATASETS = ("digits", "tfds")
METRICS = ("normalized_l2", "rmse", "distance_ratio")


def _check(ok: bool, key: str, value: Any, need: str) -> None:
    if not ok:
        raise InputError(f"config.{key} is {value!r}, but it must be {need}.")


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    _check(value in choices, key, value, f"one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Where images come from, and how they are split."""

    name: str = "digits"  # one of DATASETS
    tfds_name: str = ""  # for name="tfds": the dataset, such as "celeb_a" or "cifar10"
    data_dir: str = ""  # where TFDS keeps prepared datasets; "" is its default
    image_size: int = 8  # height and width after a centre crop and an area resize
    channels: int = 1  # 1 or 3
    num_members: int = 200  # training images
    num_heldout: int = 200  # images the model never sees; equal to num_members, so that rates compare

    def __post_init__(self):
        _one_of("data.name", self.name, DATASETS)
        _check(self.name != "tfds" or bool(self.tfds_name), "data.tfds_name", self.tfds_name, "the dataset's TFDS name")
        _check(self.image_size >= 4, "data.image_size", self.image_size, "at least 4 pixels")
        _check(self.channels in (1, 3), "data.channels", self.channels, "1 (grey) or 3 (colour)")
        _check(self.num_members >= 2, "data.num_members", self.num_members, "at least 2")
        _check(
            self.num_heldout == self.num_members,
            "data.num_heldout",
            self.num_heldout,
            f"equal to data.num_members ({self.num_members}), so that matches with members and held-out images compare",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
    """The noise schedule."""

    schedule: str = "linear"  # linear, scaled_linear or cosine
    num_timesteps: int = 1000  # T
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def __post_init__(self):
        _one_of("diffusion.schedule", self.schedule, SCHEDULES)
        _check(self.num_timesteps >= 2, "diffusion.num_timesteps", self.num_timesteps, "at least 2")
        for name in ("beta_start", "beta_end"):
            value = getattr(self, name)
            _check(0 < value < 1, f"diffusion.{name}", value, "strictly between 0 and 1")
        _check(self.beta_start <= self.beta_end, "diffusion.beta_end", self.beta_end, "at least diffusion.beta_start")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The U-Net of the target DPM."""

    block_channels: tuple[int, ...] = (32, 64)  # channels for each resolution; every level but the last halves it
    layers_per_block: int = 1
    attention: tuple[bool, ...] = (False, False)  # for each level; the middle always attends
    num_heads: int = 4
    num_groups: int = 8
    dropout: float = 0.0

    def __post_init__(self):
        _check(len(self.block_channels) >= 1, "model.block_channels", self.block_channels, "one or more channel counts")
        _check(
            len(self.attention) == len(self.block_channels),
            "model.attention",
            self.attention,
            f"one True or False for each of the {len(self.block_channels)} levels of model.block_channels",
        )
        _check(self.layers_per_block >= 1, "model.layers_per_block", self.layers_per_block, "at least 1")
        _check(self.num_heads >= 1, "model.num_heads", self.num_heads, "at least 1")
        for channels in self.block_channels:
            _check(
                channels > 0 and channels % self.num_groups == 0 and channels % self.num_heads == 0,
                "model.block_channels",
                self.block_channels,
                f"made of multiples of model.num_groups ({self.num_groups}) and model.num_heads ({self.num_heads})",
            )
        _check(0 <= self.dropout < 1, "model.dropout", self.dropout, "at least 0 and below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """How one network is trained; used for the DPM and for both classifiers."""

    num_steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup_steps: int = 0  # linear from 0
    weight_decay: float = 0.0  # AdamW
    gradient_clip: float = 1.0  # of the global norm
    ema_decay: float = 0.998
    log_every: int = 100  # steps
    checkpoint_every: int = 500  # steps; a kill loses at most so many

    def __post_init__(self):
        for name in ("num_steps", "batch_size", "log_every", "checkpoint_every"):
            _check(getattr(self, name) >= 1, f"*.{name}", getattr(self, name), "at least 1")
        for name in ("learning_rate", "gradient_clip"):
            _check(getattr(self, name) > 0, f"*.{name}", getattr(self, name), "above 0")
        for name in ("warmup_steps", "weight_decay"):
            _check(getattr(self, name) >= 0, f"*.{name}", getattr(self, name), "at least 0")
        _check(0 <= self.ema_decay < 1, "*.ema_decay", self.ema_decay, "at least 0 and below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """How every attack walks from noise to images."""

    num_steps: int = 20
    eta: float = 0.0  # 0 is DDIM, 1 is DDPM
    spacing: str = "trailing"
    batch_size: int = 64  # images sampled together, over all local devices
    loop: str = (
        "auto"  # "scan" compiles the whole trajectory, "dispatch" one step; auto: scan, but dispatch for guided CPU
    )

    def __post_init__(self):
        _check(self.num_steps >= 1, "sampler.num_steps", self.num_steps, "at least 1")
        _check(0 <= self.eta <= 1, "sampler.eta", self.eta, "between 0 (DDIM) and 1 (DDPM)")
        _one_of("sampler.spacing", self.spacing, SPACINGS)
        _check(self.batch_size >= 1, "sampler.batch_size", self.batch_size, "at least 1")
        _one_of("sampler.loop", self.loop, ("auto", "scan", "dispatch"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthesize:
    """The unconditional samples that the surrogate learns from."""

    num_images: int = 2048  # N_syn

    def __post_init__(self):
        _check(self.num_images >= 2, "synthesize.num_images", self.num_images, "at least 2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """From synthetic images to pseudo-labels."""

    features: str = "pixels"
    num_clusters: int = 60  # K
    cohesion_threshold: float = 0.5  # tau, a mean cosine similarity
    assignment: str = "reassign"  # "reassign" (as the paper prints it) or "drop" the images of rejected clusters

    def __post_init__(self):
        _one_of("label.features", self.features, ("pixels",))
        _check(self.num_clusters >= 2, "label.num_clusters", self.num_clusters, "at least 2")
        _check(-1 <= self.cohesion_threshold <= 1, "label.cohesion_threshold", self.cohesion_threshold, "in [-1, 1]")
        _one_of("label.assignment", self.assignment, ("reassign", "drop"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """The residual classifier, SIDE's surrogate and the conditional baseline alike; ResNet-34 is (3, 4, 6, 3)."""

    stage_sizes: tuple[int, ...] = (1, 1)
    width: int = 32
    stem_stride: int = 1

    def __post_init__(self):
        ok = len(self.stage_sizes) >= 1 and min(self.stage_sizes) >= 1
        _check(ok, "classifier.stage_sizes", self.stage_sizes, "one or more positive block counts")
        _check(self.width >= 2 and self.width % 2 == 0, "classifier.width", self.width, "even and at least 2")
        _check(self.stem_stride in (1, 2), "classifier.stem_stride", self.stem_stride, "1 or 2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extract:
    """The attacks, all with the same N_G and the same starting noise."""

    num_images: int = 1024  # N_G for each attack and guidance scale
    attacks: tuple[str, ...] = ATTACKS
    guidance_scales: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)  # lambda, for the guided attacks

    def __post_init__(self):
        _check(self.num_images >= 1, "extract.num_images", self.num_images, "at least 1 (N_G, images for each attack)")
        _check(len(self.attacks) >= 1, "extract.attacks", self.attacks, f"one or more of {', '.join(ATTACKS)}")
        for attack in self.attacks:
            _one_of("extract.attacks", attack, ATTACKS)
        scales = self.guidance_scales
        _check(
            len(scales) >= 1 and min(scales) >= 0 and len({f"{scale:g}" for scale in scales}) == len(scales),
            "extract.guidance_scales",
            scales,
            "one or more different numbers of at least 0",
        )

    @property
    def needs_surrogate(self) -> bool:
        """Whether SIDE's own chain (synthesize, label, surrogate) is needed."""
        return "side" in self.attacks

    def runs(self) -> list["Run"]:
        """Every attack at every guidance scale; unguided sampling is one run."""
        runs = []
        for attack in ATTACKS:
            if attack in self.attacks:
                scales = (0.0,) if attack == "unconditional" else self.guidance_scales
                runs.extend(Run(attack=attack, scale=scale) for scale in scales)
        return runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One attack at one guidance scale."""

    attack: str
    scale: float

    @property
    def guided(self) -> bool:
        """Whether a classifier guides it."""
        return self.attack != "unconditional"

    @property
    def name(self) -> str:
        """For folders, tables and people."""
        return f"{self.attack}_{self.scale:g}" if self.guided else self.attack


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What counts as a match. Thresholds are set before a run, never after looking at its results."""

    metrics: tuple[str, ...] = METRICS  # the first is the headline of the report
    normalized_l2_below: float = 0.8
    normalized_l2_neighbors: int = 10  # n of Carlini et al.; they use 50 for a training set of 50,000
    normalized_l2_alpha: float = 0.5
    rmse_below: float = 0.15  # for images in [-1, 1]
    confidence: float = 0.95

    def __post_init__(self):
        _check(len(self.metrics) >= 1, "evaluate.metrics", self.metrics, f"one or more of {', '.join(METRICS)}")
        for metric in self.metrics:
            _one_of("evaluate.metrics", metric, METRICS)
        for name in ("normalized_l2_below", "normalized_l2_alpha", "rmse_below"):
            _check(getattr(self, name) > 0, f"evaluate.{name}", getattr(self, name), "above 0")
        _check(
            self.normalized_l2_neighbors >= 2,
            "evaluate.normalized_l2_neighbors",
            self.normalized_l2_neighbors,
            "at least 2",
        )
        _check(0 < self.confidence < 1, "evaluate.confidence", self.confidence, "strictly between 0 and 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one run."""

    name: str = "audit"  # shown in the report
    seed: int = 0
    data: Data = Data()
    diffusion: Diffusion = Diffusion()
    model: Model = Model()
    train: Fit = Fit()
    sampler: Sampler = Sampler()
    synthesize: Synthesize = Synthesize()
    label: Label = Label()
    classifier: Network = Network()
    surrogate: Fit = Fit()
    conditional: Fit = Fit()
    extract: Extract = Extract()
    evaluate: Evaluate = Evaluate()

    def __post_init__(self):
        _check(self.seed >= 0, "seed", self.seed, "at least 0")
        data, halvings = self.data, len(self.model.block_channels) - 1
        _check(
            data.image_size % 2**halvings == 0,
            "data.image_size",
            data.image_size,
            f"divisible by {2**halvings}, since the U-Net with {halvings + 1} levels halves it {halvings} times",
        )
        n_syn = self.synthesize.num_images
        need = f"at most synthesize.num_images ({n_syn}): a cluster needs an image"
        _check(self.label.num_clusters <= n_syn, "label.num_clusters", self.label.num_clusters, need)
        steps = self.diffusion.num_timesteps
        need = f"at most diffusion.num_timesteps ({steps})"
        _check(self.sampler.num_steps <= steps, "sampler.num_steps", self.sampler.num_steps, need)
        need = f"at most data.num_members ({data.num_members})"
        _check(self.train.batch_size <= data.num_members, "train.batch_size", self.train.batch_size, need)
        _check(
            self.conditional.batch_size <= data.num_members, "conditional.batch_size", self.conditional.batch_size, need
        )
        need = f"at most synthesize.num_images ({n_syn})"
        _check(self.surrogate.batch_size <= n_syn, "surrogate.batch_size", self.surrogate.batch_size, need)
        neighbors = self.evaluate.normalized_l2_neighbors
        need = f"at most data.num_members ({data.num_members})"
        _check(neighbors <= data.num_members, "evaluate.normalized_l2_neighbors", neighbors, need)
