"""The verdict of an audit: one of three, and two sentences that say what it rests on and what to do.

It is taken in this order, and the first that applies stands:

1. Held-out images of another kind than the members decide nothing: what is like members alone may be what all images
   of their kind have in common.
2. A leak is found where, of one attack's images, members are matched more often than chance allows: the permutation
   test of the headline metric, at the level 1 - confidence over the number of runs (Bonferroni).
3. Where held-out images are matched more often than chance allows, something is wrong with the sets.
4. If any other measure, threshold or control sees an excess, corrected for the number of all of them, nothing is
   decided.
5. Nothing is decided by samples that do not look like the data, or by few of them.
6. If no image of any run matches anything, no leak was found. Else nothing is decided.
"""

from collections.abc import Callable, Sequence

from msgspec import UNSET, UnsetType

from side_jax.attacks.table import GIVEN, get_attack
from side_jax.measure.records import Rarefaction, Results, Row, Run
from side_jax.report.phrases import headline, image_phrase, listed, p_value, percent, run_phrase

OTHER_KIND = 0.03  # energy distance of members and held-out images, over its first term, of sets of different kinds
UNLIKE = 0.1  # the same of samples that do not look like the data
FEW = 100  # images of a run; none of fewer says little

Verdict = tuple[str, str, tuple[str, str]]  # status, tone, two sentences
_OPEN = "Whether the model leaks training images is not decided: "
LEAKS, UNDECIDED, CALM = ("Leaks", "alarm"), ("Not decided", "unsure"), ("No leak found", "calm")


def verdict(results: Results, confidence: float) -> Verdict:
    """(status, tone, two sentences)."""
    level = 1 - confidence
    rows = attack_rows(headline(results))
    tested = [row for row in rows if _tested(row)]
    if other := _other_kind(results):
        return (*UNDECIDED, other)
    if not tested:
        return (*UNDECIDED, _untestable(results))
    top = _clearest(tested)
    if significant(results, top, confidence):
        return (*LEAKS, _leak(results, tested, top, confidence))
    fewest = min(tested, key=lambda row: (row.p_deficit, row.excess))
    if fewest.p_deficit * len(tested) < level:
        return (*UNDECIDED, _wrong_sets(results, fewest))
    every = [row for row in results.rows if _tested(row)]
    seeing = [row for row in every if row.p_excess * len(every) < level]
    if seeing:
        return (*UNDECIDED, _seen_elsewhere(results, top, _clearest(seeing)))
    if unlike := _unlike(results) or _few(rows):
        return (*UNDECIDED, unlike)
    if not any(row.ams or row.heldout_ams for row in rows):
        return (*CALM, _nothing_found(results, rows, confidence))
    return (*UNDECIDED, _undecided(results, tested, top, level))


def attack_rows(rows: list[Row]) -> list[Row]:
    """The rows of attacks; those of controls only where there is nothing else."""
    return [row for row in rows if not get_attack(row.attack).control] or rows


def significant(results: Results, row: Row, confidence: float) -> bool:
    """Whether chance does not explain a row of the headline, where as many attacks were tested as there are."""
    tested = [one for one in attack_rows(headline(results)) if _tested(one)]
    return _tested(row) and row.p_excess * len(tested) < 1 - confidence


def _tested(row: Row) -> bool:
    return not isinstance(row.p_excess, UnsetType)


def _clearest(rows: Sequence[Row]) -> Row:
    """The row whose excess stands out most."""
    return min(rows, key=lambda row: (row.p_excess, -row.excess))


def _hits(row: Row) -> tuple[int, int]:
    """How many images match a member, and how many a held-out image."""
    hits, held = (round(rate * row.n_generated) for rate in (row.ams, row.heldout_ams))
    return hits, held


def _match(count: int) -> str:
    return f"{count:,} match{'es' if count == 1 else ''}"


def _unseen(results: Results) -> str:
    """The control, for people: as many images as members, or fewer."""
    data = results.dataset
    return "as many" if data.heldout_used == data.members else f"{data.heldout_used:,}"


