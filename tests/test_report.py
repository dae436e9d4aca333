"""What the report says in words, for results that are known."""

import pytest

from side_jax.settings import Settings
from side_jax.stages.report import sentences

HEADLINE = Settings().evaluate.metrics[0]


def row(attack, hits, scale=10.0, **more):
    base = {"attack": attack, "guidance_scale": scale, "metric": HEADLINE, "n_generated": 1000, "ams": hits / 1000}
    return base | {"unique": min(hits, 50), "heldout_ams": 0.0, "heldout_ams_ci": [0.0, 0.004]} | more


def said(*rows):
    return sentences({"rows": list(rows), "dataset": {"members": 128, "heldout": 128}}, Settings())


PLAIN, SIDE = row("unconditional", 30, 0.0), row("side", 120)


def test_the_gain_survives_where_random_labels_do_worse():
    control = said(PLAIN, SIDE, row("side_random", 40))[-2]
    assert "at most 4.00% match" in control
    assert "the gain of SIDE survives this control" in control
    assert "+5.6" in control  # 8 points, with Newcombe's interval


def test_the_gain_does_not_survive_where_random_labels_do_as_well():
    assert "does NOT survive" in said(PLAIN, SIDE, row("side_random", 110))[-2]
    assert "does NOT survive" in said(PLAIN, SIDE, row("side_random", 300))[-2]


def test_without_a_gain_there_is_nothing_to_explain():
    control = said(PLAIN, row("side", 35), row("side_random", 10))[-2]
    assert "gains nothing significant" in control
    assert "survive" not in control


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
    assert words in said(PLAIN, row("conditional", on_x), row("conditional_x0", on_x0), SIDE)[1]


def test_a_control_alone_has_its_held_out_rate():
    assert said(row("side_heldout", 30))[-1].startswith("Control: of the same 1,000 images")
