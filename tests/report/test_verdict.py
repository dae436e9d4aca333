"""The verdict of audits whose truth is known: from figures, and from images by the whole measurement."""

import numpy as np
import pytest
from made_results import audit, control, dataset, likeness, matched, rarefaction
from msgspec import UNSET, structs

from side_jax.commands import sample_audit
from side_jax.config import default_config
from side_jax.measure.records import Together
from side_jax.report import writer
from side_jax.report.verdict import verdict
from side_jax.workdir import files

PLAIN, SIDE = matched("unconditional", 30, 0.0), matched("side", 120)
NOTHING = matched("unconditional", 0, 0.0), matched("side", 0)


def said(*rows, **changes):
    return verdict(audit(*rows, **changes), 0.95)


def test_a_leak_is_named_with_its_control_and_what_more_images_would_find():
    status, tone, (first, second) = said(PLAIN, SIDE)
    assert (status, tone) == ("Leaks", "alarm")
    assert "of 1,000 images by SIDE at guidance scale 10, 120 (12.00%) match a training image, and 0 match" in first
    assert first.endswith("Chance does not explain that (p < 0.001).")
    assert second.startswith(
        "50 of its 128 training images were extracted by SIDE at guidance scale 10 (95% interval 42"
    )
    assert second.endswith("10 times as many images would extract about 61.")


def test_the_members_of_all_attacks_are_told_where_they_are_more():
    """And otherwise those of the strongest: the others found nothing that it had not found."""
    both = Together(runs=2, images=2000, unique=70, heldout_unique=4, unique_excess=66.0, unique_excess_ci=(55.2, 77.4))
    _, _, (_, second) = said(PLAIN, SIDE, together=both)
    assert second == (
        "66 of its 128 training images were extracted by all attacks together beyond the 4 that chance explains (95% "
        "interval 55 to 77); SIDE at guidance scale 10 alone extracted 50, and 10 times as many images would extract "
        "about 61."
    )
    alone = said(PLAIN, SIDE)
    assert said(PLAIN, SIDE, together=structs.replace(both, unique=50, unique_excess=50.0)) == alone
    assert said(PLAIN, SIDE, together=structs.replace(both, unique_excess=UNSET, unique_excess_ci=UNSET)) == alone
    uncertain = structs.replace(both, unique_excess_ci=(-3.0, 90.0))
    assert said(PLAIN, SIDE, together=uncertain)[2][1].startswith("How many of its 128 training images came out can't")


def test_the_leak_of_a_conditional_model_is_by_its_own_guidance():
    status, _, (first, _) = said(PLAIN, matched("conditional_model", 90, 2.0))
    assert status == "Leaks"
    assert "images by classifier-free guidance at guidance scale 2, 90" in first


def test_members_are_counted_without_those_that_chance_explains():
    row = matched("side", 300, held=20)
    _, _, (_, second) = said(row)
    assert second.startswith(
        "30 of its 128 training images were extracted by SIDE at guidance scale 10 beyond the 20 that"
    )
    curve = rarefaction("side", 10.0)
    curve = structs.replace(curve, ahead=structs.replace(curve.ahead, fit=90.0, chance=25.0))
    assert said(row, rarefaction=(curve,))[2][1].endswith("10 times as many images would extract about 65.")


def test_the_members_are_those_of_the_attack_that_found_most():
    """Not of the one with the most matches."""
    often, many = matched("side", 500), matched("unconditional", 300, 0.0)
    often, many = (
        structs.replace(one, unique=count, unique_excess=float(count), unique_excess_ci=(count - 5.0, count + 5.0))
        for one, count in ((often, 20), (many, 70))
    )
    _, _, (first, second) = said(many, often)
    assert "by SIDE at guidance scale 10, 500" in first
    assert second.startswith("70 of its 128 training images were extracted by plain sampling")


