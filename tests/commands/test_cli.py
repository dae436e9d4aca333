"""The command line: help that is made of the options, versions, configs by name, overrides of a saved config, paths."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import runs
from absl import flags

import side_jax
from side_jax import evaluate, extract, main, theory, train
from side_jax.commands import cli, options
from side_jax.commands.options import UsageError
from side_jax.config import default_config
from side_jax.errors import InputError
from side_jax.pipeline import audit, saved_config

BINARIES = [main, train, extract, evaluate, theory]


def start(binary, monkeypatch, *arguments):
    """Runs a binary's own entry point in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["side_jax", *arguments])
    with pytest.raises(SystemExit) as ended:
        binary.main()
    return ended.value.code


@pytest.fixture
def prepared(monkeypatch):
    """(settings, workdir, stages) of every run that would have started."""
    calls = []
    monkeypatch.setattr(audit, "run", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr("side_jax.commands.cli._end", lambda *_: 0)
    monkeypatch.setattr("side_jax.stages.suspects.summary_text", lambda *_: "")
    return calls


@pytest.mark.parametrize("binary", BINARIES, ids=lambda binary: binary.__name__)
def test_no_arguments_show_help(binary, monkeypatch, capsys):
    assert start(binary, monkeypatch) == 0
    shown, err = capsys.readouterr()
    assert (start(binary, monkeypatch, "--help"), err) == (0, "")
    assert capsys.readouterr().out == shown
    assert shown.startswith(binary.__doc__.strip())
    for word in ("Usage: python -m ", "--config=NAME", "--workdir=DIR", "--version", "Exit codes: 0 done; 1 "):
        assert word in shown
    options_shown = shown[shown.index("Options:") :]
    assert max(map(len, options_shown.splitlines())) <= options.WIDTH
    assert ("--suspects" in options_shown) == (binary is evaluate)


@pytest.mark.parametrize("command", ["", *cli.SUBCOMMANDS])
def test_help_has_the_exit_code_of_a_gate_where_there_is_one(command, monkeypatch, capsys):
    assert start(main, monkeypatch, *filter(None, (command, "--help"))) == 0
    shown = capsys.readouterr().out
    assert ("3 --fail-above" in shown) == ("--fail-above=RATE" in shown)


@pytest.mark.parametrize("binary", BINARIES, ids=lambda binary: binary.__name__)
def test_versions(binary, monkeypatch, capsys):
    assert start(binary, monkeypatch, "--version", "--workdir=x") == 0
    shown = capsys.readouterr().out
    assert shown.split(", ")[:2] == [f"side_jax {side_jax.__version__}", f"jax {jax.__version__}"]
    assert shown.endswith(f"python {sys.version.split()[0]}\n")


def test_a_new_option_is_on_the_help_page_in_its_place():
    values = flags.FlagValues()
    options.define(values, flags.DEFINE_integer, "first_one", 1, "N", "Meaning of the first. " * 9, lower_bound=0)
    options.define(values, flags.DEFINE_bool, "then", False, "", "Meaning of the second.")
    options.define(values, flags.DEFINE_string, "a_name_of_many_words", None, "TEXT", "Meaning of the third.")
    lines = options.help_page(values, "What it does.\n", "The end.").splitlines()
    assert lines[:4] == [
        "What it does.",
        "",
        "Options:",
        "  --first-one=N       " + "Meaning of the first. " * 3 + "Meaning of",
    ]
    assert lines[4] == " " * 22 + "the first. " + "Meaning of the first. " * 2 + "Meaning of the first."
    assert "  --then              Meaning of the second." in lines
    at = lines.index("  --a-name-of-many-words=TEXT")
    assert lines[at + 1 :] == [" " * 22 + "Meaning of the third.", "", "The end."]


def test_hyphens_do_as_well_as_underscores():
    given = ["--dry-run", "--max-corrupt=a-b", "-process-id", "a-b", "--config.report.private=x-y", "-1"]
    expected = ["--dry_run", "--max_corrupt=a-b", "-process_id", "a-b", "--config.report.private=x-y", "-1"]
    assert options.normalized(given) == expected


def test_taking_an_option_from_a_command_line():
    rest = ["--config.seed=1", "--workdir=w"]
    for given in (["--config=a"], ["-config", "a"], ["--config", "a"], ["--config=b", "--config=a"]):
        assert options.take([*given, *rest], "config") == ("a", rest)
    assert options.take(rest, "config") == (None, rest)
    assert options.take(["--config="], "config") == ("", [])
    with pytest.raises(UsageError, match="--config needs a value"):
        options.take([*rest, "--config"], "config")


def test_overrides_of_a_config():
    values = flags.FlagValues()
    options.define_config(values, "meaning")
    arguments = ["--config.seed=3", "--config.extract.guidance_scales=(1.0,2.0)", "--noconfig.evaluate.membership"]
    config, overridden = options.parse(values, arguments, default_config())
    assert (config.seed, config.extract.guidance_scales, config.evaluate.membership) == (3, (1.0, 2.0), False)
    assert overridden == {"seed", "extract.guidance_scales", "evaluate.membership"}
    assert config.is_locked


@pytest.mark.parametrize("name", ["smoke", "smoke.py", str(runs.ROOT / "configs" / "smoke.py"), "~/smoke.py"])
def test_a_config_by_its_name_or_its_path(tmp_path, monkeypatch, capsys, prepared, name):
    """From any folder; a relative path is looked up in the current one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copy(runs.SMOKE, tmp_path)
    assert start(main, monkeypatch, f"--config={name}", "--workdir=~/run", "--config.seed=5", "--stages=train") == 0
    ((settings, workdir, stages),) = prepared
    assert (settings.name, settings.seed, stages) == ("smoke", 5, ["train"])
    assert str(workdir) == f"{tmp_path}/run"


@pytest.mark.parametrize("binary", [main, train, extract, evaluate, theory], ids=lambda binary: binary.__name__)
def test_a_config_that_is_not_there_is_answered_by_those_that_are(tmp_path, binary, monkeypatch, capsys):
    assert start(binary, monkeypatch, "--config=digitz", f"--workdir={tmp_path / 'run'}") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    for word in ("side_jax: config 'digitz' not found", "celeba, celeba_25000", "digits, ", "theory_gmm"):
        assert word in err
    assert not (tmp_path / "run").exists()


def test_overrides_of_a_workdirs_own_config(finished, monkeypatch, prepared):
    """Also of a tuple, which JSON keeps as a list."""
    more = ["--config.extract.num_images=4096", "--config.extract.guidance_scales=(2.0,)"]
    assert start(main, monkeypatch, f"--workdir={finished}", *more) == 0
    assert start(main, monkeypatch, f"--workdir={finished}") == 0
    (changed, _, _), (saved, _, _) = prepared
    assert (changed.extract.num_images, changed.extract.guidance_scales) == (4096, (2.0,))
    assert (changed.train, changed.data, changed.evaluate) == (saved.train, saved.data, saved.evaluate)
    assert saved.extract.guidance_scales == (1.0, 10.0)


def test_another_file_in_a_saved_config_is_hashed_anew(finished, tmp_path, monkeypatch, capsys, prepared):
    """Its recorded SHA-256 is that of the earlier file; given together, the two must agree."""
    digest = {}
    for name, seed in (("old", 0), ("new", 1)):
        np.savez(tmp_path / f"{name}.npz", id=np.arange(64), label=np.random.default_rng(seed).permutation(64) % 2)
    workdir = tmp_path / "run"
    workdir.mkdir()
    labels = ["--config.condition.labels=file", "--config.condition.num_labels=2"]
    for name in ("old", "new"):
        path = f"--config.condition.path={tmp_path / name}.npz"
        assert start(main, monkeypatch, f"--config={runs.SMOKE}", f"--workdir={workdir}", *labels, path) == 0
        digest[name] = prepared[-1][0].condition.sha256
    assert digest["old"] != digest["new"]
    saved = json.loads((finished / "config.json").read_text())
    saved["condition"] |= {
        "labels": "file",
        "num_labels": 2,
        "path": str(tmp_path / "old.npz"),
        "sha256": digest["old"],
    }
    (workdir / "config.json").write_text(json.dumps(saved))
    path = f"--config.condition.path={tmp_path / 'new.npz'}"
    assert start(main, monkeypatch, f"--workdir={workdir}", path) == 0
    assert prepared[-1][0].condition.sha256 == digest["new"]
    assert start(main, monkeypatch, f"--workdir={workdir}", path, f"--config.condition.sha256={digest['old']}") == 1
    assert "is not the file used before" in capsys.readouterr().err


def test_a_workdir_of_another_version(tmp_path, monkeypatch, capsys):
    """A setting that it lacks takes its default; one that is not known here is an error."""
    (tmp_path / "config.json").write_text('{"name": "old", "train": {"num_steps": 7}}')
    config = saved_config.saved_config(tmp_path)
    assert (config.name, config.train.num_steps) == ("old", 7)
    assert config.modes.to_dict() == default_config().modes.to_dict()
    (tmp_path / "config.json").write_text('{"name": "old", "train": {"speed": 7}}')
    assert start(main, monkeypatch, f"--workdir={tmp_path}", "--config.seed=1") == 1
    said = capsys.readouterr().err
    assert "was made by an earlier version of side_jax, and this is side_jax" in said
    assert f"{side_jax.__version__}: config.train.speed is not a setting" in said
    assert said.endswith("Use that version, or a new --workdir.\n")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "manifest.json").write_text('{"side_jax": "9.8"}')
    assert start(main, monkeypatch, f"--workdir={tmp_path}", "--config.seed=1") == 1
    assert "was made by side_jax 9.8, and this is" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{")
    assert start(main, monkeypatch, f"--workdir={tmp_path}") == 1
    assert "config.json is damaged" in capsys.readouterr().err


def test_suspects_are_ranked_unless_stages_are_named(finished, monkeypatch, prepared):
    for more in ([], ["--suspects"], ["--suspects", "--stages=report"]):
        assert start(evaluate, monkeypatch, f"--workdir={finished}", *more) == 0
    assert [stages for _, _, stages in prepared] == [["evaluate", "report"], ["suspects"], ["report"]]


def test_which_command_lines_are_for_images_alone():
    for arguments in (["--samples=a"], ["-members", "a"], ["--out=b", "--heldout", "a"]):
        assert cli.asks_for_samples(arguments)
    for arguments in ([], ["samples"], ["--workdir=samples"], ["--config.name=samples"], ["--suspects"]):
        assert not cli.asks_for_samples(arguments)


def test_paths_of_a_samples_only_audit_may_begin_with_a_tilde(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = [f"--{name}=~/{name}.npy" for name in ("samples", "members", "heldout")]
    assert cli.audit_samples(["evaluate", *paths, "--out=~/out"]) == 1
    err = capsys.readouterr().err
    assert "/samples.npy does not exist" in err
    assert "~" not in err


def test_an_error_of_a_stage_is_one_sentence(finished, monkeypatch, capsys):
    def fail(*_):
        raise InputError("this can't be used; use that.")

    monkeypatch.setattr(audit, "run", fail)
    assert start(main, monkeypatch, f"--workdir={finished}") == 1
    assert capsys.readouterr().err == "side_jax: this can't be used; use that.\n"


def test_no_device_is_one_sentence_and_a_bug_is_none(finished, monkeypatch, capsys):
    """JAX raises what it likes: an AssertionError for cuda without its plugin."""

    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(audit, "run", fail)
    with pytest.raises(AssertionError):
        start(main, monkeypatch, f"--workdir={finished}")
    monkeypatch.setattr(jax, "devices", fail)
    assert start(main, monkeypatch, f"--workdir={finished}") == 1
    assert capsys.readouterr().err.startswith("side_jax: JAX finds no device with JAX_PLATFORMS=cpu (its plugin is not")


def test_a_platform_that_is_not_there(tmp_path):
    """Also for a command that reads images alone."""
    np.save(tmp_path / "images.npy", np.zeros((4, 8, 8, 1), np.uint8))
    paths = [f"--{name}={tmp_path / 'images.npy'}" for name in ("samples", "members", "heldout")]
    command = [sys.executable, "-m", "side_jax.evaluate", *paths, f"--out={tmp_path / 'out'}"]
    env = runs.environment(1) | {"JAX_PLATFORMS": "abacus"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=runs.ROOT, env=env, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith("side_jax: JAX finds no device with JAX_PLATFORMS=abacus (")
    assert "set JAX_PLATFORMS=cpu, or install JAX for that device" in done.stderr


def test_the_real_command(tmp_path):
    """In another folder, in a process of its own: nothing is said but what is asked for."""
    command = [sys.executable, "-m", "side_jax.main", "--version"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(runs.ROOT)}, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == options.versions() + "\n"


@pytest.mark.parametrize("rate", ["1", "-0.1", "x", "100%", ""])
def test_a_rate_that_is_none_is_refused_before_anything_runs(finished, monkeypatch, capsys, prepared, rate):
    assert start(main, monkeypatch, f"--workdir={finished}", f"--fail-above={rate}") == 2
    assert f"--fail-above={rate} must be a share of images" in capsys.readouterr().err
    assert start(main, monkeypatch, f"--workdir={finished}", f"--fail-on=x{rate}") == 2
    assert f"--fail-on=x{rate} must be one of leaks, undecided." in capsys.readouterr().err
    assert not prepared


@pytest.mark.parametrize("option", ["--json", "--fail-on=leaks", "--fail-above=1%"])
def test_a_gate_needs_a_report(finished, monkeypatch, capsys, prepared, option):
    for more in ("--stages=train,evaluate", "--dry-run"):
        assert start(main, monkeypatch, f"--workdir={finished}", option, more) == 2
        assert "need the stage report, and no --dry-run" in capsys.readouterr().err
    assert start(main, monkeypatch, f"--workdir={finished}", option) == 0
    assert len(prepared) == 1


def test_a_gate_on_a_finished_run(finished, monkeypatch, capsys):
    """Its verdict is Not decided: the model of the smoke test has learned nothing yet."""
    assert start(main, monkeypatch, f"--workdir={finished}", "--json", "--fail-on=leaks", "--fail-above=0") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["failed"]) == ("Not decided", False)
    assert found["report"] == str(finished / "report" / "index.html")
    assert start(main, monkeypatch, f"--workdir={finished}", "--fail-on=undecided") == cli.FAILS == 3
    assert "Fails: The verdict is 'Not decided', and --fail-on=undecided." in capsys.readouterr().out
