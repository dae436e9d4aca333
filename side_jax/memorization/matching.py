"""Extraction scores: which generated images match which reference images (members, or held-out as the control).

D1 is the set of N_G generated images, D2 the reference set, gamma(i, j) a metric (see metrics.py) and [a, b) a band of
it (Chen et al. 2024, "Extracting Training Data from Unconditional Diffusion Models", section 4):

    AMS = (1 / N_G) sum_i [ min_j gamma(i, j) in [a, b) ]                                          (1)
    UMS = (1 / N_G) | union_i { j : gamma(i, j) in [a, b) } |                                      (2)

(2) counts all pairs, so UMS can exceed AMS. Counted more strictly, UMS holds the nearest references alone:

    UMS_nearest = (1 / N_G) | { argmin_j gamma(i, j) : min_j gamma(i, j) in [a, b) } |             (3)

and `unique` is N_G UMS_nearest, the number of extracted images. Both fall with N_G by construction; compare them at
equal N_G only. The paper's bands are disjoint; an image in a nearer band leaves AMS of a farther one, but its other
neighbours may enter UMS there. Cumulative bands [0, b) have no such trap.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from side_jax.memorization.metrics import Comparison, Images, Metric, References, shared_search


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """The matches in one band.

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


def references(
    pixels: np.ndarray, metrics: Sequence[Metric], features: np.ndarray | None = None, thinned: int = 1
) -> References:
    """Prepares a reference set for `match`: images [m, h, w, c], and features float32 [m, d] where a metric needs them.

    A set for `match_both` is thinned by as much as there.

    Raises:
      ValueError: if there are fewer references than a metric needs.
    """
    prepared = {metric.name: metric.prepare(pixels, thinned) for metric in metrics}
    return References(pixels=pixels, features=features, prepared=prepared)


def match(
    pixels: np.ndarray,
    among: References,
    metrics: Sequence[Metric],
    *,
    features: np.ndarray | None = None,
    limits: dict[str, float] | None = None,
    neighbors: tuple[np.ndarray, np.ndarray] | None = None,
) -> list[Matches]:
    """Compares generated images with a reference set, one result for each metric.

    Args:
      pixels: uint8 [n, h, w, c], or float in [-1, 1], as the references are.
      among: the reference set, with features where a metric needs them.
      metrics: what to compute; at most one of each name.
      features: float32 [n, d], of the images.
      limits: up to which value pairs are kept, for each name; by default, and at least, to the farthest band's end.
      neighbors: of metrics.shared_search with the same references; None: searched here.
    """
    neighbors = neighbors or shared_search(pixels, among.pixels, metrics)
    images = Images(pixels=pixels, features=features, neighbors=neighbors)
    results = []
    for metric in metrics:
        limit = max(metric.limit, (limits or {}).get(metric.name, 0.0))
        results.append(_with_nearest(metric.compare(images, among, limit), num_references=len(among)))
    return results


def _with_nearest(compared: Comparison, num_references: int) -> Matches:
    """Each image's nearest reference joins the pairs with that very value: rounding never puts it elsewhere."""
    value, nearest, pairs, pair_value = compared
    others = nearest[pairs[:, 0]] != pairs[:, 1]
    nearest_pairs = np.stack([np.arange(len(nearest)), nearest], axis=1)
    return Matches(
        value=value,
        nearest=nearest,
        pairs=np.concatenate([nearest_pairs, pairs[others]]),
        pair_value=np.concatenate([value, pair_value[others]]).astype(np.float32),
        num_references=num_references,
    )


def match_both(
    pixels: np.ndarray,
    both: References,
    metrics: Sequence[Metric],
    neighbors: Sequence[tuple[np.ndarray, np.ndarray]],
    sizes: Sequence[int],
    *,
    features: np.ndarray | None = None,
    thinned: int = 1,
) -> list[Matches]:
    """Compares generated images with several reference sets as one: nearest references only, from searches of each set.

    Together, the sets lie denser than each. A metric that looks at several neighbours would find fewer matches, so that
    it gets the nearest one and then every `thinned`-th: about as far away as those of one set.

    Args:
      pixels: as for `match`.
      both: the references of all sets, one set after the other.
      metrics: as for `match`.
      neighbors: of metrics.shared_search with each set, thinned by as much.
      sizes: number of references of each set.
      features: as for `match`.
      thinned: the references of all sets over those of one.
    """
    starts = np.cumsum([0, *sizes])[:-1]
    distances = np.concatenate([distance for distance, _ in neighbors], axis=1)
    index = np.concatenate([one + start for (_, one), start in zip(neighbors, starts, strict=True)], axis=1)
    order = np.argsort(distances, axis=1, kind="stable")[:, ::thinned]
    merged = np.take_along_axis(distances, order, 1), np.take_along_axis(index, order, 1)
    images = Images(pixels=pixels, features=features, neighbors=merged)
    no_pairs = np.empty((0, 2), np.int64), np.empty(0, np.float32)
    return [
        _with_nearest(Comparison(*metric.nearest(images, both), *no_pairs), num_references=len(both))
        for metric in metrics
    ]


def joined(parts: list[Matches]) -> Matches:
    """The matches of parts of the generated images, in order, as one."""
    starts = np.cumsum([0, *(len(part.value) for part in parts)])
    pairs = [part.pairs + np.asarray([start, 0]) for part, start in zip(parts, starts, strict=False)]
    fields = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("value", "nearest")}
    fields["pair_value"] = np.concatenate([part.pair_value for part in parts])
    return Matches(pairs=np.concatenate(pairs), num_references=parts[0].num_references, **fields)
