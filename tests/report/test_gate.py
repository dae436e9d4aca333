"""The gate and the JSON of an audit, for results that are known."""

import json
from pathlib import Path

import pytest
from made_results import audit, dataset, matched, results, row

from side_jax.report import ending
from side_jax.report.gate import Gate
from side_jax.report.verdict import verdict

PLAIN, SIDE = matched("unconditional", 30, 0.0), matched("side", 120)
LEAKS = audit(PLAIN, SIDE)
CALM = audit(row("unconditional", n_generated=1000), row("side", 3.0, n_generated=1000))
OPEN = audit(matched("unconditional", 3, 0.0, held=2))


def test_the_cases_are_what_they_should_be():
    assert [verdict(one, 0.95)[0] for one in (LEAKS, CALM, OPEN)] == ["Leaks", "No leak found", "Not decided"]


def test_a_rate_counts_at_the_lower_end_of_its_interval():
    """Of 1,000 images, 12% match more than chance explains, at least 10% with 95% confidence; 3%, at least 2%."""
    lows = [one.excess_ci[0] for one in (PLAIN, SIDE)]
    assert 0.018 < lows[0] < 0.022 < 0.09 < lows[1] < 0.11
    assert len(Gate(above=0.0).failures(LEAKS, 0.95)) == 2
    (failure,) = Gate(above=0.05).failures(LEAKS, 0.95)
    assert failure.startswith(
        "Of 1,000 images by SIDE at guidance scale 10, 12.00% match a training image, 12.00 points"
    )
    assert failure.endswith("more than chance explains, and --fail-above=0.05.")
    assert Gate(above=lows[1]).failures(LEAKS, 0.95) == ()  # not above
    assert Gate(above=lows[1] - 1e-6).failures(LEAKS, 0.95)


def test_chance_and_controls_never_fail():
    """Half of the images match, but as many held-out images do; and a control is no attack."""
    alike = audit(matched("unconditional", 500, 0.0, held=500))
    assert Gate(above=0.0, on="leaks").failures(alike, 0.95) == ()
    controlled = audit(row("unconditional", n_generated=1000), matched("side_heldout", 400))
    assert Gate(above=0.0, on="leaks").failures(controlled, 0.95) == ()


@pytest.mark.parametrize(("on", "failing"), [("", []), ("leaks", ["Leaks"]), ("undecided", ["Leaks", "Not decided"])])
def test_verdicts_that_fail(on, failing):
    gate = Gate(on=on)
    assert gate.active == bool(on)
    found = {verdict(one, 0.95)[0]: gate.failures(one, 0.95) for one in (LEAKS, CALM, OPEN)}
    assert [status for status, failures in found.items() if failures] == failing
    for status in failing:
        assert found[status] == (f"The verdict is {status!r}, and --fail-on={on}.",)


def test_rows_that_could_not_be_tested_do_not_fail():
    made = results([matched("unconditional", 90, 0.0)], dataset=dataset(members=128, heldout=128, heldout_used=128))
    assert Gate(above=0.01).failures(made, 0.95)


def test_the_json_is_the_summary():
    failures = Gate(above=0.05, on="leaks").failures(LEAKS, 0.95)
    found = json.loads(ending.as_json(LEAKS, 0.95, Path("report/index.html"), failures))
    status, _, reasons = verdict(LEAKS, 0.95)
    assert (found["verdict"], found["reasons"], found["failed"]) == (status, list(reasons), True)
    assert found["failures"] == list(failures)
    assert len(failures) == 2
    assert (found["members"], found["heldout"], found["confidence"]) == (128, 128, 0.95)
    plain, side = found["attacks"]
    assert plain | {"attack": "side", "run": side["run"]} != plain
    assert (side["attack"], side["guidance_scale"], side["ams"], side["unique"]) == ("side", 10.0, 0.12, 50)
    assert side["excess_ci"] == pytest.approx(list(SIDE.excess_ci))
    assert not json.loads(ending.as_json(LEAKS, 0.95, Path("x")))["failed"]
    text = ending.text(LEAKS, 0.95, Path("report/index.html"), failures)
    assert text.count("Fails: ") == 2
    assert "Fails" not in ending.text(LEAKS, 0.95, Path("report/index.html"))
