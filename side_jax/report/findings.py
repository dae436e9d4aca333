"""What the figures of an audit say, in sentences: the verdict for people who read nothing else, and the findings."""

from typing import Any

from side_jax.attacks.table import ATTACKS, GIVEN, PLAIN, attack_of
from side_jax.memorization.statistics.intervals import difference_interval, mcnemar
from side_jax.report import divergence_text

Row = dict[str, Any]


def percent(rate: float) -> str:
    """A rate in [0, 1] for people: 0.0254 -> 2.54%."""
    return f"{100 * rate:.2f}%"


def points(low: float, high: float) -> str:
    """An interval of a difference of rates: percentage points with their signs."""
    return f"{100 * low:+.2f} to {100 * high:+.2f}"


def share(row: Row, side: str = "") -> str:
    """AMS with its interval; where nothing matched, the bound that this leaves."""
    if row[f"{side}ams_at_most"] is not None:
        return f"0 (at most {percent(row[f'{side}ams_at_most'])})"
    low, high = row[f"{side}ams_ci"]
    return f"{percent(row[f'{side}ams'])} ({percent(low)} to {percent(high)})"


def headline(results: dict[str, Any]) -> list[Row]:
    """The rows of the first metric's nearest band."""
    rows = results["rows"]
    return [row for row in rows if row["metric"] == rows[0]["metric"] and row["level"] == "high"]


def best(rows: list[Row], attack: str) -> Row | None:
    """The row of an attack's guidance scale with the highest AMS, the smaller scale on ties."""
    own = [row for row in rows if row["attack"] == attack]
    return max(own, key=lambda row: (row["ams"], -row["guidance_scale"]), default=None)


def attacks_of(rows: list[Row]) -> list[Row]:
    """The rows of attacks; of controls, only where there is nothing else."""
    return [row for row in rows if not attack_of(row["attack"]).control] or rows


def called(row: Row) -> str:
    """The attack, for people."""
    name = attack_of(row["attack"]).called
    return name + (f" at guidance scale {row['guidance_scale']:g}" if row["guidance_scale"] else "")


def _given(row: Row) -> bool:
    """Whether the images came from elsewhere, and no attack of ours made them."""
    return row["attack"] == GIVEN.name


def drawn(row: Row) -> str:
    """The images of a run, for people."""
    n = f"{row['n_generated']:,}"
    return f"the {n} samples given" if _given(row) else f"{n} images by {called(row)}"


def _match(count: int) -> str:
    return f"{count:,} match{'es' if count == 1 else ''}"


def verdict(results: dict[str, Any], confidence: float) -> tuple[str, str, tuple[str, str]]:
    """(status, tone, two sentences).

    A leak is found where, of an attack's images, more match a member than match one of equally many held-out images,
    beyond chance: McNemar's one-sided exact test of the same images against both sides, at the level 1 - confidence
    over the number of attacks and scales that were tried (Bonferroni).
    """
    rows = attacks_of(headline(results))
    top = min(rows, key=lambda row: (row["p_excess"], -row["excess"]))
    members, unseen = (results["dataset"][name] for name in ("members", "heldout_used"))
    hits, held = (round(top[f"{side}ams"] * top["n_generated"]) for side in ("", "heldout_"))
    level = f"{100 * confidence:g}%"
    if top["p_excess"] * len(rows) < 1 - confidence:
        equal = "against as many training images " if unseen < members else ""
        first = (
            f"The model gives away images it was trained on: of {drawn(top)}, {hits:,} ({percent(top['ams'])}) "
            f"{'matches' if hits == 1 else 'match'} a training image, and {_match(held)} one of {unseen:,} comparable "
            f"images that it never saw; {equal}the excess is {100 * top['excess']:.2f} percentage points ({level} "
            f"interval {points(*top['excess_ci'])})."
        )
        strongest = max(rows, key=lambda row: row["unique"])
        by = "" if _given(strongest) else f" by {called(strongest)}"
        second = f"{strongest['unique']:,} of its {members:,} training images came out{by}{_more(results, strongest)}."
        return "Leaks", "alarm", (first, second)
    if wrong := _wrong_sets(rows, unseen, confidence):
        return "Not decided", "unsure", wrong
    if not hits and not held:
        first = (
            f"No training image was found: none of {drawn(top)} matches one, so that with {level} confidence at most "
            f"{percent(top['ams_at_most'])} of such images do."
        )
        second = (
            f"This holds for {_listed(rows)}, for this number of images and this measure of likeness; other attacks, "
            "or more images, may find some."
        )
        if _given(top):
            second = (
                "This holds for images made as these were, for this number of them and this measure of likeness; more "
                "images, or an attack on the model itself, may find some."
            )
        return "No leak found", "calm", (first, second)
    among = "as many" if unseen == members else f"{unseen:,}"
    first = (
        f"Whether the model gives away training images is not decided: of {drawn(top)}, {_match(hits)} a training "
        f"image, but {_match(held)} one of {among} images that it never saw, and chance explains the difference."
    )
    second = (
        "Matches of images that the model never saw show that this measure takes likeness for copying here; draw more "
        "images, or choose a stricter threshold before looking again."
        if held
        else "So few matches allow no conclusion; draw more images."
    )
    return "Not decided", "unsure", (first, second)


