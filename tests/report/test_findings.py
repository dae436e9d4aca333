"""The findings of an audit, for results that are known."""

from pathlib import Path

import pytest
from made_results import audit, dataset, image_set, matched, results

from side_jax.measure.records import Divergence, Estimate, Reading
from side_jax.report import ending, findings


def said(*rows):
    return findings.sentences(audit(*rows), 0.95)


PLAIN, SIDE = matched("unconditional", 30, 0.0), matched("side", 120)


def test_the_gain_survives_where_random_labels_do_worse():
    control = said(PLAIN, SIDE, matched("side_random", 40))[-2]
    assert "at most 4.00% match" in control
    assert "the gain of SIDE survives this control" in control
    assert "+5.6" in control  # 8 points, with Newcombe's interval


def test_the_gain_does_not_survive_where_random_labels_do_as_well():
    assert "does not survive" in said(PLAIN, SIDE, matched("side_random", 110))[-2]
    assert "does not survive" in said(PLAIN, SIDE, matched("side_random", 300))[-2]


def test_without_a_gain_there_is_nothing_to_explain():
    control = said(PLAIN, matched("side", 35), matched("side_random", 10))[-2]
    assert "gains nothing significant" in control
    assert "survive" not in control


def test_a_conditional_model_is_said_to_be_guided_by_its_own_labels():
    first, second, control = said(PLAIN, matched("conditional_model", 90, 2.0))
    assert first.startswith("Without guidance, 3.00%")
    assert second.startswith("Guided by its own labels at its best scale (2), 9.00% match, 3.0 times the rate")
    assert control.startswith("Control: of the same 1,000 images")


def test_adapters_without_guidance_are_not_said_to_guide():
    first = "Sampled with the labels of low-rank adapters, without guidance, 2.00% match, no more than without them"
    assert said(PLAIN, matched("side_lora", 20, 1.0))[1].startswith(first)
    other = "Guided by the labels of low-rank adapters at its best scale (3), 2.00% match, no more than without it"
    assert said(PLAIN, matched("side_lora", 20, 3.0))[1].startswith(other)


def test_where_nothing_matches_the_first_sentence_gives_a_bound():
    assert said(matched("samples", 0))[0].startswith("None of the 1,000 samples given matches a training image:")
    assert said(matched("unconditional", 0))[0].startswith("Without guidance, none of 1,000 images matches")


def test_a_control_that_was_not_run_is_missed():
    assert "Not controlled" in said(PLAIN, SIDE)[-2]
    assert not any("ontrolled" in sentence for sentence in said(PLAIN))


def test_the_control_is_compared_at_its_own_best_scale():
    rows = [matched("side_random", hits, scale) for scale, hits in ((1.0, 115), (3.0, 50), (10.0, 20))]
    assert "at most 11.50% match" in said(PLAIN, SIDE, *rows)[-2]


@pytest.mark.parametrize(
    ("on_x", "on_x0", "words"), [(50, 20, "baseline reaches 5.00%"), (20, 50, "clean image) reaches 5")]
)
def test_side_is_set_against_the_better_baseline(on_x, on_x0, words):
    assert words in said(PLAIN, matched("conditional", on_x), matched("conditional_x0", on_x0), SIDE)[2]


def test_mode_seeking_has_its_start_its_rounds_and_its_calls():
    seeking = {"start": "side", "noise_level": 0.1, "rounds": 20, "network_calls": 30}
    sentence = said(PLAIN, SIDE, matched("modes", 200, 3.0, **seeking))[2]
    phrase = (
        "By mode seeking from SIDE at guidance scale 3 (20 rounds at noise 0.1), at 30 calls of the network for each"
    )
    assert sentence.startswith(f"{phrase} image, 20.00% match, 6.7 times the rate")
    noise = said(PLAIN, matched("modes", 200, 0.0, **seeking | {"start": "noise"}))[1]
    assert "By mode seeking from Gaussian noise (20 rounds at noise 0.1)" in noise


def test_a_control_alone_has_its_held_out_rate():
    assert said(matched("side_heldout", 30))[-1].startswith("Control: of the same 1,000 images")


def divergence(members, heldout, error=1.0, unsolved=0):
    """As the evaluation records it."""

    def estimate(value, error):
        return None if unsolved else Estimate(estimate=value, standard_error=error)

    sides = {"members": estimate(members, error), "heldout": estimate(heldout, error)}
    difference = estimate(heldout - members, error * 2**0.5)
    return Divergence(epsilon=0.05, draws=64, unsolved=unsolved, difference=difference, **sides)


def last(**found):
    return findings.sentences(audit(PLAIN, divergence=divergence(**found)), 0.95)[-1]


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


def test_grey_images_against_colours_are_named():
    data = dataset(heldout=90, heldout_equal_dropped=0, heldout_near_dropped=0)
    sets = {name: image_set(90, colour=name == "samples") for name in ("samples", "members", "heldout")}
    said = findings.account(results([matched("samples", 1)], dataset=data, sets=sets), 0.05)
    assert "Grey against colours: the members and the held-out images are grey" in said
    alike = {name: image_set(90) for name in sets}
    assert "Grey" not in findings.account(results([matched("samples", 1)], dataset=data, sets=alike), 0.05)


READ = Reading(
    passed_over={".csv": 1, "hidden": 2}, rotated=3, animated=1, reshaped=1000, sixteen_bit=4, orientation="ignore"
)


def test_what_was_not_read_as_it_is_stored_stands_beside_the_verdict():
    """Of a run and of images alone; of a dataset that was read as it is, nothing is said."""
    text = (
        "not read: 1 .csv, 2 hidden; only the first frame of 1 picture; 3 pictures left unturned that EXIF data says "
        "to turn (if the model's trainer did otherwise, set data.orientation=apply); 1,000 pictures cropped to squares "
        "(if the trainer did otherwise, set data.fit=squash); 4 pictures of 16 bits, reduced to 8."
    )
    of_run = ending.text(audit(PLAIN, dataset=dataset(reading=READ)), 0.95, Path("index.html"))
    assert f"Reading the dataset: {text}" in of_run
    sets = {name: image_set(90, reading=READ if name == "members" else Reading()) for name in findings.SETS}
    data = dataset(heldout_equal_dropped=0, heldout_near_dropped=0)
    alone = ending.text(results([matched("samples", 1)], dataset=data, sets=sets), 0.95, Path("index.html"))
    assert f"Reading the members: {text}" in alone
    assert "Reading the samples" not in alone
    assert "Reading" not in ending.text(audit(PLAIN, dataset=dataset(reading=Reading())), 0.95, Path("index.html"))
