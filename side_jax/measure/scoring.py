"""Scores generated images from any source against members and, as the control, against equally many held-out images.

Every score is taken three times: against all members, against the held-out images, and against both as one set. The
last says whether members are matched more often than chance allows (statistics/permutation.py): it treats both sides
alike, and members that nearly equal an image left out of the held-out ones take no part. Besides the thresholds of the
settings, one threshold for each metric is calibrated on half of the held-out images, so that a fresh image of their
kind matches a member at most at a stated rate; the other half measures that rate.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from msgspec import UNSET

from side_jax.measure.records import (
    Ahead,
    BestOfGeneration,
    Chao1,
    Definition,
    Fit,
    GoodToulmin,
    Rarefaction,
    Row,
    Run,
    SideScore,
    Threshold,
    Together,
    both_sides,
)
from side_jax.memorization.matching import Matches, Score, joined, match, match_both, references
from side_jax.memorization.metrics import Metric, definition, shared_search
from side_jax.memorization.statistics import intervals, rarefaction
from side_jax.memorization.statistics.excess import Excess, excess
from side_jax.memorization.statistics.permutation import permutation_test
from side_jax.settings import Evaluate

SIDES = ("members", "heldout", "both")  # both: as one set of references, nearest ones only
TESTED = ("high", "calibrated")  # levels whose excess is tested
MANY = 10  # estimates of what more images would find are for this many times the images

Embed = Callable[[np.ndarray], np.ndarray]  # images uint8 [n, h, w, c] -> features float32 [n, d]
RunMatches = dict[str, list[Matches]]  # of each side, for each metric


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
        groups: tuple[np.ndarray, np.ndarray] | None = None,
        shared: np.ndarray | None = None,
    ):
        """Prepares the sides and calibrates.

        Args:
          members: uint8 [m, h, w, c].
          heldout: uint8 [k, h, w, c]; the first m, or all of fewer, are the control, and all calibrate.
          metrics: the metrics to compute.
          settings: confidence and false-match rate.
          seed: of the halves.
          embed: features, for metrics that need them.
          groups: int [m] and int [k], of members and held-out images, without a common one; images of one group are in
            one half, and on one side in the test of the excess. None: each image is alone.
          shared: bool [m], members that nearly equal an image that was left out of the held-out ones; None: none.
        """
        self._metrics, self._settings, self._seed = metrics, settings, seed
        self._embed = embed if any(metric.needs_features for metric in metrics) else None
        images = {"members": members, "heldout": heldout[: len(members)]}
        features = {name: self._features(side) for name, side in images.items()}
        images["both"] = np.concatenate(list(images.values()))
        features["both"] = np.concatenate(list(features.values())) if self._embed else None
        self._thinned = round(len(images["both"]) / len(members))
        thinned = {"members": 1, "heldout": 1, "both": self._thinned}
        self._sides = {name: references(images[name], metrics, features[name], by) for name, by in thinned.items()}
        self.sizes = {name: len(side) for name, side in self._sides.items()}
        self._is_member = np.arange(self.sizes["both"]) < len(members)
        clear = np.ones(len(members), bool) if shared is None else ~shared
        self._tested = np.concatenate([clear, np.ones(self.sizes["heldout"], bool)])
        self._groups = None if groups is None else np.concatenate(groups)[: self.sizes["both"]]
        self.thresholds = self._calibrate(heldout, None if groups is None else groups[1])
        self._limits = {name: threshold.below for name, threshold in self.thresholds.items() if threshold.below}

    def _features(self, images: np.ndarray) -> np.ndarray | None:
        return self._embed(images) if self._embed else None

    def _calibrate(self, heldout: np.ndarray, groups: np.ndarray | None) -> dict[str, Threshold]:
        """Held-out images stand for images that can't be copies: their matches with members are false."""
        null = match(heldout, self._sides["members"], self._metrics, features=self._features(heldout))
        calibration, test = intervals.halves(len(heldout), self._seed, groups)
        thresholds = {}
        for metric, matches in zip(self._metrics, null, strict=True):
            below = intervals.calibrated_threshold(matches.value[calibration], self._settings.false_match_rate)
            thresholds[metric.name] = Threshold(
                below=below,
                calibrated_on=len(calibration),
                tested_on=len(test),
                matched=0 if below is None else int((matches.value[test] < below).sum()),
            )
        return thresholds

    def match(self, images: np.ndarray, features: np.ndarray | None = None) -> RunMatches:
        """The matches of images uint8 [n, h, w, c] on every side; features that are given are not computed again."""
        features = self._features(images) if features is None else features
        sides = {name: self._sides[name] for name in ("members", "heldout")}
        found = {name: shared_search(images, side.pixels, self._metrics, self._thinned) for name, side in sides.items()}
        options = {"metrics": self._metrics, "features": features}
        matches = {
            name: match(images, side, **options, limits=self._limits, neighbors=found[name])
            for name, side in sides.items()
        }
        sizes = [len(side) for side in sides.values()]
        options |= {"neighbors": list(found.values()), "sizes": sizes, "thinned": self._thinned}
        both = match_both(images, self._sides["both"], **options)
        return matches | {"both": both}

    def against_members(self, images: np.ndarray) -> Iterator[tuple[str, str, tuple[float, float], Matches]]:
        """(metric, "high" or "calibrated", band, matches with members) of images uint8 [n, h, w, c]."""
        compared = match(images, self._sides["members"], self._metrics, features=self._features(images))
        for metric, matches in zip(self._metrics, compared, strict=True):
            yield metric.name, "high", metric.bands["high"], matches
            if below := self.thresholds[metric.name].below:
                yield metric.name, "calibrated", (0.0, below), matches

    def rows(self, run: Run, matches: RunMatches, plain: RunMatches | None) -> list[Row]:
        """The rows of one run: of every metric, its bands and the calibrated threshold.

        Args:
          run: its attack and guidance scale.
          matches: by `match` and `join`.
          plain: of the unguided run, to test against where it has as many images; None: there is none, or this is it.
        """
        rows = []
        for i, metric in enumerate(self._metrics):
            sides = {side: by_metric[i] for side, by_metric in matches.items()}
            other = plain["members"][i] if plain else None
            if other is not None and len(other.value) != len(sides["members"].value):
                other = None
            row = functools.partial(self._row, run, metric.name, sides=sides, plain=other)
            rows += [row(level, band) for level, band in metric.bands.items()]
            threshold = self.thresholds[metric.name]
            if threshold.below is not None and threshold.below > 0:
                rows.append(row("calibrated", (0.0, threshold.below), threshold=threshold))
        return rows

    def _row(
        self,
        run: Run,
        metric: str,
        level: str,
        band: tuple[float, float],
        *,
        sides: dict[str, Matches],
        plain: Matches | None,
        threshold: Threshold | None = None,
    ) -> Row:
        """One row; rates are fractions in [0, 1]."""
        score = {side: matches.score(band) for side, matches in sides.items()}
        members, heldout = (self._side(score[side], sides[side].incidence(band)) for side in ("members", "heldout"))
        p_images, p_members = _ahead(score["members"], plain.score(band)) if plain else (UNSET, UNSET)
        if run.key.searched:  # whose images descend from each other, and are no independent pairs
            p_images = UNSET
        false_matches = {}
        if threshold:
            trials, confidence = threshold.tested_on, self._settings.confidence
            false_matches = {
                "false_match_rate": self._settings.false_match_rate,
                "false_match_measured": threshold.matched / trials,
                "false_match_measured_ci": intervals.wilson_interval(threshold.matched, trials, confidence),
            }
        return Row(
            **run.fields_of_run(),
            metric=metric,
            level=level,
            band=band,
            cumulative=band[0] == 0,
            n_generated=len(score["members"].matched),
            **both_sides(members, heldout),
            **(self._excess(score) if level in TESTED else {}),
            # All are dissimilarities: the tail of the close ones is the lower one, and p05 its mark.
            p05=float(np.percentile(sides["members"].value, 5)),
            p95=float(np.percentile(sides["members"].value, 95)),
            p_more_images=p_images,
            p_more_members=p_members,
            **false_matches,
        )

    def _excess(self, score: dict[str, Score]) -> dict[str, Any]:
        """The fields of a row about the excess; none if either side has no reference in the test."""
        found = self._beyond_chance(score)
        if found is None:
            return {}
        is_member = self._is_member[self._tested]
        groups = None if self._groups is None else self._groups[self._tested]
        more, fewer = permutation_test(score["both"].extracted[self._tested], is_member, groups)
        return {
            "excess": found.images,
            "excess_ci": found.images_interval,
            "unique_excess": found.members,
            "unique_excess_ci": found.members_interval,
            "p_excess": more,
            "p_deficit": fewer,
        }

    def _beyond_chance(self, score: dict[str, Score]) -> Excess | None:
        """The excess of matches with members; None if either side has no reference in the test."""
        is_member = self._is_member[self._tested]
        if is_member.all() or not is_member.any():
            return None
        sides = []
        for side, part in ((score["members"], self._is_member), (score["heldout"], ~self._is_member)):
            tested = self._tested[part]
            sides.append((side.extracted[tested], side.matched & tested[side.nearest]))
        groups = None if self._groups is None else self._groups[self._tested]
        of_sides = None if groups is None else (groups[is_member], groups[~is_member])
        return excess(*sides, self._settings.confidence, of_sides)

    def together(self, runs: Sequence[dict[str, Score]]) -> Together:
        """What several runs extract together.

        Args:
          runs: the matches of each with "members" and "heldout", see `headline`.
        """
        whole = {}
        for side in ("members", "heldout"):
            scores = [run[side] for run in runs]
            whole[side] = Score(
                matched=np.concatenate([one.matched for one in scores]),
                nearest=np.concatenate([one.nearest for one in scores]),
                extracted=np.sum([one.extracted for one in scores], axis=0),
                hits=np.sum([one.hits for one in scores], axis=0),
            )
        found = self._beyond_chance(whole)
        beyond = {"unique_excess": found.members, "unique_excess_ci": found.members_interval} if found else {}
        return Together(
            runs=len(runs),
            images=len(whole["members"].matched),
            unique=whole["members"].unique,
            heldout_unique=whole["heldout"].unique,
            **beyond,
        )

    def _side(self, score: Score, incidence: np.ndarray) -> SideScore:
        n, confidence = len(score.matched), self._settings.confidence
        hits = int(score.matched.sum())
        distinct = functools.partial(
            intervals.distinct_interval,
            num_images=n,
            num_references=len(score.hits),
            confidence=confidence,
        )
        nearest = np.stack([np.flatnonzero(score.matched), score.nearest[score.matched]], axis=1)
        return SideScore(
            ams=score.ams,
            ams_ci=intervals.wilson_interval(hits, n, confidence),
            ams_at_most=None if hits else intervals.zero_hits_bound(n, confidence),
            ums=score.ums,
            ums_ci=tuple(end / n for end in distinct(incidence)),
            ums_nearest=score.ums_nearest,
            ums_nearest_ci=tuple(end / n for end in distinct(nearest)),
            unique=score.unique,
        )

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics; the first is the headline."""
        return [metric.name for metric in self._metrics]

    @property
    def definitions(self) -> tuple[Definition, ...]:
        """Everything that a value of each metric depends on."""
        return tuple(Definition(**definition(metric)) for metric in self._metrics)

    @property
    def bands(self) -> list[tuple[float, float]]:
        """For each metric, the band that counts as a match."""
        return [metric.bands["high"] for metric in self._metrics]

    def headline(self, matches: RunMatches) -> dict[str, Score]:
        """Which images match which member, and which held-out image, by the first metric."""
        return {side: matches[side][0].score(self.bands[0]) for side in ("members", "heldout")}

    def best_of_generation(self, run: Run, matches: RunMatches, chosen: Sequence[int]) -> BestOfGeneration:
        """The scores of some images of a search, by the first metric.

        Args:
          run: the search.
          matches: of all of its images.
          chosen: the indices of the images.
        """
        index = np.asarray(chosen)
        values: dict[str, Any] = {}
        for prefix, side in (("", "members"), ("heldout_", "heldout")):
            score = self.headline(matches)[side]
            matched, nearest = score.matched[index], score.nearest[index]
            values[f"{prefix}ams"] = float(matched.mean())
            interval = intervals.wilson_interval(int(matched.sum()), len(index), self._settings.confidence)
            values[f"{prefix}ams_ci"] = interval
            values[f"{prefix}unique"] = len(np.unique(nearest[matched]))
        return BestOfGeneration(**run.fields_of_run(), images=len(index), **values)

    def rarefied(self, run: Run, matches: RunMatches) -> Rarefaction:
        """How many members remain to be found, by the first metric, and what MANY times the images would bring."""
        score = self.headline(matches)
        members, false = score["members"], score["heldout"].extracted
        return rarefied(run, members.extracted, len(members.matched), self._settings.confidence, false)


def join(parts: Sequence[RunMatches]) -> RunMatches:
    """The matches of parts of a run, in order, as one."""
    return {
        side: [joined(list(matches)) for matches in zip(*(part[side] for part in parts), strict=True)] for side in SIDES
    }


def rarefied(run: Run, counts: np.ndarray, num_images: int, confidence: float, false: np.ndarray) -> Rarefaction:
    """A rarefaction curve, its fit, and estimates of what is unseen.

    Args:
      run: its attack and guidance scale.
      counts: int64 [m], the generated images that extract each member.
      num_images: N_G.
      confidence: of Chao's interval.
      false: int64 [k], the generated images that match each held-out image.
    """
    by_chance = rarefaction.fit(false, num_images).expected([MANY * num_images])[0] * len(counts) / len(false)
    sizes = np.unique(np.geomspace(1, num_images, 40).round().astype(np.int64))
    ahead = np.unique(np.geomspace(1, MANY * num_images, 60).round().astype(np.int64))
    fit = rarefaction.fit(counts, num_images)
    return Rarefaction(
        **run.fields_of_run(),
        sizes=tuple(sizes.tolist()),
        expected=tuple(rarefaction.curve(counts, num_images, sizes)),
        fit=Fit(a=fit.a, b=fit.b, sizes=tuple(ahead.tolist()), expected=tuple(fit.expected(ahead))),
        chao1=Chao1(**dataclasses.asdict(rarefaction.chao1(counts, num_images, confidence))),
        ahead=Ahead(
            factor=MANY,
            fit=fit.expected([MANY * num_images])[0],
            chao=rarefaction.extrapolate(counts, num_images, MANY),
            good_toulmin=GoodToulmin(**dataclasses.asdict(rarefaction.good_toulmin(counts, MANY))),
            chance=by_chance,
        ),
    )


def _ahead(run: Score, plain: Score) -> tuple[float, float]:
    """p-values that a run beats the unguided one, paired: over images of the same starting noise, and over members."""
    pairs = (run.matched, plain.matched), (run.extracted > 0, plain.extracted > 0)
    by_image, by_member = (
        intervals.mcnemar(int((first & ~second).sum()), int((second & ~first).sum())) for first, second in pairs
    )
    return by_image, by_member
