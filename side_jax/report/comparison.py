"""Compares finished audits: the rates of their common runs, and which members were extracted in which audit.

Only runs count that all audits have with the same number of generated images; for members, only those of attacks.
Members are known by the SHA-256 of their pixels. Of the n members that two audits share, a were extracted in both, b
only in the first, c only in the later and d in neither:

    share of the later less share of the first      (c - b) / n, with the interval of the same trials        (1)
    p                                               min(1, 2 p_1, 2 p_2), McNemar's for either direction     (2)

A later audit leaks less, or more, than the first if all of these hold; else no difference is shown:

- p times the number of later audits is below 1 - confidence (Bonferroni).
- By the verdict on it alone, the audit that leaks more does leak.
- The difference (1) is more than that of held-out images, which only likeness brings out: the interval of the one less
  the other is on the same side of 0 (intervals.combined_interval), at the same level as p.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from side_jax.attacks.table import ATTACKS, GIVEN, get_attack
from side_jax.attacks.table import Run as AttackRun
from side_jax.errors import InputError
from side_jax.measure import records
from side_jax.measure.measurement import extracted_column
from side_jax.measure.records import Results, Row
from side_jax.memorization.statistics import intervals
from side_jax.report import matches
from side_jax.report.phrases import headline
from side_jax.report.verdict import LEAKS, Verdict, verdict
from side_jax.workdir import files

LESS, MORE, SAME, RATES = "Leaks less", "Leaks more", "No difference shown", "Only rates compared"
CHANCE, OPEN, LIKENESS = "chance", "open", "likeness"  # why no difference is shown


class Member(NamedTuple):
    """A member: its id and name in its audit, and the runs that extracted it."""

    id: str
    name: str
    runs: frozenset[AttackRun]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Audited:
    """A finished audit.

    Attributes:
      name: what the comparison calls it.
      results: the content of results.json.
      digest: SHA-256 of that file.
      rows: of each run, by the headline metric in its nearest band.
      confidence: of its intervals.
      verdict: on it alone.
      members: by SHA-256.
      heldout: the SHA-256 of held-out images.
      matched: of each run, the ids of the held-out images that are the nearest of a match.
    """

    name: str
    results: Results
    digest: str
    rows: Mapping[AttackRun, Row]
    confidence: float
    verdict: Verdict
    members: Mapping[str, Member]
    heldout: frozenset[str]
    matched: Mapping[AttackRun, frozenset[float]]

    @property
    def run_names(self) -> list[str]:
        """Each run with its number of images, for people."""
        return [f"{key.name} ({row.n_generated:,})" for key, row in self.rows.items()]

    @property
    def leaks(self) -> bool:
        """Whether the verdict says so."""
        return self.verdict[:2] == LEAKS


class Change(NamedTuple):
    """A later rate less that of the first audit, and its interval."""

    value: float
    interval: tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A run that all audits have: a row for each audit, and how AMS changed in each later one."""

    rows: tuple[Row, ...]
    changes: tuple[Change, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """The first audit and a later one.

    Attributes:
      later: its name.
      status: LESS, MORE, SAME or RATES.
      reason: why the status is SAME.
      both: shared members that both extracted; the next three: only the first, only the later, neither.
      change: equation (1); None without shared members.
      p: equation (2).
      alone: members of the first and of the later audit that the other has not.
      crossed: members of the first that are held-out images of the later, and the reverse.
    """

    later: str
    status: str
    reason: str
    both: int
    only_first: int
    only_later: int
    neither: int
    change: Change | None
    p: float
    alone: tuple[int, int]
    crossed: tuple[int, int]

    @property
    def shared(self) -> int:
        """Members that both audits have."""
        return self.both + self.only_first + self.only_later + self.neither


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Two or more audits, the first of which the others are compared with.

    Attributes:
      audits: as given.
      confidence: the greatest of the audits'.
      runs: those that all audits have with the same number of images.
      left_out: names of the other runs.
      extracted: of each audit, the SHA-256 of the members that attacks extracted.
      heldout: of each audit, how many held-out images the same attacks matched.
      pairs: one for each later audit.
    """

    audits: tuple[Audited, ...]
    confidence: float
    runs: tuple[ComparedRun, ...]
    left_out: tuple[str, ...]
    extracted: tuple[frozenset[str], ...]
    heldout: tuple[int, ...]
    pairs: tuple[Pair, ...]

    @property
    def shared(self) -> list[str]:
        """The SHA-256 of members that the first audit shares with a later one, in the order of the first."""
        first, *later = self.audits
        return [sha256 for sha256 in first.members if any(sha256 in one.members for one in later)]

    @property
    def everywhere(self) -> tuple[int, int, int]:
        """Of the members that all audits have: how many were extracted in all, in some and in none."""
        common = frozenset.intersection(*(frozenset(one.members) for one in self.audits))
        counts = collections.Counter(sum(sha256 in found for found in self.extracted) for sha256 in common)
        in_all, in_none = counts[len(self.audits)], counts[0]
        return in_all, len(common) - in_all - in_none, in_none


def locate(folder: Path) -> Path:
    """The folder of an audit's tables: that of results.json in a workdir, or in an output folder of images alone.

    Raises:
      InputError: if there is none.
    """
    for place in (folder / "evaluate", folder):
        if (place / "results.json").exists():
            return place
    raise InputError(
        f"{folder} holds no finished audit (results.json); give the workdir, or the output folder, of one that ran to "
        "its end."
    )


def read(place: Path, name: str) -> Audited:
    """Reads an audit.

    Args:
      place: the folder of its tables, see `locate`.
      name: what the comparison calls it.

    Raises:
      InputError: if a file is missing, damaged or of another audit.
    """
    path = place / "results.json"
    results = records.read(path)
    rows = {row.key: row for row in headline(results)}
    for row in rows.values():
        if row.attack not in (GIVEN.name, *ATTACKS):
            raise InputError(f"{path} has the attack {row.attack!r}, which this version does not know; use that one.")
    try:
        row = next(iter(rows.values()))
        hits = round(row.ams * row.n_generated)
        confidence = round(intervals.wilson_confidence(hits, row.n_generated, row.ams_ci), 6)
        members, heldout = _members(place / "members.csv", rows)
        matched = _matched(place / "matches.csv", rows)
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing; evaluate {name} again, or restore the file.") from None
    except (ValueError, KeyError, ArithmeticError):
        raise InputError(
            f"results.json, members.csv and matches.csv in {place} are damaged, or not of one audit; evaluate {name} "
            "again."
        ) from None
    return Audited(
        name=name,
        results=results,
        digest=files.file_digest(path),
        rows=rows,
        confidence=confidence,
        verdict=verdict(results, confidence),
        members=members,
        heldout=heldout,
        matched=matched,
    )


def _members(path: Path, rows: Mapping[AttackRun, Row]) -> tuple[dict[str, Member], frozenset[str]]:
    """(members by SHA-256, SHA-256 of held-out images); raises ValueError if they are not those of the rows."""
    header, *lines = matches.table(path)
    listed = [dict(zip(header, line, strict=True)) for line in lines]
    columns = {key: extracted_column(row) for key, row in rows.items()}
    members, counts = {}, collections.Counter()
    for one in listed:
        if one["side"] == "members":
            runs = frozenset(key for key, column in columns.items() if int(one[column]))
            members[one["sha256"]] = Member(id=one["id"], name=one["name"], runs=runs)
            counts.update(runs)
    if any(counts[key] != row.unique for key, row in rows.items()):
        raise ValueError("other members were extracted")
    return members, frozenset(one["sha256"] for one in listed if one["side"] == "heldout")


def _matched(path: Path, rows: Mapping[AttackRun, Row]) -> dict[AttackRun, frozenset[float]]:
    """The held-out images that each run matched; raises ValueError if they are not as many as the rows say."""
    table, found = matches.read(path), {}
    for key, row in rows.items():
        images = matches.select_run(table, row)
        found[key] = frozenset(images[f"{row.metric}_heldout_id"][images[f"{row.metric}_heldout_match"] > 0].tolist())
        if (len(images["index"]), len(found[key])) != (row.n_generated, row.heldout_unique):
            raise ValueError("other images were matched")
    return found


def compare(audits: Sequence[Audited]) -> Comparison:
    """Compares audits with the first of them.

    Raises:
      InputError: if they measured different things.
    """
    _check_alike(audits)
    first, *later = audits
    keys = _common(audits)
    confidence = max(one.confidence for one in audits)
    attacks = [key for key in keys if not get_attack(key.attack).control]
    extracted = [
        frozenset(sha256 for sha256, member in one.members.items() if not member.runs.isdisjoint(attacks))
        for one in audits
    ]
    heldout = [len(frozenset.union(*(one.matched[key] for key in attacks))) for one in audits]
    return Comparison(
        audits=tuple(audits),
        confidence=confidence,
        runs=tuple(_compared([one.rows[key] for one in audits], confidence) for key in keys),
        left_out=tuple(dict.fromkeys(key.name for one in audits for key in one.rows if key not in keys)),
        extracted=tuple(extracted),
        heldout=tuple(heldout),
        pairs=tuple(
            _pair((first, one), (extracted[0], extracted[i]), (heldout[0], heldout[i]), confidence, len(later))
            for i, one in enumerate(later, start=1)
        ),
    )


def _check_alike(audits: Sequence[Audited]) -> None:
    """Raises InputError unless all measured images of one shape by one metric with one threshold."""
    first, *later = audits
    for one in later:
        shapes = [audit.results.dataset.image_shape for audit in (first, one)]
        if shapes[0] != shapes[1]:
            said = [" x ".join(map(str, shape)) for shape in shapes]
            raise InputError(
                f"{first.name} compared images of {said[0]} (height, width, channels), {one.name} of {said[1]}; audit "
                "both at one size."
            )
        settings = [_measure(audit) for audit in (first, one)]
        differ = [key for key in settings[0] if settings[0][key] != settings[1].get(key)]
        if differ:
            said = [", ".join(f"{key} {of.get(key, 'none')}" for key in differ) for of in settings]
            raise InputError(
                f"{first.name} and {one.name} don't count the same matches (headline metric of {first.name}: "
                f"{said[0]}; of {one.name}: {said[1]}); evaluate one of them again with the settings of the other."
            )


def _measure(audit: Audited) -> dict[str, object]:
    """What decides whether an image matches."""
    row = next(iter(audit.rows.values()))
    definition = next((structs.asdict(one) for one in audit.results.metrics if one.name == row.metric), {})
    return {"metric": row.metric, "below": row.band[1]} | {
        key: value for key, value in definition.items() if key not in ("name", "below", "factors")
    }


def _common(audits: Sequence[Audited]) -> list[AttackRun]:
    """The runs that all audits have with the same number of images; raises InputError if none is of an attack."""
    first, *later = audits
    keys = [
        key
        for key, row in first.rows.items()
        if all(key in one.rows and one.rows[key].n_generated == row.n_generated for one in later)
    ]
    if all(get_attack(key.attack).control for key in keys):
        had = "; ".join(f"{one.name}: {', '.join(one.run_names)}" for one in audits)
        raise InputError(
            f"no attack was run in all audits with the same number of generated images ({had}); run one alike, then "
            "compare again."
        )
    return keys


def _compared(rows: Sequence[Row], confidence: float) -> ComparedRun:
    n = rows[0].n_generated
    hits = [round(row.ams * n) for row in rows]
    return ComparedRun(rows=tuple(rows), changes=tuple(_change(hit, hits[0], n, n, confidence) for hit in hits[1:]))


def _change(later: int, first: int, trials_later: int, trials_first: int, confidence: float) -> Change:
    """The change of a rate of independent trials."""
    interval = intervals.difference_interval((later, first), (trials_later, trials_first), confidence)
    return Change(later / trials_later - first / trials_first, interval)


def _pair(
    audits: tuple[Audited, Audited],
    extracted: tuple[frozenset[str], frozenset[str]],
    heldout: tuple[int, int],
    confidence: float,
    tested: int,
) -> Pair:
    """Compares two audits.

    Args:
      audits: the first and the later one.
      extracted: SHA-256 of the extracted members.
      heldout: numbers of held-out images that were matched.
      confidence: of the intervals, and of the status.
      tested: the number of later audits.
    """
    first, later = audits
    shared = [sha256 for sha256 in first.members if sha256 in later.members]
    cells = collections.Counter(tuple(sha256 in found for found in extracted) for sha256 in shared)
    counts = both, only_first, only_later, neither = tuple(cells[cell] for cell in _CELLS)
    used = (first.results.dataset.heldout_used, later.results.dataset.heldout_used)
    status, reason, p = RATES, "", 1.0
    if shared:
        level = 1 - (1 - confidence) / tested
        status, reason, p = decide(counts, heldout, used, (first.leaks, later.leaks), level)
    return Pair(
        later=later.name,
        status=status,
        reason=reason,
        both=both,
        only_first=only_first,
        only_later=only_later,
        neither=neither,
        change=_paired_change(counts, confidence) if shared else None,
        p=p,
        alone=(len(first.members) - len(shared), len(later.members) - len(shared)),
        crossed=(len(later.heldout & first.members.keys()), len(first.heldout & later.members.keys())),
    )


def decide(
    counts: tuple[int, int, int, int],
    heldout: tuple[int, int],
    used: tuple[int, int],
    leaks: tuple[bool, bool],
    level: float,
) -> tuple[str, str, float]:
    """(status, why it is SAME, p) of the first and a later audit.

    Args:
      counts: shared members that both extracted, only the first, only the later, and neither.
      heldout: held-out images that were matched, of each audit.
      used: held-out images, of each audit.
      leaks: whether each leaks by the verdict on it alone.
      level: the confidence, corrected for the number of tests.
    """
    _, only_first, only_later, _ = counts
    p = min(1.0, 2 * intervals.mcnemar(only_first, only_later), 2 * intervals.mcnemar(only_later, only_first))
    more = only_later > only_first
    if p >= 1 - level:
        return SAME, CHANCE, p
    if not leaks[1 if more else 0]:
        return SAME, OPEN, p
    control = _change(heldout[1], heldout[0], used[1], used[0], level)
    low, high = intervals.combined_interval(*_paired_change(counts, level), *control)
    if not (low > 0 if more else high < 0):
        return SAME, LIKENESS, p
    return MORE if more else LESS, "", p


def _paired_change(counts: tuple[int, int, int, int], confidence: float) -> Change:
    """Equation (1)."""
    both, only_first, only_later, neither = counts
    interval = intervals.paired_difference_interval(both, only_later, only_first, neither, confidence)
    return Change((only_later - only_first) / sum(counts), interval)


_CELLS = ((True, True), (True, False), (False, True), (False, False))  # extracted in the first, in the later audit
