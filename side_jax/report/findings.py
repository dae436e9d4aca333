"""The results of an audit in sentences: the verdict and the findings."""

from collections.abc import Sequence

from side_jax.attacks.table import ATTACKS, GIVEN, PLAIN, get_attack
from side_jax.measure.records import Results, Row, Run, SideScore
from side_jax.memorization.statistics.intervals import difference_interval, mcnemar
from side_jax.report import divergence_text


def percent(rate: float) -> str:
    """A rate in [0, 1] for people: 0.0254 -> 2.54%."""
    return f"{100 * rate:.2f}%"


def points(low: float, high: float) -> str:
    """An interval of a difference of rates: percentage points with their signs."""
    return f"{100 * low:+.2f} to {100 * high:+.2f}"


def share(side: SideScore) -> str:
    """AMS with its interval; where nothing matched, the upper bound that this leaves."""
    if side.ams_at_most is not None:
        return f"0 (at most {percent(side.ams_at_most)})"
    low, high = side.ams_ci
    return f"{percent(side.ams)} ({percent(low)} to {percent(high)})"


def headline(results: Results) -> list[Row]:
    """The rows of the first metric's nearest band."""
    return [row for row in results.rows if row.metric == results.rows[0].metric and row.level == "high"]


def best(rows: Sequence[Row], attack: str) -> Row | None:
    """The row of an attack's run with the highest AMS; on ties the smaller scale, then the earlier run."""
    candidates = [row for row in rows if row.attack == attack]
    return max(candidates, key=lambda row: (row.ams, -row.guidance_scale), default=None)


def attack_rows(rows: list[Row]) -> list[Row]:
    """The rows of attacks; those of controls only where there is nothing else."""
    return [row for row in rows if not get_attack(row.attack).control] or rows


def run_phrase(run: Run) -> str:
    """The attack, for people."""
    name, key = get_attack(run.attack).phrase, run.key
    if key.start:
        origin = run_phrase(Run(attack=key.start, guidance_scale=key.scale)) if key.start_run else "Gaussian noise"
        return f"{name} from {origin} ({key.rounds} rounds at noise {key.noise:g})"
    return name + (f" at guidance scale {run.guidance_scale:g}" if run.guidance_scale else "")


def _from_elsewhere(run: Run) -> bool:
    """Whether the images came from elsewhere, and no attack of ours made them."""
    return run.attack == GIVEN.name


def image_phrase(row: Row) -> str:
    """The images of a run, for people."""
    n = f"{row.n_generated:,}"
    return f"the {n} samples given" if _from_elsewhere(row) else f"{n} images by {run_phrase(row)}"


def _match(count: int) -> str:
    return f"{count:,} match{'es' if count == 1 else ''}"


def verdict(results: Results, confidence: float) -> tuple[str, str, tuple[str, str]]:
    """(status, tone, two sentences).

    A leak is found where, of an attack's images, more match a member than match one of equally many held-out images,
    beyond chance: McNemar's one-sided exact test of the same images against both sides, at the level 1 - confidence
    over the number of attacks and scales that were tried (Bonferroni).
    """
    rows = attack_rows(headline(results))
    top = min(rows, key=lambda row: (row.p_excess, -row.excess))
    hits, held = (round(rate * top.n_generated) for rate in (top.ams, top.heldout_ams))
    if top.p_excess * len(rows) < 1 - confidence:
        return "Leaks", "alarm", _leak(results, rows, top, confidence)
    if wrong := _wrong_sets(rows, results.dataset.heldout_used, confidence):
        return "Not decided", "unsure", wrong
    if not hits and not held:
        return "No leak found", "calm", _nothing_found(rows, top, confidence)
    return "Not decided", "unsure", _undecided(results, top, hits, held)


def _leak(results: Results, rows: list[Row], top: Row, confidence: float) -> tuple[str, str]:
    """Two sentences: the attack that stands out most, and the most members that one attack extracted."""
    members, unseen = results.dataset.members, results.dataset.heldout_used
    hits, held = (round(rate * top.n_generated) for rate in (top.ams, top.heldout_ams))
    equal = "against as many training images " if unseen < members else ""
    first = (
        f"The model leaks images that it was trained on: of {image_phrase(top)}, {hits:,} ({percent(top.ams)}) "
        f"{'matches' if hits == 1 else 'match'} a training image, and {_match(held)} one of {unseen:,} comparable "
        f"images that it never saw; {equal}the excess is {100 * top.excess:.2f} percentage points "
        f"({100 * confidence:g}% interval {points(*top.excess_ci)})."
    )
    strongest = max(rows, key=lambda row: row.unique)
    attack = "" if _from_elsewhere(strongest) else f" by {run_phrase(strongest)}"
    more = _more(results, strongest)
    return first, f"{strongest.unique:,} of its {members:,} training images were extracted{attack}{more}."


