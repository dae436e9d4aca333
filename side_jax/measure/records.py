"""results.json as typed records: the evaluation writes them, the report reads them, and the JSON schema follows.

Rates are fractions in [0, 1]; every metric is a dissimilarity, so that smaller is closer. An optional key is absent
from the file where its field is UNSET. `read` checks a file against the records; what is made here is not checked.

results.schema.json, beside this file, is what `python -m side_jax.measure.records` writes.
"""

import argparse
import json
import platform
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from side_jax import __version__
from side_jax.attacks.table import Run as AttackRun
from side_jax.errors import InputError
from side_jax.memorization.metrics import METRICS, recorded_settings
from side_jax.workdir import files

SCHEMA = Path(__file__).with_name("results.schema.json")

Count = Annotated[int, Meta(ge=0)]
AtLeastOne = Annotated[int, Meta(ge=1)]
Amount = Annotated[float, Meta(ge=0)]
Rate = Annotated[float, Meta(ge=0, le=1)]
RateInterval = tuple[Rate, Rate]
Interval = tuple[Amount, Amount]
Wilson = Annotated[RateInterval, Meta(description="Wilson")]
Jackknife = Annotated[Interval, Meta(description="jackknife over images")]
ZeroHitsBound = Annotated[
    Rate | None, Meta(description="where none matched: the one-sided bound, about 3 / n; else null")
]
Difference = Annotated[float, Meta(ge=-1, le=1)]
MetricName = Annotated[str, Meta(extra_json_schema={"enum": list(METRICS)})]
Level = Literal["high", "mid", "low", "high to mid", "high to low", "calibrated"]


class Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of results.json; keys that it does not name are refused."""


def _definition() -> type[Struct]:
    """The type of an entry of `metrics`, with the settings of every metric."""
    fields: list[tuple] = [
        ("name", MetricName),
        ("below", Annotated[float, Meta(description="a smaller value is a match")]),
        ("factors", Annotated[tuple[float, ...], Meta(description="the farther bands end at below times these")]),
    ]
    for key, field in recorded_settings().items():
        about = field.metadata
        choices = {"enum": list(about["choices"])} if about["choices"] else None
        kind = Annotated[field.type, Meta(description=about["meaning"], extra_json_schema=choices)]
        fields.append((key, kind) if about["elsewhere"] is not None else (key, kind | UnsetType, UNSET))
    doc = {"__doc__": "A metric, with all that its values depend on."}
    return msgspec.defstruct(
        "Definition",
        fields,
        bases=(Record,),
        module=__name__,
        namespace=doc,
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )


Definition = _definition()


class Run(Record, frozen=True, kw_only=True):
    """The run that a record is about."""

    attack: Annotated[str, Meta(description="extract.attacks' name, or samples")]
    guidance_scale: Annotated[Amount, Meta(description="lambda; 0 without guidance; of mode seeking, of its start")]
    start: Annotated[str, Meta(description="of mode seeking: the attack that it starts from, or noise")] | UnsetType = (
        UNSET
    )
    noise_level: (
        Annotated[Amount, Meta(description="of mode seeking: sigma in the first round, for pixels in [-1, 1]")]
        | UnsetType
    ) = UNSET
    rounds: Annotated[Count, Meta(description="of mode seeking")] | UnsetType = UNSET
    last_steps: (
        Annotated[AtLeastOne, Meta(description="of mode seeking by an API: the sampler's last steps, in each round")]
        | UnsetType
    ) = UNSET
    network_calls: (
        Annotated[
            AtLeastOne,
            Meta(
                description="evaluations of the target's network for one image; a gradient through it counts as two "
                "more, and a guiding classifier is not counted; absent for images alone"
            ),
        ]
        | UnsetType
    ) = UNSET
    requests: (
        Annotated[
            AtLeastOne,
            Meta(description="images asked of an API to have one image; absent for attacks that need more than an API"),
        ]
        | UnsetType
    ) = UNSET

    @property
    def key(self) -> AttackRun:
        """The same run as the attacks' table has it; its name is that of the run's folder."""
        values = {"start": self.start, "noise": self.noise_level, "rounds": self.rounds, "last_steps": self.last_steps}
        chosen = {name: value for name, value in values.items() if value is not UNSET}
        return AttackRun(attack=self.attack, scale=self.guidance_scale, **chosen)

    def fields_of_run(self) -> dict[str, Any]:
        """The fields that identify the run, for another record of it."""
        return {name: getattr(self, name) for name in Run.__struct_fields__}


class SideScore(Record, frozen=True, kw_only=True):
    """The scores of a run against one side, members or held-out images; a row has both."""

    ams: Rate
    ams_ci: RateInterval
    ams_at_most: Rate | None
    ums: Amount
    ums_ci: Interval
    ums_nearest: Rate
    ums_nearest_ci: Interval
    unique: Count


class Row(Run, frozen=True, kw_only=True):
    """One run by one metric in one band."""

    metric: MetricName
    level: Annotated[
        Level,
        Meta(description="high is what counts as a match; mid and low are disjoint bands; the others begin at 0"),
    ]
    band: Annotated[Interval, Meta(description="[low, high) of the dissimilarity")]
    cumulative: Annotated[bool, Meta(description="whether the band begins at 0")]
    n_generated: Annotated[AtLeastOne, Meta(description="generated images of the run")]
    ams: Annotated[Rate, Meta(description="share of generated images whose nearest member is in the band")]
    ams_ci: Wilson
    ams_at_most: ZeroHitsBound
    ums: Annotated[
        Amount,
        Meta(description="different members in the band of any image, over the images (all pairs, the paper's)"),
    ]
    ums_ci: Jackknife
    ums_nearest: Annotated[
        Rate, Meta(description="different members that are the nearest of a matched image, over the images")
    ]
    ums_nearest_ci: Jackknife
    unique: Annotated[Count, Meta(description="different members that are the nearest of a matched image")]
    heldout_ams: Annotated[
        Rate, Meta(description="share of generated images whose nearest held-out image is in the band")
    ]
    heldout_ams_ci: Wilson
    heldout_ams_at_most: ZeroHitsBound
    heldout_ums: Annotated[
        Amount,
        Meta(description="different held-out images in the band of any image, over the images (all pairs)"),
    ]
    heldout_ums_ci: Jackknife
    heldout_ums_nearest: Annotated[
        Rate, Meta(description="different held-out images that are the nearest of a matched image, over the images")
    ]
    heldout_ums_nearest_ci: Jackknife
    heldout_unique: Annotated[
        Count, Meta(description="different held-out images that are the nearest of a matched image")
    ]
    p05: Annotated[
        Amount,
        Meta(description="5th percentile of the nearest member's dissimilarity: the tail of the close images"),
    ]
    p95: Annotated[Amount, Meta(description="95th percentile of the same")]
    excess: (
        Annotated[
            Difference,
            Meta(
                description="the share of images that match one of as many members as held-out images, minus the "
                "share that match one of these, without members near images left out; this and the next "
                "five are absent beyond the nearest band, and where near duplicates leave a side nothing to test"
            ),
        ]
        | UnsetType
    ) = UNSET
    excess_ci: (
        Annotated[
            tuple[Difference, Difference],
            Meta(description="the wider of Newcombe 1998 over images and a bootstrap over members and held-out images"),
        ]
        | UnsetType
    ) = UNSET
    unique_excess: (
        Annotated[float, Meta(description="members that are matched, minus as many as chance would match")] | UnsetType
    ) = UNSET
    unique_excess_ci: Annotated[tuple[float, float], Meta(description="likewise, over both")] | UnsetType = UNSET
    p_excess: (
        Annotated[
            Rate,
            Meta(description="permutations of who is a member, both sides as one set: members are not matched more"),
        ]
        | UnsetType
    ) = UNSET
    p_deficit: Annotated[Rate, Meta(description="the same: members are not matched less often")] | UnsetType = UNSET
    p_more_images: (
        Annotated[
            Rate,
            Meta(
                description="McNemar over images: without guidance as many match; absent for the unguided run and for "
                "searches, whose images are not independent"
            ),
        ]
        | UnsetType
    ) = UNSET
    p_more_members: Annotated[Rate, Meta(description="the same over members")] | UnsetType = UNSET
    false_match_rate: Annotated[Rate, Meta(description="of a calibrated threshold, as asked for")] | UnsetType = UNSET
    false_match_measured: (
        Annotated[Rate, Meta(description="of the held-out images that did not calibrate")] | UnsetType
    ) = UNSET
    false_match_measured_ci: Wilson | UnsetType = UNSET

    @property
    def members(self) -> SideScore:
        """The scores against members."""
        return SideScore(**{name: getattr(self, name) for name in SideScore.__struct_fields__})

    @property
    def heldout(self) -> SideScore:
        """The same scores against held-out images."""
        return SideScore(**{name: getattr(self, f"heldout_{name}") for name in SideScore.__struct_fields__})


def both_sides(members: SideScore, heldout: SideScore) -> dict[str, Any]:
    """The fields of a row that hold its two sides."""
    sides = (("", members), ("heldout_", heldout))
    return {f"{prefix}{name}": getattr(side, name) for prefix, side in sides for name in side.__struct_fields__}


class Fit(Record, frozen=True, kw_only=True):
    """The fitted law, p ~ Beta(a, b) over all members, and what it expects."""

    a: Amount
    b: Amount
    sizes: Annotated[tuple[Count, ...], Meta(description="numbers of generated images")]
    expected: Annotated[tuple[Amount, ...], Meta(description="members found by so many images, on average")]


class Chao1(Record, frozen=True, kw_only=True):
    """Members that unlimited sampling finds, at least (Chao's estimate)."""

    estimate: Amount
    low: Annotated[Amount, Meta(description="lower end of the interval")]
    high: Annotated[Amount, Meta(description="upper end of the interval")]


class GoodToulmin(Record, frozen=True, kw_only=True):
    """Good and Toulmin's estimate."""

    expected: Annotated[Amount, Meta(description="members found")]
    smoothed: Annotated[
        bool, Meta(description="whether the series is smoothed, as it is for more than twice the images")
    ]
    valid: Annotated[bool, Meta(description="whether the factor is in the range in which the estimate is reliable")]


class Ahead(Record, frozen=True, kw_only=True):
    """Members found by factor times the images, by three estimates."""

    factor: AtLeastOne
    fit: Annotated[Amount, Meta(description="by the fitted law")]
    chao: Annotated[Amount, Meta(description="by Chao's estimate, a lower bound")]
    good_toulmin: GoodToulmin
    chance: (
        Annotated[Amount, Meta(description="by the law fitted to held-out images: as many as chance would find")]
        | UnsetType
    ) = UNSET


class Rarefaction(Run, frozen=True, kw_only=True):
    """How many members the images of a run find by the headline metric, and what more images would find."""

    sizes: Annotated[tuple[Count, ...], Meta(description="numbers of generated images")]
    expected: Annotated[tuple[Amount, ...], Meta(description="members found by so many of the images, on average")]
    fit: Fit
    chao1: Chao1
    ahead: Ahead


class Threshold(Record, frozen=True, kw_only=True):
    """What was calibrated for one metric on half of the held-out images."""

    below: Annotated[
        Amount | None, Meta(description="a smaller value is a match; null: there were too few held-out images")
    ]
    calibrated_on: Annotated[Count, Meta(description="held-out images that calibrated")]
    tested_on: Annotated[Count, Meta(description="other held-out images")]
    matched: Annotated[Count, Meta(description="of these, those that match a member")]


class Control(Record, frozen=True, kw_only=True):
    """How many distorted copies of members are matched, or, as the negative control, how many held-out images."""

    distortion: Annotated[str, Meta(description="of the copies; held-out images: the negative control")]
    strength: Annotated[Amount | None, Meta(description="of the distortion; null for held-out images")]
    unit: Annotated[str, Meta(description="of the strength")]
    metric: str
    level: Literal["high", "calibrated"]
    band: Annotated[Interval, Meta(description="[low, high) of the dissimilarity")]
    images: Count
    found: Annotated[
        Rate, Meta(description="share of copies matched with their original, or of held-out images with a member")
    ]
    found_ci: Wilson


class Cell(Record, frozen=True, kw_only=True):
    """One cell of C_T's partition."""

    share: Annotated[Rate, Meta(description="of the held-out images")]
    heldout: Count
    generated: Count
    z: Annotated[float | None, Meta(description="the cell's statistic; null for a cell that is not kept")]


class CellTest(Record, frozen=True, kw_only=True):
    """C_T: far below 0 is copying, far above 0 underfitting (Meehan et al. 2020)."""

    value: Annotated[float | None, Meta(description="null where no cell is kept")]
    used: Annotated[Count, Meta(description="cells kept")]
    cells: tuple[Cell, ...]


class SetSizes(Record, frozen=True, kw_only=True):
    """Numbers of images behind the distributional measures."""

    generated: Count
    members: Count
    heldout: Count
    frechet: Annotated[Count, Meta(description="of each set, for the Frechet distances")]


class Distribution(Run, frozen=True, kw_only=True):
    """How the images of a run are distributed in the space of the features, compared with both sides."""

    auth_pct: Annotated[
        Amount,
        Meta(
            description="percentage of images farther from their nearest member than that member from its nearest; "
            "low: copying"
        ),
    ]
    auth_pct_heldout: Annotated[Amount, Meta(description="the same against held-out images")]
    c_t: CellTest
    fld_gap: Annotated[float, Meta(description="the more negative, the more overfit (after Jiralerspong et al. 2023)")]
    fld_gap_heldout: Annotated[float, Meta(description="the same with members and held-out images exchanged")]
    frechet_members: Annotated[Amount, Meta(description="Frechet distance of the images to members")]
    frechet_heldout: Annotated[Amount, Meta(description="the same to held-out images")]
    frechet_members_heldout: Annotated[Amount, Meta(description="the same of members to held-out images: the floor")]
    n: SetSizes


class Together(Record, frozen=True, kw_only=True):
    """What all attacks extract together, by the headline metric; controls are no attacks."""

    runs: Annotated[AtLeastOne, Meta(description="attacks, each at each of its scales and settings")]
    images: Annotated[AtLeastOne, Meta(description="generated images of all of them")]
    unique: Annotated[Count, Meta(description="different members that are the nearest of a match of any of them")]
    heldout_unique: Annotated[Count, Meta(description="different held-out images that are")]
    unique_excess: (
        Annotated[float, Meta(description="members that are matched, minus as many as chance would match")] | UnsetType
    ) = UNSET
    unique_excess_ci: Annotated[tuple[float, float], Meta(description="its interval, as of a row")] | UnsetType = UNSET


class BestOfGeneration(Run, frozen=True, kw_only=True):
    """Of a search, the fittest image of each generation, by the headline metric.

    The search chooses them without the members; the row of the run counts every image that it asked the model for.
    """

    images: Annotated[AtLeastOne, Meta(description="one of each generation of each search")]
    ams: Annotated[Rate, Meta(description="share of these images that match a member")]
    ams_ci: Wilson
    unique: Annotated[Count, Meta(description="different members that are the nearest of a match")]
    heldout_ams: Annotated[Rate, Meta(description="share of these images that match a held-out image")]
    heldout_ams_ci: Wilson
    heldout_unique: Annotated[Count, Meta(description="different held-out images that are the nearest of a match")]


class Likeness(Record, frozen=True, kw_only=True):
    """Whether the sets are of one kind: energy distances of their appearance, over the largest value.

    What random splits of both sets have is subtracted, so that sets of one kind have about 0.
    """

    heldout_share: Annotated[float, Meta(description="of held-out images to members")]
    heldout_p: Annotated[Rate, Meta(description="permutations: members and held-out images are one random split")]
    samples_share: (
        Annotated[
            float,
            Meta(description="of plain samples, or those given, to the nearer of both sides; absent without them"),
        ]
        | UnsetType
    ) = UNSET


class Reading(Record, frozen=True, kw_only=True):
    """What reading a set of pictures left out or changed."""

    passed_over: Annotated[
        dict[str, Count], Meta(description="files that are not read, by their suffix or another kind")
    ] = msgspec.field(default_factory=dict)
    rotated: Annotated[Count, Meta(description="pictures whose EXIF data says that they must be turned")] = 0
    animated: Annotated[Count, Meta(description="pictures of which only the first frame is read")] = 0
    reshaped: Annotated[Count, Meta(description="pictures that were cropped or squashed to a square")] = 0
    sixteen_bit: Annotated[Count, Meta(description="pictures of 16 bits")] = 0
    windowed: Annotated[Count, Meta(description="DICOM pictures that are grey by their file's window or table")] = 0
    full_range: Annotated[Count, Meta(description="DICOM pictures without one, grey by all values of their bits")] = 0
    percentiles: Annotated[Count, Meta(description="NIfTI slices, grey by the percentiles of their volume")] = 0
    inverted: Annotated[Count, Meta(description="DICOM pictures whose low values are white (MONOCHROME1)")] = 0
    orientation: Annotated[Literal["apply", "ignore"], Meta(description="data.orientation")] = "apply"
    fit: Annotated[Literal["crop", "squash"], Meta(description="data.fit")] = "crop"


class Dataset(Record, frozen=True, kw_only=True):
    """The images that the audit compares with."""

    name: str
    members: Count
    heldout: Count
    heldout_used: Annotated[Count, Meta(description="as the control, no more than members")]
    image_shape: Annotated[tuple[Count, ...], Meta(description="height, width, channels")]
    split_sha256: Annotated[str, Meta(description="of train/split.json; absent for images alone")] | UnsetType = UNSET
    members_untested: Annotated[
        Count,
        Meta(
            description="members that nearly equal an image left out of the held-out ones; they take no part in the "
            "test of the excess"
        ),
    ] = 0
    groups: (
        Annotated[
            tuple[Count, Count],
            Meta(description="identities among members and held-out images; absent where the split is by image"),
        ]
        | UnsetType
    ) = UNSET
    member_near_pairs: Annotated[
        Count, Meta(description="pairs of members that nearly equal each other; d1 / d2 does not see copies of them")
    ] = 0
    reading: Annotated[Reading, Meta(description="all images that the split considered")] | UnsetType = UNSET
    heldout_equal_dropped: (
        Annotated[Count, Meta(description="held-out images left out because they equal a member; images alone")]
        | UnsetType
    ) = UNSET
    heldout_near_dropped: (
        Annotated[Count, Meta(description="held-out images left out because they nearly equal a member")] | UnsetType
    ) = UNSET


class Operating(Record, frozen=True, kw_only=True):
    """A membership score's rates at one false positive rate; null where the threshold is not known."""

    false_positive_rate: Annotated[Rate, Meta(description="as asked for")]
    threshold: Annotated[float | None, Meta(description="a smaller score is called a member")]
    called_members: Annotated[Count | None, Meta(description="members called so")]
    called_heldout: Annotated[Count | None, Meta(description="held-out images of the evaluation half called members")]
    true_positive_rate: Rate | None
    true_positive_rate_ci: Annotated[RateInterval | None, Meta(description="Wilson")]
    realised_rate: Annotated[Rate | None, Meta(description="the false positive rate of the evaluation half")]
    realised_rate_ci: Annotated[RateInterval | None, Meta(description="Wilson")]
    note: Annotated[str | None, Meta(description="why there is no threshold")]


class Quality(Record, frozen=True, kw_only=True):
    """How well a score tells members from held-out images."""

    members: Count
    calibration: Annotated[Count, Meta(description="held-out images that fix the thresholds")]
    evaluation: Annotated[Count, Meta(description="the other held-out images")]
    confidence: Annotated[Rate, Meta(description="of the intervals")]
    auc: Annotated[Rate, Meta(description="1/2 is a guess")]
    auc_ci: RateInterval
    auc_ci_method: str
    at: Annotated[tuple[Operating, ...], Meta(description="one entry for each false positive rate")]


class Membership(Record, frozen=True, kw_only=True):
    """Membership scores by the target model itself; smaller is more like a member."""

    timestep: Annotated[Count, Meta(description="at which they are taken")]
    secmi_stride: Annotated[Count, Meta(description="timesteps between SecMI's two")]
    loss: Annotated[Quality, Meta(description="the denoising loss")] | UnsetType = UNSET
    secmi: Annotated[Quality, Meta(description="SecMI's t-error (Duan et al. 2023)")] | UnsetType = UNSET
    pia: Annotated[Quality, Meta(description="PIA (Kong et al. 2024)")] | UnsetType = UNSET

    @property
    def scores(self) -> dict[str, Quality]:
        """Each score that was computed, by name."""
        named = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return {name: value for name, value in named if isinstance(value, Quality)}


class Estimate(Record, frozen=True, kw_only=True):
    """A mean in nats, and its standard error."""

    estimate: float
    standard_error: Amount


class Divergence(Record, frozen=True, kw_only=True):
    """The memorisation divergence KL(q || p) in nats (docs/theory.md); smaller is nearer.

    q is the images blurred by noise of standard deviation epsilon, p the model's law by its probability-flow ODE. Null
    where a likelihood could not be computed.
    """

    epsilon: Annotated[float, Meta(gt=0)]
    draws: Annotated[int, Meta(ge=2, description="points on each side")]
    unsolved: Annotated[Count, Meta(description="points of both sides whose likelihood could not be computed")]
    members: Annotated[Estimate | None, Meta(description="around the members")]
    heldout: Annotated[Estimate | None, Meta(description="around as many held-out images")]
    difference: Annotated[
        Estimate | None, Meta(description="heldout less members: above 0, the model is nearer to its members")
    ]


class AlikeLabel(Record, frozen=True, kw_only=True):
    """A label whose images are abnormally alike."""

    label: Count
    spread: Annotated[Amount, Meta(description="half the median squared RMSE of two of its images, in [-1, 1]")]
    fall: Annotated[Amount, Meta(description="how many times smaller that is than of ordinary labels")]


class LabelSpread(Record, frozen=True, kw_only=True):
    """The scan of a conditional model's labels for those whose images are abnormally alike, as a trigger's are."""

    labels: Annotated[AtLeastOne, Meta(description="of the model")]
    scanned: Annotated[AtLeastOne, Meta(description="labels that were scanned")]
    images: Annotated[int, Meta(ge=2, description="drawn of each label, without guidance")]
    ordinary: Annotated[
        Amount | None,
        Meta(description="geometric mean of the spreads of the upper half of the labels; null: not known"),
    ]
    greatest_fall: Annotated[
        Amount | None, Meta(description="of a label, a score of the model: above some limit, the label is flagged")
    ]
    flagged: Annotated[tuple[AlikeLabel, ...], Meta(description="the flagged labels, the most alike first")]
    undecided: Annotated[str, Meta(description="why nothing is decided; empty where something is")] = ""


class Target(Record, frozen=True, kw_only=True):
    """The model that is audited."""

    step: Annotated[Count, Meta(description="training step of its checkpoint")]
    ema_sha256: Annotated[str, Meta(description="of its averaged weights")]
    parameters: Count
    denoising_loss_members: Annotated[
        Amount, Meta(description="mean over all timesteps, of at most evaluate.loss_images")
    ]
    denoising_loss_heldout: Annotated[Amount, Meta(description="the same on held-out images: more shows overfitting")]
    latent: Annotated[
        bool,
        Meta(description="whether it samples latents: losses, membership scores and likelihoods are then of these"),
    ] = False


class Surrogate(Record, frozen=True, kw_only=True):
    """The pseudo-labels that SIDE learned from: clusters of the model's own samples."""

    features: Annotated[dict[str, Any], Meta(description="the feature extractor: its name and all it depends on")]
    clusters: Count
    kept: Annotated[Count, Meta(description="clusters that became pseudo-labels")]
    rejected_by_cohesion: Count
    empty: Count
    tiny: Annotated[Count, Meta(description="clusters with fewer images than label.min_cluster_size")]
    duplicate: Annotated[Count, Meta(description="clusters joined to an earlier one")]
    cohesion: Annotated[
        tuple[float, float, float], Meta(description="least, median and greatest of the clusters that are not empty")
    ]
    sizes: Annotated[tuple[Amount, Amount, Amount], Meta(description="images of a label: least, median and greatest")]
    featureless: Annotated[Count, Meta(description="images without features")]
    dropped_images: Annotated[Count, Meta(description="images without a label")]
    reassigned_images: Annotated[Count, Meta(description="images given to the nearest kept cluster")]
    assignment: Annotated[str, Meta(description="label.assignment")]
    synthetic_images: Count


class NoiseLevel(Record, frozen=True, kw_only=True):
    """What a classifier knows at one noise level."""

    timestep: Count
    accuracy: Rate
    accuracy_ci: Wilson
    loss: Annotated[float, Meta(description="in nats")]
    ece: Annotated[Amount, Meta(description="expected calibration error (Guo et al. 2017)")]
    temperature: Annotated[Amount, Meta(description="that calibrates it")]
    ece_scaled: Annotated[Amount | None, Meta(description="after scaling by the temperature of other images")]


class Classifier(Record, frozen=True, kw_only=True):
    """A classifier that guided attacks."""

    classes: Count
    images: Annotated[Count, Meta(description="that it learned from")]
    held_back: Annotated[Count, Meta(description="images that it was tested on")]
    steps: Annotated[Count, Meta(description="of training")]
    levels: Annotated[tuple[NoiseLevel, ...], Meta(description="from the least noise to the most")]


class ImageSet(Record, frozen=True, kw_only=True):
    """One of the sets of an audit of images alone."""

    images: Count
    sha256: Annotated[str, Meta(description="of all pixels")]
    commit: Annotated[str, Meta(description="of the repository of the hub that it is from; empty: none")] = ""
    damaged: Annotated[Count, Meta(description="files left out because they can't be read")]
    repeats: Annotated[Count, Meta(description="images that equal an earlier one")]
    colour: Annotated[bool, Meta(description="whether any has colours; grey images are compared with coloured ones")]
    reading: Reading = Reading()


class Measured(Record, frozen=True, kw_only=True):
    """The sections that every audit has: what `measurement.measure` computes."""

    metrics: Annotated[
        tuple[Definition, ...],  # type: ignore[valid-type]
        Meta(min_length=1, description="the metrics and their settings; the first is the headline"),
    ]
    rows: Annotated[tuple[Row, ...], Meta(min_length=1, description="of each run, by each metric, in each band")]
    rarefaction: Annotated[tuple[Rarefaction, ...], Meta(description="what more images of each run would find")]
    thresholds: Annotated[dict[str, Threshold], Meta(description="by metric")]
    controls: Annotated[
        tuple[Control, ...],
        Meta(
            description="distorted copies of members that are matched, and held-out images that match a member "
            "(strength null)"
        ),
    ]
    distribution: Annotated[tuple[Distribution, ...], Meta(description="each run's images as a distribution")]
    likeness: Likeness | UnsetType = UNSET
    together: Together | UnsetType = UNSET
    best_of_generation: tuple[BestOfGeneration, ...] | UnsetType = UNSET


class Results(Measured, frozen=True, kw_only=True):
    """What an audit measured; of images alone there are `sets`, of a model the sections from `membership` on.

    An empty section was not computed.
    """

    dataset: Dataset
    versions: Annotated[dict[str, str], Meta(description="of side_jax, JAX and Python")]
    sets: Annotated[dict[str, ImageSet], Meta(description="samples, members, heldout")] | UnsetType = UNSET
    membership: Membership | UnsetType | None = UNSET
    divergence: Divergence | UnsetType | None = UNSET
    target: Target | UnsetType = UNSET
    label_spread: LabelSpread | UnsetType = UNSET
    surrogate: Surrogate | UnsetType | None = UNSET
    classifiers: Annotated[dict[str, Classifier], Meta(description="that guided attacks, by name")] | UnsetType = UNSET

    @property
    def of_latents(self) -> bool:
        """Whether the audited model samples latents."""
        return isinstance(self.target, Target) and self.target.latent


NULLABLE = ("membership", "divergence", "surrogate")  # sections that are None here and {} in the file where empty


def to_json(results: Results) -> dict[str, Any]:
    """The JSON value of results.json."""
    value = msgspec.to_builtins(results, enc_hook=lambda number: number.item())  # NumPy's numbers
    return value | {name: {} for name in NULLABLE if value.get(name, UNSET) is None}


def from_json(value: dict[str, Any]) -> Results:
    """The records of a JSON value.

    Raises:
      msgspec.ValidationError: if a key is missing or unknown, or a value is of the wrong type or out of its range.
    """
    empty = {name: None for name in NULLABLE if value.get(name) == {}}
    return msgspec.convert(value | empty, Results)


def versions() -> dict[str, str]:
    """The versions that results depend on: {"side_jax": ..., "jax": ..., "python": ...}."""
    return {"side_jax": __version__, "jax": jax.__version__, "python": platform.python_version()}


def write(path: Path, results: Results) -> None:
    """Writes results.json, atomically."""
    files.write_json(path, to_json(results))


def read(path: Path) -> Results:
    """Reads results.json.

    Raises:
      InputError: if the file is missing or damaged, or holds what the records do not allow.
    """
    value = files.read_json(path)
    try:
        return from_json(value)
    except msgspec.ValidationError as error:
        author = value.get("versions", {}).get("side_jax", __version__) if isinstance(value, dict) else __version__
        state = "damaged" if author == __version__ else f"of side_jax {author}, and this is side_jax {__version__}"
        raise InputError(f"{path} is {state} ({error}); delete it and run the stage that writes it again.") from None


def schema() -> dict[str, Any]:
    """The JSON schema of results.json."""
    (_,), parts = msgspec.json.schema_components([Results], ref_template="#/$defs/{name}")
    for part in parts.values():
        part["description"] = " ".join(part["description"].split())
    whole = parts.pop("Results")
    for name in NULLABLE:
        options = whole["properties"][name]["anyOf"]
        options[options.index({"type": "null"})] = {"type": "object", "maxProperties": 0}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return head | whole | {"title": "results.json of side_jax", "$defs": dict(sorted(parts.items()))}


def main() -> None:
    """Writes the schema anew: python -m side_jax.measure.records."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    SCHEMA.write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
