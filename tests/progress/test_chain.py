"""The chain of stages: about how long the rest takes, where the answer is known."""

import pytest

from side_jax.progress.activities import Activity
from side_jax.progress.chain import Chain, Work

NAMES = ["train", "sample", "cluster", "attack"]
WEIGHTS = {"train": {"train": 600.0}, "sample": {"sample": 100.0}, "attack": {"a": 100.0, "b": 300.0}}


def chain(*, seconds=False, weights=WEIGHTS):
    return Chain(NAMES, Work(weights=weights, seconds=seconds), 0.0)


def run(one, name, *units, at, end=True):
    """Runs a stage with the units (name, seconds) from a time; returns the time at its end."""
    stage = one.begin(name, at)
    for unit, took in units:
        one.begin_unit(unit, at)
        at += took
        one.end_unit(unit, at)
    if end:
        stage.ended = at
    return at


def test_nothing_is_said_before_anything_is_measured():
    one = chain()
    one.begin("train", 0.0)
    one.begin_unit("train", 0.0)
    assert one.left(None, 5.0) is None
    assert one.text(None, 65.0) == "stage 1 of 4, 1:05 elapsed"


def test_finished_units_say_what_the_rest_takes():
    one = chain()
    at = run(one, "train", ("train", 60.0), at=0.0)
    one.begin("sample", at)
    one.begin_unit("sample", at)
    seconds, unknown = one.left(None, at)
    assert seconds == pytest.approx(50.0)  # a tenth of a second each: 100 + 100 + 300
    assert unknown == ["cluster"]
    assert one.text(None, at) == "stage 2 of 4, 1:00 elapsed, about 0:50 left without cluster"


def test_a_stage_believes_its_own_measurement_first():
    one = chain()
    at = run(one, "train", ("train", 60.0), at=0.0)
    at = run(one, "sample", ("sample", 10.0), at=at)
    at = run(one, "cluster", at=at)
    at = run(one, "attack", ("a", 50.0), at=at, end=False)
    seconds, unknown = one.left(None, at)
    assert seconds == pytest.approx(150.0)  # half a second each
    assert not unknown
    assert one.text(None, at).endswith("about 2:30 left for all")


def test_the_current_loop_counts_for_itself_and_for_others():
    """A hundred steps; after the first one, which compiles for a minute, each takes a second: 6 weights a second."""
    one = chain()
    one.begin("train", 0.0)
    one.begin_unit("train", 0.0)
    loop = Activity(description="train", began=0.0, total=100, unit="step")
    for end in range(60, 71):
        loop.next(float(end))
    seconds, _ = one.left(loop, 70.0)
    assert seconds == pytest.approx(89.0 + 500 / 6)


def test_weights_in_seconds_need_no_measurement_and_are_corrected_by_one():
    one = chain(seconds=True)
    one.begin("train", 0.0)
    one.begin_unit("train", 0.0)
    assert one.left(None, 0.0) == (pytest.approx(1100.0), ["cluster"])
    one.end_unit("train", 1200.0)  # twice as long
    one.stages[0].ended = 1200.0
    one.begin("sample", 1200.0)
    assert one.left(None, 1200.0) == (pytest.approx(1000.0), ["cluster"])


def test_what_is_done_already_is_no_work():
    one = chain(weights={"train": {}, "sample": {}, "attack": {"b": 10.0}}, seconds=True)
    one.begin("train", 0.0)
    assert one.left(None, 0.0) == (10.0, ["cluster"])
    assert chain(weights={name: {} for name in NAMES}).left(None, 0.0) is None


def test_a_unit_outside_of_a_stage_is_none():
    one = chain()
    one.begin_unit("train", 0.0)
    one.end_unit("train", 10.0)
    assert one.left(None, 10.0) is None
    assert one.text(None, 10.0) == "0:10 elapsed"
