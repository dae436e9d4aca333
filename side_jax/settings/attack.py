"""Settings of the attack: the sampler, SIDE's surrogate, the extraction, and what counts as a match."""

import dataclasses

from side_jax.diffusion.sampler import VARIANCES
from side_jax.diffusion.schedule import SPACINGS
from side_jax.settings.checks import check, one_of

ATTACKS = ("unconditional", "conditional", "side")
METRICS = ("normalized_l2", "rmse", "distance_ratio")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """How every attack walks from noise to images."""

    num_steps: int = 20
    eta: float = 0.0  # 0 is DDIM, 1 is DDPM
    variance: str = "small"  # of the noise where eta > 0: "small" or "large", as diffusers' fixed_small, fixed_large
    spacing: str = "trailing"
    batch_size: int = 64  # images sampled together, over all local devices
    loop: str = (
        "auto"  # "scan" compiles the whole trajectory, "dispatch" one step; auto: scan, but dispatch for guided CPU
    )

    def __post_init__(self):
        check(self.num_steps >= 1, "sampler.num_steps", self.num_steps, "at least 1")
        check(0 <= self.eta <= 1, "sampler.eta", self.eta, "between 0 (DDIM) and 1 (DDPM)")
        one_of("sampler.variance", self.variance, VARIANCES)
        one_of("sampler.spacing", self.spacing, SPACINGS)
        check(self.batch_size >= 1, "sampler.batch_size", self.batch_size, "at least 1")
        one_of("sampler.loop", self.loop, ("auto", "scan", "dispatch"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthesize:
    """The unconditional samples that the surrogate learns from."""

    num_images: int = 2048  # N_syn

    def __post_init__(self):
        check(self.num_images >= 2, "synthesize.num_images", self.num_images, "at least 2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """From synthetic images to pseudo-labels."""

    features: str = "pixels"
    num_clusters: int = 60  # K
    cohesion_threshold: float = 0.5  # tau, a mean cosine similarity
    assignment: str = "reassign"  # "reassign" (as the paper prints it) or "drop" the images of rejected clusters

    def __post_init__(self):
        one_of("label.features", self.features, ("pixels",))
        check(self.num_clusters >= 2, "label.num_clusters", self.num_clusters, "at least 2")
        check(-1 <= self.cohesion_threshold <= 1, "label.cohesion_threshold", self.cohesion_threshold, "in [-1, 1]")
        one_of("label.assignment", self.assignment, ("reassign", "drop"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """The residual classifier, SIDE's surrogate and the conditional baseline alike; ResNet-34 is (3, 4, 6, 3)."""

    stage_sizes: tuple[int, ...] = (1, 1)
    width: int = 32
    stem_stride: int = 1

    def __post_init__(self):
        ok = len(self.stage_sizes) >= 1 and min(self.stage_sizes) >= 1
        check(ok, "classifier.stage_sizes", self.stage_sizes, "one or more positive block counts")
        check(self.width >= 2 and self.width % 2 == 0, "classifier.width", self.width, "even and at least 2")
        check(self.stem_stride in (1, 2), "classifier.stem_stride", self.stem_stride, "1 or 2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extract:
    """The attacks, all with the same N_G and the same starting noise."""

    num_images: int = 1024  # N_G for each attack and guidance scale
    attacks: tuple[str, ...] = ATTACKS
    guidance_scales: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)  # lambda, for the guided attacks

    def __post_init__(self):
        check(self.num_images >= 1, "extract.num_images", self.num_images, "at least 1 (N_G, images for each attack)")
        check(len(self.attacks) >= 1, "extract.attacks", self.attacks, f"one or more of {', '.join(ATTACKS)}")
        for attack in self.attacks:
            one_of("extract.attacks", attack, ATTACKS)
        scales = self.guidance_scales
        check(
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
        check(len(self.metrics) >= 1, "evaluate.metrics", self.metrics, f"one or more of {', '.join(METRICS)}")
        for metric in self.metrics:
            one_of("evaluate.metrics", metric, METRICS)
        for name in ("normalized_l2_below", "normalized_l2_alpha", "rmse_below"):
            check(getattr(self, name) > 0, f"evaluate.{name}", getattr(self, name), "above 0")
        check(
            self.normalized_l2_neighbors >= 2,
            "evaluate.normalized_l2_neighbors",
            self.normalized_l2_neighbors,
            "at least 2",
        )
        check(0 < self.confidence < 1, "evaluate.confidence", self.confidence, "strictly between 0 and 1")
