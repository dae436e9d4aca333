"""What `import side_jax` offers: that it is documented, that every example runs, and that it equals the commands."""

import csv
import doctest
import html
import json
import shutil
import subprocess
import sys

import foreign
import numpy as np
import pytest
import runs
from ml_collections import ConfigDict

import side_jax
from side_jax.commands import cli, sample_audit
from side_jax.config import from_config, packaged_configs
from side_jax.pipeline import budget, clock
from side_jax.pipeline.saved_config import saved_config

CONFIG = """
import json
from ml_collections import ConfigDict
def get_config():
    with open({path!r}) as file:
        return ConfigDict(json.load(file))
"""
FEW = {"evaluate.distribution": False, "evaluate.controls": False}


def noise(n, seed):
    """Images in which nothing is near anything."""
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return foreign.write_smallest(tmp_path_factory.mktemp("made") / "model")


@pytest.fixture
def folder(finished, model, tmp_path, monkeypatch):
    """The current folder: runs/smoke is a finished tiny run, whose config is the packaged one of that name; a model."""
    shutil.copytree(finished, tmp_path / "runs" / "smoke")
    tiny = tmp_path / "tiny.py"
    tiny.write_text(CONFIG.format(path=str(finished / "config.json")))
    packaged = packaged_configs() | {"smoke": tiny}
    monkeypatch.setattr("side_jax.config.packaged_configs", lambda: packaged)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "model")
    return tmp_path


@pytest.mark.parametrize("name", [name for name in side_jax.__all__ if name not in ("AuditResult", "InputError")])
def test_every_function_has_an_example_that_runs(folder, name, monkeypatch):
    override = sample_audit.override
    # What no example shows takes most of the time of an audit of samples.
    monkeypatch.setattr(sample_audit, "override", lambda values: override(FEW | dict(values)))
    monkeypatch.setattr(clock, "_timed", lambda step: (1e-6, 1e-6))
    monkeypatch.setattr(budget, "LEVELS", budget.LEVELS[1:])  # without SIDE's training
    found = doctest.DocTestFinder().find(getattr(side_jax, name), name, globs={name: getattr(side_jax, name)})
    examples = [test for test in found if test.examples]
    assert examples, f"{name} has no example"
    said = []
    for test in examples:
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        assert runner.run(test, out=said.append).failed == 0, "".join(said)


def test_all_that_is_public_is_documented():
    for name in side_jax.__all__:
        assert getattr(side_jax, name).__doc__, name
        assert name in side_jax.__doc__, name
        assert name in dir(side_jax), name
    with pytest.raises(AttributeError, match="module 'side_jax' has no attribute 'nothing'"):
        _ = side_jax.nothing


def test_importing_the_package_imports_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import side_jax; side_jax.__version__, dir(side_jax); "
        "print({name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=runs.ROOT, check=False)
    assert (done.stdout, done.stderr) == ("{'side_jax'}\n", "")


def test_an_audit_gives_what_its_files_hold(folder, said):
    """Whichever way the config is given; there is nothing left to do."""
    results = json.loads((folder / "runs" / "smoke" / "evaluate" / "results.json").read_text())
    config = saved_config(folder / "runs" / "smoke")
    for given in ("smoke", folder / "tiny.py", str(folder / "tiny.py"), config, from_config(config), None):
        found = side_jax.audit_config(given, "runs/smoke")
        assert list(found.records) == results["rows"]
        assert found.report.read_text().count(found.verdict) > 0
        assert found.sentences[0] in found.report.read_text()
        assert json.loads(found.results.read_text()) == results
        for path, first in ((found.matches, "attack"), (found.members, "side")):
            assert first in next(csv.reader(path.read_text().splitlines()))
    assert "evaluate: up to date, nothing to do." in said.messages


def test_a_result_shows_itself_in_a_notebook(folder):
    found = side_jax.audit_config("smoke", "runs/smoke")
    shown = found._repr_html_()
    page = html.unescape(shown.partition('srcdoc="')[2].partition('" width')[0])
    assert page == found.report.read_text()
    assert shown.count("<") == 2  # all of the page is quoted
    sheet = found.gallery()
    assert min(sheet.size) > 20
    pandas = pytest.importorskip("pandas")
    assert isinstance(found.rows, pandas.DataFrame)
    assert found.rows["ams"].tolist() == [row["ams"] for row in found.records]


