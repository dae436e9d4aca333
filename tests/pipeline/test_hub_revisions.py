"""Runs on repositories of the hub: the commit is recorded, a branch that moves changes nothing, and files may go."""

import dataclasses
import json
import shutil

import foreign
import hubs
import numpy as np
import pytest
import runs

from side_jax.config import default_config, from_config
from side_jax.errors import InputError
from side_jax.pipeline import resolve as resolving
from side_jax.pipeline.saved_config import saved_config
from side_jax.stages import report, stage_table

pytestmark = hubs.needed
ID, WEIGHTS = "hf://me/model", "unet/diffusion_pytorch_model.safetensors"


def pipeline(folder, scale=1):
    """{file: its bytes} of a model, whose weights are those of foreign.py times a number."""
    from safetensors.numpy import load_file, save_file

    foreign.write(folder)
    save_file({name: scale * value for name, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.*") if file.is_file()}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hubs.serving() as hub:
        hub.add("me/model", pipeline(tmp_path / "first"))
        hubs.connect(monkeypatch, hub.address, tmp_path / "cache")
        yield hub


@pytest.fixture
def moved(hub, tmp_path):
    """Moves main to a commit with other weights."""
    return lambda: hub.add("me/model", pipeline(tmp_path / "second", scale=2), commit=hubs.OTHER)


def config_of(path=ID):
    config = default_config()
    config.target.path = path
    config.data.update({"name": "npz", "path": "seen.npz", "heldout_from": "unseen.npz"})
    config.data.update({"num_members": 64, "num_heldout": 64})
    config.extract.attacks = ("unconditional", "side")
    config.diffusion.num_timesteps = 1000
    config.sampler.num_steps = 20
    return config


def save(settings, workdir):
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(settings)))


def test_the_commit_is_recorded_and_kept(hub, moved, tmp_path):
    workdir = tmp_path / "run"
    first = resolving.resolve(config_of(), workdir)
    assert (first.target.path, first.target.revision, first.target.format) == (ID, hubs.MAIN, "diffusers")
    save(first, workdir)
    moved()
    # By the same command, by the saved config, and in a new workdir.
    assert resolving.resolve(config_of(), workdir).target == first.target
    hub.asked.clear()
    assert resolving.resolve(saved_config(workdir), workdir).target == first.target
    assert not hub.asked
    other = resolving.resolve(config_of(), tmp_path / "new")
    assert (other.target.revision, other.target.sha256 != first.target.sha256) == (hubs.OTHER, True)
    assert resolving.resolve(config_of(f"{ID}@main"), workdir).target.revision == hubs.OTHER  # another id
    assert resolving.resolve(config_of(f"{ID}@{hubs.MAIN}"), tmp_path / "new").target.sha256 == first.target.sha256
    # The weights are known by their hash, wherever they are from.
    local = resolving.resolve(config_of(str(tmp_path / "first")), tmp_path / "local")
    assert local.target.revision == ""
    assert stage_table.fingerprint(local, "train") == stage_table.fingerprint(first, "train")


