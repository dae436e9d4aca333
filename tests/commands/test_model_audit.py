"""The audit without a config: what it finds out, what it keeps, and what it refuses; by the command and from Python."""

import json
import logging
import shutil

import foreign
import jax
import numpy as np
import pytest
from PIL import Image

import side_jax
from side_jax.commands import cli, model_audit
from side_jax.config import default_config
from side_jax.diffusion.schedule import make_schedule
from side_jax.pipeline import budget, clock
from side_jax.pipeline.saved_config import saved_config
from side_jax.stages.estimates import Timing
from side_jax.targets import from_function

# What would take most of the time of so small an audit.
QUICK = {
    "evaluate.distribution": False,
    "evaluate.controls": False,
    "evaluate.metrics": ("rmse",),
    "evaluate.divergence": False,
    "evaluate.membership": False,
    "extract.num_images": 16,
    "sampler.num_steps": 3,
    "modes.rounds": (1,),
}
FLAGS = [f"--config.{key}={value}" for key, value in QUICK.items()]


def noise(n, seed, shape=(8, 8, 1)):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return foreign.write_smallest(tmp_path_factory.mktemp("made") / "tiny model")


@pytest.fixture
def sets(tmp_path):
    """Folders of pictures that are larger than the model's, and of two sizes."""
    for i, name in enumerate(("seen", "unseen")):
        (tmp_path / name).mkdir()
        for j, image in enumerate(noise(12 - 3 * i, i, (10, 10 + 2 * i, 3))):
            Image.fromarray(image).save(tmp_path / name / f"{j}.png")
    return tmp_path


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Nothing is timed, and no surrogate trained; tests/pipeline/test_budget.py has SIDE's level."""
    monkeypatch.setattr(budget, "LEVELS", budget.LEVELS[1:])
    monkeypatch.setattr(clock, "_timed", lambda step: (1e-6, 1e-6))
    monkeypatch.setattr(logging.getLogger("side_jax"), "handlers", [])


def command(model, sets, *more):
    argv = ["side_jax", "audit", f"--model={model}", f"--members={sets / 'seen'}", f"--heldout={sets / 'unseen'}"]
    with jax.numpy_dtype_promotion("standard"):
        return cli.audit_model([*argv, *more])


def test_everything_is_found_out_and_said(model, sets, monkeypatch, capsys, said):
    monkeypatch.chdir(sets)
    assert command(model, sets, *FLAGS) == 0
    workdir = sets / "runs" / "tiny model"
    config = saved_config(workdir)
    assert (config.data.image_size, config.data.image_width, config.data.channels) == (8, 0, 1)
    assert (config.data.num_members, config.data.num_heldout) == (12, 9)
    assert (config.extract.attacks, config.extract.num_images) == (("unconditional", "modes"), 16)
    assert config.evaluate.normalized_l2_neighbors <= 9
    assert config.name == "tiny model"
    text = "\n".join(said.messages)
    assert "chosen: 12 members and 9 held-out images of 8x8 pixels and 1 channel." in text
    assert "chosen: 16 images of each of unconditional, modes, 3 sampling steps, 64 images at once." in text
    assert "of a budget of 60 min" in text
    assert "Report:" in capsys.readouterr().out
    assert (workdir / "report" / "index.html").is_file()

    said.clear()
    monkeypatch.setattr(budget, "choose", None)  # the second time, nothing is chosen
    assert command(model, sets, *FLAGS, "--json") == 0
    assert "evaluate: up to date, nothing to do." in said.messages
    assert json.loads(capsys.readouterr().out)["verdict"] == "Not decided"
    assert command(model, sets, *FLAGS, "--dry-run") == 0
    assert "Total: about 0 s" in capsys.readouterr().out


def test_a_run_that_stops_early_continues_with_its_settings(model, sets, monkeypatch, said):
    """Timed anew, the steps would allow another number of images."""
    workdir = sets / "run"
    flags = [flag for flag in FLAGS if "num_images" not in flag]
    with monkeypatch.context() as now:

        def stops(self):
            raise side_jax.InputError("stopped")

        now.setattr(model_audit._Schedule, "revised", stops)
        now.setattr(budget, "MOST", 32)
        assert command(model, sets, *flags, f"--workdir={workdir}") == 1
    monkeypatch.setattr(budget, "MOST", 64)
    assert command(model, sets, *flags, f"--workdir={workdir}") == 0
    assert saved_config(workdir).extract.num_images == 32
    assert any("continues with the settings that were chosen before" in line for line in said.messages)


def test_the_plan_writes_nothing(model, sets, capsys):
    before = sorted(sets.rglob("*"))
    assert command(model, sets, f"--workdir={sets / 'run'}", "--dry-run", *FLAGS) == 0
    assert "Plan of tiny model in" in capsys.readouterr().out
    assert sorted(sets.rglob("*")) == before


