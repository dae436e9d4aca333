"""Scores generated images, from whatever source, against members and, as the control, as many held-out images.

Every score is taken three times: against all members, against the held-out images, and against as many members as there
are held-out images, so that the excess (members minus held-out) compares like with like. Beside the thresholds of the
settings one is calibrated for each metric: on one half of the held-out images, so that a fresh image of their kind
matches a member no more often than a stated rate; the other half tells how often one does.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from side_jax.memorization.metrics import Matches, Metric, Score, joined, match, references
from side_jax.memorization.statistics import intervals, rarefaction
from side_jax.settings import Evaluate

SIDES = ("members", "heldout", "equal")  # equal: as many members as there are held-out images
MANY = 10  # times the images: how far ahead is looked

Embed = Callable[[np.ndarray], np.ndarray]  # images uint8 [n, h, w, c] -> features float32 [n, d]
Found = dict[str, list[Matches]]  # of each side, for each metric


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
    """What was calibrated for one metric.

    Attributes:
      below: an image matches where its value is below; None: there were too few held-out images.
      calibrated_on: how many.
      tested_on: how many others.
      matched: how many of these match a member.
    """

    below: float | None
    calibrated_on: int
    tested_on: int
    matched: int


class Scorer:
    """Compares sets of generated images with the same members and held-out images."""

    def __init__(
        self,
        members: np.ndarray,
        heldout: np.ndarray,
        metrics: list[Metric],
        settings: Evaluate,
        *,
        seed: int,
        embed: Embed | None = None,
        groups: np.ndarray | None = None,
    ):
        """Prepares the sides and calibrates.

        Args:
          members: uint8 [m, h, w, c].
          heldout: uint8 [k, h, w, c]; of more than m, the first m are the control, and all calibrate.
          metrics: what to compute.
          settings: confidence and false-match rate.
          seed: of the halves.
          embed: features, for the metric cosine.
          groups: int [k], of the held-out images; those of one are in one half.
        """
        self._metrics, self._settings, self._seed = metrics, settings, seed
        self._embed = embed if any(metric.name == "cosine" for metric in metrics) else None
        prepare = lambda images: references(images, metrics, self._features(images))  # noqa: E731
        self._sides = {"members": prepare(members), "heldout": prepare(heldout[: len(members)])}
        fewer = len(heldout) < len(members)
        self._sides["equal"] = prepare(members[: len(heldout)]) if fewer else self._sides["members"]
        self.sizes = {name: len(side) for name, side in self._sides.items()}
        self.thresholds = self._calibrate(heldout, groups)
        self._limits = {name: found.below for name, found in self.thresholds.items() if found.below}

    def _features(self, images: np.ndarray) -> np.ndarray | None:
        return self._embed(images) if self._embed else None

    def _calibrate(self, heldout: np.ndarray, groups: np.ndarray | None) -> dict[str, Threshold]:
        """Held-out images stand in for images that can't be copies; their nearest member is a false match."""
        null = match(heldout, self._sides["members"], self._metrics, features=self._features(heldout))
        calibration, test = intervals.halves(len(heldout), self._seed, groups)
        found = {}
        for metric, matches in zip(self._metrics, null, strict=True):
            below = intervals.calibrated_threshold(matches.value[calibration], self._settings.false_match_rate)
            found[metric.name] = Threshold(
                below=below,
                calibrated_on=len(calibration),
                tested_on=len(test),
                matched=0 if below is None else int((matches.value[test] < below).sum()),
            )
        return found

    def match(self, images: np.ndarray, features: np.ndarray | None = None) -> Found:
        """The matches of images uint8 [n, h, w, c] on every side; their features, if known, are not computed again."""
        features = self._features(images) if features is None else features
        options = {"metrics": self._metrics, "features": features, "limits": self._limits}
        found = {name: match(images, self._sides[name], **options) for name in ("members", "heldout")}
        same = self._sides["equal"] is self._sides["members"]
        return found | {"equal": found["members"] if same else match(images, self._sides["equal"], **options)}

    def against_members(self, images: np.ndarray) -> Iterator[tuple[str, str, tuple[float, float], Matches]]:
        """(metric, "high" or "calibrated", band, matches with members) of images uint8 [n, h, w, c]."""
        found = match(images, self._sides["members"], self._metrics, features=self._features(images))
        for metric, matches in zip(self._metrics, found, strict=True):
            yield metric.name, "high", metric.bands["high"], matches
            if below := self.thresholds[metric.name].below:
                yield metric.name, "calibrated", (0.0, below), matches

    def rows(self, found: Found, plain: Found | None) -> list[dict[str, Any]]:
        """The rows of results.json for one run: of every metric, its bands and the calibrated threshold.

        Args:
          found: by `match` and `join`.
          plain: of the unguided run, to test against where it has as many images; None: there is none, or this is it.
        """
        rows = []
        for i, metric in enumerate(self._metrics):
            own = {side: matches[i] for side, matches in found.items()}
            other = plain["members"][i] if plain else None
            if other is not None and len(other.value) != len(own["members"].value):
                other = None
            rows += [self._row(metric.name, level, band, own, other) for level, band in metric.bands.items()]
            threshold = self.thresholds[metric.name]
            if threshold.below is not None and threshold.below > 0:
                row = self._row(metric.name, "calibrated", (0.0, threshold.below), own, other)
                rows.append(row | self._false_matches(threshold))
        return rows

    def _false_matches(self, threshold: Threshold) -> dict[str, Any]:
        interval = intervals.wilson_interval(threshold.matched, threshold.tested_on, self._settings.confidence)
        return {
            "false_match_rate": self._settings.false_match_rate,
            "false_match_measured": threshold.matched / threshold.tested_on,
            "false_match_measured_ci": list(interval),
        }

    def _row(
        self, metric: str, level: str, band: tuple[float, float], own: dict[str, Matches], plain: Matches | None
    ) -> dict[str, Any]:
        """One row; rates are fractions in [0, 1]."""
        score = {side: matches.score(band) for side, matches in own.items()}
        n = len(score["members"].matched)
        row = {"metric": metric, "level": level, "band": list(band), "cumulative": band[0] == 0, "n_generated": n}
        for side, prefix in (("members", ""), ("heldout", "heldout_")):
            found = self._side(score[side], own[side].incidence(band))
            row |= {f"{prefix}{key}": value for key, value in found.items()}
        row |= self._excess(score["equal"], score["heldout"])
        # All are dissimilarities: the tail of the close ones is the lower one, and p05 its mark.
        row |= {name: float(np.percentile(own["members"].value, q)) for name, q in (("p95", 95), ("p05", 5))}
        return row | (_ahead(score["members"], plain.score(band)) if plain else {})

    def _side(self, score: Score, incidence: np.ndarray) -> dict[str, Any]:
        n, confidence = len(score.matched), self._settings.confidence
        hits = int(score.matched.sum())
        distinct = functools.partial(
            intervals.distinct_interval,
            num_images=n,
            num_references=len(score.hits),
            confidence=confidence,
        )
        nearest = np.stack([np.flatnonzero(score.matched), score.nearest[score.matched]], axis=1)
        return {
            "ams": score.ams,
            "ams_ci": list(intervals.wilson_interval(hits, n, confidence)),
            "ams_at_most": None if hits else intervals.zero_hits_bound(n, confidence),
            "ums": score.ums,
            "ums_ci": [end / n for end in distinct(incidence)],
            "ums_nearest": score.ums_nearest,
            "ums_nearest_ci": [end / n for end in distinct(nearest)],
            "unique": score.unique,
        }

    def _excess(self, members: Score, heldout: Score) -> dict[str, Any]:
        """Members minus held-out images, equally many, of the same generated images."""
        cells = _cells(members.matched, heldout.matched)
        low, high = intervals.paired_difference_interval(*cells, self._settings.confidence)
        return {
            "excess": members.ams - heldout.ams,
            "excess_ci": [low, high],
            "p_excess": intervals.mcnemar(*cells[1:3]),
        }

    @property
    def metrics(self) -> list[str]:
        """Their names; the first is the headline."""
        return [metric.name for metric in self._metrics]

    @property
    def definitions(self) -> list[dict[str, Any]]:
        """All that a value of each depends on, for results.json."""
        return [dataclasses.asdict(metric) for metric in self._metrics]

    @property
    def bands(self) -> list[tuple[float, float]]:
        """Of each metric, what counts as a match."""
        return [metric.bands["high"] for metric in self._metrics]

    def headline(self, found: Found) -> Score:
        """Who matches which member by the first metric."""
        return found["members"][0].score(self.bands[0])

    def seen(self, found: Found) -> dict[str, Any]:
        """How many members remain to be found, by the first metric, and what MANY times the images would bring."""
        score = self.headline(found)
        return rarefied(score.extracted, len(score.matched), self._settings.confidence)