def _leak(results: Results, rows: list[Row], top: Row, confidence: float) -> tuple[str, str]:
    """Two sentences: the attack that stands out most, and the members that all attacks, or the best one, extracted."""
    data, (hits, held) = results.dataset, _hits(top)
    first = (
        f"The model leaks images that it was trained on: of {image_phrase(top)}, {hits:,} ({percent(top.ams)}) "
        f"{'matches' if hits == 1 else 'match'} a training image, and {_match(held)} one of {_unseen(results)} images "
        f"of the same kind that it never saw. Chance does not explain that ({p_value(top.p_excess)})."
    )
    strongest = max(rows, key=lambda row: (row.unique_excess, row.excess))
    alone = "" if strongest.attack == GIVEN.name else run_phrase(strongest)
    together = results.together
    if isinstance(together, UnsetType) or isinstance(together.unique_excess, UnsetType):
        together = None
    elif together.unique_excess <= strongest.unique_excess:
        together = None  # the others found nothing more
    found, by = (together, " by all attacks together") if together else (strongest, f" by {alone}" * bool(alone))
    low, high = (min(max(round(end), 0), data.members) for end in found.unique_excess_ci)
    beyond, chance = round(found.unique_excess), round(found.unique - found.unique_excess)
    if low <= 0:
        return first, (
            f"How many of its {data.members:,} training images came out can't be told: {found.unique:,} were "
            f"matched{by}, and chance alone would match about {chance:,}. A stricter threshold may tell."
        )
    less = f" beyond the {chance:,} that chance explains" if chance > 0 else ""
    own = f"; {alone} alone extracted {round(strongest.unique_excess):,}" if together else ""
    return first, (
        f"{beyond:,} of its {data.members:,} training images were extracted{by}{less} ({100 * confidence:g}% "
        f"interval {low:,} to {high:,}){own}{_more(results, strongest)}."
    )


def _more(results: Results, run: Run) -> str:
    """How many members ten times the images would extract beyond chance, by the fits of the rarefaction curves."""
    curve: Rarefaction | None = next((one for one in results.rarefaction if one.key == run.key), None)
    if curve is None:
        return ""
    chance = 0.0 if isinstance(curve.ahead.chance, UnsetType) else curve.ahead.chance
    return (
        f", and {curve.ahead.factor:g} times as many images would extract about {max(curve.ahead.fit - chance, 0):,.0f}"
    )


def _other_kind(results: Results) -> tuple[str, str] | None:
    """Two sentences where members and held-out images are no one kind, else None."""
    likeness = results.likeness
    if isinstance(likeness, UnsetType) or likeness.heldout_share < OTHER_KIND or likeness.heldout_p > 0.01:
        return None
    return (
        f"{_OPEN}the held-out images are of another kind than the "
        f"members (energy distance {likeness.heldout_share:.2f} of its largest value, where sets of one kind have "
        f"about 0; {p_value(likeness.heldout_p)}).",
        "What matches members alone may be what all images of their kind have in common. Hold out images from the same "
        "source as the members, chosen at random and prepared alike, and audit again.",
    )


def _untestable(results: Results) -> tuple[str, str]:
    return (
        f"{_OPEN}nearly equal images on both sides leave no member or "
        f"no held-out image to compare ({results.dataset.members_untested:,} of {results.dataset.members:,} members "
        "nearly equal an image that was to be held out).",
        "Remove such images from both sides, or compare more images.",
    )


def _wrong_sets(results: Results, row: Row) -> tuple[str, str]:
    """Two sentences where an attack's images match held-out images more than members, beyond chance."""
    hits, held = _hits(row)
    few = f"only {_match(hits)}" if hits else "none matches"
    return (
        f"Something is wrong with the sets: of {image_phrase(row)}, {_match(held)} one of "
        f"{results.dataset.heldout_used:,} images that the model should never have seen, but {few} a training image; "
        f"chance does not explain that ({p_value(row.p_deficit)}).",
        "Before you conclude anything, check that members and held-out images are not swapped, and that the model was "
        "not trained on the held-out images, or on near copies of them.",
    )


def _look(row: Row) -> str:
    """A row's measure and attack, for people."""
    threshold = "the calibrated threshold of " if row.level == "calibrated" else ""
    return f"{threshold}{row.metric} on {image_phrase(row)}"


def _seen_elsewhere(results: Results, top: Row, seeing: Row) -> tuple[str, str]:
    """Two sentences where something else than an attack by the headline metric sees an excess."""
    hits, held = _hits(seeing)
    control = get_attack(seeing.attack).control
    first = (
        f"{_OPEN}{_look(seeing)} sees it, {top.metric} does not. By "
        f"the first {hits:,} images match a training image and {held:,} one of {_unseen(results)} images that the "
        f"model never saw ({p_value(seeing.p_excess)})."
    )
    if control and seeing.metric == top.metric and seeing.level == top.level:
        return first, (
            f"That is a control, {get_attack(seeing.attack).phrase}, which knows more than an attacker would; what the "
            "model holds can come out. Look at its pairs in the gallery, draw more images by the attacks, and audit "
            "again."
        )
    return first, (
        "Look at its pairs in the gallery. If they are copies, treat the model as leaking; to settle it, audit again "
        f"with another seed and {seeing.metric} as the first of evaluate.metrics."
    )


def _unlike(results: Results) -> tuple[str, str] | None:
    """Two sentences where plain samples do not look like the data, else None."""
    likeness = results.likeness
    share = UNSET if isinstance(likeness, UnsetType) else likeness.samples_share
    if isinstance(share, UnsetType) or share < UNLIKE:
        return None
    return (
        f"{_OPEN}its samples do not look like the data (energy "
        f"distance {share:.2f} of its largest value, where images of one kind have about 0).",
        "A model that does not work, or images in another form (value range, size, colours), would match nothing "
        "either. Look at the samples, correct this, and audit again.",
    )