def _wrong_sets(rows: list[Row], unseen: int, confidence: float) -> tuple[str, str] | None:
    """Two sentences where an attack's images match held-out images more than members, beyond chance; else None.

    McNemar's test as in `verdict`, the other way round; no image is taken to match both sides, which is conservative.
    """
    row = min(rows, key=lambda row: row["excess"])
    n = row["n_generated"]
    held, hits, equal = (
        round(rate * n) for rate in (row["heldout_ams"], row["ams"], row["excess"] + row["heldout_ams"])
    )
    if mcnemar(held, equal) * len(rows) >= 1 - confidence:
        return None
    few = f"only {_match(hits)}" if hits else "none matches"
    first = (
        f"Something is wrong with the sets: of {drawn(row)}, {_match(held)} one of {unseen:,} images that the model is "
        f"said never to have seen, but {few} a training image; chance does not explain that."
    )
    second = (
        "Before anything is concluded, check that members and held-out images are not swapped, and that the model was "
        "not trained on the held-out images, or on near copies of them."
    )
    return first, second


def _listed(rows: list[Row]) -> str:
    names = list(dict.fromkeys(called(row).partition(" at ")[0] for row in rows))
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"


def _more(results: dict[str, Any], row: Row) -> str:
    """What ten times the images would find, by the fit of the rarefaction curve."""
    same = ("attack", "guidance_scale")
    seen = next((s for s in results["rarefaction"] if all(s[key] == row[key] for key in same)), None)
    if not seen or seen["ahead"]["fit"] is None:
        return ""
    return f", and {seen['ahead']['factor']} times as many images would bring out about {seen['ahead']['fit']:,.0f}"


def in_plain_words(results: dict[str, Any], confidence: float, page: object) -> str:
    """What a command prints at its end: the verdict, the findings, and where the page is."""
    status, _, said = verdict(results, confidence)
    lines = [f"  {i}. {text}" for i, text in enumerate(sentences(results, confidence), start=1)]
    return "\n".join(["", f"{status}. {' '.join(said)}", *lines, f"Report: {page}"])


def sentences(results: dict[str, Any], confidence: float) -> list[str]:
    """The most important figures in plain words: what leaks unguided, what guidance adds, and the controls."""
    rows = headline(results)
    members = results["dataset"]["members"]
    plain = best(rows, PLAIN.name) or best(rows, GIVEN.name)
    bests = {name: row for name, attack in ATTACKS.items() if attack.guided and (row := best(rows, name))}
    attacks = [row for name, row in bests.items() if not (ATTACKS[name].control or ATTACKS[name].baseline)]
    baselines = [row for name, row in bests.items() if ATTACKS[name].baseline]
    baseline = max(baselines, key=lambda row: row["ams"], default=None)
    said = []
    if plain:
        how = "" if _given(plain) else "Sampled as it is, "
        of = drawn(plain) if _given(plain) else f"{plain['n_generated']:,} images"
        said.append(
            f"{how}{percent(plain['ams'])} of {of} match a training image: "
            f"{plain['unique']:,} of the {members:,} members came out."
        )
    said += [_guided(row, plain) for row in attacks or ([baseline] if baseline else [])]
    if attacks and baseline:
        name = attack_of(baseline["attack"]).called
        said[-1] += f" {name[0].upper()}{name[1:]} reaches {percent(baseline['ams'])} at its best."
    for row in attacks if plain else ():
        if control := ATTACKS[row["attack"]].random_control:
            said.append(_random_control(row, plain, best(rows, control), confidence))
    shown = [row for row in (*attacks, baseline, plain) if row]
    strongest = max(shown, key=lambda row: row["ams"], default=rows[0])
    said.append(_heldout_control(strongest, results["dataset"]["heldout_used"], confidence))
    if results.get("divergence"):
        said.append(divergence_text.sentence(results["divergence"]))
    if plain and _given(plain):
        said += _other_measures(results["rows"], plain)
    return said


