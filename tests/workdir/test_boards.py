"""Where curves are drawn: TensorBoard, and Weights & Biases by a stub that records what it is asked for."""

import dataclasses
import os
import sys
import types

import pytest
from made_wandb import Wandb

from side_jax.errors import InputError
from side_jax.settings import Report, Settings, Track
from side_jax.workdir import boards
from side_jax.workdir.curves import Curves

SECRET = "patient-0815"


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Wandb())
    for name in ("WANDB_PROJECT", "WANDB_DIR", "WANDB_ERROR_REPORTING"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return sys.modules["wandb"]


def settings(*to, private=False):
    data = dataclasses.replace(Settings().data, path=f"/data/{SECRET}")
    return Settings(name=SECRET, data=data, report=Report(private=private), track=Track(to=to))


def draw(workdir, name="train/metrics", first=0, steps=(1, 2)):
    path = workdir / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with Curves(path, first_step=first, board=path.parent / "tensorboard") as curves:
        for step in steps:
            curves.write({"step": step, "loss": step / 2, "parts": [0.5, None], "nothing": None})


def test_figures_of_every_curve_by_its_name_and_its_own_steps(tmp_path, wandb):
    with boards.open_for(settings("tensorboard", "wandb"), tmp_path, write=True):
        draw(tmp_path)
        draw(tmp_path, "surrogate/side/validation", steps=(7,))
    assert wandb.called("define_metric") == [
        ((f"{name}/*",), {"step_metric": f"{name}/step"}) for name in ("train/metrics", "surrogate/side/validation")
    ]
    logged = [args[0] for args, _ in wandb.called("log")]
    assert logged[1] == {f"train/metrics/{key}": value for key, value in (("step", 2), ("loss", 1.0), ("parts/0", 0.5))}
    assert logged[2]["surrogate/side/validation/step"] == 7
    assert wandb.called("finish") == [((), {})]
    assert list((tmp_path / "train" / "tensorboard").iterdir())


def test_a_run_is_found_again_by_its_settings_alone(tmp_path, wandb):
    """By another workdir of the same settings too; what is drawn where does not count."""
    for one in (settings("wandb"), settings("wandb", "tensorboard"), dataclasses.replace(settings("wandb"), seed=1)):
        with boards.open_for(one, tmp_path, write=True):
            pass
    first, second, other = wandb.called("init")
    assert first == second
    assert first["resume"] == "allow"
    assert len(first["id"]) == 16 != other["id"]
    assert first["name"] == SECRET
    assert first["config"]["data"]["path"] == f"/data/{SECRET}"
    assert "track" not in first["config"]
    assert (first["project"], first["dir"]) == ("side_jax", str(tmp_path))


def test_nothing_private_is_sent(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    monkeypatch.setenv("WANDB_DIR", "elsewhere")
    workdir = tmp_path / SECRET
    with boards.open_for(settings("wandb", private=True), workdir, write=True):
        draw(workdir)
    assert SECRET not in repr(wandb.calls)
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    (options,) = wandb.called("init")
    assert options.keys() == {"project", "id", "resume", "settings"}
    assert options["project"] == "ours"
    silent = options["settings"]
    assert (silent["console"], silent["host"], silent["username"]) == ("off", "", "")
    assert silent["disable_git"] is silent["x_disable_meta"] is silent["x_disable_machine_info"] is True


def test_an_error_ends_the_run_as_failed(tmp_path, wandb):
    with pytest.raises(KeyError), boards.open_for(settings("wandb"), tmp_path, write=True):
        raise KeyError
    assert wandb.called("finish") == [((), {"exit_code": 1})]


def test_only_what_is_asked_for(tmp_path, wandb):
    """Nothing, TensorBoard as before without an audit around it, and no second process."""
    with boards.open_for(settings(), tmp_path, write=True):
        draw(tmp_path)
    assert not (tmp_path / "train" / "tensorboard").exists()
    draw(tmp_path)
    assert (tmp_path / "train" / "tensorboard").exists()
    with boards.open_for(settings("wandb"), tmp_path, write=False):
        draw(tmp_path)
    assert not wandb.calls


def test_what_is_missing_or_refused_is_one_sentence(tmp_path, monkeypatch):
    for stub in (None, types.ModuleType("wandb")):  # the latter: a folder of that name
        monkeypatch.setitem(sys.modules, "wandb", stub)
        with pytest.raises(InputError, match=r"holds wandb, which is not installed; pip install 'side_jax\[wandb\]'"):
            boards.check(settings("wandb"))
        boards.check(settings("tensorboard"))
    monkeypatch.setitem(sys.modules, "wandb", Wandb(RuntimeError("api_key not configured\nmore")))
    opened = boards.open_for(settings("wandb"), tmp_path, write=True)
    with pytest.raises(InputError, match=r"can't begin \(api_key not configured\); run `wandb login`"), opened:
        pass
