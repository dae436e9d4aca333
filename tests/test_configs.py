"""Every config file loads, validates, and builds its networks' shapes; and what config files promise."""

import ast
import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import config_flags

from side_jax import builders
from side_jax.config import default_config, from_config
from side_jax.errors import InputError
from side_jax.settings import Settings
from side_jax.settings.mixtures import Theory

CONFIGS = Path(__file__).parent.parent / "configs"
OTHERS = {"theory_gmm.py": (Theory, "side_jax.theory")}  # configs of no audit: their settings, and the binary
VARIANTS = [*sorted(path.name for path in CONFIGS.glob("*.py") if path.name not in OTHERS), "celeba.py:64"]


# What diffusers counts for its own UNet2DModel of the same options; tests/parity counts again.
DDPM_CIFAR10_32, DDPM_CELEBAHQ_256 = 35_746_307, 113_673_219
PARAMETERS = {
    "celeba.py": DDPM_CELEBAHQ_256,
    "celeba_25000.py": DDPM_CELEBAHQ_256,
    "celeba_hq_fi.py": DDPM_CELEBAHQ_256,
    "cifar10.py": DDPM_CIFAR10_32,
    "digits.py": 651_041,
    "diffusers.py": 652_195,
    "digits_conditional.py": 651_041 + 11 * 128,  # the embedding of ten labels, and of none
    "faces.py": 1_112_801,
    "imagenette.py": DDPM_CELEBAHQ_256,
    "orl_faces.py": 1_112_801,
    "smoke.py": 41_609,
}


def load(variant):
    sys.modules.pop("config_config", None)  # ml_collections would run the next config file in the last one's namespace
    from absl import flags

    values = flags.FlagValues()
    argv = ["test", f"--config={CONFIGS / variant}"]
    config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
    values(argv)
    return values.config


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_builds_its_shapes(variant):
    config = load(variant)
    assert config.is_locked
    settings = from_config(config)
    shape = (2, *builders.image_shape(settings))
    unet = builders.build_unet(settings)
    classifier = builders.build_classifier(settings, 10, time_dependent=True)

    def everything(x, t):
        predicted = unet.apply(unet.init(jax.random.key(0), x, t), x, t)
        return predicted, classifier.apply(classifier.init(jax.random.key(0), x, t), x, t)

    x, t = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
    with jax.numpy_dtype_promotion("standard"):  # flax's norms rely on it in bfloat16
        predicted, log_probs = jax.eval_shape(everything, x, t)
        assert builders.parameter_count(settings) == PARAMETERS[variant.partition(":")[0]]
    assert predicted.shape == shape
    assert log_probs.shape == (2, 10)
    assert builders.build_step_table(settings, settings.guided_sampler).num_steps == settings.guided_sampler.num_steps


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