def test_a_recorded_run_continues_without_its_files(hub, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    first = resolving.resolve(config_of(), workdir)
    save(first, workdir)
    for part in (WEIGHTS, ""):  # half of the files are gone, then all
        path = next((tmp_path / "cache").rglob(hubs.MAIN)) / part
        path.unlink() if part else shutil.rmtree(path)
        hub.asked.clear()
        assert resolving.resolve(saved_config(workdir), workdir) == first
        assert not hub.asked
    hubs.connect(monkeypatch, hub.address, tmp_path / "cache", offline=True)
    with pytest.raises(
        InputError, match=r"^config.target.path: hf://me/model can't be asked of .*HF_HUB_OFFLINE is set"
    ):
        resolving.resolve(config_of("hf://me/model@v2"), tmp_path / "new")


def test_other_weights_at_a_recorded_hash_are_noticed(hub, tmp_path):
    workdir = tmp_path / "run"
    save(resolving.resolve(config_of(), workdir), workdir)
    config = saved_config(workdir)
    with config.unlocked():
        config.target.sha256 = "0" * 64
    with pytest.raises(InputError, match="the weights in hf://me/model have"):
        resolving.resolve(config, workdir)


def test_another_size_names_the_id(hub, tmp_path):
    config = config_of()
    config.data.image_size = 16
    with pytest.raises(InputError, match=r"the model in hf://me/model generates images of 8x8 pixels"):
        resolving.resolve(config, tmp_path / "run")


def test_another_path_forgets_the_commit(hub, moved, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    save(resolving.resolve(config_of(), workdir), workdir)
    moved()
    seen = []
    monkeypatch.setattr("side_jax.commands.cli._run_audit", lambda values, config, *_: seen.append(config))
    runs.run([f"--workdir={workdir}"])
    runs.run([f"--workdir={workdir}", f"--config.target.path={ID}@main"])
    kept, forgotten = (config.target for config in seen)
    assert (kept.revision, len(kept.sha256)) == (hubs.MAIN, 64)
    assert (forgotten.revision, forgotten.sha256) == ("", "")
    with pytest.raises(InputError, match=r"data.revision is 'main', but it must be empty, or a commit"):
        from_config(config_with(kept, "main"))


def config_with(_, revision):
    config = config_of()
    config.data.revision = revision
    return config


def test_data_are_pinned_too_and_private_reports_tell_neither(hub, moved, tmp_path):
    arrays = np.random.default_rng(0).integers(0, 256, (2, 65, 8, 8, 1), np.uint8)
    files = {}
    for name, images in zip(("seen", "unseen"), arrays, strict=True):
        np.savez(tmp_path / f"{name}.npz", images=images)
        files[f"{name}.npz"] = (tmp_path / f"{name}.npz").read_bytes()
    hub.add("me/data", files, kind="dataset")
    config = config_of()
    config.data.path, config.data.heldout_from = (f"hf://datasets/me/data/{name}.npz" for name in ("seen", "unseen"))
    config.data.num_members = config.data.num_heldout = 0
    workdir = tmp_path / "run"
    first = resolving.resolve(config, workdir)
    assert (first.data.num_members, first.data.num_heldout) == (65, 65)
    assert (first.data.revision, first.data.heldout_revision) == (hubs.MAIN, hubs.MAIN)
    save(first, workdir)
    hub.add("me/data", {}, commit=hubs.OTHER, kind="dataset")
    assert resolving.resolve(config, workdir).data == first.data
    with pytest.raises(InputError, match=r"^config.data.path: hf://datasets/me/data/seen.npz does not exist"):
        resolving.resolve(config, tmp_path / "new")
    private = dataclasses.replace(first, report=dataclasses.replace(first.report, private=True))
    assert "hf://" not in json.dumps(report.displayed_config(private))
    assert hubs.MAIN not in json.dumps(report.displayed_config(private))
    assert report.displayed_config(first)["target"]["revision"] == hubs.MAIN
    assert stage_table.fingerprint(first, "train") == stage_table.fingerprint(
        dataclasses.replace(first, data=dataclasses.replace(first.data, revision=hubs.OTHER)), "train"
    )


def test_the_manifest_names_the_commit(hub, moved, tmp_path):
    """Of a run whose branch moved, and whose cache was emptied, before the model was imported."""
    images = np.random.default_rng(0).integers(0, 256, (2, 70, 8, 8, 1), np.uint8)
    for name, one in zip(("seen", "unseen"), images, strict=True):
        np.savez(tmp_path / f"{name}.npz", images=one)
    workdir = tmp_path / "run"
    given = {"target__path": ID, "data__name": "npz", "data__path": tmp_path / "seen.npz"}
    given |= {"data__heldout_from": tmp_path / "unseen.npz", "extract__attacks": "('unconditional',)"}
    arguments = runs.arguments(workdir, "train", **given)
    hubs_asked = len(hub.asked)
    assert runs.run([*arguments, "--dry-run"]) == 0
    assert not workdir.exists()
    assert len(hub.asked) > hubs_asked
    assert runs.run(arguments) == 0
    manifest = json.loads((workdir / "train" / "manifest.json").read_text())
    shown = {name: manifest[name] for name in ("imported", "revision", "weights", "target_format")}
    assert shown == {"imported": ID, "revision": hubs.MAIN, "weights": [WEIGHTS], "target_format": "diffusers"}
    moved()
    shutil.rmtree(workdir / "checkpoints")
    shutil.rmtree(tmp_path / "cache")
    hub.downloaded.clear()
    assert runs.run([f"--workdir={workdir}"], ["train"]) == 0
    assert hub.downloaded.count(WEIGHTS) == 1
    assert json.loads((workdir / "train" / "manifest.json").read_text()) == manifest