def test_a_result_without_a_report_says_so(folder):
    found = side_jax.audit_config("smoke", "runs/smoke")
    for path in found.report.parent.iterdir():
        path.unlink()
    assert found._repr_html_().startswith("AuditResult(verdict=")
    with pytest.raises(side_jax.InputError, match="holds no sheet of matches; run all stages"):
        found.gallery()


def test_an_audit_by_some_stages_has_no_verdict_before_evaluate(folder):
    """And what an earlier config found is not taken for what this one finds."""
    config = saved_config(folder / "runs" / "smoke").copy_and_resolve_references()
    config.evaluate.rmse_below = 0.2
    found = side_jax.audit_config(config, folder / "runs" / "smoke", ["train"])
    assert (found.verdict, found.sentences, found.records) == ("", (), ())
    assert side_jax.audit_config(config, folder / "runs" / "smoke", ["evaluate"]).verdict == "Not decided"


def test_an_audit_refuses_what_can_not_be_used(tmp_path):
    with pytest.raises(side_jax.InputError, match="config 'typo' not found"):
        side_jax.audit_config("typo", tmp_path / "run")
    with pytest.raises(side_jax.InputError, match=r"config\.name is missing"):
        side_jax.audit_config(ConfigDict({"seed": 1}), tmp_path / "run")
    with pytest.raises(side_jax.InputError, match="--stages holds 'attack'"):
        side_jax.audit_config("smoke", tmp_path / "run", ["attack"])
    assert not (tmp_path / "run").exists()


def test_samples_in_memory_and_in_files_and_by_the_command_give_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    members, heldout = noise(12, 0), noise(12, 1)
    samples = np.concatenate([members[[0, 0, 5]], heldout[[7]], noise(4, 2)])
    arrays = {"samples": samples, "members": members, "heldout": heldout}
    for name, images in arrays.items():
        np.save(tmp_path / f"{name}.npy", images)
    before = {name: images.copy() for name, images in arrays.items()}
    one = side_jax.audit_samples(**arrays, out=tmp_path / "a", overrides=FEW, title="mine")
    assert all(np.array_equal(arrays[name], images) for name, images in before.items())
    paths = {"samples": "~/samples.npy", "members": tmp_path / "members.npy", "heldout": heldout[..., 0]}
    two = side_jax.audit_samples(**paths, out="~/b", overrides=FEW, title="mine")
    argv = ["evaluate", *(f"--{name}={tmp_path}/{name}.npy" for name in arrays), f"--out={tmp_path / 'c'}"]
    assert cli.audit_samples([*argv, "--title=mine", *(f"--config.{key}={value}" for key, value in FEW.items())]) == 0
    for name in ("results.json", "matches.csv", "members.csv", "samples.csv"):
        contents = {(tmp_path / folder / name).read_bytes() for folder in "abc"}
        assert len(contents) == 1, name
    assert two.results == tmp_path / "b" / "results.json"
    assert (one.verdict, one.rows, one.sentences) == (two.verdict, two.rows, two.sentences)
    assert one.rows[0]["ams"] == 3 / 8
    page = one.report.read_text()
    assert "side_jax.audit_samples(samples=&lt;array of shape (8, 8, 8, 1)&gt;" in page
    assert "FEW" not in page


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"samples": np.zeros((4, 8, 8), np.float32)}, "is of type float32, but it must be uint8"),
        ({"samples": np.zeros((4, 8, 8, 2), np.uint8)}, "have 1 and 2 channels"),
        ({"members": np.zeros((0, 8, 8), np.uint8)}, "has the shape (0, 8, 8)"),
        ({"members": noise(9, 0)}, "has 9 images that differ"),
        ({"heldout": noise(12, 0)}, "hold out images that the model has not seen"),
        ({"heldout": "nowhere"}, "nowhere does not exist"),
        ({"overrides": {"train.num_steps": 1}}, "overrides['train.num_steps'] has no effect on a samples-only audit"),
        ({"overrides": {"evaluate.rmse": 1}}, "overrides['evaluate.rmse'] is not a setting"),
        ({"overrides": {"evaluate.rmse_below": "near"}}, "config.evaluate.rmse_below holds 'near'"),
        ({"overrides": {"evaluate.metrics": ["l3"]}}, "'l3'"),
        ({"size": 0}, "--size is 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_samples_that_can_not_be_used(tmp_path, changed, words):
    arguments = {"samples": noise(4, 2), "members": noise(12, 0), "heldout": noise(12, 1), "out": tmp_path / "out"}
    with pytest.raises(side_jax.InputError) as caught:
        side_jax.audit_samples(**arguments | changed)
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()
