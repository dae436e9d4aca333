"""One place for one piece of knowledge: a dummy that is added to a table alone works everywhere."""

import dataclasses
import json

import numpy as np
import pytest
import runs

from side_jax.attacks import table
from side_jax.attacks.table import ATTACKS, Attack, Classifier
from side_jax.config import default_config, from_config
from side_jax.errors import InputError
from side_jax.pipeline import audit, plan, space
from side_jax.pipeline.saved_config import saved_config
from side_jax.settings import random_streams
from side_jax.stages import stage_table
from side_jax.stages.estimates import Cost
from side_jax.stages.stage_table import STAGES, Stage, Work

HOWS = ("== ", "!= ", "best(rows, ", "ATTACKS[", "get(")


def dummy_stage(calls):
    """A stage that reads the synthetic images, and writes one file of 1,000 bytes in an hour."""

    def unit(settings, workdir):
        return stage_table.unit(settings, workdir, "dummy")

    def run(settings, workdir):
        work = unit(settings, workdir)
        if work.begin():
            calls.append("dummy")
            (work.directory / "out.bin").write_bytes(bytes(1000))
            work.finish()

    def works(settings, workdir):
        work = unit(settings, workdir)
        left = {"left": "done", "seconds": 0.0} if work.done() else {"left": "one file", "seconds": 3600.0}
        return [Work(unit=work, cost=lambda clock: Cost(**left), disk=lambda: 0 if work.done() else 1000)]

    return Stage(
        name="dummy",
        reads=("synthesize",),
        depends=lambda: {"dummy": (("report",), ("synthesize",))},
        plan=works,
        outputs=lambda manifest: ("dummy/out.bin",),
        run=run,
    )


def test_a_stage_is_one_entry(workdir, monkeypatch):
    """It is planned, takes disk space, runs once, runs again when lost or changed, and needs its input."""
    calls = []
    settings = from_config(saved_config(workdir))
    before = space.space(settings, workdir)[0]
    monkeypatch.setitem(STAGES, "dummy", dummy_stage(calls))
    assert "dummy" in stage_table.audit_stages()
    assert space.space(settings, workdir)[0] == before + 1000 + 50 * 2**20  # and the margin for small files
    line = next(line for line in plan.lines(settings, workdir, ["train", "dummy"]) if line.unit == "dummy")
    assert (line.cost.left, line.cost.seconds) == ("one file", 3600.0)

    audit.run(settings, workdir, ["dummy"])
    audit.run(settings, workdir, ["dummy"])
    assert calls == ["dummy"]
    assert space.space(settings, workdir)[0] == before
    (workdir / "dummy" / "out.bin").unlink()
    audit.run(settings, workdir, ["dummy"])
    assert calls == ["dummy"] * 2
    changed = dataclasses.replace(settings, report=dataclasses.replace(settings.report, pairs=3))
    audit.run(changed, workdir, ["dummy"])
    assert calls == ["dummy"] * 3
    assert list((workdir / "stale").glob("dummy-*"))
    (workdir / "synthesize" / "samples.png").unlink()
    with pytest.raises(InputError, match=r"stage dummy needs what stage synthesize makes.*--stages=synthesize,dummy"):
        audit.check_inputs(settings, workdir, ["dummy"])


def test_what_suspects_need_is_in_the_table(finished):
    settings = from_config(saved_config(finished))
    assert stage_table.missing(settings, finished, STAGES["suspects"]) == []
    monitored = dataclasses.replace(settings, train=dataclasses.replace(settings.train, num_steps=41))
    assert stage_table.missing(monitored, finished, STAGES["suspects"]) == ["train", "surrogate", "extract"]


MODES = Attack(
    name="dummy",
    says="a dummy of tests",
    called="the dummy attack",
    colour="k",
    classifier=Classifier(name="dummy", images="synthetic", stream=999),
    random_control="side_random",
)


def test_an_attack_is_one_entry(workdir, monkeypatch, capsys):
    """Its classifier is trained, it is run at every scale, planned, scored, drawn and named in the findings."""
    monkeypatch.setitem(ATTACKS, "dummy", MODES)
    attacks = "('unconditional','dummy')"
    capsys.readouterr()
    assert runs.run(runs.arguments(workdir, extract__attacks=attacks)) == 0
    assert "Guided by the dummy attack at its best scale" in capsys.readouterr().out
    rows = json.loads((workdir / "evaluate" / "results.json").read_text())["rows"]
    assert {(row["attack"], row["guidance_scale"]) for row in rows} >= {("dummy", 1.0), ("dummy", 10.0)}
    assert "a dummy of tests" in (workdir / "report" / "index.html").read_text()
    settings = from_config(saved_config(workdir))
    blind = [run.name for run, _ in stage_table.blind_units(settings, workdir)]
    assert blind == ["unconditional", "dummy_1", "dummy_10"]
    assert stage_table.attacker_classifier(settings).name == "dummy"
    assert runs.run([f"--workdir={workdir}"], ["suspects"]) == 0
    with np.load(workdir / "extract" / "dummy_1" / "shard_00000.npz") as found:
        assert (found["label"] >= 0).all()


def test_a_stream_is_one_entry_and_moves_no_other(monkeypatch):
    settings = from_config(default_config())
    before = {name: random_streams.stream_seed(settings, name) for name in random_streams.streams()}
    monkeypatch.setattr(random_streams, "STREAMS", {"dummy": 1000} | random_streams.STREAMS)
    assert {name: random_streams.stream_seed(settings, name) for name in before} == before
    assert random_streams.stream_seed(settings, "dummy") not in before.values()
    monkeypatch.setattr(random_streams, "STREAMS", {"twin": 1} | random_streams.STREAMS)
    with pytest.raises(ValueError, match="'twin' and 'train' have the same number, 1"):
        random_streams.stream_seed(settings, "train")


def test_the_numbers_of_streams_are_those_of_the_first_release():
    """Written down: whoever changes one changes every image that anyone has made."""
    names = (
        *("train", "synthesize", "label", "surrogate/side", "surrogate/conditional", "extract", "probe", "monitor"),
        *("surrogate/side_random", "surrogate/side_shuffled", "surrogate/side_heldout", "surrogate/oracle"),
        *("held back", "random labels", "validation", "teacher", "evaluate", "membership/members"),
        *("membership/heldout", "suspects", "member labels", "divergence/members", "divergence/heldout"),
    )
    found = random_streams.streams()
    assert [found[name] for name in names] == list(range(1, 24))
    settings = from_config(default_config())
    expected = int(np.random.SeedSequence([settings.seed, 6]).generate_state(1)[0])
    assert random_streams.stream_seed(settings, "extract") == expected


def test_no_attack_or_classifier_is_known_by_name():
    """Only the table spells the names; elsewhere its entries are asked."""
    root = runs.ROOT / "side_jax"
    known = [name for name in {*ATTACKS, *table.known_classifiers()} if name not in ("side", "conditional")]
    # These two are also a column of tables and a section of the settings: no comparison with them.
    forbidden = [f'"{name}"' for name in known] + [f'{how}"{name}"' for name in ("side", "conditional") for how in HOWS]
    for path in root.rglob("*.py"):
        if path != root / "attacks" / "table.py":
            for quoted in (*forbidden, 'startswith("side'):
                assert quoted not in path.read_text(), f"{path.relative_to(root)} holds {quoted}"
