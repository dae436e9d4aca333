"""The chain of stages: about how long the rest takes, where the answer is known."""

import pytest

from side_jax.progress.activities import Activity
from side_jax.progress.chain import SECONDS, Chain, Work

NAMES = ["train", "sample", "cluster", "attack"]
WEIGHTS = {"train": {"train": 600.0}, "sample": {"sample": 100.0}, "attack": {"a": 100.0, "b": 300.0}}


def chain(*, kind="network", weights=WEIGHTS):
    """A chain whose units have amounts of one kind, or the amounts that are given."""
    units = {
        stage: {unit: value if isinstance(value, dict) else {kind: value} for unit, value in units.items()}
        for stage, units in weights.items()
    }
    return Chain(NAMES, Work(units=units), 0.0)


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
    assert one.left(5.0) is None
    assert one.text(65.0) == "stage 1 of 4, 1:05 elapsed"


def test_finished_units_say_what_the_rest_takes():
    one = chain()
    at = run(one, "train", ("train", 60.0), at=0.0)
    one.begin("sample", at)
    one.begin_unit("sample", at)
    seconds, unknown = one.left(at)
    assert seconds == pytest.approx(50.0)  # a tenth of a second each: 100 + 100 + 300
    assert unknown == ["cluster"]
    assert one.text(at) == "stage 2 of 4, 1:00 elapsed, about 0:50 left without cluster"


def test_a_stage_believes_its_own_measurement_first():
    one = chain()
    at = run(one, "train", ("train", 60.0), at=0.0)
    at = run(one, "sample", ("sample", 10.0), at=at)
    at = run(one, "cluster", at=at)
    at = run(one, "attack", ("a", 50.0), at=at, end=False)
    seconds, unknown = one.left(at)
    assert seconds == pytest.approx(150.0)  # half a second each
    assert not unknown
    assert one.text(at).endswith("about 2:30 left for all")


def test_the_current_loop_counts_for_itself_and_for_others():
    """A hundred steps; after the first one, which compiles for a minute, each takes a second and does 6 of the work."""
    one = chain()
    one.begin("train", 0.0)
    one.begin_unit("train", 0.0)
    loop = Activity(description="train", began=0.0, total=100, unit="step")
    for end in range(60, 71):
        loop.next(float(end))
    assert one.left(70.0) is None
    one.begin_loop(loop)
    assert one.left(70.0)[0] == pytest.approx(89.0 + 500 / 6)
    for end in range(71, 160):
        loop.next(float(end))
    assert one.left(165.0)[0] == pytest.approx(500 / 6)  # the loop is done, and its unit not yet


def test_seconds_need_no_measurement_and_are_corrected_by_one():
    one = chain(kind=SECONDS)
    one.begin("train", 0.0)
    one.begin_unit("train", 0.0)
    assert one.left(0.0) == (pytest.approx(1100.0), ["cluster"])
    one.end_unit("train", 1200.0)  # twice as long
    one.stages[0].ended = 1200.0
    one.begin("sample", 1200.0)
    assert one.left(1200.0) == (pytest.approx(1000.0), ["cluster"])


MIXED = {"train": {"train": 600.0}, "sample": {"sample": {"classifier": 50.0}}, "attack": {}}
MIXED["attack"] = {unit: {"network": 100.0, "classifier": 100.0} for unit in ("a", "b")}


def test_kinds_of_work_are_measured_apart_and_added():
    """A tenth of a second for the network, two for the classifier, in units of their own."""
    one = chain(weights=MIXED)
    at = run(one, "train", ("train", 60.0), at=0.0)
    assert one.left(at) is None  # of no stage is all known
    at = run(one, "sample", ("sample", 100.0), at=at)
    assert one.left(at) == (pytest.approx(2 * (10.0 + 200.0)), ["cluster"])
    at = run(one, "cluster", at=at)
    at = run(one, "attack", ("a", 40.0), at=at, end=False)
    assert one.left(at) == (pytest.approx(40.0), [])  # what is alike says more


def test_what_is_alike_needs_no_kind_alone():
    """A run that goes on, whose classifiers were trained before."""
    one = chain(weights=MIXED | {"train": {}, "sample": {}})
    one.begin("attack", 0.0)
    for unit, now in (("a", 0.0), ("b", 40.0)):
        one.begin_unit(unit, now)
        if unit == "a":
            assert one.left(0.0) is None
            one.end_unit("a", 40.0)
    one.stages[0].ended = one.stages[1].ended = one.stages[2].ended = 0.0
    assert one.left(40.0) == (pytest.approx(40.0), [])


def test_what_is_done_already_is_no_work():
    one = chain(kind=SECONDS, weights={"train": {}, "sample": {}, "attack": {"b": 10.0}})
    one.begin("train", 0.0)
    assert one.left(0.0) == (10.0, ["cluster"])
    assert chain(weights={name: {} for name in NAMES}).left(0.0) is None


def test_little_is_not_told_for_all():
    some = {"train": {"train": 7.0}, "attack": {"b": 10.0}}
    assert chain(kind=SECONDS, weights=some).left(0.0) == (17.0, ["sample", "cluster"])
    assert chain(kind=SECONDS, weights={"attack": {"b": 10.0}}).left(0.0) is None


def test_a_unit_outside_of_a_stage_is_none():
    one = chain()
    one.begin_unit("train", 0.0)
    one.end_unit("train", 10.0)
    assert one.left(10.0) is None
    assert one.text(10.0) == "0:10 elapsed"