def test_members_that_chance_would_match_as_well_are_no_count():
    """Images that match everything: more of them are copies of members, but every reference is matched."""
    row = structs.replace(matched("side", 600, held=400), unique_excess=0.0, unique_excess_ci=(-4.0, 4.0))
    status, _, (_, second) = said(row)
    assert status == "Leaks"
    assert (
        "came out can't be told: 50 were matched by SIDE at guidance scale 10, and chance alone would match about 50"
        in (second)
    )


def test_what_more_images_would_find_is_that_of_the_strongest_run_of_mode_seeking():
    """Two runs of one attack at one scale: they differ in their rounds alone."""
    seeking = {"start": "side", "noise_level": 0.1}
    weak, strong = matched("modes", 20, 3.0, rounds=5, **seeking), matched("modes", 200, 3.0, rounds=20, **seeking)
    curves = [rarefaction("modes", 3.0, rounds=rounds, **seeking) for rounds in (5, 20)]
    fits = zip(curves, (7.0, 61.0), strict=True)
    curves = [structs.replace(curve, ahead=structs.replace(curve.ahead, fit=fit)) for curve, fit in fits]
    _, _, (_, second) = said(weak, strong, rarefaction=tuple(curves))
    assert second.startswith("50 of its 128 training images were extracted by mode seeking")
    assert "(20 rounds at noise 0.1)" in second
    assert second.endswith("10 times as many images would extract about 61.")


def test_nothing_found_is_a_bound_and_no_proof():
    status, tone, (first, second) = said(*NOTHING)
    assert (status, tone) == ("No leak found", "calm")
    assert "with 95% confidence at most 0.30% of such images do" in first
    assert "This holds for plain sampling and SIDE" in second


def test_what_the_positive_control_does_not_see_is_said():
    seen = control("noise", 0.1, found=0.9), control("crop", 0.02, found=0.6)
    missed = control("crop", 0.1, found=0.1), control("crop", 0.05, found=0.4), control("flip", 1.0, found=0.0)
    _, _, (_, second) = said(*NOTHING, controls=(*seen, *missed))
    assert "does not see copies cropped by 5% of a side or more and mirrored copies (see the positive" in second
    assert "noise" not in second
    blurred = control("recompression", 75.0, found=0.2), control("recompression", 90.0, found=0.0)
    _, _, (_, second) = said(*NOTHING, controls=blurred)
    assert "does not see copies recompressed at JPEG quality 25 or lower (see the positive" in second


def test_members_that_nearly_equal_others_are_said_to_be_hidden():
    data = dataset(member_near_pairs=7)
    _, _, (_, second) = said(*NOTHING, dataset=data)
    assert "does not see copies of members that nearly equal other members" in second


def test_a_match_of_another_attack_is_not_passed_over():
    """The run with the smallest p matched nothing, a second one three images."""
    status, _, (first, _) = said(*NOTHING, matched("modes", 3, 0.0, held=3))
    assert status == "Not decided"
    assert "can't be told" in first or "cannot be told" in first


@pytest.mark.parametrize(
    ("seeing", "words"),
    [
        (
            matched("unconditional", 300, 0.0, metric="rmse"),
            "rmse on 1,000 images by plain sampling sees it, normalized_l2",
        ),
        (
            matched("side", 40, metric="normalized_l2", level="calibrated"),
            "the calibrated threshold of normalized_l2 on",
        ),
        (matched("oracle", 300, metric="normalized_l2"), "normalized_l2 on 1,000 images by the oracle"),
    ],
)
def test_what_any_measure_sees_is_not_passed_over(seeing, words):
    rows = [structs.replace(one, metric="normalized_l2") for one in NOTHING]
    status, tone, (first, second) = said(*rows, seeing)
    assert (status, tone) == ("Not decided", "unsure")
    assert words in first
    assert "ook at its pairs" in second


def test_an_excess_is_corrected_for_the_number_of_measures():
    rows = [structs.replace(one, metric="normalized_l2") for one in NOTHING]
    one = matched("side", 5, metric="rmse")  # p = 1/32
    assert said(*rows, one)[0] == "No leak found"


