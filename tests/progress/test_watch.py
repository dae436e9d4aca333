"""Lines of the log once in a while, whatever the run does; nothing is left behind."""

import logging
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from side_jax.devices import compilation_events
from side_jax.progress import WATCH, Table, Watch, watch


@pytest.fixture
def lines(caplog, monkeypatch):
    """What is logged, with a line every hundredth of a second."""
    monkeypatch.setattr(logging.getLogger("side_jax"), "propagate", True)
    monkeypatch.setattr(watch, "SECONDS_BETWEEN_LINES", 0.01)
    caplog.set_level(logging.INFO, logger="side_jax")
    return caplog


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "side_jax progress"]


def wait_for(lines, text):
    deadline = time.monotonic() + 10
    while not any(text in line for line in lines.messages):
        assert time.monotonic() < deadline, lines.messages
        time.sleep(0.001)


def test_no_step_is_silent(lines):
    """One long item, one long thing in it, one stage: each has its line, and the thread ends with the chain."""
    one = Watch()
    with one.chain(["train", "report"]):
        with one.stage("train"):
            for _ in one.progress(range(2), total=2, description="train the DPM", unit="step"):
                wait_for(lines, "train the DPM: still in step 1 of 2 (0:0")
                with one.doing("measuring memorisation"):
                    wait_for(lines, "train the DPM 1 of 2: still measuring memorisation (0:0")
                break
        assert len(threads()) == 1
        with one.stage("report"):
            wait_for(lines, "still in stage report (0:00) (stage 2 of 2, 0:0")
    assert not threads()
    assert one.line() == ""


def test_a_loop_alone_is_heard_too_and_an_error_ends_it(lines):
    def stopped():
        for _ in WATCH.progress(range(2), total=2, description="theory", unit="set"):
            wait_for(lines, "theory: still in set 1 of 2")
            raise KeyError

    with pytest.raises(KeyError):
        stopped()
    with pytest.raises(KeyError), WATCH.chain(["train"]) as chain, WATCH.stage("train"):
        raise KeyError
    assert chain.stages[0].failed
    assert not threads()
    assert not WATCH.activities


def test_a_loop_that_ends_after_its_chain_spoils_nothing(lines):
    """As long as something holds the error, the loop is not over."""
    one = Watch()
    with one.chain(["train"]), one.stage("train"):
        held = one.progress(range(2), total=2, description="held", unit="step")
        assert next(held) == 0
    assert one.activities == ()
    with one.doing("the next thing"):
        held.close()
        wait_for(lines, "still the next thing")
        assert [activity.description for activity in one.activities] == ["the next thing"]
    assert not threads()


def test_a_short_run_says_nothing(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("side_jax"), "propagate", True)
    caplog.set_level(logging.INFO, logger="side_jax")
    assert list(WATCH.progress(range(3), total=3, description="work", unit="step")) == [0, 1, 2]
    assert not caplog.messages


def test_the_thread_keeps_no_process_alive(lines):
    with WATCH.doing("nothing"):
        (thread,) = threads()
        assert thread.daemon


def test_compiling_is_named_while_it_lasts(monkeypatch):
    """In the first item of a loop from the first function that is traced, and anywhere from the lowering on."""
    monkeypatch.setattr(compilation_events, "_listening", [])
    said = {}

    def listen(event, *_, **__):
        phase, item = event.rpartition("/")[2], WATCH.activities[-1].count
        said.setdefault((item, phase), set()).add("compiling" in WATCH.line())

    compilation_events.listen()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for i in WATCH.progress(range(2), total=2, description="train", unit="step"):
            jax.jit(lambda x, i=i: jnp.where(x > i, x, -x) * (i + 3))(jnp.arange(5.0)).block_until_ready()
            assert "compiling" not in WATCH.line()
    finally:
        jax.monitoring.clear_event_listeners()
    phases = [f"{name}_duration" for name in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")]
    assert [said[0, phase] for phase in phases] == [{True}, {True}, {False}]
    assert said[1, phases[1]] == {True}
    assert said[1, phases[2]] == {False}


def test_tracing_alone_is_no_compiling_but_in_a_first_item():
    one = Watch(now=lambda: 7.0)
    with one.doing("counting parameters"):
        one.compiles(True, sure=False)
        assert one.activities[0].compiling is None
        one.compiles(True)
        assert one.activities[0].compiling == 7.0
        one.compiles(False)
        assert one.activities[0].compiling is None
    one.compiles(True)  # nothing goes on


def test_a_table_is_lines_of_the_log(lines):
    WATCH.table(Table(title="extract", columns=["attack", "images"], rows=[["side", "1,024"], ["modes", "8"]]))
    assert lines.messages == ["extract:", "  attack  images", "  side     1,024", "  modes        8"]
