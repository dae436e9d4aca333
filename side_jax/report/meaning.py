"""What a verdict means for people who have to act on it, and how sure it is."""

import itertools
from collections.abc import Sequence

from msgspec import UNSET

from side_jax.attacks.table import MODES, PLAIN, get_attack
from side_jax.measure.positive_control import PHRASES
from side_jax.measure.records import Control, Results
from side_jax.report.phrases import best, from_elsewhere, headline, listed, percent
from side_jax.report.verdict import CALM, LEAKS, attack_rows, significant

SEEN = 0.9  # share of distorted copies from which on a measure counts as seeing them


def means(results: Results, status: str, confidence: float) -> tuple[str, ...]:
    """What the verdict means.

    Args:
      results: of the audit.
      status: of the verdict.
      confidence: of its test.
    """
    rows = attack_rows(headline(results))
    if status == LEAKS[0]:
        return (_reach(results, confidence), _treat(), _lowers(results))
    if status == CALM[0]:
        images = sum(row.n_generated for row in rows)
        return (
            f"In the {images:,} images that were looked at, nothing came out. That is no proof: more images or another "
            "attack may find what these did not, and copies that are not recognised (see below) may have come out.",
        )
    return (
        "Don't release the model because of this result, and don't accuse it either: the audit could not tell. The "
        "sentence above says what would let it.",
    )


def _reach(results: Results, confidence: float) -> str:
    """Who can get the images out."""
    rows = headline(results)
    if any(from_elsewhere(row) for row in rows):
        return "Copies of training images are among the samples given. Whoever has these samples has the copies."
    asked = [row for row in rows if get_attack(row.attack).needs_api_only and significant(results, row, confidence)]
    if asked:
        by = "" if best(asked, PLAIN.name) else f" by {get_attack(asked[0].attack).phrase}"
        return (
            f"Whoever can ask the model for images gets copies of training images{by}, without its weights and without "
            "the data. Whoever holds the weights gets more."
        )
    return (
        "Whoever holds the weights gets copies of training images out of the model, without the data. By plain "
        "sampling alone, too few came out to tell them from chance."
    )


def _treat() -> str:
    return (
        "If the training images are confidential, treat the model as confidential too: don't publish it and don't hand "
        "it on. Nothing that is done to a trained model is known to remove what it holds; it has to be trained anew."
    )


def _lowers(results: Results) -> str:
    """What would lower extraction, with what applies to this model."""
    pairs = results.dataset.member_near_pairs
    first = (
        f"{pairs:,} pair{'s' if pairs > 1 else ''} of training images nearly equal each other; remove the repeats."
        if pairs
        else "No two training images nearly equal each other, so removing repeats would change nothing."
    )
    return (
        f"What lowers this: {first} Then train on more images, or stop earlier; the report has a table of what that "
        "did elsewhere."
    )


def sure(results: Results, status: str, confidence: float) -> tuple[str, ...]:
    """How sure the verdict is, and what it can't see; arguments as of `means`."""
    level = f"{100 * (1 - confidence):.2g}%"
    text = []
    if status == LEAKS[0]:
        text.append(
            f"A model that holds no training image gets this verdict in at most {level} of audits, however many "
            "attacks are run."
        )
    else:
        text.append(
            f"The word Leaks is kept for what chance explains in at most {level} of audits, so that a model that leaks "
            "little can miss it."
        )
    text += _seen(results.controls, headline(results)[0].metric)
    ran = {row.attack for row in results.rows}
    if not any(from_elsewhere(row) for row in headline(results)):
        if MODES.name not in ran:
            text.append(f"The strongest attack that is known here, {MODES.phrase}, was not run.")
    else:
        text.append(
            "Only these samples were looked at. An attacker who holds the model can draw more, and better, ones."
        )
    if results.dataset.members_untested is not UNSET and results.dataset.members_untested:
        text.append(
            f"{results.dataset.members_untested:,} training images could not be tested, since unseen images nearly "
            "equal them."
        )
    return tuple(text)


def _seen(controls: Sequence[Control], metric: str) -> list[str]:
    """Up to which distortion copies are recognised, by the positive control; nothing if it did not run."""
    known, missed = [], []
    for kind, phrase in PHRASES.items():
        own = [one for one in controls if (one.distortion, one.metric, one.level) == (kind, metric, "high")]
        changed = sorted((one for one in own if one.strength), key=lambda one: one.strength)
        good = list(itertools.takewhile(lambda one: one.found >= SEEN, changed))
        if good:
            known.append(phrase(good[-1].strength))
        elif changed:
            missed.append(f"{phrase(changed[0].strength)} ({percent(changed[0].found)} seen)")
    text = [f"At least {SEEN:.0%} of copies are still recognised after {listed(known)}."] if known else []
    return text + ([f"Most copies are missed after {listed(missed)}."] if missed else [])