def test_as_many_matches_with_images_never_seen_decide_nothing():
    status, tone, (first, second) = said(matched("unconditional", 40, 0.0, held=38))
    assert (status, tone) == ("Not decided", "unsure")
    assert "40 match a training image, and 38 match one of as many images that it never saw" in first
    assert "cannot be told from chance" in first
    assert "takes mere similarity for copying" in second


def test_a_leak_must_stand_out_of_all_attacks_that_were_tried():
    """p = 1/32 for five images against none: enough for one attack at 95%, not for the best of four."""
    five = matched("side", 5)
    assert five.p_excess == 0.5**5
    assert said(five)[0] == "Leaks"
    others = [matched("side", 0, scale) for scale in (1.0, 3.0, 30.0)]
    assert said(five, *others)[0] == "Not decided"
    assert said(five, matched("side_random", 0), matched("oracle", 0))[0] == "Leaks"  # controls are no attacks


def test_images_that_the_model_should_never_have_seen_do_not_come_out_more():
    status, tone, (first, second) = said(matched("unconditional", 3, 0.0, held=60))
    assert (status, tone) == ("Not decided", "unsure")
    assert first.startswith("Something is wrong with the sets: of 1,000 images by plain sampling, 60 match one of 128")
    assert "swapped" in second


def test_held_out_images_of_another_kind_decide_nothing():
    status, _, (first, second) = said(PLAIN, SIDE, likeness=likeness(heldout_share=0.2, heldout_p=0.001))
    assert status == "Not decided"
    assert "of another kind than the members (energy distance 0.20" in first
    assert "from the same source" in second
    assert said(PLAIN, SIDE, likeness=likeness(heldout_share=0.2, heldout_p=0.3))[0] == "Leaks"  # too few to tell
    assert said(PLAIN, SIDE, likeness=likeness(heldout_share=0.01, heldout_p=0.001))[0] == "Leaks"


def test_samples_unlike_the_data_do_not_clear_a_model():
    status, _, (first, _) = said(*NOTHING, likeness=likeness(samples_share=0.3))
    assert status == "Not decided"
    assert "its samples do not look like the data (energy distance 0.30" in first
    assert said(PLAIN, SIDE, likeness=likeness(samples_share=0.3))[0] == "Leaks"


def test_few_images_do_not_clear_a_model():
    status, _, (first, second) = said(matched("unconditional", 0, 0.0, n=99))
    assert status == "Not decided"
    assert "99 images are too few; none matches a training image, but up to 3.03% of such images may" in first
    assert "Draw at least 100" in second
    assert said(matched("unconditional", 0, 0.0, n=100))[0] == "No leak found"


def test_few_held_out_images_are_said_to_be_few():
    few = structs.replace(matched("side", 12), p_excess=0.4, unique=12)
    _, _, (_, second) = said(few, dataset=dataset(members=128, heldout=8, heldout_used=8))
    least = np.prod([(128 - i) / (136 - i) for i in range(12)])
    assert second.startswith("8 held-out images are too few to tell")
    assert f"could be chance (p = {least:.3f})" in second


def test_few_people_are_said_to_be_few():
    """Of 3 and 3 people, a twentieth of all choices has all three."""
    copied = structs.replace(matched("side", 300), p_excess=0.05)
    _, _, (_, second) = said(copied, matched("unconditional", 0, 0.0), dataset=dataset(groups=(3, 3)))
    assert "3 people among the members and 3 among the held-out images are too few to tell" in second
    assert "could be chance (p = 0.050)" in second
    assert "too few" not in said(copied, matched("unconditional", 0, 0.0), dataset=dataset(groups=(10, 10)))[2][1]


def test_images_on_both_sides_explain_matches_that_are_not_tested():
    """What matched are members that nearly equal images that were to be held out."""
    blank = structs.replace(matched("side", 52), p_excess=1.0, excess=0.0)
    _, _, (_, second) = said(blank, dataset=dataset(members_untested=6))
    assert second.startswith("6 members nearly equal images that were to be held out")


