"""Helpers for tests that run the real command: the smoke config, shrunk, and finished runs of it."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import shared

from side_jax.attacks.table import ATTACKS
from side_jax.commands import cli
from side_jax.stages import stage_table

ROOT = Path(__file__).parent.parent
SMOKE = str(ROOT / "configs" / "smoke.py")
TINY = {
    # Most of the time of so short a run would go into compiling: it has one level of the U-Net, and of evaluation the
    # scores alone; test_pipeline.py evaluates all.
    "model.block_out_channels": "(8,)",
    "model.down_block_types": "('DownBlock2D',)",
    "model.up_block_types": "('UpBlock2D',)",
    "train.num_steps": 40,
    "surrogate.num_steps": 30,
    "conditional.num_steps": 10,
    "sampler.num_steps": 3,
    "synthesize.num_images": 128,
    "extract.num_images": 64,
    "extract.attacks": "('unconditional','conditional','side')",
    "extract.guidance_scales": "(1.0,10.0)",
    "black_box.population": 5,
    "black_box.parents": 3,
    "evaluate.membership": False,
    "evaluate.distribution": False,
    "evaluate.divergence": False,
    "evaluate.divergence_draws": 2,
    "evaluate.controls": False,
}
WHOLE = {f"evaluate__{name}": True for name in ("membership", "distribution", "divergence", "controls")}


def arguments(workdir, stages=None, **overrides):
    """Command-line arguments for a tiny run; overrides use __ for the dots of a key."""
    values = TINY | {key.replace("__", "."): value for key, value in overrides.items()}
    argv = [f"--config={SMOKE}", f"--workdir={workdir}", *(f"--config.{key}={value}" for key, value in values.items())]
    return [*argv, f"--stages={stages}"] if stages else argv


def run(argv, stages=None):
    """Runs the command in this process, all stages by default; returns its exit code."""
    # optax's Adam relies on implicit promotion (decay ** count), so only what is ours is tested in strict mode.
    with jax.numpy_dtype_promotion("standard"):
        return cli.main(["side_jax", *argv], "test", stages or stage_table.audit_stages())


ATTACKED = [name for name, attack in ATTACKS.items() if not attack.own_labels]  # the target has no labels
# Every attack, with every option of the surrogate's training that differs from the defaults.
EVERYTHING = {
    "surrogate__timesteps": "importance",
    "surrogate__objective": "tdkd",
    "surrogate__teacher_steps": 10,
    "surrogate__patience": 1,
    "surrogate__validate_every": 5,
    "extract__attacks": str(tuple(ATTACKED)),
    "extract__guidance_scales": "(2.0,)",
    "extract__num_images": 32,
    "extract__temperature_scaling": True,
    "weak__num_steps": 10,
    "black_box__searches": 2,
    "black_box__population": 6,
    "black_box__parents": 3,
    "adapters__num_steps": 10,
    "classifier__norm": "batch",
    "label__features": "denoiser",
}
# Two searches of five generations and a part of the sixth.
SEARCHED = {
    "extract__attacks": "('unconditional','black_box')",
    "extract__num_images": 64,
    "black_box__searches": 2,
    "black_box__population": 6,
    "black_box__parents": 3,
}
# The target's adapters, and mode seeking from what they draw.
ADAPTED = {
    "extract__attacks": "('side_lora','modes')",
    "modes__starts": "('side_lora',)",
    "modes__rounds": "(2,)",
    "label__num_clusters": 4,
    "label__min_cluster_size": 1,
    "adapters__num_steps": 12,
    "adapters__checkpoint_every": 5,
    "adapters__rank": 512,
    "adapters__rounds": 0,
    "adapters__scales": "(1.0,3.0)",
    "evaluate__controls": True,
}
# On random labels, whose extra rows guide.
CONDITIONAL = {
    "condition__labels": "random",
    "condition__num_labels": 3,
    "extract__attacks": "('unconditional','conditional_model')",
    "extract__guidance_scales": "(0.0,2.0)",
}
# The same searches over label embeddings.
SEARCHED_LABELS = CONDITIONAL | SEARCHED
# The network of configs/smoke.py, whose evidence is good enough to rank suspects by.
TWO_LEVELS = {
    "model__block_out_channels": "(8,16)",
    "model__down_block_types": "('DownBlock2D','DownBlock2D')",
    "model__up_block_types": "('UpBlock2D','UpBlock2D')",
}
# Finished runs by name: (the run that they go on from, the settings that differ, the stages).
FINISHED = {
    "plain": ("", {}, ()),
    "whole": ("plain", WHOLE, ()),
    "everything": ("plain", EVERYTHING, ()),
    "searched": ("plain", SEARCHED, ()),
    "adapted": ("plain", ADAPTED, ()),
    "conditional": ("", CONDITIONAL, ()),
    "searched_labels": ("conditional", SEARCHED_LABELS, ()),
    "ranked": ("plain", {}, ("suspects",)),
    # As far as suspects are ranked.
    "two_levels": (
        "",
        TWO_LEVELS | {"extract__attacks": "('unconditional','side')"},
        ("train", "synthesize", "label", "surrogate", "extract"),
    ),
}


def sign(unit):
    """Records a unit's files as they are now, as if it had written them: for a test that puts others in their place."""
    unit.record(*(unit.workdir / name for name in unit.digests()))


def finished(name):
    """The workdir of a finished run, made once for all tests and processes; read it, never write to it."""
    base, overrides, stages = FINISHED[name]

    def make(workdir):
        if base:
            shutil.copytree(finished(base), workdir)
        assert run(arguments(workdir, **overrides), stages) == 0

    return shared.made_once(name, make)


def wait_for(path, processes, timeout=240):
    """Waits until a running process has written the path."""
    deadline = time.monotonic() + timeout
    while not path.exists():
        for process in processes:
            assert process.poll() is None, f"the run ended before it wrote {path}: {process.communicate()[1]}"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.002)


def environment(devices, cache=None):
    """Of a process of its own on so many devices; `cache` is one of shared.compilation_settings."""
    cache = {name: str(value) for name, value in (cache or shared.compilation_settings()).items()}
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    return os.environ | cache | {"XLA_FLAGS": flags}


def start(argv, *, devices=1, cache=None, **options):
    """Starts the real command in a process of its own."""
    command = [sys.executable, "-m", "side_jax.main", *argv]
    return subprocess.Popen(command, cwd=ROOT, env=environment(devices, cache), text=True, **options)