def _few(rows: Sequence[Row]) -> tuple[str, str] | None:
    """Two sentences where no run has enough images to say anything, else None."""
    most = max(row.n_generated for row in rows)
    if most >= FEW or any(row.ams or row.heldout_ams for row in rows):
        return None
    return (
        f"{_OPEN}{most:,} images are too few; none matches a training "
        f"image, but up to {percent(3 / most)} of such images may.",
        f"Draw at least {FEW}, better 1,000 images, and audit again.",
    )


def _nothing_found(results: Results, rows: list[Row], confidence: float) -> tuple[str, str]:
    """Two sentences where no image of any attack matches: the upper bound, and what it holds for."""
    row = max(rows, key=lambda row: row.ams_at_most or 0.0)
    first = (
        f"No training image was found: none of {image_phrase(row)} matches one, so that with {100 * confidence:g}% "
        f"confidence at most {percent(row.ams_at_most or 0.0)} of such images do."
    )
    blind = _blind(results, row)
    if row.attack == GIVEN.name:
        return first, (
            "This holds for images made as these were, for this number of them and this measure of likeness" + blind
        )
    names = list(dict.fromkeys(get_attack(row.attack).phrase for row in rows))
    return first, f"This holds for {listed(names)}, for this number of images and this measure of likeness" + blind


def _blind(results: Results, row: Row) -> str:
    """What the measure is known not to see, mostly from the positive control; the end of a sentence."""
    missed: dict[str, float] = {}
    for one in results.controls:
        if (one.metric, one.level) == (row.metric, row.level) and one.strength is not None and one.found < 0.5:
            missed[one.distortion] = min(one.strength, missed.get(one.distortion, one.strength))
    phrases: dict[str, Callable[[float], str]] = {
        "flip": lambda strength: "mirrored copies",
        "crop": lambda strength: f"copies cropped by {strength:.0%} of a side or more",
        "noise": lambda strength: f"copies with noise of {strength:g} or more",
        "recompression": lambda strength: f"copies recompressed at JPEG quality {100 - strength:g} or lower",
    }
    unseen = [phrases[name](strength) for name, strength in missed.items() if name in phrases]
    if results.dataset.member_near_pairs:
        unseen.append("copies of members that nearly equal other members")
    if not unseen:
        return "; other attacks, or more images, may find some."
    words = f", which does not see {listed(unseen)} (see the positive control)"
    return words + "; other attacks, or more images, may find some."


def _undecided(results: Results, tested: list[Row], top: Row, level: float) -> tuple[str, str]:
    """Two sentences where images match, and the excess cannot be told from chance."""
    data, (hits, held) = results.dataset, _hits(top)
    first = (
        f"{_OPEN}of {image_phrase(top)}, {_match(hits)} a training "
        f"image, and {_match(held)} one of {_unseen(results)} images that it never saw; the difference cannot be told "
        f"from chance ({p_value(top.p_excess)})."
    )
    if few := _too_few(results, top, level / len(tested)):
        return first, few
    if data.members_untested:
        return first, (
            f"{data.members_untested:,} members nearly equal images that were to be held out, such as blank or shared "
            "ones. Matches with them prove nothing and are left out of the test; look in the gallery for others."
        )
    if not held:
        return first, "So few matches allow no conclusion; draw more images."
    return first, (
        "Matches of images that the model never saw show that this measure takes mere similarity for copying here. "
        "Draw more images, or choose a stricter threshold and audit again."
    )


def _too_few(results: Results, row: Row, level: float) -> str:
    """What is lacking where no number of matches could be significant: held-out images or people; else nothing."""
    data = results.dataset
    sizes, matched = (data.members - data.members_untested, data.heldout_used), row.unique + row.heldout_unique
    if not isinstance(data.groups, UnsetType):
        sizes, matched = data.groups, data.groups[0]
    least = _least_p(*sizes, matched)
    if least < level:
        return ""
    even = f"even if every match were with a member, that could be chance ({p_value(least)})"
    if not isinstance(data.groups, UnsetType):
        return (
            f"The split keeps the images of a person together, and {sizes[0]:,} people among the members and "
            f"{sizes[1]:,} among the held-out images are too few to tell: {even}. Use more people, or split by image."
        )
    if sizes[1] >= sizes[0] / 2:
        return ""
    return (
        f"{sizes[1]:,} held-out images are too few to tell: {even}. Hold out about as many images as there are members."
    )


def _least_p(members: int, heldout: int, matched: int) -> float:
    """The chance that all references matched would be members, if any could have been one."""
    least = 1.0
    for i in range(min(matched, members)):
        least *= (members - i) / (members + heldout - i)
    return least
