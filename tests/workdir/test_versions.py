"""A workdir of version 0.1.0 in this version: all of it is read, and nothing but the page is made again."""

import json

import runs

from side_jax.stages import stage_table
from side_jax.workdir import checkpoint, files, work_units

OLDER = "0.1.0"
MODULES = (stage_table, work_units, checkpoint)  # where a version goes into files


def made_by_the_older(workdir, monkeypatch):
    """Has the older version finish the run's page and record itself; checkpoints are of this version."""
    with monkeypatch.context() as patch:
        for module in MODULES:
            patch.setattr(module, "__version__", OLDER)
        assert runs.run(runs.arguments(workdir)) == 0
    for path in workdir.rglob("manifest.json"):
        files.write_json(path, json.loads(path.read_text()) | {"side_jax": OLDER})
    metas = [path for path in workdir.rglob("metadata") if path.parent.name == "meta"]
    for path in metas:  # each manifest records their SHA-256
        path.write_text(json.dumps(json.loads(path.read_text()) | {"side_jax": OLDER}))
    for path in workdir.rglob("manifest.json"):
        record = json.loads(path.read_text())
        known = {name: files.file_digest(workdir / name) for name in record.get("sha256", {})}
        files.write_json(path, record | ({"sha256": known} if known else {}))
    assert metas


def authors(workdir):
    """{unit: the version in its manifest}."""
    return {
        str(path.parent.relative_to(workdir)): json.loads(path.read_text())["side_jax"]
        for path in workdir.rglob("manifest.json")
        if "stale" not in path.parts
    }


def test_only_the_page_of_an_earlier_version_is_made_again(workdir, monkeypatch, said, no_figures):
    made_by_the_older(workdir, monkeypatch)
    assert set(authors(workdir).values()) == {OLDER}
    said.clear()
    assert runs.run(runs.arguments(workdir)) == 0
    assert "report: its settings or inputs changed" in said.text  # the page names the version that wrote it
    units = authors(workdir)
    assert units.pop("report") != OLDER
    assert set(units.values()) == {OLDER}
    # A lost file is made again from the older version's checkpoints, to the same bytes.
    shard = workdir / "extract" / "side_10" / "shard_00001.npz"
    before = shard.read_bytes()
    shard.unlink()
    said.clear()
    assert runs.run(runs.arguments(workdir)) == 0
    assert shard.read_bytes() == before
    assert {unit for unit, author in authors(workdir).items() if author != OLDER} == {"extract/side_10", "report"}
