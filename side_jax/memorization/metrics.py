"""Extraction scores: which generated images match which reference images (members, or held-out as the control).

D1 is the set of N_G generated images, D2 the reference set, gamma(i, j) a dissimilarity and [a, b) a band of it (Chen
et al. 2024, "Extracting Training Data from Unconditional Diffusion Models", section 4):

    AMS = (1 / N_G) sum_i [ min_j gamma(i, j) in [a, b) ]                                          (1)
    UMS = (1 / N_G) | union_i { j : gamma(i, j) in [a, b) } |                                      (2)

(2) counts all pairs, so UMS can exceed AMS. Counted more strictly, UMS holds the nearest references alone:

    UMS_nearest = (1 / N_G) | { argmin_j gamma(i, j) : min_j gamma(i, j) in [a, b) } |             (3)

and `unique` is N_G UMS_nearest, the number of extracted images. Both fall with N_G by construction; compare them at
equal N_G only. The paper's bands are disjoint; an image in a nearer band leaves AMS of a farther one, but its other
neighbours may enter UMS there. Cumulative bands [0, b) have no such trap. Five dissimilarities:

    rmse            l2(i, j), the root mean squared difference of images in [-1, 1]                (4)
    normalized_l2   l2(i, j) / (alpha * mean of the n smallest l2(c, .))                           (5)
    tiled_l2        the largest l2 over the tiles of a grid                                        (6)
    distance_ratio  d1 / d2, the nearest distance over the second nearest                          (7)
    cosine          1 - cosine of the features of i and j                                          (8)

(5) and (6) are Carlini et al. 2023 ("Extracting Training Data from Diffusion Models", section 5.1 and 4.2). Of (5) two
readings are in use. Around the generated image, c = i: its n nearest references, the nearest included; with alpha = 0.5
the value of the nearest lies in [0, 2]. Around the matched member, c = j: the n references nearest to it, itself
excluded. (7) is the criterion d1 / d2 < 1/3 of Yoon et al. 2023 and Gu et al. 2023; it is defined for the nearest
reference alone. (8) with SSCD's features is the paper's score for large images (Pizzi et al. 2022).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from side_jax.memorization.neighbors import exact_search

RATIO_BELOW = 1 / 3  # of equation (7), what counts as a copy
AROUND = ("generated", "member")  # the readings of equation (5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A dissimilarity, and below which value an image matches.

    Attributes:
      name: rmse, normalized_l2, tiled_l2, distance_ratio or cosine.
      below: the end of the band "high", which counts as a match.
      factors: ascending and above 1: the bands "mid" and "low" end at `below` times these. Empty: there are none.
      num_neighbors: n of equation (5); not used by the others.
      alpha: of equation (5); not used by the others.
      around: "generated" or "member", the reading of equation (5).
      grid: tiles in each direction, of equation (6).
    """

    name: str
    below: float
    factors: tuple[float, ...] = ()
    num_neighbors: int = 2
    alpha: float = 0.5
    around: str = "generated"
    grid: int = 4

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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """Who matches whom in one band.

    Attributes:
      matched: bool [n], the generated images whose nearest reference is in the band.
      nearest: int64 [n], that reference.
      extracted: int64 [m], of how many matched images each reference is the nearest.
      hits: int64 [m], to how many images each reference is in the band, whether nearest or not.
    """

    matched: np.ndarray
    nearest: np.ndarray
    extracted: np.ndarray
    hits: np.ndarray

    @property
    def ams(self) -> float:
        """Equation (1), in [0, 1]."""
        return float(self.matched.mean())

    @property
    def ums(self) -> float:
        """Equation (2)."""
        return float((self.hits > 0).sum() / len(self.matched))

    @property
    def ums_nearest(self) -> float:
        """Equation (3)."""
        return self.unique / len(self.matched)

    @property
    def unique(self) -> int:
        """Different references that are the nearest of a matched image: the extracted ones."""
        return int((self.extracted > 0).sum())


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """How generated images match one reference set by one metric.

    Attributes:
      value: float32 [n], the dissimilarity to the nearest reference.
      nearest: int64 [n], the nearest reference.
      pairs: int64 [p, 2], (image, reference) of all pairs up to the limit that was asked for, and each image with its
        nearest reference.
      pair_value: float32 [p].
      num_references: m.
    """

    value: np.ndarray
    nearest: np.ndarray
    pairs: np.ndarray
    pair_value: np.ndarray
    num_references: int

    def score(self, band: tuple[float, float]) -> Score:
        """Scores one band [low, high)."""
        matched, inside = ((v >= band[0]) & (v < band[1]) for v in (self.value, self.pair_value))
        count = lambda references: np.bincount(references, minlength=self.num_references)  # noqa: E731
        return Score(
            matched=matched,
            nearest=self.nearest,
            extracted=count(self.nearest[matched]),
            hits=count(self.pairs[inside, 1]),
        )

    def incidence(self, band: tuple[float, float]) -> np.ndarray:
        """The pairs inside a band, int64 [q, 2]: (image, reference)."""
        return self.pairs[(self.pair_value >= band[0]) & (self.pair_value < band[1])]