def _nothing_found(rows: list[Row], top: Row, confidence: float) -> tuple[str, str]:
    """Two sentences where no image of any attack matches: the upper bound, and what it holds for."""
    bound = percent(top.ams_at_most or 0.0)
    first = (
        f"No training image was found: none of {image_phrase(top)} matches one, so that with {100 * confidence:g}% "
        f"confidence at most {bound} of such images do."
    )
    if _from_elsewhere(top):
        return first, (
            "This holds for images made as these were, for this number of them and this measure of likeness; more "
            "images, or an attack on the model itself, may find some."
        )
    return first, (
        f"This holds for {_listed(rows)}, for this number of images and this measure of likeness; other attacks, "
        "or more images, may find some."
    )


def _undecided(results: Results, top: Row, hits: int, held: int) -> tuple[str, str]:
    """Two sentences where chance explains the excess."""
    members, unseen = results.dataset.members, results.dataset.heldout_used
    among = "as many" if unseen == members else f"{unseen:,}"
    first = (
        f"Whether the model leaks training images is not decided: of {image_phrase(top)}, {_match(hits)} a training "
        f"image, but {_match(held)} one of {among} images that it never saw, and chance explains the difference."
    )
    if not held:
        return first, "So few matches allow no conclusion; draw more images."
    return first, (
        "Matches of images that the model never saw show that this measure takes mere similarity for copying here. "
        "Draw more images, or choose a stricter threshold and audit again."
    )


def _wrong_sets(rows: list[Row], unseen: int, confidence: float) -> tuple[str, str] | None:
    """Two sentences where an attack's images match held-out images more than members, beyond chance; else None.

    McNemar's test as in `verdict`, the other way round; no image is taken to match both sides, which is conservative.
    """
    row = min(rows, key=lambda row: row.excess)
    rates = row.heldout_ams, row.ams, row.excess + row.heldout_ams
    held, hits, equal = (round(rate * row.n_generated) for rate in rates)
    if mcnemar(held, equal) * len(rows) >= 1 - confidence:
        return None
    few = f"only {_match(hits)}" if hits else "none matches"
    first = (
        f"Something is wrong with the sets: of {image_phrase(row)}, {_match(held)} one of {unseen:,} images that the "
        f"model should never have seen, but {few} a training image; chance does not explain that."
    )
    second = (
        "Before you conclude anything, check that members and held-out images are not swapped, and that the model was "
        "not trained on the held-out images, or on near copies of them."
    )
    return first, second


def _listed(rows: list[Row]) -> str:
    names = list(dict.fromkeys(get_attack(row.attack).phrase for row in rows))
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"


def _more(results: Results, run: Run) -> str:
    """How many members ten times the images would extract, by the fit of the rarefaction curve."""
    rarefaction = next((one for one in results.rarefaction if one.key == run.key), None)
    if rarefaction is None:
        return ""
    ahead = rarefaction.ahead
    return f", and {ahead.factor:g} times as many images would extract about {ahead.fit:,.0f}"


def summary_text(results: Results, confidence: float, page: object) -> str:
    """The text that a command prints at its end: the verdict, the findings and the path of the page."""
    status, _, text = verdict(results, confidence)
    lines = [f"  {i}. {sentence}" for i, sentence in enumerate(sentences(results, confidence), start=1)]
    return "\n".join(["", f"{status}. {' '.join(text)}", *lines, f"Report: {page}"])


def sentences(results: Results, confidence: float) -> list[str]:
    """The most important figures in plain words: what leaks unguided, what guidance adds, and the controls."""
    rows, data = headline(results), results.dataset
    plain = best(rows, PLAIN.name) or best(rows, GIVEN.name)
    sampled = (name for name, attack in ATTACKS.items() if attack.guided or attack.seeks_modes)
    bests = {name: row for name in sampled if (row := best(rows, name))}
    attacks = [row for name, row in bests.items() if not (ATTACKS[name].control or ATTACKS[name].baseline)]
    baselines = [row for name, row in bests.items() if ATTACKS[name].baseline]
    baseline = max(baselines, key=lambda row: row.ams, default=None)
    text = [_plain(plain, data.members)] if plain else []
    text += [_attacked(row, plain) for row in attacks or ([baseline] if baseline else [])]
    if attacks and baseline:
        name = get_attack(baseline.attack).phrase
        text.append(f"{name[0].upper()}{name[1:]} reaches {percent(baseline.ams)} at its best.")
    for row in attacks:
        if plain and (control := ATTACKS[row.attack].random_control):
            text.append(_random_control(row, plain, best(rows, control), confidence))
    shown = [row for row in (*attacks, baseline, plain) if row]
    strongest = max(shown, key=lambda row: row.ams, default=rows[0])
    text.append(_heldout_control(strongest, data.heldout_used, confidence))
    if results.divergence:
        text.append(divergence_text.sentence(results.divergence))
    if plain and _from_elsewhere(plain):
        text += _other_measures(results.rows, plain)
    return text


