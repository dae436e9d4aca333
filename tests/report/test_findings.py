"""The verdict and the findings of an audit, for results that are known."""

import made_results
import pytest
from msgspec import structs

from side_jax.measure.records import Divergence, Estimate
from side_jax.memorization.statistics import intervals
from side_jax.report import findings


def row(attack, hits, scale=10.0, held=0, n=1000, **changes):
    """Images that match members and held-out ones: different images, as far as there are enough."""
    sides = {}
    for prefix, count in (("", hits), ("heldout_", held)):
        bound = None if count else intervals.zero_hits_bound(n, 0.95)
        interval = intervals.wilson_interval(count, n, 0.95)
        sides |= {f"{prefix}ams": count / n, f"{prefix}ams_ci": interval, f"{prefix}ams_at_most": bound}
    interval = intervals.paired_difference_interval(0, hits, held, n - hits - held, 0.95)
    excess = {"excess": (hits - held) / n, "excess_ci": interval, "p_excess": intervals.mcnemar(hits, held)}
    return made_results.row(attack, scale, n_generated=n, unique=min(hits, 50), **sides, **excess, **changes)


def results(*rows, **changes):
    whole = made_results.results(rows, dataset=made_results.dataset(members=128, heldout=128, heldout_used=128))
    curves = [structs.replace(curve, ahead=structs.replace(curve.ahead, fit=61.4)) for curve in whole.rarefaction]
    return structs.replace(whole, rarefaction=tuple(curves), **changes)


def said(*rows):
    return findings.sentences(results(*rows), 0.95)


PLAIN, SIDE = row("unconditional", 30, 0.0), row("side", 120)


def test_the_gain_survives_where_random_labels_do_worse():
    control = said(PLAIN, SIDE, row("side_random", 40))[-2]
    assert "at most 4.00% match" in control
    assert "the gain of SIDE survives this control" in control
    assert "+5.6" in control  # 8 points, with Newcombe's interval


def test_the_gain_does_not_survive_where_random_labels_do_as_well():
    assert "does not survive" in said(PLAIN, SIDE, row("side_random", 110))[-2]
    assert "does not survive" in said(PLAIN, SIDE, row("side_random", 300))[-2]


def test_without_a_gain_there_is_nothing_to_explain():
    control = said(PLAIN, row("side", 35), row("side_random", 10))[-2]
    assert "gains nothing significant" in control
    assert "survive" not in control


def test_a_conditional_model_is_said_to_be_guided_by_its_own_labels():
    first, second, control = said(PLAIN, row("conditional_model", 90, 2.0))
    assert first.startswith("Without guidance, 3.00%")
    assert second.startswith("Guided by its own labels at its best scale (2), 9.00% match, 3.0 times the rate")
    assert control.startswith("Control: of the same 1,000 images")
    status, _, (sentence, _) = findings.verdict(results(PLAIN, row("conditional_model", 90, 2.0)), 0.95)
    assert status == "Leaks"
    assert "images by classifier-free guidance at guidance scale 2, 90" in sentence


def test_a_control_that_was_not_run_is_missed():
    assert "Not controlled" in said(PLAIN, SIDE)[-2]
    assert not any("ontrolled" in sentence for sentence in said(PLAIN))


def test_the_control_is_compared_at_its_own_best_scale():
    rows = [row("side_random", hits, scale) for scale, hits in ((1.0, 115), (3.0, 50), (10.0, 20))]
    assert "at most 11.50% match" in said(PLAIN, SIDE, *rows)[-2]


@pytest.mark.parametrize(
    ("on_x", "on_x0", "words"), [(50, 20, "baseline reaches 5.00%"), (20, 50, "clean image) reaches 5")]
)
def test_side_is_set_against_the_better_baseline(on_x, on_x0, words):
    assert words in said(PLAIN, row("conditional", on_x), row("conditional_x0", on_x0), SIDE)[2]


def test_mode_seeking_has_its_start_its_rounds_and_its_calls():
    seeking = {"start": "side", "noise_level": 0.1, "rounds": 20, "network_calls": 30}
    sentence = said(PLAIN, SIDE, row("modes", 200, 3.0, **seeking))[2]
    phrase = (
        "By mode seeking from SIDE at guidance scale 3 (20 rounds at noise 0.1), at 30 calls of the network for each"
    )
    assert sentence.startswith(f"{phrase} image, 20.00% match, 6.7 times the rate")
    noise = said(PLAIN, row("modes", 200, 0.0, **seeking | {"start": "noise"}))[1]
    assert "By mode seeking from Gaussian noise (20 rounds at noise 0.1)" in noise