def distance_ratio(distances: np.ndarray) -> np.ndarray:
    """Equation (7) from the ascending distances [n, 2 or more] of neighbors.nearest; float32 [n], in [0, 1]."""
    # Two exact copies of one reference: 0 / 0, which is no evidence either way, so it counts as 1.
    second = distances[:, 1]
    return np.divide(distances[:, 0], second, out=np.ones_like(second), where=second > 0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """A set that images are compared with, and what is known of it beforehand.

    Attributes:
      images: uint8 [m, h, w, c], or float in [-1, 1].
      features: float32 [m, d], for equation (8); None where it is not computed.
      spread: float32 [m], the denominators of equation (5) around each reference; None around the generated image.
    """

    images: np.ndarray
    features: np.ndarray | None = None
    spread: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.images)


def references(images: np.ndarray, metrics: list[Metric], features: np.ndarray | None = None) -> References:
    """Prepares a reference set for `match`: images [m, h, w, c], and features float32 [m, d] for equation (8).

    Raises:
      ValueError: if there are fewer references than a metric needs.
    """
    spread = None
    for metric in metrics:
        if metric.name == "normalized_l2" and metric.around == "member":
            distances, index = exact_search.nearest(images, images, metric.num_neighbors + 1)
            # Itself is at distance 0, but not always first: an equal image of a lower index comes before it.
            itself = index == np.arange(len(images))[:, None]
            itself[~itself.any(axis=1), 0] = True  # so many copies that it is not listed; they are all at distance 0
            others = distances[~itself].reshape(len(images), -1)
            spread = np.float32(metric.alpha) * others.mean(axis=1)
    return References(images=images, features=features, spread=spread)


def match(
    images: np.ndarray,
    among: References,
    metrics: list[Metric],
    *,
    features: np.ndarray | None = None,
    limits: dict[str, float] | None = None,
) -> list[Matches]:
    """Scores generated images against a reference set, one result for each metric.

    Args:
      images: uint8 [n, h, w, c], or float in [-1, 1], as the references are.
      among: the reference set, with features where equation (8) is asked for.
      metrics: what to compute; at most one of each name.
      features: float32 [n, d], of the images.
      limits: up to which value pairs are kept, for each name; by default, and at least, to the farthest band's end.
    """
    k = max([2, *(m.num_neighbors for m in metrics if m.name == "normalized_l2" and m.around == "generated")])
    if any(metric.name in ("rmse", "normalized_l2", "distance_ratio") for metric in metrics):
        near = exact_search.nearest(images, among.images, k)
    results = []
    for metric in metrics:
        limit = max(metric.limit, (limits or {}).get(metric.name, 0.0))
        if metric.name == "distance_ratio":
            found = _by_ratio(*near)
        elif metric.name == "cosine":
            found = _by_cosine(features, among.features, limit)
        elif metric.name == "tiled_l2":
            found = _by_tiles(images, among.images, metric.grid, limit)
        else:
            found = _by_distance(images, among, metric, near, limit)
        results.append(_with_nearest(*found, num_references=len(among)))
    return results


