"""What a run shows while it goes on: the chain on a terminal, lines elsewhere, and a clean standard output."""

import json
import sys

import pytest
import runs
import terminals
from made_wandb import Wandb

from side_jax.stages import stage_table
from side_jax.workdir import run_log

AGAIN = {"report__pairs": 3}  # the report alone is written again


def test_the_chain_on_a_terminal(workdir, monkeypatch, capsys, no_figures):
    """Every stage stands there once, ticked; run.log has lines alone."""
    (workdir / "evaluate" / "results.json").unlink()
    with terminals.stderr(monkeypatch) as found:
        assert runs.run(runs.arguments(workdir, **AGAIN)) == 0
    lines = terminals.Screen(found.written).text().splitlines()
    ticked = [line.split()[1] for line in lines if line.startswith("✓")]
    assert ticked == list(stage_table.audit_stages())
    assert lines[-1].endswith(" elapsed")
    assert [line.split()[1] for line in lines[-8:-1]] == ticked
    assert "best run of each attack" in "\n".join(lines)
    assert "stage report." not in found.written
    assert "\x1b[?25l" not in found.written
    assert found.written.endswith("\n")
    assert "Report: " in capsys.readouterr().out
    log = (workdir / run_log.NAME).read_text(encoding="utf-8")
    for words in ("stage report.", "train: up to date, nothing to do.", "best run of each attack"):
        assert words in log
    assert "\x1b" not in log


@pytest.mark.parametrize("option", ["--quiet", "--plain"])
def test_quiet_and_plain(workdir, monkeypatch, capsys, no_figures, option):
    """Also on a terminal; with --json, standard output is JSON alone."""
    with terminals.stderr(monkeypatch) as found:
        assert runs.run([*runs.arguments(workdir, **AGAIN), option, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"]
    said = found.written.splitlines()
    if option == "--quiet":
        assert said == []
    else:
        assert [line[9:] for line in said if " stage " in line] == [
            f"stage {name}." for name in stage_table.audit_stages()
        ]
    assert "\x1b" not in found.written
    assert "stage report." in (workdir / run_log.NAME).read_text(encoding="utf-8")


def test_errors_are_said_quietly_too(workdir, capsys):
    assert runs.run([f"--workdir={workdir}", "--quiet", "--config.report.pairs=2000"]) == 1
    assert capsys.readouterr().err.startswith("side_jax: config.report.pairs is 2000")


def test_wandb_is_asked_for_by_a_setting(workdir, monkeypatch, no_figures):
    """Before the first stage, and nothing is computed anew for it."""
    monkeypatch.setitem(sys.modules, "wandb", Wandb())
    assert runs.run(runs.arguments(workdir, track__to="('wandb',)")) == 0
    assert [name for name, _ in sys.modules["wandb"].calls] == ["init", "finish"]
    assert not (workdir / "stale").exists()
