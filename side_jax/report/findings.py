"""The results of an audit in sentences."""

from collections.abc import Sequence

from msgspec import UnsetType

from side_jax.attacks.table import ATTACKS, GIVEN, PLAIN, Run, get_attack
from side_jax.measure.records import Reading, Results, Row
from side_jax.memorization.statistics.intervals import difference_interval
from side_jax.report import alike_text, divergence_text
from side_jax.report.phrases import best, from_elsewhere, headline, image_phrase, percent, run_phrase

SETS = {"samples": "the samples", "members": "the members", "heldout": "the held-out images"}  # for people


def sentences(results: Results, confidence: float) -> list[str]:
    """The most important figures in plain words: what leaks unguided, what guidance adds, and the controls."""
    rows, data = headline(results), results.dataset
    plain = best(rows, PLAIN.name) or best(rows, GIVEN.name)
    sampled = (name for name, attack in ATTACKS.items() if attack.guided or attack.searches or attack.seeks_modes)
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
        text.append(divergence_text.sentence(results.divergence, latent=results.of_latents))
    if results.label_spread:
        text.append(alike_text.sentence(results.label_spread))
    if plain and from_elsewhere(plain):
        text += _other_measures(results.rows, plain)
    return text + _reading(results)


def _reading(results: Results) -> list[str]:
    """A sentence for each set of pictures of which some were not read, or not as they are stored."""
    if results.sets:
        return [text for name, one in results.sets.items() for text in _read(SETS[name], one.reading)]
    reading = results.dataset.reading
    return [] if isinstance(reading, UnsetType) else _read("the dataset", reading)


def _read(name: str, reading: Reading) -> list[str]:
    parts = []
    if reading.passed_over:
        parts.append("not read: " + ", ".join(f"{count:,} {kind}" for kind, count in reading.passed_over.items()))
    if reading.animated:
        parts.append(f"only the first frame of {_pictures(reading.animated)}")
    if reading.rotated:
        done, other = ("turned", "ignore") if reading.orientation == "apply" else ("left unturned", "apply")
        parts.append(
            f"{_pictures(reading.rotated)} {done} that EXIF data says to turn (if the model's trainer did otherwise, "
            f"set data.orientation={other})"
        )
    if reading.reshaped:
        done, other = ("cropped", "squash") if reading.fit == "crop" else ("squashed", "crop")
        parts.append(
            f"{_pictures(reading.reshaped)} {done} to squares (if the trainer did otherwise, set data.fit={other})"
        )
    if reading.sixteen_bit:
        parts.append(f"{_pictures(reading.sixteen_bit)} of 16 bits, reduced to 8")
    scans = {
        "by the window of their DICOM file": reading.windowed,
        "by all values of their bits, since their DICOM file has no window": reading.full_range,
        "by the 0.5 to 99.5 percentiles of their NIfTI volume": reading.percentiles,
        "inverted, since their DICOM file says that low values are white": reading.inverted,
    }
    parts += [f"{_pictures(count)} {how}" for how, count in scans.items() if count]
    return [f"Reading {name}: {'; '.join(parts)}."] if parts else []


def _pictures(count: int) -> str:
    return f"{count:,} picture{'' if count == 1 else 's'}"


def _plain(row: Row, members: int) -> str:
    """The extraction by plain sampling, or by images from elsewhere."""
    images = image_phrase(row) if from_elsewhere(row) else f"{row.n_generated:,} images"
    guided, none = ("", "None") if from_elsewhere(row) else ("Without guidance, ", "none")
    if row.ams_at_most is not None:
        bound = f"at most {percent(row.ams_at_most)} of such images do"
        return f"{guided}{none} of {images} matches a training image: {bound}."
    return (
        f"{guided}{percent(row.ams)} of {images} match a training image: {row.unique:,} of the {members:,} members "
        "were matched."
    )


def _attacked(row: Row, plain: Row | None) -> str:
    """The extraction by the best run of an attack, compared with plain sampling."""
    attack, compared, fewer = get_attack(row.attack), "", ""
    guided = Run(attack=row.attack, scale=row.guidance_scale).steered or not attack.adapted
    without = f"without {'it' if guided else 'them'}"
    if plain and plain.ams > 0:
        times = row.ams / plain.ams
        compared = f", {times:.1f} times the rate" if times > 1 else f", no more than {without} ({times:.2f} times)"
    if plain and row.unique < plain.unique:
        fewer = f", fewer than {without}"
    result = f"{percent(row.ams)} match{compared}: {row.unique} members were matched{fewer}."
    if attack.seeks_modes:
        asked = "" if isinstance(row.requests, UnsetType) else f" and {row.requests} requests to an API"
        return f"By {run_phrase(row)}, at {row.network_calls} calls of the network{asked} for each image, {result}"
    if attack.searches:
        return f"By {run_phrase(row)}, with {row.n_generated:,} queries, {result}"
    if not guided:
        return f"Sampled with {attack.guide}, without guidance, {result}"
    return f"Guided by {attack.guide} at its best scale ({row.guidance_scale:g}), {result}"


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
    grey = [name for name, one in sets.items() if not one.colour]
    if 0 < len(grey) < len(sets):
        named = " and ".join(SETS[name] for name in grey)
        listed.append(f"Grey against colours: {named} are grey, the others have colours, and such images match little")
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