Found = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # value, nearest, pairs, value of each pair


def _by_ratio(distances: np.ndarray, index: np.ndarray) -> Found:
    return distance_ratio(distances), index[:, 0], np.empty((0, 2), np.int64), np.empty(0, np.float32)


def _by_distance(
    images: np.ndarray, among: References, metric: Metric, near: tuple[np.ndarray, np.ndarray], limit: float
) -> Found:
    distances, index = near
    of_pair: Callable[[np.ndarray], np.ndarray | np.float32]
    if metric.name == "rmse":
        unit = farthest = np.ones(len(images), np.float32)
        of_pair = lambda pairs: np.float32(1)  # noqa: E731
    elif metric.around == "generated":
        unit = farthest = np.float32(metric.alpha) * distances[:, : metric.num_neighbors].mean(axis=1)
        of_pair = lambda pairs: unit[pairs[:, 0]]  # noqa: E731
    else:
        spread = among.spread
        assert spread is not None, "references() prepares it for the metrics that need it"
        unit, farthest = spread[index[:, 0]], np.full(len(images), spread.max(initial=0))
        of_pair = lambda pairs: spread[pairs[:, 1]]  # noqa: E731
    pairs, distance = exact_search.pairs_below(images, among.images, limit * farthest.astype(np.float64))
    return _over(distances[:, 0], unit), index[:, 0], *_within(pairs, _over(distance, of_pair(pairs)), limit)


def _by_tiles(images: np.ndarray, others: np.ndarray, grid: int, limit: float) -> Found:
    options: dict[str, Any] = {"measure": "tiled_l2", "grid": grid}
    distances, index = exact_search.nearest(images, others, 1, **options)
    return distances[:, 0], index[:, 0], *exact_search.pairs_below(images, others, limit, **options)


def _by_cosine(features: np.ndarray | None, others: np.ndarray | None, limit: float) -> Found:
    similarity, index = exact_search.nearest(features, others, 1, measure="cosine")
    pairs, alike = exact_search.pairs_below(features, others, 1 - limit, measure="cosine")
    return 1 - similarity[:, 0], index[:, 0], pairs, 1 - alike


def _over(distance: np.ndarray, unit: np.ndarray | np.float32) -> np.ndarray:
    """Distance over unit; a zero unit means that all n neighbours are exact copies: nothing can be nearer."""
    unit = np.broadcast_to(unit, distance.shape)
    return np.divide(distance, unit, out=np.zeros_like(distance), where=unit > 0)


def _within(pairs: np.ndarray, value: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    keep = value < limit
    return pairs[keep], value[keep]


def _with_nearest(
    value: np.ndarray, nearest: np.ndarray, pairs: np.ndarray, pair_value: np.ndarray, num_references: int
) -> Matches:
    """Each image's nearest reference joins the pairs with that very value: rounding never puts it elsewhere."""
    others = nearest[pairs[:, 0]] != pairs[:, 1]
    own = np.stack([np.arange(len(nearest)), nearest], axis=1)
    return Matches(
        value=value,
        nearest=nearest,
        pairs=np.concatenate([own, pairs[others]]),
        pair_value=np.concatenate([value, pair_value[others]]).astype(np.float32),
        num_references=num_references,
    )


def joined(parts: list[Matches]) -> Matches:
    """The matches of parts of the generated images, in order, as one."""
    starts = np.cumsum([0, *(len(part.value) for part in parts)])
    pairs = [part.pairs + np.asarray([start, 0]) for part, start in zip(parts, starts, strict=False)]
    fields = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("value", "nearest")}
    fields["pair_value"] = np.concatenate([part.pair_value for part in parts])
    return Matches(pairs=np.concatenate(pairs), num_references=parts[0].num_references, **fields)