def join(parts: Sequence[Found]) -> Found:
    """The matches of parts of a run, in order, as one."""
    return {side: [joined(list(of)) for of in zip(*(p[side] for p in parts), strict=True)] for side in SIDES}


def rarefied(counts: np.ndarray, num_images: int, confidence: float) -> dict[str, Any]:
    """A rarefaction curve, its fit, and estimates of what is unseen.

    Args:
      counts: int64 [m], the generated images that extract each member.
      num_images: N_G.
      confidence: of Chao's interval.
    """
    sizes = np.unique(np.geomspace(1, num_images, 40).round().astype(np.int64))
    ahead = np.unique(np.geomspace(1, MANY * num_images, 60).round().astype(np.int64))
    fit = rarefaction.fit(counts, num_images)
    return {
        "sizes": sizes.tolist(),
        "expected": rarefaction.curve(counts, num_images, sizes),
        "fit": {"a": fit.a, "b": fit.b, "sizes": ahead.tolist(), "expected": fit.expected(ahead)},
        "chao1": dataclasses.asdict(rarefaction.chao1(counts, num_images, confidence)),
        "ahead": {
            "factor": MANY,
            "fit": fit.expected([MANY * num_images])[0],
            "chao": rarefaction.extrapolate(counts, num_images, MANY),
            "good_toulmin": dataclasses.asdict(rarefaction.good_toulmin(counts, MANY)),
        },
    }


def _cells(first: np.ndarray, second: np.ndarray) -> tuple[int, int, int, int]:
    """How many are in both, in the first only, in the second only, in neither: bool [n] each."""
    return tuple(int(x.sum()) for x in (first & second, first & ~second, ~first & second, ~first & ~second))


def _ahead(own: Score, plain: Score) -> dict[str, Any]:
    """p-values that a run beats the unguided one, paired: over images of the same starting noise, and over members."""
    pairs = {"images": (own.matched, plain.matched), "members": (own.extracted > 0, plain.extracted > 0)}
    return {
        f"p_more_{name}": intervals.mcnemar(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()))
        for name, (ours, theirs) in pairs.items()
    }
