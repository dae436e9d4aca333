"""Settings of SIDE's first part: synthetic images, their pseudo-labels, and the classifiers that learn these."""

import dataclasses

from side_jax.settings.checks import check, one_of
from side_jax.settings.paths import path_field
from side_jax.settings.target import Fit

FEATURES = ("pixels", "denoiser", "sscd", "onnx")
ARCHITECTURES = ("resnet", "resnet_bottleneck", "half_unet")


def held_back(num_images: int) -> int:
    """The number of a classifier's images that are held back for validation: a tenth, at least one."""
    return max(1, num_images // 10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthesize:
    """The unguided samples from which the surrogate learns."""

    num_images: int = 2048  # N_syn, the number of synthetic images

    def __post_init__(self) -> None:
        check(self.num_images >= 2, "synthesize.num_images", self.num_images, "at least 2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """How synthetic images get their pseudo-labels, and in which features images are compared."""

    features: str = "pixels"  # "pixels", "denoiser" (activations of the target), "sscd" or "onnx"
    # A local file: for "sscd" the weights that Meta publishes, for "onnx" the encoder.
    weights: str = path_field(digest="weights_sha256")
    weights_sha256: str = ""  # SHA-256 of that file; recorded when a run starts, which needs the same file ever after
    # For "denoiser": "mid_block", which every network has, or "down_blocks_<i>" or "up_blocks_<i>" of a UNet2DModel.
    denoiser_block: str = "mid_block"
    denoiser_timestep: int = 50  # for "denoiser": the timestep of the noise in its input, 0..T-1
    encoder_size: int = 288  # for "sscd" and "onnx": height and width of the input in pixels; SSCD's README says 288
    encoder_mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # subtracted from images in [0, 1]; that of ImageNet
    encoder_std: tuple[float, ...] = (0.229, 0.224, 0.225)  # divides images afterwards; that of ImageNet
    num_clusters: int = 60  # K, the number of clusters
    minibatch_above: int = 20_000  # number of images above which mini-batch k-means is used
    cohesion_threshold: float = 0.5  # tau, the mean cosine similarity below which a cluster is rejected
    min_cluster_size: int = 2  # smaller clusters are rejected, since a single image is cohesive with itself
    # Images of rejected clusters: "reassign" them to the nearest kept one, as in the paper, or "drop" them.
    assignment: str = "reassign"
    # Rounds of mode seeking that take the synthetic images, and the control's held-out ones, to modes before their
    # features are clustered, so that images which lead to one mode are in one cluster; 0: images as drawn. The
    # classifier learns the images as drawn.
    rounds: int = 0
    noise: float = 0.4  # noise of those rounds, as in modes.noise_levels

    def __post_init__(self) -> None:
        one_of("label.features", self.features, FEATURES)
        needs_file = self.features in ("sscd", "onnx")
        need = f"the path of the local file that label.features = {self.features} reads"
        check(not needs_file or bool(self.weights), "label.weights", self.weights, need)
        for name in ("encoder_mean", "encoder_std"):
            check(len(getattr(self, name)) == 3, f"label.{name}", getattr(self, name), "three numbers, for RGB")
        check(min(self.encoder_std) > 0, "label.encoder_std", self.encoder_std, "above 0")
        for name, least in (
            ("encoder_size", 1),
            ("num_clusters", 2),
            ("minibatch_above", 1),
            ("min_cluster_size", 1),
            ("rounds", 0),
        ):
            check(getattr(self, name) >= least, f"label.{name}", getattr(self, name), f"at least {least}")
        check(self.noise > 0, "label.noise", self.noise, "above 0")
        check(self.denoiser_timestep >= 0, "label.denoiser_timestep", self.denoiser_timestep, "at least 0")
        check(-1 <= self.cohesion_threshold <= 1, "label.cohesion_threshold", self.cohesion_threshold, "in [-1, 1]")
        one_of("label.assignment", self.assignment, ("reassign", "drop"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """The network of every classifier: SIDE's surrogate, its controls and the conditional baseline.

    ResNet-18 is resnet with stage_sizes (2, 2, 2, 2) and width 64, ResNet-34 resnet with (3, 4, 6, 3), ResNet-50
    resnet_bottleneck with (3, 4, 6, 3).
    """

    architecture: str = "resnet"  # "resnet" (basic blocks), "resnet_bottleneck" or "half_unet" (the ADM classifier)
    stage_sizes: tuple[int, ...] = (1, 1)  # residual blocks of each stage; every stage but the first halves the image
    width: int = 32  # channels of the first stage; each further stage doubles them
    stem_stride: int = 1  # for a ResNet: stride of the first convolution, 1 or 2
    norm: str = "group"  # for a ResNet: "group", or "batch", whose statistics are frozen outside of training

    def __post_init__(self) -> None:
        one_of("classifier.architecture", self.architecture, ARCHITECTURES)
        ok = len(self.stage_sizes) >= 1 and min(self.stage_sizes) >= 1
        check(ok, "classifier.stage_sizes", self.stage_sizes, "one or more positive block counts")
        check(self.width >= 2 and self.width % 2 == 0, "classifier.width", self.width, "even and at least 2")
        check(self.stem_stride in (1, 2), "classifier.stem_stride", self.stem_stride, "1 or 2")
        one_of("classifier.norm", self.norm, ("group", "batch"))
        if self.architecture == "half_unet":
            check(
                self.norm == "group", "classifier.norm", self.norm, "'group' with classifier.architecture = half_unet"
            )
            need = "1 with classifier.architecture = half_unet"
            check(self.stem_stride == 1, "classifier.stem_stride", self.stem_stride, need)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierFit(Fit):
    """How a classifier is trained. A tenth of its training images is held back to validate it."""

    validate_every: int = 500  # steps between validations
    # Number of validations in a row without a lower loss after which training stops; the best parameters are used. 0:
    # train to the end, and use the last parameters.
    patience: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.validate_every >= 1, "*.validate_every", self.validate_every, "at least 1")
        check(self.patience >= 0, "*.patience", self.patience, "at least 0 (0: no early stop)")
        self._check_is_validated(self.num_steps)

    def _check_is_validated(self, steps: int) -> None:
        need = f"at most the {steps} steps of training, so that config.*.patience has a validation to compare"
        ok = self.patience == 0 or self.validate_every <= steps
        check(ok, "*.validate_every", self.validate_every, need)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surrogate(ClassifierFit):
    """How SIDE's surrogate and its controls are trained on noised images."""

    # How timesteps are drawn: "uniform", or "importance": in proportion to sigma_t, with weights that keep the expected
    # loss the same.
    timesteps: str = "uniform"
    # "cross_entropy", or "tdkd": distils a teacher of clean images; num_steps is then the sum for both.
    objective: str = "cross_entropy"
    teacher_steps: int = 1000  # for "tdkd": steps out of num_steps that train the teacher
    # For "tdkd": a local ONNX classifier as the teacher, in place of one trained on the pseudo-labels.
    teacher_path: str = path_field(digest="teacher_sha256")
    teacher_sha256: str = ""  # SHA-256 of that file; recorded when a run starts
    distillation_temperature: float = 2.0  # for "tdkd": temperature of the teacher's and the student's probabilities

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("surrogate.timesteps", self.timesteps, ("uniform", "importance"))
        one_of("surrogate.objective", self.objective, ("cross_entropy", "tdkd"))
        value = self.distillation_temperature
        check(value > 0, "surrogate.distillation_temperature", value, "above 0")
        check(self.teacher_steps >= 1, "surrogate.teacher_steps", self.teacher_steps, "at least 1")
        trains = self.objective == "tdkd" and not self.teacher_path
        most = self.num_steps - self.warmup_steps
        need = f"above warmup_steps ({self.warmup_steps}) and below {most}, since teacher and student share num_steps"
        ok = self.warmup_steps < self.teacher_steps < most
        check(not trains or ok, "surrogate.teacher_steps", self.teacher_steps, need)
        self._check_is_validated(self.num_steps - (self.teacher_steps if trains else 0))

    def fit_with(self, num_steps: int) -> Fit:
        """The training settings of the teacher or the student, with its part of the steps."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(Fit)}
        return Fit(**(values | {"num_steps": num_steps}))