def _plain(row: Row, members: int) -> str:
    """The extraction by plain sampling, or by images from elsewhere."""
    images = image_phrase(row) if _from_elsewhere(row) else f"{row.n_generated:,} images"
    return (
        f"{'' if _from_elsewhere(row) else 'Without guidance, '}{percent(row.ams)} of {images} match a training image: "
        f"{row.unique:,} of the {members:,} members were extracted."
    )


def _attacked(row: Row, plain: Row | None) -> str:
    """The extraction by the best run of an attack, compared with plain sampling."""
    compared = fewer = ""
    if plain and plain.ams > 0:
        times = row.ams / plain.ams
        compared = f", {times:.1f} times the rate" if times > 1 else f", no more than without it ({times:.2f} times)"
    if plain and row.unique < plain.unique:
        fewer = ", fewer than without it"
    result = f"{percent(row.ams)} match{compared}: {row.unique} members were extracted{fewer}."
    if get_attack(row.attack).seeks_modes:
        phrase = run_phrase(row)
        return f"By {phrase}, at {row.network_calls} calls of the network for each image, {result}"
    return f"Guided by {get_attack(row.attack).guide} at its best scale ({row.guidance_scale:g}), {result}"


def _other_measures(rows: Sequence[Row], first: Row) -> list[str]:
    """A sentence on the other measures and the calibrated threshold; none if there are no others."""
    calibrated = [row for row in rows if row.metric == first.metric and row.level == "calibrated"]
    others = [row for row in rows if row.metric != first.metric and row.level == "high"]
    listed = [
        f"{row.metric}{' with a calibrated threshold' if row.level == 'calibrated' else ''} {percent(row.ams)} and "
        f"{percent(row.heldout_ams)}"
        for row in (*calibrated, *others)
    ]
    return [f"By other measures the shares that match members and held-out images: {'; '.join(listed)}."] * bool(listed)


def account(results: Results, near: float) -> str:
    """What an audit of images alone compared and left out.

    Args:
      results: of an audit of images alone.
      near: RMSE to a member below which held-out images were left out.
    """
    data, sets = results.dataset, results.sets or {}
    counts = {
        "Samples that repeat an earlier one": sets["samples"].repeats,
        "Left out, members that equal another": sets["members"].repeats,
        "Left out, held-out images that equal another": sets["heldout"].repeats,
        "Left out, held-out images that equal a member": data.heldout_equal_dropped,
        f"Left out, held-out images nearer than {near:g} (RMSE) to a member": data.heldout_near_dropped,
        "Left out, damaged files": sum(one.damaged for one in sets.values()),
    }
    samples, members, used = sets["samples"].images, data.members, data.heldout_used
    listed = [f"Compared: {samples:,} samples, {members:,} members, {used:,} held-out images"]
    listed += [f"{label}: {count:,}" for label, count in counts.items() if count]
    if used < data.heldout:
        listed.append(
            f"The control is {used:,} of {data.heldout:,} held-out images, drawn at random; all set thresholds"
        )
    return ". ".join(listed) + "."


def _heldout_control(row: Row, heldout: int, confidence: float) -> str:
    low, high = row.heldout_ams_ci
    bound = row.heldout_ams_at_most
    spread = f"interval {percent(low)} to {percent(high)}" if bound is None else f"bound {percent(bound)}"
    return (
        f"Control: of the same {row.n_generated:,} images, {percent(row.heldout_ams)} match one of {heldout} images "
        f"that the model never saw ({100 * confidence:g}% {spread})."
    )


def _random_control(attacked: Row, plain: Row, control: Row | None, confidence: float) -> str:
    """Whether an attack's gain survives the control of random labels, in words; each row is of its best scale."""
    attack = get_attack(attacked.attack)
    if control is None:
        return (
            "Not controlled: whether random labels would do as well is not known; add "
            f"{attack.random_control} to extract.attacks."
        )

    def lead(other: Row) -> tuple[float, float]:
        """The interval of the attack's AMS minus another's."""
        trials = attacked.n_generated, other.n_generated
        hits = round(attacked.ams * trials[0]), round(other.ams * trials[1])
        return difference_interval(hits, trials, confidence)

    at = f"Control: with random pseudo-labels of the same sizes, at most {percent(control.ams)} match"
    if lead(plain)[0] <= 0:
        return (
            f"{at}; {attack.phrase} itself gains nothing significant over no guidance that a control would have to "
            "explain."
        )
    low, high = (100 * end for end in lead(control))
    holds = "survives" if low > 0 else "does not survive"
    return (
        f"{at}: the gain of {attack.phrase} {holds} this control ({100 * confidence:g}% interval of the difference "
        f"{low:+.2f} to {high:+.2f} points)."
    )
