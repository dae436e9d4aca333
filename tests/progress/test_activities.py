"""Loops: their rates and times left, by clocks whose answers are known, and the lines that say so."""

import pytest

from side_jax.progress.activities import Activity, clock


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (75, "1:15"), (59.7, "1:00"), (3599.6, "1:00:00"), (7275, "2:01:15")]
)
def test_durations(seconds, text):
    assert clock(seconds) == text


def loop(*ends, total=1000, done=400, unit="step"):
    """A loop that began at 100, with items done at these times."""
    one = Activity(description="work", began=100.0, total=total, unit=unit, done=done)
    for end in ends:
        one.next(end)
    return one


def test_neither_compiling_nor_an_earlier_run_is_in_the_rate():
    """The first item took 60 seconds, the other ten half a second each."""
    one = loop(160.0, *(160.0 + i / 2 for i in range(1, 11)))
    assert one.rate() == 2.0
    assert one.left(165.0) == (1000 - 411) / 2
    assert one.left(166.0) == (1000 - 411) / 2 - 1
    assert one.share() == 11 / 600
    assert one.line(165.0, 60.0) == "work: 411 of 1,000 steps, 2 steps/s, 4:54 left"


def test_before_two_items_nothing_is_known():
    for one in (loop(), loop(160.0)):
        assert one.rate() is None
        assert one.left(170.0) is None
    assert loop().waits
    assert not loop(160.0).waits
    assert not loop(total=400).waits  # nothing is left
    assert loop(160.0).line(165.0, 60.0) == "work: 401 of 1,000 steps"


def test_a_slow_item_is_named():
    one = loop(160.0, 260.0, unit="batch")
    assert one.line(270.0, 60.0) == "work: 402 of 1,000 batches, 100 s/batch, 16:36:30 left"
    assert one.line(330.0, 60.0) == "work: still in batch 403 of 1,000 (1:10)"
    assert loop(160.0, total=401).line(500.0, 60.0) == "work: 401 of 401 steps"  # it has ended, what follows has not


def test_what_is_no_loop():
    one = Activity(description="clustering the features", began=100.0)
    assert one.line(175.0, 60.0) == "still clustering the features (1:15)"
    one.compiling = 165.0
    assert one.line(175.0, 60.0) == "clustering the features: compiling (0:10)"
    assert one.share() == 0.0
    assert one.left(175.0) is None
