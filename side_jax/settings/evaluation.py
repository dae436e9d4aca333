"""Settings of the measure: what counts as a match, which evidence stands beside it, and how the report shows it."""

import dataclasses

from side_jax.memorization.metrics import AROUND
from side_jax.settings.checks import check, one_of

METRICS = ("normalized_l2", "rmse", "tiled_l2", "distance_ratio", "cosine")
DEFAULT_METRICS = ("normalized_l2", "rmse", "distance_ratio")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What counts as a match. Thresholds are set before a run, never after looking at its results."""

    metrics: tuple[str, ...] = DEFAULT_METRICS  # the first is the headline of the report
    normalized_l2_below: float = 0.8
    normalized_l2_neighbors: int = 10  # n of Carlini et al.; they use 50 for a training set of 50,000
    normalized_l2_alpha: float = 0.5
    normalized_l2_around: str = "generated"  # or "member": whose neighbours are the yardstick
    rmse_below: float = 0.15  # for images in [-1, 1]
    tiled_l2_below: float = 0.3  # the same images; Carlini et al.: 0.15 for images in [0, 1]
    tiled_l2_grid: int = 4  # tiles in each direction
    cosine_above: float = 0.6  # of the features that label.features names; the paper's "high" band for SSCD
    band_factors: tuple[float, ...] = (1.25, 1.5)  # the bands "mid" and "low" end at the threshold times these
    confidence: float = 0.95
    false_match_rate: float = 0.02  # of the thresholds that are calibrated on half of the held-out images
    distribution: bool = True  # also AuthPct, C_T, the FLD gap and Frechet distances, in the space of label.features
    membership: bool = True  # also membership evidence of the DPM on each member and held-out image
    membership_timestep: int = 0  # of the denoising loss, SecMI and PIA; 0: a tenth of diffusion.num_timesteps
    divergence: bool = True  # also the memorisation divergence around members and held-out images, by the model itself
    # Its noise, for images in [-1, 1]: as near as data.near_duplicate_rmse takes two images for one, by its default.
    divergence_epsilon: float = 0.05
    divergence_draws: int = 64  # points on each side whose likelihood is computed, some 150 calls of the network each
    controls: bool = True  # also the sensitivity of every metric to distorted copies of members
    control_images: int = 256  # members that are copied for it, at most

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
    """How the report shows what was found; none of it changes a figure."""

    private: bool = False  # blur every picture and name no file: for images of patients, say
    pairs: int = 1000  # shown in the gallery at most, the closest ones

    def __post_init__(self) -> None:
        check(0 <= self.pairs <= 1000, "report.pairs", self.pairs, "between 0 and 1000, so that the page stays small")
