"""One place for one piece of knowledge: a dummy that is added to a table alone works everywhere."""

import csv
import dataclasses
import json
import subprocess
import sys

import jsonschema
import numpy as np
import pytest
import runs

from side_jax.attacks import table
from side_jax.attacks.table import ATTACKS, Attack, Classifier
from side_jax.config import default_config, from_config
from side_jax.errors import InputError
from side_jax.memorization.metrics import METRICS, definition
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
    with pytest.raises(InputError, match=r"dummy needs the output of stage synthesize.*--stages=synthesize,dummy"):
        audit.check_inputs(settings, workdir, ["dummy"])


def test_what_suspects_need_is_in_the_table(finished):
    settings = from_config(saved_config(finished))
    assert stage_table.missing(settings, finished, STAGES["suspects"]) == []
    monitored = dataclasses.replace(settings, train=dataclasses.replace(settings.train, num_steps=41))
    assert stage_table.missing(monitored, finished, STAGES["suspects"]) == ["train", "surrogate", "extract"]


MODES = Attack(
    name="dummy",
    description="a dummy of tests",
    phrase="the dummy attack",
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
    data_free = [run.name for run, _ in stage_table.data_free_units(settings, workdir)]
    assert data_free == ["unconditional", "dummy_1", "dummy_10"]
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
        *("membership/heldout", "suspects", "member labels", "divergence/members", "divergence/heldout", "train/twin"),
        *("surrogate/weak", "surrogate/side_lora"),
    )
    found = random_streams.streams()
    assert [found[name] for name in names] == list(range(1, 27))
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


DUMMY_METRIC = """
import contextlib, dataclasses, io, json, sys
import numpy as np
from side_jax.memorization import metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Brightness(metrics.Metric):
    below: float = metrics.setting(0.01, "a smaller value is a match", metrics.POSITIVE, recorded=None)
    levels: int = metrics.setting(100, "of grey", metrics.at_least(2))

    name = "brightness"
    explanation = "difference of the mean brightness"
    references_setting = "levels"  # so that it has something to refuse: it wants as many references as levels

    @property
    def references_needed(self):
        return self.levels

    def prepare(self, pixels, thinned=1):
        return pixels.mean(axis=(1, 2, 3), dtype=np.float32)

    def apart(self, images, references):
        return np.abs(self.prepare(images.pixels)[:, None] - references.prepared[self.name][None]) / self.levels

    def nearest(self, images, references):
        apart = self.apart(images, references)
        return apart.min(axis=1), apart.argmin(axis=1)

    def pairs(self, images, references, limit):
        apart = self.apart(images, references)
        pairs = np.argwhere(apart < limit)
        return pairs, apart[tuple(pairs.T)]


metrics.METRICS["brightness"] = Brightness  # the table alone, before anything reads it
from side_jax import evaluate
from side_jax.measure import records

ends = []
for options in json.loads(sys.argv[1]):
    sys.argv, err = ["evaluate", *options], io.StringIO()
    try:
        with contextlib.redirect_stderr(err):
            evaluate.main()
    except SystemExit as end:
        ends.append((end.code, err.getvalue()))
print(json.dumps({"ends": ends, "schema": records.schema()}))
"""
REFUSED = {
    "--config.evaluate.brightness_levels=1": "config.evaluate.brightness_levels is 1, but it must be at least 2",
    "--config.evaluate.brightness_levels=9": "config.evaluate.brightness_levels = 9 needs 9; give more, or "
    "--config.evaluate.brightness_levels=8",
    "--config.evaluate.brightness_lvels=9": "is not a setting; config.evaluate has",
}


def test_a_metric_is_one_entry(tmp_path):
    """Its setting and its limits, its values, its definition in results.json and the schema, and its explanation."""
    rng = np.random.default_rng(0)
    members, heldout, fresh = (
        np.clip(np.linspace(*ends, 8)[:, None, None, None] + rng.integers(-3, 4, (8, 6, 6, 1)), 0, 255).astype(np.uint8)
        for ends in ((0, 70), (185, 255), (90, 160))
    )
    arrays = {"samples": np.concatenate([members[3:6] + 1, fresh[:5]]), "members": members, "heldout": heldout}
    for name, images in arrays.items():
        np.savez(tmp_path / f"{name}.npz", images=images)
    out = tmp_path / "out"
    fixed = [*(f"--{name}={tmp_path / name}.npz" for name in arrays), f"--out={out}"]
    fixed += ["--config.evaluate.distribution=False", "--config.evaluate.metrics=('brightness','rmse')"]
    commands = [[*fixed, option] for option in ("--config.evaluate.brightness_levels=8", *REFUSED)]
    command = [sys.executable, "-c", DUMMY_METRIC, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=runs.ROOT, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    (code, err), *refused = printed["ends"]
    assert code == 0, err
    for (code, err), words in zip(refused, REFUSED.values(), strict=True):
        assert code > 0
        assert words in err

    results = json.loads((out / "results.json").read_text())
    jsonschema.validate(results, printed["schema"])
    definitions = {metric["name"]: metric for metric in results["metrics"]}
    assert (definitions["brightness"]["levels"], definitions["brightness"]["below"]) == (8, 0.01)
    assert "levels" not in definitions["rmse"]
    (row,) = (row for row in results["rows"] if (row["metric"], row["level"]) == ("brightness", "high"))
    assert (row["n_generated"], row["ams"], row["heldout_ams"]) == (8, 0, 0)
    lines = list(csv.DictReader((out / "matches.csv").read_text().splitlines()))
    # Copies of members that are one level brighter: 1 / 8, since the dummy divides by its setting.
    assert [float(line["brightness_member"]) for line in lines[:3]] == pytest.approx([1 / 8] * 3)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "brightness below 0.01: difference of the mean brightness" in page
    assert "Matches by brightness below 0.01" in page


def test_a_metric_has_the_settings_that_users_know():
    """Written down: configs name them."""
    evaluate = default_config().evaluate
    settings = {
        "normalized_l2": {"below": 0.8, "neighbors": 10, "alpha": 0.5, "around": "generated"},
        "rmse": {"below": 0.15},
        "tiled_l2": {"below": 0.3, "grid": 4},
        "distance_ratio": {},
        "cosine": {"above": 0.6},
    }
    assert list(settings) == list(METRICS)
    for metric, own in settings.items():
        assert {name: evaluate[f"{metric}_{name}"] for name in own} == own
        assert [field.name for field in METRICS[metric].settings()] == list(own)
    made = from_config(default_config()).evaluate.make_metrics()
    assert [definition(metric) for metric in made][2] == {
        "name": "distance_ratio",
        "below": 1 / 3,
        "factors": (),
        "num_neighbors": 2,
        "alpha": 0.5,
        "around": "generated",
        "grid": 4,
    }


def test_a_metric_is_not_known_by_name():
    """Only the table spells the names, and the search by which they are computed; elsewhere its entries are asked."""
    root = runs.ROOT / "side_jax"
    names = set(METRICS) - {"cosine"}  # which is also a noise schedule
    for path in root.rglob("*.py"):
        if path != root / "memorization" / "metrics.py" and path.parent != root / "memorization" / "neighbors":
            for name in names:
                assert f'"{name}"' not in path.read_text(), f"{path.relative_to(root)} holds {name}"