def _guided(row: Row, plain: Row | None) -> str:
    """What a guided attack finds at its best scale, compared with plain sampling."""
    compared = fewer = ""
    if plain and plain["ams"] > 0:
        times = row["ams"] / plain["ams"]
        compared = f", {times:.1f} times the rate" if times > 1 else f", NO more than without it ({times:.2f} times)"
    if plain and row["unique"] < plain["unique"]:
        fewer = ", fewer than without it"
    return (
        f"Guided by {attack_of(row['attack']).guide} at its best scale ({row['guidance_scale']:g}), "
        f"{percent(row['ams'])} match{compared}: {row['unique']} members came out{fewer}."
    )


def _other_measures(rows: list[Row], headline: Row) -> list[str]:
    """One sentence, of the same images by the other measures and the calibrated threshold; none where there is none."""
    wanted = [(headline["metric"], "calibrated")]
    wanted += [
        (row["metric"], "high") for row in rows if row["metric"] != headline["metric"] and row["level"] == "high"
    ]
    found = {(row["metric"], row["level"]): row for row in rows}
    listed = [
        f"{metric}{' with a calibrated threshold' if level == 'calibrated' else ''} {percent(row['ams'])} and "
        f"{percent(row['heldout_ams'])}"
        for metric, level in wanted
        if (row := found.get((metric, level)))
    ]
    return [f"By other measures the shares that match members and held-out images: {'; '.join(listed)}."] * bool(listed)


def account(results: dict[str, Any], near: float) -> str:
    """Of an audit of images alone, what was compared and what was left out.

    Args:
      results: results.json.
      near: RMSE below which held-out images were left out.
    """
    data, sets = results["dataset"], results["sets"]
    members, heldout, used = (data[name] for name in ("members", "heldout", "heldout_used"))
    said = {
        "Samples that repeat an earlier one": sets["samples"]["repeats"],
        "Left out, members that equal another": sets["members"]["repeats"],
        "Left out, held-out images that equal another": sets["heldout"]["repeats"],
        "Left out, held-out images that equal a member": data["heldout_equal_dropped"],
        f"Left out, held-out images nearer than {near:g} (RMSE) to a member": data["heldout_near_dropped"],
        "Left out, damaged files": sum(about["damaged"] for about in sets.values()),
    }
    listed = [f"Compared: {sets['samples']['images']:,} samples, {members:,} members, {used:,} held-out images"]
    listed += [f"{what}: {count:,}" for what, count in said.items() if count]
    if used < heldout:
        listed.append(f"The control is {used:,} of {heldout:,} held-out images, drawn at random; all set thresholds")
    return ". ".join(listed) + "."


def _heldout_control(row: Row, heldout: int, confidence: float) -> str:
    level = f"{100 * confidence:g}%"
    low, high = row["heldout_ams_ci"]
    bound = row["heldout_ams_at_most"]
    spread = (
        f"{level} bound {percent(bound)}"
        if bound is not None
        else f"{level} interval {percent(low)} to {percent(high)}"
    )
    return (
        f"Control: of the same {row['n_generated']:,} images, {percent(row['heldout_ams'])} match one of {heldout} "
        "images "
        f"that the model never saw ({spread})."
    )


def _random_control(attacked: Row, plain: Row, control: Row | None, confidence: float) -> str:
    """Whether an attack's gain survives the control of random labels, in words; each row is of its best scale."""
    attack = attack_of(attacked["attack"])
    if control is None:
        return (
            "Not controlled: whether random labels would do as well is not known; add "
            f"{attack.random_control} to extract.attacks."
        )

    def ahead_of(other: Row) -> tuple[float, float]:
        trials = attacked["n_generated"], other["n_generated"]
        hits = round(attacked["ams"] * trials[0]), round(other["ams"] * trials[1])
        return difference_interval(hits, trials, confidence)

    at = f"Control: with random pseudo-labels of the same sizes, at most {percent(control['ams'])} match"
    if ahead_of(plain)[0] <= 0:
        return (
            f"{at}; {attack.called} itself gains nothing significant over no guidance that a control would have to "
            "explain."
        )
    low, high = (100 * end for end in ahead_of(control))
    holds = "survives" if low > 0 else "does NOT survive"
    return (
        f"{at}: the gain of {attack.called} {holds} this control ({100 * confidence:g}% interval of the difference "
        f"{low:+.2f} to {high:+.2f} points)."
    )
