"""launch/colab.ipynb, executed as a user would, on the smoke config."""

import os

import nbformat
import pytest
import runs
from nbclient import NotebookClient

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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook's own machinery, by version
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_it_runs_and_shows_the_pairs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("SIDE_CONFIG", "configs/smoke.py")
    monkeypatch.setenv("SIDE_WORKDIR", str(tmp_path / "run"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(runs.ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(runs.ROOT)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == len(list((tmp_path / "run" / "report").glob("matches_*.png"))) >= 2
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert "side, scale 10" in printed
    assert any("<iframe" in output.get("data", {}).get("text/html", "") for output in outputs)