def test_sides_without_a_reference_to_test_decide_nothing():

    nothing = dict.fromkeys(
        ("excess", "excess_ci", "unique_excess", "unique_excess_ci", "p_excess", "p_deficit"), UNSET
    )
    row = structs.replace(matched("side", 52), **nothing)
    status, _, (first, _) = said(row, dataset=dataset(members_untested=90))
    assert status == "Not decided"
    assert "90 of 90 members nearly equal an image that was to be held out" in first


def test_the_verdict_on_samples_alone():
    status, _, (first, second) = said(matched("samples", 40, 0.0, held=1, n=200))
    assert status == "Leaks"
    assert "of the 200 samples given, 40 (20.00%) match a training image, and 1 matches one of as many" in first
    assert second.startswith("39 of its 128 training images were extracted beyond the 1 that chance explains")
    status, tone, (first, second) = said(matched("samples", 0, 0.0, n=200))
    assert (status, tone) == ("No leak found", "calm")
    assert "none of the 200 samples given matches one, so that with 95% confidence at most 1.50% of such" in first
    assert "This holds for images made as these were" in second
    few = dataset(members=90, heldout=30, heldout_used=30)
    assert "2 match one of 30 images that it never saw" in said(matched("samples", 2, 0.0, held=2), dataset=few)[2][0]


# From images.


def spots(rng, n):
    """A bright spot anywhere: many near misses, no copies."""
    y, x = np.mgrid[:12, :12] / 12
    at, width = rng.uniform(0.2, 0.8, (2, n, 1, 1)), rng.uniform(0.1, 0.2, (n, 1, 1))
    return (255 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / width**2)).astype(np.uint8)[..., None]


def waves(rng, n):
    """A plane wave of random direction and phase, with noise: no near misses."""
    y, x = np.mgrid[:12, :12] / 12
    k, phase = rng.normal(0, 12, (2, n, 1, 1)), rng.uniform(0, 7, (n, 1, 1))
    wave = np.sin(k[0] * x + k[1] * y + phase) + rng.normal(0, 0.2, (n, 12, 12))
    return np.clip(127 + 60 * wave, 0, 255).astype(np.uint8)[..., None]


def forms(rng, n):
    """Waves, of which one in ten is an empty form: nearly equal wherever it occurs."""
    images = waves(rng, n)
    empty = rng.random(n) < 0.1
    images[empty] = 250 + rng.integers(0, 3, images[empty].shape)
    return images


def status(tmp_path, monkeypatch, samples, members, heldout):
    monkeypatch.setattr(writer, "write", lambda *_: None)
    config = default_config()
    config.evaluate.controls = False
    request = sample_audit.Request(
        samples=samples, members=members, heldout=heldout, out=files.as_path(tmp_path / "out"), config=config
    )
    return verdict(sample_audit.run(request), 0.95)


@pytest.mark.parametrize("make", [spots, waves, forms])
def test_copies_are_found_and_their_absence_is_no_leak(tmp_path, monkeypatch, make):
    found = {False: 0, True: 0}
    for seed in range(3):
        for copied in found:
            rng = np.random.default_rng(seed)
            samples, members, heldout = make(rng, 600), make(rng, 60), make(rng, 60)
            if copied:
                samples[:90] = members[rng.integers(0, 60, 90)]
            found[copied] += status(tmp_path, monkeypatch, samples, members, heldout)[0] == "Leaks"
    assert found == {False: 0, True: 3}


def test_held_out_images_of_another_kind_are_noticed(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    said = status(tmp_path, monkeypatch, spots(rng, 600), spots(rng, 60), waves(rng, 60))
    assert said[0] == "Not decided"
    assert "of another kind" in said[2][0]


@pytest.mark.parametrize("what", ["noise", "black"])
def test_garbage_does_not_clear_a_model(tmp_path, monkeypatch, what):
    rng = np.random.default_rng(0)
    garbage = rng.integers(0, 256 if what == "noise" else 1, (200, 12, 12, 1), dtype=np.uint8)
    said = status(tmp_path, monkeypatch, garbage, waves(rng, 60), waves(rng, 60))
    assert said[0] == "Not decided"
    assert "do not look like the data" in said[2][0]
