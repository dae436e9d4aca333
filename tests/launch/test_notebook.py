"""launch/colab.ipynb, executed as a user would, on the smoke config."""

import importlib.metadata
import inspect
import os
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
import runs
from nbclient import NotebookClient

import side_jax
from side_jax.commands import api
from side_jax.workdir import files

PATH = runs.ROOT / "launch" / "colab.ipynb"


@pytest.fixture
def notebook():
    found = nbformat.read(PATH, as_version=4)
    nbformat.validate(found)
    return found


def test_it_is_kept_free_of_outputs(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_its_links_lead_somewhere(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = [part.partition(")")[0] for part in text.split("](")[1:]]
    assert "../configs/celeba.py" in links
    for link in links:
        assert (PATH.parent / link).exists(), link


def first_cell(notebook, repository=""):
    source = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert source.count('REPOSITORY = ""') == 1
    exec(source.replace('REPOSITORY = ""', f"REPOSITORY = {str(repository)!r}"), {})


def test_opened_alone_it_clones_and_installs(notebook, tmp_path, monkeypatch):
    origin, alone = tmp_path / "origin", tmp_path / "alone"
    (origin / "configs").mkdir(parents=True)
    (origin / "configs" / "digits.py").touch()
    git = ["git", "-C", str(origin), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "configs"], ["commit", "-qm", "configs"]):
        subprocess.run([*git, *command], check=True)
    alone.mkdir()
    real, run = subprocess.run, []

    def recorded(command, **options):
        run.append(command)
        return real(command, **options) if command[0] == "git" else None

    monkeypatch.setattr(subprocess, "run", recorded)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda name: [])
    monkeypatch.chdir(alone)
    with pytest.raises(SystemExit, match="There is no configs/ here; set REPOSITORY to the address"):
        first_cell(notebook)
    assert not run
    for programs in (["git", "pip"], ["pip"]):  # the second time, as after a restart of the kernel, it is there
        first_cell(notebook, origin)
        assert Path.cwd() == alone / "side_jax"
        assert Path("configs/digits.py").exists()
        assert ["git" if command[0] == "git" else command[2] for command in run] == programs
        run.clear()
        os.chdir(alone)
    (origin / "launch").mkdir()
    os.chdir(origin / "launch")  # where Jupyter puts a notebook of launch/
    first_cell(notebook)
    assert Path.cwd() == origin


def test_its_commands_name_configs_that_are_there(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    named = [part.split()[0] for part in text.split("-m side_jax.main --config=")[1:]]
    assert "configs/celeba.py" in named
    for config in named:
        assert (runs.ROOT / config).exists(), config


def test_a_model_of_ones_own(notebook, monkeypatch):
    """tests/commands/test_model_audit.py runs what the cell calls."""
    source = next(cell.source for cell in notebook.cells if "SIDE_MODEL" in cell.source)
    for name, value in (("MODEL", "ckpt.pt"), ("MEMBERS", "seen"), ("HELDOUT", "unseen"), ("BUDGET", "2min")):
        monkeypatch.setenv(f"SIDE_{name}", value)
    asked = []
    monkeypatch.setattr(side_jax, "audit", lambda *given, **named: asked.append((given, named)))
    exec(source, {"side_jax": side_jax, "os": os})
    (given, named), *_ = asked
    inspect.signature(api.audit).bind(*given, **named)
    assert (given, named) == (("ckpt.pt", "seen", "unseen"), {"budget": "2min"})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook's own machinery, by version
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_it_runs_and_shows_the_pairs(notebook, workdir, tmp_path, monkeypatch):
    """Up to the report of a finished run, which it writes anew."""
    settings = files.read_json(workdir / "config.json")
    (tmp_path / "tiny.py").write_text(f"from ml_collections import ConfigDict as C\nget_config = lambda: C({settings})")
    shutil.rmtree(workdir / "report")
    monkeypatch.setenv("SIDE_CONFIG", str(tmp_path / "tiny.py"))
    monkeypatch.setenv("SIDE_WORKDIR", str(workdir))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(runs.ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("XLA_FLAGS", runs.environment(devices=1)["XLA_FLAGS"])
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(runs.ROOT)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert "Not decided" in printed
    assert "- Without guidance, " in printed
    assert any("<iframe" in output.get("data", {}).get("text/html", "") for output in outputs)
