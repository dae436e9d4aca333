"""Settings of the evaluation and the report: metrics, thresholds, further scores, and presentation."""

import dataclasses

from side_jax.memorization.metrics import AROUND
from side_jax.settings.checks import check, one_of

METRICS = ("normalized_l2", "rmse", "tiled_l2", "distance_ratio", "cosine")
DEFAULT_METRICS = ("normalized_l2", "rmse", "distance_ratio")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Metrics and thresholds of a match. Set thresholds before a run, never after seeing its results."""

    metrics: tuple[str, ...] = DEFAULT_METRICS  # the first one is the headline of the report
    normalized_l2_below: float = 0.8
    normalized_l2_neighbors: int = 10  # n of Carlini et al. 2023, who use 50 for 50,000 training images
    normalized_l2_alpha: float = 0.5
    normalized_l2_around: str = "generated"  # or "member": the image whose neighbours normalise the distance
    rmse_below: float = 0.15  # for images in [-1, 1]
    tiled_l2_below: float = 0.3  # for images in [-1, 1]; Carlini et al. 2023: 0.15 for images in [0, 1]
    tiled_l2_grid: int = 4  # tiles in each direction
    cosine_above: float = 0.6  # cosine similarity of label.features; the "high" band of Chen et al. 2024 for SSCD
    band_factors: tuple[float, ...] = (1.25, 1.5)  # the bands "mid" and "low" end at the threshold times these factors
    confidence: float = 0.95  # level of all intervals
    false_match_rate: float = 0.02  # of the thresholds calibrated on half of the held-out images
    distribution: bool = True  # compute AuthPct, C_T, the FLD gap and Frechet distances on label.features
    membership: bool = True  # compute membership scores of every member and held-out image
    membership_timestep: int = 0  # for the denoising loss, SecMI and PIA; 0: a tenth of diffusion.num_timesteps
    divergence: bool = True  # compute the memorisation divergence around members and held-out images
    # Standard deviation of its noise, for images in [-1, 1]; equals the default of data.near_duplicate_rmse.
    divergence_epsilon: float = 0.05
    divergence_draws: int = 64  # points per side whose likelihood is computed, about 150 network calls each
    controls: bool = True  # compute the sensitivity of every metric to distorted copies of members
    control_images: int = 256  # maximal number of members copied for it

    def __post_init__(self) -> None:
        check(len(self.metrics) >= 1, "evaluate.metrics", self.metrics, f"one or more of {', '.join(METRICS)}")
        for metric in self.metrics:
            one_of("evaluate.metrics", metric, METRICS)
        check(len(set(self.metrics)) == len(self.metrics), "evaluate.metrics", self.metrics, "different ones")
        positive = ("normalized_l2_below", "normalized_l2_alpha", "rmse_below", "tiled_l2_below", "divergence_epsilon")
        for name in positive:
            check(getattr(self, name) > 0, f"evaluate.{name}", getattr(self, name), "above 0")
        check(0 < self.cosine_above < 1, "evaluate.cosine_above", self.cosine_above, "strictly between 0 and 1")
        for name, least in (
            ("normalized_l2_neighbors", 2),
            ("tiled_l2_grid", 1),
            ("control_images", 1),
            ("membership_timestep", 0),
            ("divergence_draws", 2),
        ):
            check(getattr(self, name) >= least, f"evaluate.{name}", getattr(self, name), f"at least {least}")
        one_of("evaluate.normalized_l2_around", self.normalized_l2_around, AROUND)
        factors = self.band_factors
        ok = len(factors) <= 2 and all(a < b for a, b in zip((1.0, *factors), factors, strict=False))
        check(ok, "evaluate.band_factors", factors, "at most two ascending numbers above 1")
        for name in ("confidence", "false_match_rate"):
            check(0 < getattr(self, name) < 1, f"evaluate.{name}", getattr(self, name), "strictly between 0 and 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Presentation of the report; changes no number."""

    private: bool = False  # blur every picture and name no file, for confidential images
    pairs: int = 1000  # maximal number of pairs in the gallery; the closest are shown

    def __post_init__(self) -> None:
        check(0 <= self.pairs <= 1000, "report.pairs", self.pairs, "between 0 and 1000, so that the page stays small")