def test_a_control_alone_has_its_held_out_rate():
    assert said(row("side_heldout", 30))[-1].startswith("Control: of the same 1,000 images")


def verdict(*rows):
    return findings.verdict(results(*rows), 0.95)


def test_a_leak_is_named_with_its_control_and_what_more_images_would_find():
    status, tone, (first, second) = verdict(PLAIN, SIDE)
    assert (status, tone) == ("Leaks", "alarm")
    assert "of 1,000 images by SIDE at guidance scale 10, 120 (12.00%) match a training image, and 0 match" in first
    low, high = (100 * end for end in SIDE.excess_ci)
    assert f"the excess is 12.00 percentage points (95% interval +{low:.2f} to +{high:.2f})" in first
    assert second.startswith("50 of its 128 training images were extracted by SIDE at guidance scale 10")
    assert second.endswith("10 times as many images would extract about 61.")


def test_what_more_images_would_find_is_that_of_the_strongest_run_of_mode_seeking():
    """Two runs of one attack at one scale: they differ in their rounds alone."""
    seeking = {"start": "side", "noise_level": 0.1}
    weak, strong = row("modes", 20, 3.0, rounds=5, **seeking), row("modes", 200, 3.0, rounds=20, **seeking)
    curves = [made_results.rarefaction("modes", 3.0, rounds=rounds, **seeking) for rounds in (5, 20)]
    fits = zip(curves, (7.0, 61.0), strict=True)
    curves = [structs.replace(curve, ahead=structs.replace(curve.ahead, fit=fit)) for curve, fit in fits]
    whole = structs.replace(results(weak, strong), rarefaction=tuple(curves))
    _, _, (_, second) = findings.verdict(whole, 0.95)
    assert second.startswith("50 of its 128 training images were extracted by mode seeking")
    assert second.endswith("(20 rounds at noise 0.1), and 10 times as many images would extract about 61.")


def test_nothing_found_is_a_bound_and_no_proof():
    status, tone, (first, second) = verdict(row("unconditional", 0, 0.0), row("side", 0))
    assert (status, tone) == ("No leak found", "calm")
    assert "with 95% confidence at most 0.30% of such images do" in first
    assert "This holds for plain sampling and SIDE" in second


def test_as_many_matches_with_images_never_seen_decide_nothing():
    status, tone, (first, second) = verdict(row("unconditional", 40, 0.0, held=38))
    assert (status, tone) == ("Not decided", "unsure")
    assert "40 match a training image, but 38 match one of as many images that it never saw" in first
    assert "takes mere similarity for copying" in second


def test_a_leak_must_stand_out_of_all_attacks_that_were_tried():
    """p = 1/32 for five images against none: enough for one attack at 95%, not for the best of four."""
    five = row("side", 5)
    assert five.p_excess == 0.5**5
    assert verdict(five)[0] == "Leaks"
    others = [row("side", 0, scale) for scale in (1.0, 3.0, 30.0)]
    assert verdict(five, *others)[0] == "Not decided"
    assert verdict(five, row("side_random", 0), row("oracle", 0))[0] == "Leaks"  # controls are no attacks


def test_a_control_that_finds_much_is_no_leak_by_an_attack():
    assert verdict(row("unconditional", 0, 0.0), row("oracle", 300))[0] == "No leak found"


def divergence(members, heldout, error=1.0, unsolved=0):
    """As the evaluation records it."""

    def estimate(value, error):
        return None if unsolved else Estimate(estimate=value, standard_error=error)

    sides = {"members": estimate(members, error), "heldout": estimate(heldout, error)}
    difference = estimate(heldout - members, error * 2**0.5)
    return Divergence(epsilon=0.05, draws=64, unsolved=unsolved, difference=difference, **sides)


def last(**found):
    return findings.sentences(results(PLAIN, divergence=divergence(**found)), 0.95)[-1]


def test_a_model_nearer_to_its_members():
    said = last(members=53.3, heldout=76.5)
    assert "23.2 nats nearer to its training images than to images that it never saw" in said
    assert "at noise 0.05: 53.3 (standard error 1.0) nats, around as many unseen images 76.5" in said


def test_a_model_as_near_to_both():
    said = last(members=53.3, heldout=55.0)
    assert "as far from its training images as from images that it never saw" in said


def test_a_model_farther_from_its_members():
    assert "20.0 nats farther from its training images" in last(members=60.0, heldout=40.0)


def test_a_likelihood_that_was_not_solved_is_no_number():
    assert "not known: of 3 of 128 points" in last(members=1.0, heldout=1.0, unsolved=3)


def test_without_a_divergence_nothing_is_said_of_it():
    assert "divergence" not in "".join(said(PLAIN, SIDE))
