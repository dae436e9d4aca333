"""Extraction scores: which generated images match which reference images (members, or held-out as the control).

D1 is the set of N_G generated images, D2 the reference set, gamma(i, j) a dissimilarity and [a, b) a band of it (Chen
et al. 2024, "Extracting Training Data from Unconditional Diffusion Models", section 4):

    AMS = (1 / N_G) sum_i [ min_j gamma(i, j) in [a, b) ]                                          (1)
    UMS = (1 / N_G) | union_i { j : gamma(i, j) in [a, b) } |                                      (2)

(2) counts every pair, so UMS can exceed AMS. `unique` counts more strictly: the references that are the NEAREST of a
matched image. UMS falls with N_G by construction; compare it at equal N_G only. Three dissimilarities:

    rmse            l2(i, j), the root mean squared difference of images in [-1, 1]                (3)
    normalized_l2   l2(i, j) / (alpha * mean of the n smallest l2(i, .))                           (4)
    distance_ratio  d1 / d2, the nearest distance over the second nearest                          (5)

(4) is Carlini et al. 2023 ("Extracting Training Data from Diffusion Models", section 5.1), read so that the n
neighbours are those of the generated image, the nearest included; with alpha = 0.5 it lies in [0, 2]. (5) is the
criterion d1 / d2 < 1/3 of Yoon et al. 2023 and Gu et al. 2023; it is defined for the nearest reference alone.
"""

import dataclasses
import math

import numpy as np
from scipy import stats

from side_jax.memorization import neighbors

RATIO_BELOW = 1 / 3  # of equation (5), what counts as a copy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A dissimilarity and its band.

    Attributes:
      name: rmse, normalized_l2 or distance_ratio.
      band: [low, high).
      num_neighbors: n of equation (4); not used by the others.
      alpha: of equation (4); not used by the others.
    """

    name: str
    band: tuple[float, float]
    num_neighbors: int = 2
    alpha: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """How generated images match one reference set by one metric.

    Attributes:
      value: float32 [n], the dissimilarity to the nearest reference.
      nearest: int64 [n], the nearest reference.
      matched: bool [n], whether value is in the band.
      in_band: bool [m], the references in the union of equation (2).
    """

    value: np.ndarray
    nearest: np.ndarray
    matched: np.ndarray
    in_band: np.ndarray

    @property
    def ams(self) -> float:
        """Equation (1), in [0, 1]."""
        return float(self.matched.mean())

    @property
    def ums(self) -> float:
        """Equation (2)."""
        return float(self.in_band.sum() / len(self.matched))

    @property
    def unique(self) -> int:
        """Different references that are the nearest of a matched image: the extracted ones."""
        return len(np.unique(self.nearest[self.matched]))


def distance_ratio(distances: np.ndarray) -> np.ndarray:
    """Equation (5) from the ascending distances [n, 2 or more] of neighbors.nearest; float32 [n], in [0, 1]."""
    # Two exact copies of one reference: 0 / 0, which is no evidence either way, so it counts as 1.
    second = distances[:, 1]
    return np.divide(distances[:, 0], second, out=np.ones_like(second), where=second > 0)


def match(images: np.ndarray, references: np.ndarray, metrics: list[Metric]) -> list[Matches]:
    """Scores generated images against a reference set, one result for each metric.

    Args:
      images: float32 [n, h, w, c] in [-1, 1].
      references: float32 [m, h, w, c] in [-1, 1].
      metrics: what to compute.
    """
    k = max(2, *(metric.num_neighbors for metric in metrics))
    distances, index = neighbors.nearest(images, references, k)
    results = []
    for metric in metrics:
        low, high = metric.band
        if metric.name == "distance_ratio":
            value = distance_ratio(distances)
            matched = (value >= low) & (value < high)
            in_band = np.zeros(len(references), bool)
        else:
            unit = np.ones(len(images), np.float32)
            if metric.name == "normalized_l2":
                unit = np.float32(metric.alpha) * distances[:, : metric.num_neighbors].mean(axis=1)
            # A zero unit means that all n neighbours are exact copies: nothing can be nearer.
            value = np.divide(distances[:, 0], unit, out=np.zeros_like(unit), where=unit > 0)
            matched = (value >= low) & (value < high)
            in_band = neighbors.within(images, references, low * unit, high * unit)
        in_band[index[matched, 0]] = True  # also where rounding puts a pair on the other side of the band's edge
        results.append(Matches(value=value, nearest=index[:, 0], matched=matched, in_band=in_band))
    return results


def joined(parts: list[Matches]) -> Matches:
    """The matches of parts of the generated images, in order, as one."""
    fields = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("value", "nearest", "matched")}
    return Matches(in_band=np.any([part.in_band for part in parts], axis=0), **fields)


def difference_interval(hits: tuple[int, int], trials: tuple[int, int], confidence: float) -> tuple[float, float]:
    """Interval of the difference of two rates, first minus second (Newcombe 1998, method 10).

    Args:
      hits: of each.
      trials: of each.
      confidence: in (0, 1).
    """
    first, second = (hit / n for hit, n in zip(hits, trials, strict=True))
    (low_1, high_1), (low_2, high_2) = (wilson_interval(*pair, confidence) for pair in zip(hits, trials, strict=True))
    difference = first - second
    low = difference - math.hypot(first - low_1, high_2 - second)
    return low, difference + math.hypot(high_1 - first, second - low_2)


def wilson_interval(hits: int, trials: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a rate (Wilson 1927); for zero hits the upper end stays above 0."""
    interval = stats.binomtest(hits, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
