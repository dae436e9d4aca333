"""Settings of the evaluation and the report: what counts as a match, further evidence, and what the page shows."""

import dataclasses

from side_jax.memorization.label_spread import LEAST_IMAGES, LEAST_LABELS
from side_jax.memorization.metrics import DEFAULT_METRICS, METRICS, Metric
from side_jax.settings.checks import check, one_of

# The metrics' own settings, as <metric>_<setting>; memorization/metrics.py says what each means.
MetricSettings = dataclasses.make_dataclass(
    "MetricSettings",
    [
        (f"{name}_{own.name}", own.type, dataclasses.field(default=own.default, metadata=own.metadata))
        for name, metric in METRICS.items()
        for own in metric.settings()
    ],
    namespace={"__module__": __name__},
    frozen=True,
    kw_only=True,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(MetricSettings):  # type: ignore[misc, valid-type]
    """Metrics and thresholds of a match. Set thresholds before a run, never after seeing its results."""

    metrics: tuple[str, ...] = DEFAULT_METRICS  # the first one decides the verdict
    band_factors: tuple[float, ...] = (1.25, 1.5)  # the bands "mid" and "low" end at the threshold times these
    confidence: float = 0.95  # level of all intervals and tests
    false_match_rate: float = 0.02  # rate to which a threshold is calibrated on half of the held-out images
    distribution: bool = True  # compute AuthPct, C_T, the FLD gap and Frechet distances of label.features
    loss_images: int = 1024  # members, and held-out images, whose mean denoising loss is computed, at most
    membership: bool = True  # compute the DPM's membership scores of each member and held-out image
    membership_timestep: int = 0  # timestep of the denoising loss, SecMI and PIA; 0: a tenth of diffusion.num_timesteps
    divergence: bool = True  # compute the memorisation divergence around members and held-out images
    # Its noise standard deviation, for pixels in [-1, 1]; equals the default of data.near_duplicate_rmse.
    divergence_epsilon: float = 0.05
    divergence_draws: int = 64  # points on each side whose likelihood is computed, with about 150 network calls each
    controls: bool = True  # measure the sensitivity of every metric to distorted copies of members
    control_images: int = 256  # members that are copied for it, at most
    # Images that a conditional model draws of each of its labels, to find labels whose images are abnormally alike, as
    # those of a planted trigger are: at least 16, or 0 for none.
    label_images: int = 0
    max_labels: int = 100  # labels that are scanned for it, at most; of more, so many drawn at random

    def __post_init__(self) -> None:
        check(len(self.metrics) >= 1, "evaluate.metrics", self.metrics, f"one or more of {', '.join(METRICS)}")
        for metric in self.metrics:
            one_of("evaluate.metrics", metric, tuple(METRICS))
        check(len(set(self.metrics)) == len(self.metrics), "evaluate.metrics", self.metrics, "different ones")
        for field in dataclasses.fields(MetricSettings):
            limit, value = field.metadata["limit"], getattr(self, field.name)
            check(limit.test(value), f"evaluate.{field.name}", value, limit.need)
        value = self.divergence_epsilon
        check(value > 0, "evaluate.divergence_epsilon", value, "above 0")
        for name, least in (
            ("control_images", 1),
            ("loss_images", 1),
            ("membership_timestep", 0),
            ("divergence_draws", 2),
            ("max_labels", LEAST_LABELS),
        ):
            check(getattr(self, name) >= least, f"evaluate.{name}", getattr(self, name), f"at least {least}")
        need = f"0 (no scan of labels) or at least {LEAST_IMAGES}, since the scan's limits were measured with as many"
        ok = self.label_images == 0 or self.label_images >= LEAST_IMAGES
        check(ok, "evaluate.label_images", self.label_images, need)
        factors = self.band_factors
        ok = len(factors) <= 2 and all(a < b for a, b in zip((1.0, *factors), factors, strict=False))
        check(ok, "evaluate.band_factors", factors, "at most two ascending numbers above 1")
        for name in ("confidence", "false_match_rate"):
            check(0 < getattr(self, name) < 1, f"evaluate.{name}", getattr(self, name), "strictly between 0 and 1")

    def make_metrics(self) -> list[Metric]:
        """The chosen metrics, with their settings; the first is the headline of the report."""
        return [self.make_metric(METRICS[name]) for name in self.metrics]

    def make_metric(self, metric: type[Metric]) -> Metric:
        """One metric with its settings, chosen or not."""
        options = {field.name: getattr(self, f"{metric.name}_{field.name}") for field in metric.settings()}
        return metric(**options, factors=self.band_factors if metric.banded else ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What the report shows; no setting here changes a figure."""

    # Blur every picture of the report, and leave names of image files out of all files and the log, for images of
    # patients, say. Paths that you gave and generated images stay in the workdir, see docs/files.md.
    private: bool = False
    author: str = ""  # who made the audit, for the top of the page
    pairs: int = 1000  # the closest pairs that the gallery shows, at most

    def __post_init__(self) -> None:
        check(0 <= self.pairs <= 1000, "report.pairs", self.pairs, "between 0 and 1000, so that the page stays small")
