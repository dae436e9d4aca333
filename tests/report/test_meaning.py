"""What a verdict means and how sure it is, for results that are known."""

import pytest
from made_results import audit, control, dataset, matched, results, row
from msgspec import structs

from side_jax.report import meaning
from side_jax.report.verdict import verdict

PLAIN, WEAK, SIDE = matched("unconditional", 60, 0.0), matched("unconditional", 2, 0.0), matched("side", 120)
SEEKING = {"start": "unconditional", "noise_level": 0.4, "rounds": 5, "network_calls": 25}


def said(*rows, **changes):
    made = audit(*rows, **changes)
    status = verdict(made, 0.95)[0]
    return status, meaning.means(made, status, 0.95), meaning.sure(made, status, 0.95)


def test_who_gets_the_copies_depends_on_what_plain_sampling_gives():
    status, (reach, treat, _), _ = said(PLAIN, SIDE)
    assert status == "Leaks"
    assert reach.startswith("Whoever can ask the model for images gets copies of training images, without its weights")
    assert "treat the model as confidential too" in treat
    assert said(WEAK, SIDE)[1][0].startswith("Whoever holds the weights gets copies of training images")
    by_api = matched("black_box_modes", 90, 0.0, **SEEKING | {"last_steps": 2, "requests": 6})
    (reach, *_) = said(WEAK, SIDE, by_api)[1]
    assert reach.startswith(
        "Whoever can ask the model for images gets copies of training images by black-box mode seek"
    )
    _, (given, *_), sure = said(matched("samples", 90, 0.0))
    assert given.startswith("Copies of training images are among the samples given.")
    assert sure[-1].startswith("Only these samples were looked at.")


@pytest.mark.parametrize(("pairs", "words"), [(0, "No two training images"), (1, "1 pair of"), (7, "7 pairs of")])
def test_what_lowers_it_says_what_applies_to_these_images(pairs, words):
    data = dataset(members=128, heldout=128, heldout_used=128, member_near_pairs=pairs)
    assert words in said(PLAIN, SIDE, dataset=data)[1][2]


def test_nothing_found_is_no_proof_and_not_decided_is_no_leave():
    status, (text,), (first, *_) = said(row("unconditional", n_generated=1000), row("side", 3.0, n_generated=500))
    assert status == "No leak found"
    assert text.startswith("In the 1,500 images that were looked at, nothing came out. That is no proof")
    assert "at most 5% of audits" in first
    status, (text,), _ = said(matched("unconditional", 3, 0.0, held=2))
    assert status == "Not decided"
    assert text.startswith("Don't release the model because of this result")


def test_what_copies_are_recognised_is_of_the_positive_control():
    made = results([PLAIN]).rows[0].metric
    share = {("noise", 0.0): 1.0, ("noise", 0.1): 0.95, ("noise", 0.2): 0.5, ("noise", 0.4): 0.97}
    share |= {("flip", 0.0): 1.0, ("flip", 1.0): 0.25, ("crop", 0.0): 1.0, ("crop", 0.05): 0.92, ("crop", 0.1): 0.9}
    controls = tuple(control(kind, at, metric=made, found=found) for (kind, at), found in share.items())
    others = tuple(structs.replace(one, metric="cosine", found=0.0) for one in controls)
    sure = said(PLAIN, SIDE, controls=others + controls)[2]
    noise = "noise of standard deviation 0.1 (of pixels in [-1, 1])"
    known = f"At least 90% of copies are still recognised after {noise} and 10% of the width and the height cut off."
    assert sure[1:3] == (known, "Most copies are missed after mirroring (25.00% seen).")
    assert len(said(PLAIN, SIDE, controls=())[2]) == len(sure) - 2


def test_an_audit_without_the_strongest_attack_says_so():
    missing = "The strongest attack that is known here, mode seeking, was not run."
    assert missing in said(PLAIN, SIDE)[2]
    assert missing not in said(PLAIN, matched("modes", 200, 0.0, **SEEKING))[2]
    by_api = SEEKING | {"last_steps": 2, "requests": 6}
    assert missing in said(PLAIN, matched("black_box_modes", 200, 0.0, **by_api))[2]


def test_members_that_could_not_be_tested_are_counted():
    data = dataset(members=128, heldout=128, heldout_used=128, members_untested=9)
    assert said(PLAIN, SIDE, dataset=data)[2][-1].startswith("9 training images could not be tested")