def test_fewer_images_where_the_first_stages_took_long(model, sets, monkeypatch):
    """The steps turn out to be slow once the model is imported."""
    known, workdir = [1e-6], sets / "run"
    monkeypatch.setattr(clock.Clock, "sampling_step", lambda self, attack: Timing(step=known[0]))
    real = model_audit._Schedule.revised

    def revised(self):
        known[0] = 1e9
        return real(self)

    monkeypatch.setattr(model_audit._Schedule, "revised", revised)
    monkeypatch.setattr(budget, "MOST", 1024)
    flags = [flag for flag in FLAGS if "num_images" not in flag]
    assert command(model, sets, *flags, f"--workdir={workdir}") == 0
    assert saved_config(workdir).extract.num_images == 64  # one batch


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (["--budget=soon"], 2, "the budget 'soon' is no time"),
        (["--budget=1s"], 1, "s are left of the budget; give more time"),
        (["--attacks=mode"], 1, "config.extract.attacks is 'mode', but it must be one of unconditional"),
        (["--attacks=twin"], 1, "without those of the twin"),
        (["--dry-run", "--json"], 2, "--dry-run makes none"),
        (["--model=nowhere"], 1, "--model: nowhere is neither a folder nor a file"),
        (["--members=nowhere"], 1, "--members=nowhere does not exist"),
        (["--heldout=nowhere"], 1, "--heldout=nowhere does not exist"),
        (["--model="], 2, "--model=PATH is missing"),
        (["--config.data.image_size=9"], 1, "generates images of 8x8 pixels"),
    ],
)
def test_what_can_not_be_used(model, sets, capsys, more, code, words):
    assert command(model, sets, f"--workdir={sets / 'run'}", *more) == code
    error = capsys.readouterr().err
    assert words in error
    assert "config.data.path" not in error
    assert not (sets / "run").exists()


def test_a_value_of_another_type_is_one_sentence(model, sets):
    with pytest.raises(side_jax.InputError, match="num_images holds 'many', but it must be of type int"):
        side_jax.audit(model, sets / "seen", sets / "unseen", sets / "run", overrides={"extract.num_images": "many"})


def test_another_model_in_the_same_workdir_is_refused(model, sets, capsys):
    workdir = f"--workdir={sets / 'run'}"
    assert command(model, sets, workdir, *FLAGS) == 0
    other = shutil.copytree(model, sets / "other")
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert command(other, sets, workdir, *FLAGS) == 1
    assert "holds a model made with another config" in capsys.readouterr().err


def test_the_size_is_that_of_the_members_where_the_model_does_not_say(sets):
    data = default_config().data
    data.path = str(sets / "seen")
    assert model_audit._size(data) == (10, 10)
    Image.fromarray(noise(1, 5, (4, 6, 3))[0]).save(sets / "seen" / "5.png")
    with pytest.raises(side_jax.InputError, match=r"the members have several \(4x6, 10x10\); set --config.data.image"):
        model_audit._size(data)


def test_from_python_with_arrays_and_an_object(tmp_path):
    """The exact score of members that are far from all else: every image is one of them."""
    members, heldout = (noise(16, seed) for seed in (0, 1))
    points = members.reshape(16, -1) / 127.5 - 1
    schedule = make_schedule("linear", 100, beta_end=0.2)

    def fn(x, t, labels):
        snr = np.interp(t, np.arange(100), schedule.log_snr)[:, None]
        a, s = (np.sqrt(1 / (1 + np.exp(sign * snr))) for sign in (-1, 1))
        y = x.reshape(len(x), -1)
        nearest = np.square(y[:, None] - a[..., None] * points).sum(-1).argmin(1)
        return ((y - a * points[nearest]) / s).reshape(x.shape).astype(np.float32)

    target = from_function(fn, schedule, (8, 8, 1), name="nearest member")
    arguments = (target, members, heldout, tmp_path / "run")
    overrides = {key: value for key, value in QUICK.items() if key != "evaluate.divergence"} | {
        "extract.num_images": 64
    }
    with jax.numpy_dtype_promotion("standard"):
        result = side_jax.audit(*arguments, budget=600, overrides=overrides)
    assert result.verdict == "Leaks"
    rates = {row["attack"]: row["ams"] for row in result.records if row["level"] == "high"}
    assert rates == {"unconditional": 1.0, "modes": 1.0}
    assert np.array_equal(np.load(tmp_path / "run" / "given" / "members.npy"), members)
    again = side_jax.audit(*arguments, budget=600, overrides=overrides)
    assert again.records == result.records


def test_from_python_what_can_not_be_used(tmp_path, model):
    images = noise(12, 0)
    with pytest.raises(side_jax.InputError, match=r"which report.private forbids; give paths"):
        side_jax.audit(model, images, images, tmp_path / "run", overrides={"report.private": True})
    with pytest.raises(side_jax.InputError, match=r"'extract\.images', which is not a setting"):
        side_jax.audit(model, "seen", "unseen", tmp_path / "run", overrides={"extract.images": 1})
    for key in ("extract", "extract.num_images.x", "typo"):
        with pytest.raises(side_jax.InputError, match="which is not a setting"):
            side_jax.audit(model, "seen", "unseen", tmp_path / "run", overrides={key: 1})
    with pytest.raises(side_jax.InputError, match=r"^target: nowhere is neither"):
        side_jax.audit("nowhere", "seen", "unseen", tmp_path / "run")
    with pytest.raises(side_jax.InputError, match="is no time"):
        side_jax.audit(model, "seen", "unseen", tmp_path / "run", budget="soon")
    with pytest.raises(side_jax.InputError, match=r"^members is of type float64"):
        side_jax.audit(model, images / 2, images, tmp_path / "run")
    assert not (tmp_path / "run").exists()
