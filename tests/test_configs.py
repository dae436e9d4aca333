"""Every config file loads, validates, and builds its networks' shapes; and what config files promise."""

import ast
import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from side_jax import builders
from side_jax.config import default_config, from_config, load_config, packaged_configs, to_config
from side_jax.errors import InputError
from side_jax.settings import Settings
from side_jax.settings.mixtures import Theory
from side_jax.settings.paths import path_fields

CONFIGS = Path(__file__).parent.parent / "configs"
OTHERS = {"theory_gmm.py": (Theory, "side_jax.theory")}  # configs of no audit: their settings, and the binary
VARIANTS = [*sorted(path.name for path in CONFIGS.glob("*.py") if path.name not in OTHERS), "celeba.py:64"]


# What diffusers counts for its own UNet2DModel of the same options; tests/parity counts again.
DDPM_CIFAR10_32, DDPM_CELEBAHQ_256 = 35_746_307, 113_673_219
PARAMETERS = {
    "celeba.py": DDPM_CELEBAHQ_256,
    "celeba_25000.py": DDPM_CELEBAHQ_256,
    "celeba_hq_fi.py": DDPM_CELEBAHQ_256,
    "cifar10_small.py": 4_329_059,
    "cifar10.py": DDPM_CIFAR10_32,
    "digits.py": 163_985,
    "digits_128.py": 651_041,
    "diffusers.py": 652_195,
    "digits_conditional.py": 651_041 + 11 * 128,  # the embedding of ten labels, and of none
    "faces.py": 1_112_801,
    "imagenette.py": DDPM_CELEBAHQ_256,
    "orl_faces.py": 1_112_801,
    "smoke.py": 41_609,
    "triggers.py": 163_985 + 15 * 64,  # the embedding of ten digits and four triggers, and of none
}


def load(variant):
    return load_config(CONFIGS / variant)


@functools.cache
def traced(network, image_shape):
    """(the shapes of its output for two images, and of its variables); configs of equal networks share the tracing."""
    key = jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))
    x, t = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    with jax.numpy_dtype_promotion("standard"):  # flax's norms rely on it in bfloat16
        return jax.eval_shape(network.init_with_output, key, x, t)


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_builds_its_shapes(variant):
    config = load(variant)
    assert config.is_locked
    settings = from_config(config)
    shape = builders.image_shape(settings)
    predicted, variables = traced(builders.build_network(settings), shape)
    assert predicted.shape == (2, *shape)
    assert builders.size(variables) == PARAMETERS[variant.partition(":")[0]]
    log_probs, _ = traced(builders.build_classifier(settings, 10, time_dependent=True), shape)
    assert log_probs.shape == (2, 10)
    assert builders.build_step_table(settings, settings.guided_sampler).num_steps == settings.guided_sampler.num_steps


def test_parameters_are_counted():
    assert builders.parameter_count(from_config(load("smoke.py"))) == PARAMETERS["smoke.py"]


def test_celeba_takes_its_resolution():
    assert load("celeba.py").data.image_size == 128
    assert load("celeba.py:64").data.image_size == 64


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.name)
def test_config_is_a_lab_note(path):
    """Its docstring holds the command that runs it."""
    _, binary = OTHERS.get(path.name, (Settings, "side_jax.main"))
    assert f"python -m {binary} --config=configs/{path.name}" in ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("name", OTHERS)
def test_a_config_of_no_audit_builds_its_settings(name):
    config, (cls, _) = load(name), OTHERS[name]
    assert config.is_locked
    assert isinstance(from_config(config, cls), cls)
    with pytest.raises(InputError, match="is not a setting; the config has name, seed, data"):
        from_config(config)


@pytest.mark.parametrize("cls", [Settings, Theory])
def test_default_config_round_trips(cls):
    assert from_config(default_config(cls), cls) == cls()
    assert dataclasses.asdict(from_config(default_config(cls), cls)) == dataclasses.asdict(cls())
    assert from_config(default_config()) == Settings()


def test_packaged_configs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(packaged_configs()) == sorted(path.stem for path in CONFIGS.glob("*.py"))
    assert load_config("digits").to_dict() == load_config(CONFIGS / "digits.py").to_dict()
    assert load_config("celeba:64").data.image_size == 64


def test_an_installed_package_has_its_own_folder(tmp_path, monkeypatch):
    """Where both are there, as in a wheel that lies beside someone else's configs/."""
    package = tmp_path / "side_jax"
    for folder in (package / "configs", tmp_path / "configs"):
        folder.mkdir(parents=True)
    (package / "configs" / "ours.py").write_text("")
    (tmp_path / "configs" / "theirs.py").write_text("")
    monkeypatch.setattr("side_jax.config.__file__", str(package / "config.py"))
    assert packaged_configs() == {"ours": package / "configs" / "ours.py"}


CONFIG = "from side_jax.config import default_config\ndef get_config(name='mine'):\n    c = default_config()\n"


def test_a_path_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(CONFIG + "    c.name = name\n    return c\n")
    for given in ("~/mine.py", Path("~/mine.py"), str(tmp_path / "mine.py"), tmp_path / "mine.py"):
        assert load_config(given).name == "mine"
    assert load_config("~/mine.py:yours").name == "yours"
    config = default_config()
    keys = [(path.section, path.name) for path in path_fields(Settings)]
    for section, name in keys:
        config[section][name] = "~/x"
    config.data.name, config.label.features = "folder", "onnx"
    config.condition.path = ""  # without labels it must be empty
    settings = dataclasses.asdict(from_config(config))
    for section, name in keys:
        assert settings[section][name] == ("" if section == "condition" else f"{tmp_path}/x")


def test_every_path_is_marked():
    """By their names: what else looks like a path must be marked, too."""
    marked = {f"{path.section}.{path.name}" for path in path_fields(Settings)}
    assert marked == {
        *("data.path", "data.data_dir", "data.heldout_from", "target.path", "condition.path", "label.weights"),
        "surrogate.teacher_path",
    }
    for path in path_fields(Settings):
        assert {*path.recorded} <= {*default_config()[path.section]}, path
    for section, values in default_config().items():
        for name in values if isinstance(values, ConfigDict) else ():
            assert not name.endswith(("path", "dir")) or f"{section}.{name}" in marked


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "it does not define get_config()"),
        ("def get_config(: pass", "SyntaxError"),
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'"),
        ("def get_config(): return {}", "returned dict, but it must return a ConfigDict"),
        ("def get_config(a, b): return {}", "missing"),
    ],
)
def test_broken_config_files(tmp_path, text, words):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(tmp_path / "broken.py")
    assert words in str(caught.value)
    assert "broken.py" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["typo", "", "configs/typo.py", "typo:64", "."])
def test_a_config_that_is_not_there(name):
    with pytest.raises(
        InputError, match=r"config .* not found: .* celeba, celeba_25000, .*, theory_gmm, triggers\."
    ) as caught:
        load_config(name)
    assert repr(name) in str(caught.value)


def test_a_config_file_runs_anew_each_time(tmp_path):
    path = tmp_path / "one.py"
    path.write_text(CONFIG + "    c.name = 'first'\n    return c\n")
    assert load_config(path).name == "first"
    path.write_text(CONFIG + "    c.seed = 7\n    return c\n")
    assert (load_config(path).name, load_config(path).seed) == ("audit", 7)


def test_settings_become_configs_and_back():
    settings = dataclasses.replace(Settings(), name="mine", seed=3)
    assert from_config(to_config(settings)) == settings
