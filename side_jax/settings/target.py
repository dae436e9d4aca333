"""Settings of the target model: data, diffusion, network, labels, training, monitoring, or an existing checkpoint."""

import dataclasses

from side_jax.diffusion.schedule import PREDICTIONS, SCHEDULES, Schedule, make_schedule
from side_jax.errors import InputError
from side_jax.settings.checks import check, one_of
from side_jax.settings.paths import check_revision, path_field

DATASETS = ("digits", "faces", "folder", "npz", "tfds")
DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
RESIZES = ("conv", "resnet")
DTYPES = ("float32", "bfloat16")
OWN = "target"  # recorded for a model that was trained elsewhere with labels
OBJECT = "object"  # recorded for a model that is a Python object, which has values alone and no derivatives
FORMATS = ("diffusers", "pytorch_ddpm", "adm", "monai", "torchcfm", "lucidrains", "edm", OBJECT)
LABELS = ("true", "random", "single", "file")
UNCOUNTED = 2**40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Where the images come from, and how they are split into members and held-out images."""

    name: str = "digits"  # "digits", "faces", "folder", "npz" or "tfds"
    # For name = "folder" or "npz": a folder or a ZIP of pictures, an NPZ, an NPY, or Parquet files; or these in a data
    # set of the Hugging Face hub: hf://datasets/OWNER/NAME@REVISION/PATH.
    path: str = path_field(revision="revision")
    revision: str = ""  # the commit that `path` names in a repository of the hub; recorded when it is first read
    tfds_name: str = ""  # for name = "tfds": the dataset, such as "celeb_a", "cifar10" or "imagenette/full-size"
    data_dir: str = path_field()  # folder of prepared TFDS datasets; "": the default of TFDS
    # Source of the held-out images: another folder or NPZ, or another TFDS split, such as "test"; members are then
    # drawn from `path` alone. "": both sides are drawn from `path`. Required for a model that was trained elsewhere,
    # since only its owner knows which images it saw.
    heldout_from: str = path_field(revision="heldout_revision")
    heldout_revision: str = ""  # the commit that `heldout_from` names in a repository of the hub; likewise recorded
    image_size: int = 8  # height and width in pixels, after an area resize; digits have 8
    image_width: int = 0  # width in pixels where it is not the height; 0: image_size
    channels: int = 1  # 1 (grey), 3 (colour), or as many as the arrays of an NPZ or NPY have
    # A picture of another aspect ratio: "crop" (its centre) or "squash" (all of it, without its aspect ratio); use what
    # the model's trainer used.
    fit: str = "crop"
    # A picture whose EXIF data says that it must be turned: "apply" (turned) or "ignore" (pixels as stored); trainers
    # differ.
    orientation: str = "apply"
    # The 16-bit grey value that is white, 255 to 65535; 0: 65535, or what a DICOM file allows, and pictures that would
    # be nearly black are refused.
    bit_range: int = 0
    # Number of training images; 0: all different images of `path`, or half of them where both sides are drawn from it.
    num_members: int = 0
    # Number of images that the model never sees; 0: all that are left. As many as there are members form the control;
    # all of them calibrate thresholds.
    num_heldout: int = 0
    # "image", or "identity": no label has images on both sides; it is a person, and of a DICOM file, its patient.
    split_by: str = "image"
    min_per_label: int = 1  # labels with fewer images are left out; CelebA-HQ-FI keeps identities with at least 15
    # Held-out images whose RMSE to a member (pixels in [-1, 1]) is below this are moved out; 0: only equal images.
    near_duplicate_rmse: float = 0.05
    max_corrupt: int = 10  # number of unreadable images that are skipped and logged; one more is an error
    storage: str = "auto"  # "memory" (uint8), "stream" (decoded for each batch), or "auto": memory if they fit
    memory_limit_mb: int = 4096  # MiB of images that "auto" keeps in memory

    def __post_init__(self) -> None:
        one_of("data.name", self.name, DATASETS)
        check(self.name != "tfds" or bool(self.tfds_name), "data.tfds_name", self.tfds_name, "the dataset's TFDS name")
        needs_path = self.name in ("folder", "npz")
        check(not needs_path or bool(self.path), "data.path", self.path, f"the path of the {self.name} to read")
        ok = not self.heldout_from or self.name in ("folder", "npz", "tfds")
        check(
            ok,
            "data.heldout_from",
            self.heldout_from,
            "empty for data.name = digits or faces, which have a single part",
        )
        check_revision("data.revision", self.revision)
        check_revision("data.heldout_revision", self.heldout_revision)
        check(self.image_size >= 4, "data.image_size", self.image_size, "at least 4 pixels")
        check(self.image_width == 0 or self.image_width >= 4, "data.image_width", self.image_width, "0, or at least 4")
        check(self.channels >= 1, "data.channels", self.channels, "1 (grey), 3 (colour) or another number of channels")
        one_of("data.fit", self.fit, ("crop", "squash"))
        one_of("data.orientation", self.orientation, ("apply", "ignore"))
        ok = self.bit_range == 0 or 255 <= self.bit_range <= 65535
        check(ok, "data.bit_range", self.bit_range, "0, or from 255 to 65535")
        for name in ("num_members", "num_heldout"):
            value = getattr(self, name)
            check(value == 0 or value >= 2, f"data.{name}", value, "at least 2, or 0 for all images")
        one_of("data.split_by", self.split_by, ("image", "identity"))
        check(self.min_per_label >= 1, "data.min_per_label", self.min_per_label, "at least 1")
        limit = self.near_duplicate_rmse
        check(0 <= limit < 2, "data.near_duplicate_rmse", limit, "at least 0 and below 2")
        check(self.max_corrupt >= 0, "data.max_corrupt", self.max_corrupt, "at least 0")
        one_of("data.storage", self.storage, ("auto", "memory", "stream"))
        check(self.memory_limit_mb >= 1, "data.memory_limit_mb", self.memory_limit_mb, "at least 1")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images."""
        return self.image_size, self.image_width or self.image_size, self.channels

    @property
    def counts(self) -> tuple[int, int]:
        """The numbers of members and of held-out images; of all, which are not counted yet, more than any limit."""
        return self.num_members or UNCOUNTED, self.num_heldout or UNCOUNTED


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
    """The noise schedule and what the network predicts."""

    schedule: str = "linear"  # "linear", "scaled_linear" or "cosine"
    num_timesteps: int = 1000  # T, the number of timesteps
    beta_start: float = 1e-4  # beta at timestep 0
    beta_end: float = 0.02  # beta at timestep T - 1
    trained_betas: tuple[float, ...] = ()  # T betas that replace the schedule, as some existing checkpoints have
    prediction_type: str = "epsilon"  # what the network predicts: "epsilon", "x0" or "v"

    def __post_init__(self) -> None:
        one_of("diffusion.schedule", self.schedule, SCHEDULES)
        check(self.num_timesteps >= 2, "diffusion.num_timesteps", self.num_timesteps, "at least 2")
        for name in ("beta_start", "beta_end"):
            value = getattr(self, name)
            check(0 < value < 1, f"diffusion.{name}", value, "strictly between 0 and 1")
        check(self.beta_start <= self.beta_end, "diffusion.beta_end", self.beta_end, "at least diffusion.beta_start")
        betas = self.trained_betas
        ok = len(betas) in (0, self.num_timesteps) and all(0 < beta < 1 for beta in betas)
        need = f"empty, or {self.num_timesteps} (diffusion.num_timesteps) values strictly between 0 and 1"
        check(ok, "diffusion.trained_betas", betas, need)
        one_of("diffusion.prediction_type", self.prediction_type, PREDICTIONS)
        try:
            self.make()
        except ValueError as error:
            raise InputError(f"config.diffusion describes no schedule: {error}.") from None

    def make(self) -> Schedule:
        """The schedule that these settings describe."""
        options = dataclasses.asdict(self)
        return make_schedule(options.pop("schedule"), **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The U-Net. Its options have the names of diffusers' UNet2DModel."""

    block_out_channels: tuple[int, ...] = (32, 64)  # channels of each level; every level but the last halves the image
    # Finest level first; "AttnDownBlock2D" has attention, "ResnetDownsampleBlock2D" halves in a residual block.
    down_block_types: tuple[str, ...] = ("DownBlock2D", "DownBlock2D")
    # Coarsest level first; "AttnUpBlock2D" has attention, "ResnetUpsampleBlock2D" doubles in a residual block.
    up_block_types: tuple[str, ...] = ("UpBlock2D", "UpBlock2D")
    layers_per_block: int = 1  # residual blocks of each level
    attention_head_dim: int = 8  # channels of one attention head; 0: one head over all channels (null in diffusers)
    norm_num_groups: int = 8  # groups of every group normalisation
    attn_norm_num_groups: int = 0  # groups in the middle block's attention; 0: as null in diffusers
    norm_eps: float = 1e-5  # epsilon of every group normalisation
    dropout: float = 0.0  # dropout rate, during training only
    add_attention: bool = True  # whether the middle block has attention
    flip_sin_to_cos: bool = True  # whether the timestep embedding has its cosines first
    freq_shift: float = 0.0  # shift of the frequencies of the timestep embedding
    time_embedding_dim: int = 0  # channels of the timestep embedding; 0: four times block_out_channels[0]
    downsample_padding: int = 1  # 0: pads at the bottom and the right only, as the original DDPM does
    mid_block_scale_factor: float = 1.0  # divides the output of the middle block's residual connections
    resnet_time_scale_shift: str = "default"  # how the timestep enters residual blocks: "default" or "scale_shift"
    center_input_sample: bool = False  # whether inputs are mapped from [0, 1] to [-1, 1] first
    downsample_type: str = "conv"  # how levels with attention halve the image: "conv" or "resnet" (a residual block)
    upsample_type: str = "conv"  # how levels with attention double it: "conv" or "resnet"
    num_attention_heads: int = 0  # heads of every attention layer; 0: as many as attention_head_dim makes
    timestep_scale: float = 1.0  # what timesteps are multiplied with before they are embedded
    dtype: str = "float32"  # type of the computation; "bfloat16" halves memory on accelerators. Parameters stay float32
    remat: bool = False  # recompute blocks in the backward pass: a third more time, far less memory (for 256x256)

    def __post_init__(self) -> None:
        channels, levels = self.block_out_channels, len(self.block_out_channels)
        check(levels >= 1, "model.block_out_channels", channels, "one or more channel counts")
        for name, kinds in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
            types = getattr(self, name)
            need = f"one type for each of the {levels} levels of model.block_out_channels"
            check(len(types) == levels, f"model.{name}", types, need)
            for kind in types:
                one_of(f"model.{name}", kind, kinds)
        check(self.layers_per_block >= 1, "model.layers_per_block", self.layers_per_block, "at least 1")
        groups, head, heads = self.norm_num_groups, self.attention_head_dim, self.num_attention_heads
        check(groups >= 1, "model.norm_num_groups", groups, "at least 1")
        need = f"multiples of model.norm_num_groups ({groups})"
        check(all(c > 0 and c % groups == 0 for c in channels), "model.block_out_channels", channels, need)
        attend = {c for c, kind in zip(channels, self.down_block_types, strict=True) if kind.startswith("Attn")}
        attend |= {c for c, kind in zip(channels[::-1], self.up_block_types, strict=True) if kind.startswith("Attn")}
        attend |= {channels[-1]} if self.add_attention else set()
        need = f"0, or a divisor of the channels of every level with attention ({', '.join(map(str, sorted(attend)))})"
        ok = head >= 0 and all(c % (head or c) == 0 for c in (() if heads else attend))
        check(ok, "model.attention_head_dim", head, need)
        check(heads >= 0 and all(c % (heads or 1) == 0 for c in attend), "model.num_attention_heads", heads, need)
        attention_groups = self.attn_norm_num_groups
        need = f"0, or a divisor of the last of model.block_out_channels ({channels[-1]})"
        ok = attention_groups >= 0 and channels[-1] % (attention_groups or 1) == 0
        check(ok, "model.attn_norm_num_groups", attention_groups, need)
        for name in ("norm_eps", "mid_block_scale_factor"):
            check(getattr(self, name) > 0, f"model.{name}", getattr(self, name), "above 0")
        check(0 <= self.dropout < 1, "model.dropout", self.dropout, "at least 0 and below 1")
        half = channels[0] // 2
        check(channels[0] % 2 == 0, "model.block_out_channels", channels, "even in the first entry")
        check(self.freq_shift < half, "model.freq_shift", self.freq_shift, f"below {half}, half the first channels")
        check(self.time_embedding_dim >= 0, "model.time_embedding_dim", self.time_embedding_dim, "at least 0")
        check(self.downsample_padding in (0, 1), "model.downsample_padding", self.downsample_padding, "0 or 1")
        one_of("model.resnet_time_scale_shift", self.resnet_time_scale_shift, ("default", "scale_shift"))
        one_of("model.downsample_type", self.downsample_type, RESIZES)
        one_of("model.upsample_type", self.upsample_type, RESIZES)
        check(self.timestep_scale > 0, "model.timestep_scale", self.timestep_scale, "above 0")
        one_of("model.dtype", self.dtype, DTYPES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """Labels for training the DPM with classifier-free guidance (Ho and Salimans 2022)."""

    # "": none; the model is unconditional. "true": the members' own labels. "random": balanced groups of members, drawn
    # once from the seed. "single": one label that all members share and that carries no information. "file": the labels
    # in `path`.
    labels: str = ""
    num_labels: int = 0  # number of labels: 0 without labels, 1 for "single", else at least 2
    # For labels = "file": an NPZ with `id`, int64 [n], as in train/split.json, and `label`, int32 [n].
    path: str = path_field(digest="sha256")
    sha256: str = ""  # SHA-256 of that file; recorded when it is first read, so that a changed file is noticed
    dropout: float = 0.1  # share of training images shown without their label; guidance needs that prediction too
    null_label: bool = True  # whether the model can be used without a label; recorded for a model trained elsewhere

    def __post_init__(self) -> None:
        labels, count = self.labels, self.num_labels
        need = f"empty (an unconditional model) or one of {', '.join(LABELS)}"
        check(labels in ("", *LABELS, OWN), "condition.labels", labels, need)
        ok, need = {
            "": (count == 0, "0 while condition.labels is empty: an unconditional model has no labels"),
            "single": (count == 1, "1 with condition.labels = single, the label that all members share"),
            OWN: (count >= 1, "the number of labels of the model in target.path"),
        }.get(labels, (count >= 2, f"at least 2 with condition.labels = {labels}"))
        check(ok, "condition.num_labels", count, need)
        if labels == "file":
            check(
                bool(self.path), "condition.path", self.path, "the NPZ of labels to read with condition.labels = file"
            )
        else:
            check(not self.path, "condition.path", self.path, "empty unless condition.labels is file")
        need = "above 0 (guidance needs the prediction without a label too) and below 1"
        check(0 < self.dropout < 1, "condition.dropout", self.dropout, need)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """How a network is trained."""

    num_steps: int = 1000  # number of training steps
    batch_size: int = 64  # images in a batch, over all devices
    accumulate: int = 1  # parts of a batch that are computed one after the other, to save memory; same gradient
    learning_rate: float = 1e-3  # learning rate of AdamW after the warm-up
    warmup_steps: int = 0  # steps in which the learning rate rises linearly from 0
    decay: str = (
        "constant"  # course of the learning rate after the warm-up: "constant", or "linear" or "cosine" down to 0
    )
    weight_decay: float = 0.0  # weight decay of AdamW
    gradient_clip: float = 1.0  # largest global norm of the gradient
    ema_decay: float = 0.998  # decay of the parameters' exponential moving average, after a warm-up of its own
    log_every: int = 100  # steps between log lines
    checkpoint_every: int = 500  # steps between checkpoints; a kill loses at most so many

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "accumulate", "log_every", "checkpoint_every"):
            check(getattr(self, name) >= 1, f"*.{name}", getattr(self, name), "at least 1")
        need = f"divisible by accumulate ({self.accumulate})"
        check(self.batch_size % self.accumulate == 0, "*.batch_size", self.batch_size, need)
        for name in ("learning_rate", "gradient_clip"):
            check(getattr(self, name) > 0, f"*.{name}", getattr(self, name), "above 0")
        for name in ("warmup_steps", "weight_decay"):
            check(getattr(self, name) >= 0, f"*.{name}", getattr(self, name), "at least 0")
        need = f"below num_steps ({self.num_steps}), which include the warm-up"
        check(self.warmup_steps < self.num_steps, "*.warmup_steps", self.warmup_steps, need)
        one_of("*.decay", self.decay, ("constant", "linear", "cosine"))
        check(0 <= self.ema_decay < 1, "*.ema_decay", self.ema_decay, "at least 0 and below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Fit):
    """Training of the DPM."""

    # Whether images are mirrored at random. A mirrored copy of every image halves what can be extracted: each version
    # is memorised less often, and pixel distances do not find mirrored matches.
    horizontal_flip: bool = False
    keep_checkpoints: bool = False  # whether to keep all checkpoints in place of the newest two, as for weak.step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Monitor:
    """Monitors memorisation during training: compares samples of the DPM with members and held-out images."""

    every_steps: int = 0  # steps between comparisons; 0: never
    num_samples: int = 256  # images sampled for each comparison, always from the same noise
    stop_at_rate: float = 0.0  # stop training when this share of samples has d1 / d2 < 1/3; 0: never
    # Whether the samples are also taken to modes of the model, by the default recipe of mode seeking, and compared:
    # they show memorised images before plain samples do.
    seeks_modes: bool = True
    stop_at_modes_rate: float = 0.0  # stop training when this share of the modes has d1 / d2 < 1/3; 0: never

    def __post_init__(self) -> None:
        check(self.every_steps >= 0, "monitor.every_steps", self.every_steps, "at least 0 (0: no monitor)")
        check(self.num_samples >= 1, "monitor.num_samples", self.num_samples, "at least 1")
        for name in ("stop_at_rate", "stop_at_modes_rate"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"monitor.{name}", value, "between 0 (never) and 1")
            need = "0 while monitor.every_steps is 0, which disables the monitor"
            check(self.every_steps > 0 or value == 0, f"monitor.{name}", value, need)
        need = "True with monitor.stop_at_modes_rate, which needs the modes"
        check(self.seeks_modes or self.stop_at_modes_rate == 0, "monitor.seeks_modes", self.seeks_modes, need)

    @property
    def stops(self) -> bool:
        """Whether it may end the training."""
        return self.stop_at_rate > 0 or self.stop_at_modes_rate > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """An existing checkpoint to audit, in place of a DPM that is trained here."""

    # A local folder or file, or one in a repository of the Hugging Face hub: hf://OWNER/NAME@REVISION/PATH. It replaces
    # the sections `model` and `diffusion`; see docs/your_model.md.
    path: str = path_field(digest="sha256", revision="revision")
    sha256: str = ""  # SHA-256 of its weights; recorded when they are first read, so that a changed file is noticed
    revision: str = ""  # the commit that `path` names in a repository of the hub; recorded when it is first read
    # "diffusers", "pytorch_ddpm", "adm", "monai", "torchcfm", "lucidrains" or "edm"; "": by the files' content.
    format: str = ""
    # What some files do not say, and is then asked for. The noise that the model was trained with: "linear",
    # "scaled_linear" or "cosine", with the other values of the section `diffusion`.
    schedule: str = ""
    num_heads: int = 0  # heads of every attention layer; 0: head_channels says it
    head_channels: int = 0  # channels of each attention head; 0: num_heads says it
    # Groups of every normalisation of a MONAI model, or of a lucidrains one of before 2.0; 0: 32 or 8, their defaults.
    norm_groups: int = 0
    # Of a model of latents: what latents are multiplied with before the network gets them. Asked for of MONAI's models;
    # of diffusers', it replaces the scaling_factor of the files. 0: the files say it.
    latent_scale: float = 0.0
    latent_groups: int = 0  # groups of the normalisations of a MONAI autoencoder; 0: norm_groups
    # The pixels that the model, or its autoencoder, was trained on: "unit" ([0, 1]) or "signed" ([-1, 1]); "": as the
    # format's own program has them, which for a MONAI autoencoder is unit. Asked for of MONAI's models of pixels.
    pixels: str = ""
    qkv_order: str = ""  # of queries, keys and values in one layer: "legacy" ([heads, 3, c]) or "new" ([3, heads, c])
    timesteps: str = ""  # how the network gets timesteps if these are not 1000: "plain", or "rescaled" to 1000
    # For a text-conditional model: a text file of prompts, one a line. Prompt i, from 0, is label i; the empty prompt,
    # which is added, stands for no label.
    prompts: str = path_field(digest="prompts_sha256")
    prompts_sha256: str = ""  # SHA-256 of that file; recorded when it is first read, so that a changed file is noticed
    # The label that stands for "no label", such as 10 of 0..10; -1: there is none.
    null_label: int = -1
    network: str = ""  # recorded for a network that the section `model` can't describe: its class and options, as JSON

    def __post_init__(self) -> None:
        check_revision("target.revision", self.revision)
        one_of("target.format", self.format, ("", *FORMATS))
        one_of("target.schedule", self.schedule, ("", *SCHEDULES))
        one_of("target.qkv_order", self.qkv_order, ("", "legacy", "new"))
        one_of("target.timesteps", self.timesteps, ("", "plain", "rescaled"))
        one_of("target.pixels", self.pixels, ("", "unit", "signed"))
        need = "empty: a Python object takes pixels in [-1, 1], so scale them in it"
        check(self.format != OBJECT or not self.pixels, "target.pixels", self.pixels, need)
        for name in ("num_heads", "head_channels", "norm_groups", "latent_groups", "latent_scale"):
            check(getattr(self, name) >= 0, f"target.{name}", getattr(self, name), "at least 0")
        need = f"0 with target.num_heads = {self.num_heads}: one says the other"
        check(not (self.num_heads and self.head_channels), "target.head_channels", self.head_channels, need)
        check(self.null_label >= -1, "target.null_label", self.null_label, "at least 0, or -1")
