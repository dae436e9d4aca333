"""A model that is a Python function: the whole audit runs on it, and what needs its derivatives says so."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import runs
from scipy.special import softmax
from sklearn.datasets import load_digits

import side_jax
from side_jax.config import from_config, load_config
from side_jax.devices import cpu
from side_jax.diffusion.schedule import make_schedule
from side_jax.errors import InputError
from side_jax.pipeline import resolve
from side_jax.targets import from_function

DIGITS = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
MEMBERS, HELDOUT = DIGITS[:64], DIGITS[200:264]
SCHEDULE = make_schedule("linear", 100, beta_end=0.2)


def memorised(x, t, labels):
    """The noise that the exact denoiser of the members predicts: the posterior mean over them, of any timestep."""
    points = MEMBERS.reshape(len(MEMBERS), -1) / 127.5 - 1
    log_snr = np.interp(t, np.arange(100), SCHEDULE.log_snr)[:, None]
    a, s = (np.sqrt(1 / (1 + np.exp(sign * log_snr))) for sign in (-1, 1))
    y = x.reshape(len(x), -1)
    distances = np.square(y[:, None] - a[..., None] * points).sum(-1)
    mean = softmax(-distances / (2 * s**2), axis=1) @ points
    return ((y - a * mean) / s).reshape(x.shape).astype(np.float32)


@pytest.fixture
def config(tmp_path):
    for name, images in (("seen", MEMBERS), ("unseen", HELDOUT)):
        np.savez(tmp_path / f"{name}.npz", images=images)
    config = load_config("smoke")
    with config.unlocked():
        for key, value in (runs.TINY | {"extract.attacks": ("unconditional", "side", "modes")}).items():
            if not key.startswith(("model.", "train.")):
                value = eval(value) if isinstance(value, str) else value
                config.update_from_flattened_dict({key: value})
        config.data.name, config.data.path = "npz", str(tmp_path / "seen.npz")
        config.data.heldout_from = str(tmp_path / "unseen.npz")
        config.data.num_members = config.data.num_heldout = 0
        config.sampler.num_steps, config.modes.rounds = 10, (2,)
        config.extract.guidance_scales = (1.0,)
        config.synthesize.num_images = 64
    return config


def target(fn=memorised, name="the posterior mean of the members", **options):
    return from_function(fn, SCHEDULE, (8, 8, 1), name=name, **options)


def test_the_whole_audit_runs_on_it(config, tmp_path):
    with jax.numpy_dtype_promotion("standard"):
        result = side_jax.audit_config(config, tmp_path / "run", target=target())
    assert result.verdict == "Leaks"
    rows = [row for row in result.records if (row["metric"], row["level"]) == ("rmse", "high")]
    assert {row["attack"] for row in rows} == {"unconditional", "side", "modes"}
    assert min(row["ams"] for row in rows) > 0.95  # it knows nothing else
    assert max(row["heldout_ams"] for row in rows) == 0
    again = side_jax.audit_config(None, tmp_path / "run")  # all is done, so nothing is called
    assert again.records == result.records


@pytest.mark.parametrize("attack", ["conditional_x0", "side_lora"])
def test_attacks_that_need_more_than_values_are_refused(config, tmp_path, attack):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.extract.attacks = ("unconditional", attack)
    with pytest.raises(InputError, match=f"without {attack}: a Python object has values, not the") as caught:
        side_jax.audit_config(config, tmp_path / "run", target=target())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "train").exists()


@pytest.mark.parametrize(
    ("section", "name", "value", "words"),
    [
        ("target", "pixels", "unit", "so scale them in it"),
        ("label", "features", "denoiser", "another kind: a Python object has values, not the activations"),
    ],
)
def test_settings_of_files_are_refused(config, tmp_path, section, name, value, words):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config[section][name] = value
    with pytest.raises(InputError, match=words):
        side_jax.audit_config(config, tmp_path / "run", target=target())


def test_the_images_are_those_of_the_object(config, tmp_path):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.evaluate.divergence = True
    resolved = from_config(resolve.with_object(config, target()))
    assert resolved.data.shape == (8, 8, 1)
    assert not resolved.evaluate.divergence


def test_another_process_is_told_to_pass_it(config, tmp_path, monkeypatch):
    with jax.numpy_dtype_promotion("standard"):
        side_jax.audit_config(config, tmp_path / "run", ["train"], target=target())
    monkeypatch.setattr("side_jax.models.callback._FUNCTIONS", {})
    with pytest.raises(InputError, match="with the same workdir and target="):
        side_jax.audit_config(None, tmp_path / "run", ["synthesize"])


def test_a_wrong_shape_is_said():
    model = target(lambda x, t, labels: x[:, :4], "half")
    params = model.origin.read_params()
    with pytest.raises(Exception, match=r"returned the shape \(2, 4, 8, 1\) for images of \(2, 8, 8, 1\)"):
        jax.block_until_ready(model.denoise(params, np.zeros((2, 8, 8, 1), np.float32), np.zeros(2, np.int32)))


def test_labels_reach_it():
    got = []

    def fn(x, t, labels):
        got.append((t.tolist(), labels.tolist()))
        return x

    model = target(fn, "labels", num_labels=3, null_label=False)
    params, x, t = model.origin.read_params(), np.zeros((4, 8, 8, 1), np.float32), np.arange(4, dtype=np.int32)
    np.asarray(model.denoise(params, x, t, model.default_labels(np.arange(4))))
    np.asarray(model.denoise(params, x, t))
    assert got == [([0, 1, 2, 3], [0, 1, 2, 0]), ([0, 1, 2, 3], [-1, -1, -1, -1])]


def test_it_needs_a_name():
    with pytest.raises(InputError, match="must identify the model"):
        target(name="")


def test_several_devices_of_a_cpu_are_refused_where_we_made_them(config, tmp_path, monkeypatch, caplog):
    """Calls from several wait for each other; eight were asked for here, so there is only a warning."""
    monkeypatch.setattr("side_jax.devices.cpu._cores_are_devices", True)
    with pytest.raises(InputError, match="audit it in a new Python process"):
        side_jax.audit_config(config, tmp_path / "run", target=target())
    monkeypatch.setattr("side_jax.devices.cpu._cores_are_devices", False)
    cpu.use_one()
    assert "may wait for each other" in caplog.text


def test_a_new_process_has_one_device_for_it():
    code = "import jax; from side_jax.devices import cpu; cpu.use_one(); cpu.prepare([64]); print(jax.device_count())"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]
