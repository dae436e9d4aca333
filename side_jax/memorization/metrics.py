"""Metrics: dissimilarities of a generated image and a reference image (a member, or a held-out image as the control).

A metric is one class of METRICS: its fields are its settings, `nearest` and `pairs` compute it, and `explanation` is
what the report says about it. With i a generated image, j a reference, and images in [-1, 1]:

    rmse            l2(i, j), the root mean squared difference                                     (1)
    normalized_l2   l2(i, j) / (alpha * mean of the n smallest l2(c, .))                           (2)
    tiled_l2        the largest l2 over the tiles of a grid                                        (3)
    distance_ratio  d1 / d2, the nearest distance over the second nearest                          (4)
    cosine          1 - cosine of the features of i and j                                          (5)

(2) and (3) are Carlini et al. 2023 ("Extracting Training Data from Diffusion Models", section 5.1 and 4.2). Two
readings of (2) are in use. Around the generated image, c = i: its n nearest references, the nearest included; with
alpha = 0.5 the value of the nearest lies in [0, 2]. Around the matched member, c = j: the n references nearest to it,
itself excluded. (4) is the criterion d1 / d2 < 1/3 of Yoon et al. 2023 and Gu et al. 2023; it is defined for the
nearest reference alone. (5) with SSCD's features (Pizzi et al. 2022) is the score of Chen et al. 2024 for large images.

To add a metric, write a subclass of Metric and list it in METRICS: its settings join the section `evaluate` as
<name>_<field>, and results.json, its schema and the report follow.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from side_jax.memorization.neighbors import exact_search

RATIO_BELOW = 1 / 3  # a smaller value of equation (4) counts as a copy


@dataclasses.dataclass(frozen=True)
class Limit:
    """Which values a setting may have: a test, and the same in words."""

    test: Callable[[Any], bool]
    need: str


POSITIVE = Limit(lambda value: value > 0, "above 0")
FRACTION = Limit(lambda value: 0 < value < 1, "strictly between 0 and 1")


def at_least(least: int) -> Limit:
    """The limit of a count."""
    return Limit(lambda value: value >= least, f"at least {least}")


def setting(
    default: Any,
    meaning: str,
    limit: Limit,
    *,
    choices: tuple[str, ...] = (),
    recorded: str | None = "",
    elsewhere: Any = None,
) -> Any:
    """A field of a metric that is a setting.

    Args:
      default: its default.
      meaning: of the setting, in words.
      limit: which values it may have.
      choices: the values of a setting that is one of several words.
      recorded: its key in the metric's entry of results.json; "": the field's name; None: it is not recorded.
      elsewhere: the value under that key for metrics without this setting; None: they don't have the key.
    """
    metadata = {"meaning": meaning, "limit": limit, "choices": choices, "recorded": recorded, "elsewhere": elsewhere}
    return dataclasses.field(default=default, metadata=metadata)


def choice(default: str, meaning: str, choices: tuple[str, ...], **options: Any) -> Any:
    """A setting that is one of several words."""
    return setting(
        default,
        meaning,
        Limit(lambda value: value in choices, f"one of {', '.join(choices)}"),
        choices=choices,
        **options,
    )


class Comparison(NamedTuple):
    """Images compared with references.

    Attributes:
      value: float32 [n], the dissimilarity to the nearest reference.
      nearest: int64 [n], the nearest reference.
      pairs: int64 [p, 2], (image, reference) of every pair whose value is below the limit.
      pair_value: float32 [p].
    """

    value: np.ndarray
    nearest: np.ndarray
    pairs: np.ndarray
    pair_value: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Generated images to compare.

    Attributes:
      pixels: uint8 [n, h, w, c], or float in [-1, 1].
      features: float32 [n, d], for metrics that need them.
      neighbors: (distances float32 [n, k], ascending; references int64 [n, k]): the nearest references by RMSE, from
        the search that metrics share; k is 0 where none of them reads it.
    """

    pixels: np.ndarray
    features: np.ndarray | None
    neighbors: tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """A set that images are compared with.

    Attributes:
      pixels: uint8 [m, h, w, c], or float in [-1, 1].
      features: float32 [m, d], for metrics that need them.
      prepared: what each metric's `prepare` returned, by the metric's name.
    """

    pixels: np.ndarray
    features: np.ndarray | None = None
    prepared: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pixels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A dissimilarity, and below which value an image matches. Fields made by `setting` are the metric's settings.

    Attributes:
      factors: ascending and above 1: the bands "mid" and "low" end at `below` times these. Empty: there are none.
      name: of the metric, in settings, tables and results.
      explanation: what it measures, for the report.
      banded: whether the setting evaluate.band_factors applies to it.
      needs_features: whether it compares features, and not pixels.
      references_setting: the setting that decides `references_needed`: lowered by one, it needs one less; "": none.
      side_setting: the setting that decides `side_divisor`; "": none.
    """

    factors: tuple[float, ...] = ()

    name: ClassVar[str]
    explanation: ClassVar[str]
    banded: ClassVar[bool] = True
    needs_features: ClassVar[bool] = False
    references_setting: ClassVar[str] = ""
    side_setting: ClassVar[str] = ""

    @property
    def below(self) -> float:
        """The end of the band "high": a smaller value is a match."""
        raise NotImplementedError

    @property
    def searched(self) -> int:
        """How many nearest references by RMSE it reads from the search that metrics share; 0: none."""
        return 0

    @property
    def references_needed(self) -> int:
        """The smallest number of references that it works with."""
        return max(1, self.searched)

    @property
    def side_divisor(self) -> int:
        """Both sides of the images must be multiples of it."""
        return 1

    @property
    def bands(self) -> dict[str, tuple[float, float]]:
        """[low, high) of each band, by similarity: first the disjoint ones of the paper, then the cumulative ones."""
        ends = [self.below, *(factor * self.below for factor in self.factors)]
        names = ("high", "mid", "low")[: len(ends)]
        disjoint = dict(zip(names, zip([0.0, *ends], ends, strict=False), strict=False))
        return disjoint | {f"high to {name}": (0.0, end) for name, end in zip(names[1:], ends[1:], strict=True)}

    @property
    def limit(self) -> float:
        """The end of the farthest band."""
        return max(high for _, high in self.bands.values())

    @classmethod
    def settings(cls) -> tuple[dataclasses.Field, ...]:
        """Its own settings."""
        return tuple(field for field in dataclasses.fields(cls) if "limit" in field.metadata)

    @classmethod
    def recorded(cls) -> dict[str, dataclasses.Field]:
        """The settings in its entry of results.json, by their key there."""
        fields = ((field.metadata["recorded"], field) for field in cls.settings())
        return {key or field.name: field for key, field in fields if key is not None}

    def prepare(self, pixels: np.ndarray, thinned: int = 1) -> np.ndarray:
        """What it needs to know about references, pixels [m, h, w, c], whatever they are compared with; or nothing.

        Of references that lie `thinned` times as dense as usual, it reads every so many of the neighbours.
        """
        return np.empty(0)

    def nearest(self, images: Images, references: References) -> tuple[np.ndarray, np.ndarray]:
        """The dissimilarity of every image to its nearest reference, float32 [n], and that reference, int64 [n]."""
        raise NotImplementedError

    def pairs(self, images: Images, references: References, limit: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Every pair whose value is below the limit, of all or of each image: int64 [p, 2], (image, reference); [p]."""
        raise NotImplementedError

    def compare(self, images: Images, references: References, limit: float) -> Comparison:
        """Compares every image with every reference; pairs are kept below the limit."""
        return Comparison(*self.nearest(images, references), *self.pairs(images, references, limit))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rmse(Metric):
    """Equation (1)."""

    below: float = setting(0.15, "a smaller value is a match; for images in [-1, 1]", POSITIVE, recorded=None)

    name = "rmse"
    explanation = "root mean squared difference of pixels in [-1, 1]"
    searched = 1

    def nearest(self, images: Images, references: References) -> tuple[np.ndarray, np.ndarray]:
        """As Metric.nearest; images hold the shared search."""
        distances, index = images.neighbors
        return distances[:, 0], index[:, 0]

    def pairs(self, images: Images, references: References, limit: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As Metric.pairs."""
        unit = np.ones(len(images.pixels), np.float32)
        return _pairs(images, references, limit, lambda pairs: np.ones(len(pairs), np.float32), unit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalizedL2(Metric):
    """Equation (2)."""

    below: float = setting(0.8, "a smaller value is a match", POSITIVE, recorded=None)
    neighbors: int = setting(
        10,
        "n: how many nearest references make the yardstick; Carlini et al. take 50 for 50,000 training images",
        at_least(2),
        recorded="num_neighbors",
        elsewhere=2,
    )
    alpha: float = setting(0.5, "factor of the yardstick", POSITIVE, elsewhere=0.5)
    around: str = choice(
        "generated",
        "whose neighbours make the yardstick: the generated image's, or the matched member's",
        ("generated", "member"),
        elsewhere="generated",
    )

    name = "normalized_l2"
    explanation = (
        "pixel distance over alpha times the mean distance of the image, or of the member if so chosen, to its nearest "
        "members (Carlini et al. 2023)"
    )
    references_setting = "neighbors"

    @property
    def searched(self) -> int:
        """The yardstick's neighbours, where they are the generated image's."""
        return 2 if self.around == "member" else max(2, self.neighbors)

    @property
    def references_needed(self) -> int:
        """A member is no neighbour of itself."""
        return self.neighbors + (self.around == "member")

    def prepare(self, pixels: np.ndarray, thinned: int = 1) -> np.ndarray:
        """The denominator of each reference, float32 [m], around members; nothing around generated images."""
        if self.around == "generated":
            return np.empty(0)
        distances, index = exact_search.nearest(pixels, pixels, thinned * self.neighbors + 1)
        # Itself is at distance 0, but not always first: an equal image of a lower index comes before it.
        itself = index == np.arange(len(pixels))[:, None]
        itself[~itself.any(axis=1), 0] = True  # so many copies that it is not listed; they are all at distance 0
        others = distances[~itself].reshape(len(pixels), -1)[:, thinned - 1 :: thinned]
        return np.float32(self.alpha) * others.mean(axis=1)

    def nearest(self, images: Images, references: References) -> tuple[np.ndarray, np.ndarray]:
        """As Metric.nearest; images hold the shared search."""
        distances, index = images.neighbors
        if self.around == "generated":
            return _over(distances[:, 0], self._unit(images)), index[:, 0]
        # Another member than the nearest by RMSE has the smallest value if its neighbours are far enough from it.
        value, nearest = _over(distances[:, 0], references.prepared[self.name][index[:, 0]]), index[:, 0].copy()
        pairs, better = self.pairs(images, references, value)
        order = np.lexsort((pairs[:, 1], better, pairs[:, 0]))
        image, first = np.unique(pairs[order, 0], return_index=True)
        value[image], nearest[image] = better[order][first], pairs[order][first, 1]
        return value, nearest

    def pairs(self, images: Images, references: References, limit: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As Metric.pairs; images hold the shared search."""
        if self.around == "generated":
            unit = self._unit(images)
            return _pairs(images, references, limit, lambda pairs: unit[pairs[:, 0]], unit)
        spread = references.prepared[self.name]
        farthest = np.full(len(images.pixels), spread.max(initial=0))
        return _pairs(images, references, limit, lambda pairs: spread[pairs[:, 1]], farthest)

    def _unit(self, images: Images) -> np.ndarray:
        """The yardstick of each image, float32 [n], where it is the generated image's."""
        return np.float32(self.alpha) * images.neighbors[0][:, : self.neighbors].mean(axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TiledL2(Metric):
    """Equation (3)."""

    below: float = setting(
        0.3,
        "a smaller value is a match; for images in [-1, 1] (Carlini et al.: 0.15 for images in [0, 1])",
        POSITIVE,
        recorded=None,
    )
    grid: int = setting(4, "tiles in each direction", at_least(1), elsewhere=4)

    name = "tiled_l2"
    explanation = "the largest such difference over the tiles of a grid (Carlini et al. 2023)"
    side_setting = "grid"

    @property
    def side_divisor(self) -> int:
        """Tiles are of equal size."""
        return self.grid

    def nearest(self, images: Images, references: References) -> tuple[np.ndarray, np.ndarray]:
        """As Metric.nearest, by a search of its own."""
        sets = images.pixels, references.pixels
        distances, index = exact_search.nearest(*sets, 1, measure="tiled_l2", grid=self.grid)
        return distances[:, 0], index[:, 0]

    def pairs(self, images: Images, references: References, limit: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As Metric.pairs."""
        sets = images.pixels, references.pixels
        return exact_search.pairs_below(*sets, limit, measure="tiled_l2", grid=self.grid)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistanceRatio(Metric):
    """Equation (4); it has no setting, and no pairs but the nearest."""

    name = "distance_ratio"
    explanation = "nearest over second nearest distance (Yoon et al. 2023; Gu et al. 2023)"
    banded = False
    below = RATIO_BELOW
    searched = 2

    def nearest(self, images: Images, references: References) -> tuple[np.ndarray, np.ndarray]:
        """As Metric.nearest; images hold the shared search."""
        distances, index = images.neighbors
        return distance_ratio(distances), index[:, 0]

    def pairs(self, images: Images, references: References, limit: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """None."""
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(Metric):
    """Equation (5)."""

    above: float = setting(
        0.6,
        'a larger cosine of the features that label.features names is a match; the paper\'s "high" band for SSCD',
        FRACTION,
        recorded=None,
    )

    name = "cosine"
    explanation = "1 minus the cosine of features"
    needs_features = True

    @property
    def below(self) -> float:
        """Of the dissimilarity."""
        return 1 - self.above

    def nearest(self, images: Images, references: References) -> tuple[np.ndarray, np.ndarray]:
        """As Metric.nearest, by the features of both."""
        similarity, index = exact_search.nearest(images.features, references.features, 1, measure="cosine")
        return 1 - similarity[:, 0], index[:, 0]

    def pairs(self, images: Images, references: References, limit: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As Metric.pairs, by the features of both."""
        pairs, alike = exact_search.pairs_below(images.features, references.features, 1 - limit, measure="cosine")
        return pairs, 1 - alike


METRICS: dict[str, type[Metric]] = {
    metric.name: metric for metric in (NormalizedL2, Rmse, TiledL2, DistanceRatio, Cosine)
}
DEFAULT_METRICS = (NormalizedL2.name, Rmse.name, DistanceRatio.name)  # the first is the headline of the report


def recorded_settings() -> dict[str, dataclasses.Field]:
    """Every setting that results.json records for a metric, by its key there."""
    return {key: field for metric in METRICS.values() for key, field in metric.recorded().items()}


def definition(metric: Metric) -> dict[str, Any]:
    """All that a value of the metric depends on, for results.json."""
    elsewhere = {key: field.metadata["elsewhere"] for key, field in recorded_settings().items()}
    values = {key: value for key, value in elsewhere.items() if value is not None}
    values |= {key: getattr(metric, field.name) for key, field in metric.recorded().items()}
    return {"name": metric.name, "below": metric.below, "factors": metric.factors} | values


def distance_ratio(distances: np.ndarray) -> np.ndarray:
    """Equation (4) from the ascending distances [n, 2 or more] of exact_search.nearest; float32 [n], in [0, 1]."""
    # Two exact copies of one reference: 0 / 0, which is no evidence either way, so it counts as 1.
    second = distances[:, 1]
    return np.divide(distances[:, 0], second, out=np.ones_like(second), where=second > 0)


def shared_search(
    pixels: np.ndarray, references: np.ndarray, metrics: Sequence[Metric], thinned: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The one search by RMSE that all metrics share, for Images.neighbors.

    With more than one such set, whose neighbours are merged and thinned to every so many, each is searched deeper; of
    few references, all are found.
    """
    k = max((metric.searched for metric in metrics), default=0)
    if k:
        return exact_search.nearest(pixels, references, max(k, min(1 + thinned * (k - 1), len(references))))
    return np.empty((len(pixels), 0), np.float32), np.empty((len(pixels), 0), np.int64)


def _pairs(
    images: Images,
    references: References,
    limit: float | np.ndarray,
    pair_unit: Callable[[np.ndarray], np.ndarray],
    farthest: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs whose RMSE over a unit is below a limit, and the values.

    Args:
      images: what is compared.
      references: with these.
      limit: of the pairs' values, of all or of each image.
      pair_unit: the units, float32 [p], of pairs [p, 2].
      farthest: float32 [n], the largest unit of any pair of each image.
    """
    far: Any = limit * farthest.astype(np.float64)
    pairs, distance = exact_search.pairs_below(images.pixels, references.pixels, far)
    value = _over(distance, pair_unit(pairs))
    keep = value < np.broadcast_to(limit, len(images.pixels))[pairs[:, 0]]
    return pairs[keep], value[keep]


def _over(distance: np.ndarray, unit: np.ndarray | np.float32) -> np.ndarray:
    """Distance over unit; a zero unit means that all n neighbours are exact copies: nothing can be nearer."""
    unit = np.broadcast_to(unit, distance.shape)
    return np.divide(distance, unit, out=np.zeros_like(distance), where=unit > 0)
