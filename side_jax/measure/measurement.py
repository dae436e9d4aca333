"""Measures sets of generated images from any source: every figure of results.json, and the tables beside it.

matches.csv has a row for each generated image, members.csv one for each member and held-out image.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from msgspec import UNSET

from side_jax.attacks.table import GIVEN, PLAIN, get_attack
from side_jax.data.sides import Side
from side_jax.measure import positive_control, scoring
from side_jax.measure.records import (
    BestOfGeneration,
    Cell,
    CellTest,
    Control,
    Distribution,
    Likeness,
    Measured,
    Rarefaction,
    Row,
    Run,
    SetSizes,
)
from side_jax.measure.scoring import Embed, RunMatches, Scorer
from side_jax.memorization.distribution import summary
from side_jax.memorization.distribution.appearance import appearance
from side_jax.memorization.matching import Score
from side_jax.memorization.statistics import energy
from side_jax.progress import doing
from side_jax.settings import Evaluate
from side_jax.workdir import files

FEATURES = 2**27  # limit of numbers in the features of one run; of more images, only the first are used

# Of each run, its images in parts: images uint8 [n, h, w, c], index int64 [n], label int32 [n].
Runs = Iterable[tuple[Run, Iterable[dict[str, np.ndarray]]]]


def measure(
    directory: Path,
    runs: Runs,
    members: Side,
    heldout: Side,
    scorer: Scorer,
    settings: Evaluate,
    *,
    embed: Embed | None,
    evidence: dict[str, dict[str, np.ndarray]],
    seed: int,
    chosen: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> Measured:
    """Scores every run; writes matches.csv and members.csv.

    Args:
      directory: of the tables.
      runs: plain sampling before those that are tested against it.
      members: the images that the model was trained on.
      heldout: images that it never saw. The first ones, as many as members, are the control; members.csv lists all.
      scorer: made from the same members and held-out images.
      settings: of the evaluation.
      embed: features for AuthPct, C_T, the FLD gap and Frechet distances; None: these are not computed.
      evidence: {"members" or "heldout": {name: float [m]}}, for members.csv.
      seed: of all random draws.
      chosen: for a search, by the name of its run, the indices of the fittest image of each generation.
    """
    rows: list[Row] = []
    rarefactions: list[Rarefaction] = []
    distributions: list[Distribution] = []
    extracted: dict[str, np.ndarray] = {}
    attacks: list[dict[str, Score]] = []
    fittest: list[BestOfGeneration] = []
    sides = [embed(side.images[: len(members)]) for side in (members, heldout)] if embed else []
    plain: RunMatches | None = None
    looks = [appearance(side.images[: energy.MOST]) for side in (members, heldout)]
    sampled: list[np.ndarray] = []  # the appearance of plain samples
    with files.atomic(directory / "matches.csv", "w") as file:
        table = csv.writer(file)
        table.writerow(_header(scorer.metrics))
        for run, parts in runs:
            matches, features = [], []
            for part in parts:
                embedded = None
                if embed and sum(map(np.size, features)) < FEATURES:
                    embedded = embed(part["images"])
                    features.append(embedded)
                if run.attack in (PLAIN.name, GIVEN.name) and sum(map(len, sampled)) < energy.MOST:
                    sampled.append(appearance(part["images"][: energy.MOST]))
                matches.append(scorer.match(part["images"], embedded))
                table.writerows(_match_rows(run, part, matches[-1], members, heldout, scorer))
            whole = scoring.join(matches)
            rows += scorer.rows(run, whole, plain)
            rarefactions.append(scorer.rarefied(run, whole))
            score = scorer.headline(whole)
            extracted[extracted_column(run)] = score["members"].extracted
            fittest += [scorer.best_of_generation(run, whole, chosen[name]) for name in chosen if name == run.key.name]
            if not get_attack(run.attack).control:
                attacks.append(score)
            if embed:
                distributions.append(_distribution(run, features, sides, seed))
            plain = whole if run.attack == PLAIN.name else plain
    _write_members(directory / "members.csv", members, heldout, evidence, extracted)
    return Measured(
        metrics=scorer.definitions,
        rows=tuple(rows),
        rarefaction=tuple(rarefactions),
        thresholds=scorer.thresholds,
        controls=_controls(scorer, members, heldout, settings),
        distribution=tuple(distributions),
        likeness=_likeness(looks, sampled, members, heldout, seed),
        together=scorer.together(attacks) if len(attacks) > 1 else UNSET,
        best_of_generation=tuple(fittest) or UNSET,
    )


def _controls(scorer: Scorer, members: Side, heldout: Side, settings: Evaluate) -> tuple[Control, ...]:
    if not settings.controls:
        return ()
    copied, fresh = (side.images[: settings.control_images] for side in (members, heldout))
    return tuple(positive_control.sensitivity(scorer, copied, fresh, settings.confidence))


@doing("comparing the sides with plain samples")
def _likeness(looks: list[np.ndarray], sampled: list[np.ndarray], members: Side, heldout: Side, seed: int) -> Likeness:
    """Whether held-out images are like members, and plain samples like either.

    Args:
      looks: the appearance [n, d] of members and of held-out images.
      sampled: that of plain samples, in parts.
      members: the members.
      heldout: the held-out images.
      seed: of the permutations.
    """
    clear = np.ones(len(looks[0]), bool) if members.shared is None else ~members.shared[: len(looks[0])]
    groups = None if members.groups is None else (members.groups[: len(clear)][clear], heldout.groups)
    # Held-out images near a member were left out, so the members near these are too.
    sides = energy.energy(looks[0][clear], looks[1], groups, seed=seed)
    # Of what a model copies, the members have most; of what it does not, either side will do.
    samples = UNSET
    if sampled:
        samples = min(energy.energy(np.concatenate(sampled), side, seed=seed).share for side in looks)
    return Likeness(heldout_share=sides.share, heldout_p=sides.p, samples_share=samples)


def _distribution(run: Run, features: Sequence[np.ndarray], sides: Sequence[np.ndarray], seed: int) -> Distribution:
    values = summary.summary(np.concatenate(features), *sides, seed=seed)
    c_t = values.pop("c_t")
    cells = tuple(Cell(**cell) for cell in c_t["cells"])
    return Distribution(
        **run.fields_of_run(),
        c_t=CellTest(value=c_t["value"], used=c_t["used"], cells=cells),
        n=SetSizes(**values.pop("n")),
        **values,
    )


def _header(metrics: list[str]) -> list[str]:
    columns = ["run", "attack", "guidance_scale", "index", "label"]
    for name in metrics:
        columns += [f"{name}_member", f"{name}_member_id", f"{name}_member_match"]
        columns += [f"{name}_heldout", f"{name}_heldout_id", f"{name}_heldout_match"]
    return columns


def _match_rows(
    run: Run,
    part: dict[str, np.ndarray],
    matches: RunMatches,
    members: Side,
    heldout: Side,
    scorer: Scorer,
) -> Iterator[list[object]]:
    """The rows of matches.csv for some images."""
    matched = {
        side: [one.score(band).matched for one, band in zip(by_metric, scorer.bands, strict=True)]
        for side, by_metric in matches.items()
    }
    for i in range(len(part["index"])):
        row: list[object] = [run.key.name, run.attack, run.guidance_scale, part["index"][i], part["label"][i]]
        for j in range(len(scorer.metrics)):
            for side, images in (("members", members), ("heldout", heldout)):
                one = matches[side][j]
                row += [f"{one.value[i]:.6g}", images.ids[one.nearest[i]], int(matched[side][j][i])]
        yield row


def extracted_column(run: Run) -> str:
    """The column of members.csv that counts how many images of a run extract each member."""
    return f"extracted_{run.key.name if run.key.start else f'{run.attack}_{run.guidance_scale:g}'}"


def _write_members(
    path: Path,
    members: Side,
    heldout: Side,
    evidence: dict[str, dict[str, np.ndarray]],
    extracted: dict[str, np.ndarray],
) -> None:
    """A row for each image: its membership scores and, for members, how many images of each run extract it."""
    kinds = list(evidence.get("members", {}))
    with files.atomic(path, "w") as file:
        table = csv.writer(file)
        table.writerow(["side", "id", "name", "sha256", *kinds, *extracted])
        for title, side in (("members", members), ("heldout", heldout)):
            for i in np.argsort(side.ids, kind="stable"):
                scores = [f"{evidence[title][kind][i]:.6g}" for kind in kinds]
                counts = (
                    [int(count[i]) for count in extracted.values()] if title == "members" else [""] * len(extracted)
                )
                table.writerow([title, side.ids[i], side.names[i], side.digests[i], *scores, *counts])
