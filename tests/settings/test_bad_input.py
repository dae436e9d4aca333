"""Bad input ends in one clear sentence and a non-zero exit, before anything heavy, and nothing written is lost."""

import errno
import json
import os
import shutil
from collections import namedtuple

import numpy as np
import pytest
import runs
from foreign import write

from side_jax.config import from_config
from side_jax.pipeline.saved_config import saved_config
from side_jax.sampling import shards
from side_jax.stages import stage_table
from side_jax.training import trainer


@pytest.fixture
def nothing_heavy(monkeypatch):
    """Training or sampling would be heavy."""

    def refuse(*args, **kwargs):
        raise AssertionError("something heavy started")

    monkeypatch.setattr(trainer, "run", refuse)
    monkeypatch.setattr(shards, "write", refuse)


def refused(capsys, argv, *words, code=1):
    """Runs the command and checks for one sentence that holds the words."""
    assert runs.run(argv) == code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("side_jax: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    for word in words:
        assert word in lines[0]


# Overrides of the config, and what the sentence must name: the value and what it must be.
VALUES = [
    ({"extract.num_images": 0}, "extract.num_images is 0", "at least 1"),
    ({"label.num_clusters": 999}, "label.num_clusters is 999", "synthesize.num_images (128)"),
    ({"label.num_clusters": 1}, "label.num_clusters is 1", "at least 2"),
    ({"label.cohesion_threshold": 1.5}, "label.cohesion_threshold is 1.5", "in [-1, 1]"),
    ({"label.assignment": "discard"}, "label.assignment is 'discard'", "reassign, drop"),
    ({"label.features": "clip"}, "label.features is 'clip'", "pixels, denoiser, sscd, onnx"),
    ({"label.features": "sscd"}, "label.weights is ''", "local file that label.features = sscd reads"),
    (
        {"label.features": "onnx", "label.weights": "dino.onnx"},
        "config.label.weights is 'dino.onnx', which is not a file",
    ),
    ({"label.features": "denoiser", "label.denoiser_block": "top"}, "'top'", "mid_block, down_blocks_0"),
    ({"label.features": "denoiser", "label.denoiser_timestep": 100}, "denoiser_timestep is 100", "num_timesteps (100)"),
    ({"label.encoder_std": (0.2, 0.2, 0.0)}, "label.encoder_std is (0.2, 0.2, 0.0)", "above 0"),
    ({"label.encoder_mean": (0.2,)}, "label.encoder_mean is (0.2,)", "three numbers"),
    ({"label.min_cluster_size": 0}, "label.min_cluster_size is 0", "at least 1"),
    ({"classifier.architecture": "vit"}, "architecture is 'vit'", "resnet, resnet_bottleneck, half_unet"),
    ({"classifier.norm": "layer"}, "classifier.norm is 'layer'", "group, batch"),
    ({"classifier.architecture": "half_unet", "classifier.norm": "batch"}, "classifier.norm is 'batch'", "half_unet"),
    ({"classifier.width": 7}, "classifier.width is 7", "even"),
    ({"surrogate.objective": "mse"}, "surrogate.objective is 'mse'", "cross_entropy, tdkd"),
    ({"surrogate.objective": "tdkd"}, "surrogate.teacher_steps is 1000", "below 30"),
    ({"surrogate.timesteps": "late"}, "surrogate.timesteps is 'late'", "uniform, importance"),
    ({"surrogate.patience": -1}, "surrogate.patience is -1", "at least 0"),
    ({"surrogate.patience": 1}, "surrogate.validate_every is 500", "at most the 30 steps", "surrogate.patience"),
    ({"conditional.validate_every": 0}, "conditional.validate_every is 0", "at least 1"),
    ({"surrogate.distillation_temperature": 0.0}, "distillation_temperature is 0.0", "above 0"),
    (
        {"surrogate.objective": "tdkd", "surrogate.teacher_path": "teacher.onnx"},
        "config.surrogate.teacher_path is 'teacher.onnx', which is not a file",
    ),
    ({"extract.attacks": "('side_heldout',)", "label.num_clusters": 65}, "num_clusters is 65", "data.num_heldout (64)"),
    ({"surrogate.batch_size": 120}, "surrogate.batch_size is 120", "at most 116", "a tenth is held back"),
    ({"extract.attacks": "('oracle',)", "surrogate.batch_size": 64}, "surrogate.batch_size is 64", "at most 58"),
    ({"data.num_members": 1500, "data.num_heldout": 1500}, "num_heldout = 1500", "297 are left", "lower both"),
    ({"data.num_heldout": 1}, "data.num_heldout is 1", "at least 2, or 0 for all"),
    (
        {"data.num_heldout": 63, "extract.attacks": "('unconditional','twin')"},
        "data.num_heldout is 63",
        "as many held-out images as members (64)",
    ),
    ({"data.name": "mnist"}, "data.name is 'mnist'", "digits, faces, folder, npz, tfds"),
    ({"data.name": "folder"}, "data.path is ''", "path of the folder"),
    ({"data.name": "folder", "data.path": "nowhere"}, "config.data.path=nowhere does not exist"),
    ({"data.heldout_from": "test"}, "data.heldout_from is 'test'", "empty for data.name = digits"),
    ({"data.split_by": "person"}, "data.split_by is 'person'", "image, identity"),
    ({"data.min_per_label": 0}, "data.min_per_label is 0", "at least 1"),
    ({"data.min_per_label": 999}, "num_heldout = 64", "the dataset has 0"),
    ({"data.near_duplicate_rmse": 2.0}, "data.near_duplicate_rmse is 2.0", "below 2"),
    ({"data.near_duplicate_rmse": 1.9}, "near_duplicate_rmse = 1.9", "lower that"),
    ({"data.max_corrupt": -1}, "data.max_corrupt is -1", "at least 0"),
    ({"data.storage": "disk"}, "data.storage is 'disk'", "auto, memory, stream"),
    ({"data.memory_limit_mb": 0}, "data.memory_limit_mb is 0", "at least 1"),
    (
        {"target.path": "model.ckpt"},
        "config.target.path",
        "model.ckpt is neither a folder nor a file",
        "download it first",
    ),
    (
        {"target.path": "nowhere"},
        "config.target.path",
        "nowhere is neither a folder nor a file",
    ),
    ({"target.path": "hf://model"}, "config.target.path: hf://model is no id of the hub", "hf://OWNER/NAME@REVISION"),
    ({"target.prompts": "prompts.txt"}, "target.prompts is 'prompts.txt'", "empty while target.path is"),
    (
        {"target.path": "nowhere", "target.prompts": "prompts.txt"},
        "config.target.prompts is 'prompts.txt', which is not a file",
    ),
    ({"target.revision": "main"}, "target.revision is 'main'", "a commit of 40 hexadecimal digits"),
    ({"data.name": "folder", "data.path": "hf://datasets/x"}, "config.data.path: hf://datasets/x is no id of the hub"),
    ({"data.revision": "v1"}, "data.revision is 'v1'", "a commit of 40 hexadecimal digits"),
    ({"data.heldout_revision": "v1"}, "data.heldout_revision is 'v1'", "a commit of 40 hexadecimal digits"),
    ({"data.name": "tfds"}, "data.tfds_name is ''", "TFDS name"),
    ({"data.channels": 0}, "data.channels is 0", "1 (grey), 3 (colour) or"),
    ({"data.image_width": 12}, "asks for images of (8, 12, 1)", "set data.image_size and data.channels"),
    ({"data.image_width": 9}, "data.image_width is 9", "divisible by 2"),
    ({"data.channels": 3}, "asks for images of (8, 8, 3)", "set data.image_size and data.channels"),
    ({"data.image_size": 9}, "data.image_size is 9", "divisible by 2"),
    ({"diffusion.schedule": "sine"}, "diffusion.schedule is 'sine'", "linear, scaled_linear, cosine"),
    ({"diffusion.beta_end": 1.0}, "diffusion.beta_end is 1.0", "between 0 and 1"),
    ({"diffusion.num_timesteps": 2}, "sampler.num_steps is 3", "diffusion.num_timesteps (2)"),
    ({"diffusion.prediction_type": "noise"}, "diffusion.prediction_type is 'noise'", "epsilon, x0, v"),
    ({"diffusion.trained_betas": (0.1, 0.2)}, "diffusion.trained_betas is (0.1, 0.2)", "100 (diffusion.num_timesteps)"),
    ({"diffusion.beta_end": 0.95, "diffusion.num_timesteps": 1000}, "diffusion describes no schedule", "too little"),
    ({"model.block_out_channels": (8, 18)}, "model.block_out_channels is (8, 18)", "model.norm_num_groups (4)"),
    ({"model.down_block_types": ("DownBlock2D",)}, "is ('DownBlock2D',)", "each of the 2 levels"),
    ({"model.up_block_types": ("UpBlock2D", "KUp")}, "model.up_block_types is 'KUp'", "UpBlock2D, AttnUpBlock2D"),
    ({"model.attention_head_dim": 5}, "model.attention_head_dim is 5", "a divisor of the channels", "(16)"),
    ({"model.attn_norm_num_groups": 3}, "model.attn_norm_num_groups is 3", "a divisor", "(16)"),
    ({"model.norm_eps": 0.0}, "model.norm_eps is 0.0", "above 0"),
    ({"model.freq_shift": 4.0}, "model.freq_shift is 4.0", "below 4"),
    ({"model.downsample_padding": 2}, "model.downsample_padding is 2", "0 or 1"),
    ({"model.resnet_time_scale_shift": "ada"}, "is 'ada'", "default, scale_shift"),
    ({"model.dtype": "float16"}, "model.dtype is 'float16'", "float32, bfloat16"),
    ({"model.dropout": 1.0}, "model.dropout is 1.0", "below 1"),
    ({"condition.labels": "own"}, "condition.labels is 'own'", "true, random, single, file"),
    ({"condition.num_labels": 10}, "condition.num_labels is 10", "0 while condition.labels is empty"),
    ({"condition.labels": "true"}, "condition.num_labels is 0", "at least 2"),
    ({"condition.labels": "single", "condition.num_labels": 2}, "condition.num_labels is 2", "1 with condition.labels"),
    ({"condition.labels": "random", "condition.num_labels": 65}, "condition.num_labels is 65", "data.num_members (64)"),
    ({"condition.labels": "true", "condition.num_labels": 9}, "num_labels is 9", "10 different labels; set it to 10"),
    ({"condition.labels": "file", "condition.num_labels": 2}, "condition.path is ''", "NPZ of labels"),
    (
        {"condition.labels": "file", "condition.num_labels": 2, "condition.path": "labels.npz"},
        "config.condition.path is 'labels.npz', which is not a file",
    ),
    ({"condition.path": "labels.npz"}, "condition.path is 'labels.npz'", "empty unless condition.labels is file"),
    ({"condition.dropout": 0.0}, "condition.dropout is 0.0", "above 0"),
    (
        {"extract.attacks": "('conditional_model',)"},
        "extract.attacks is ('conditional_model',)",
        "set condition.labels",
    ),
    ({"train.num_steps": 0}, "train.num_steps is 0", "at least 1"),
    ({"train.learning_rate": -1.0}, "train.learning_rate is -1.0", "above 0"),
    ({"train.learning_rate": "nan"}, "train.learning_rate holds nan", "finite"),
    ({"train.warmup_steps": 40}, "train.warmup_steps is 40", "below num_steps (40)"),
    ({"train.decay": "step"}, "train.decay is 'step'", "constant, linear, cosine"),
    ({"train.accumulate": 3}, "train.batch_size is 32", "divisible by accumulate (3)"),
    ({"train.accumulate": 8}, "train.batch_size / accumulate (8) is 4", "8 devices"),
    ({"monitor.every_steps": -1}, "monitor.every_steps is -1", "at least 0"),
    ({"monitor.stop_at_rate": 0.1}, "monitor.stop_at_rate is 0.1", "monitor.every_steps is 0"),
    ({"monitor.every_steps": 1, "monitor.stop_at_rate": 2.0}, "monitor.stop_at_rate is 2.0", "between 0"),
    ({"sampler.variance": "learned"}, "sampler.variance is 'learned'", "small, large"),
    ({"train.batch_size": 128}, "train.batch_size is 128", "data.num_members (64)"),
    ({"surrogate.batch_size": 30}, "surrogate.batch_size is 30", "8 devices", "try 32"),
    ({"extract.attacks": "('extrapolate',)", "weak.batch_size": 30}, "weak.batch_size is 30", "8 devices", "try 32"),
    ({"extract.attacks": "('side_lora',)", "adapters.batch_size": 30}, "adapters.batch_size is 30", "8 devices"),
    ({"sampler.batch_size": 12}, "sampler.batch_size is 12", "8 devices", "try 16"),
    ({"sampler.solver": "euler"}, "sampler.solver is 'euler'", "ddim, dpmpp_2m"),
    ({"sampler.solver": "dpmpp_2m", "sampler.eta": 0.5}, "sampler.eta is 0.5", "draws no noise"),
    ({"extract.guidance_form": "noise"}, "guidance_form is 'noise'", "score, mean, mean_at_mean"),
    ({"extract.guidance_form": "mean"}, "guidance_form is 'mean'", "score while sampler.eta is 0"),
    ({"extract.guidance_interval": (9,)}, "guidance_interval is (9,)", "(t_low, t_high)"),
    ({"extract.guidance_interval": (9, 3)}, "guidance_interval is (9, 3)", "t_low <= t_high"),
    ({"extract.guidance_interval": (1, 2)}, "guidance_interval is (1, 2)", "99, 66, 32"),
    ({"sampler.eta": 2.0}, "sampler.eta is 2.0", "between 0 (DDIM) and 1 (DDPM)"),
    ({"extract.solver": "euler"}, "extract.solver is 'euler'", "ddim, dpmpp_2m"),
    ({"extract.solver": "dpmpp_2m", "sampler.eta": 0.5}, "extract.solver is 'dpmpp_2m'", "sampler.eta is 0.5"),
    ({"extract.num_steps": -1}, "extract.num_steps is -1", "at least 0"),
    ({"extract.num_steps": 101}, "extract.num_steps is 101", "diffusion.num_timesteps (100)"),
    ({"sampler.loop": "while"}, "sampler.loop is 'while'", "auto, scan, dispatch"),
    (
        {"extract.attacks": "('magic',)"},
        "extract.attacks is 'magic'",
        "unconditional, conditional, conditional_x0, conditional_model, side",
    ),
    (
        {"extract.attacks": "('unconditional','modes','modes_twin')"},
        "extract.attacks is ('unconditional', 'modes', 'modes_twin')",
        "with twin, from whose images",
    ),
    (
        {"extract.attacks": "('twin',)", "condition.labels": "true", "condition.num_labels": 10},
        "condition.labels is 'true'",
        "with the attack twin",
    ),
    ({"modes.noise_levels": (0.0,)}, "modes.noise_levels is (0.0,)", "above 0"),
    ({"modes.rounds": "(5,5)"}, "modes.rounds is (5, 5)", "different"),
    ({"modes.rounds": "(0,)"}, "modes.rounds is (0,)", "at least 1"),
    ({"modes.starts": "('clouds',)"}, "modes.starts is 'clouds'", "noise, unconditional"),
    ({"modes.last_noise": 1.5}, "modes.last_noise is 1.5", "at most 1"),
    ({"modes.relaxation": 2.0}, "modes.relaxation is 2.0", "below 2"),
    ({"modes.relaxation": 1.5, "modes.anderson": True}, "modes.relaxation is 1.5", "its own factor"),
    (
        {"modes.starts": "('side',)", "extract.attacks": "('unconditional','modes')"},
        "modes.starts is ('side',)",
        "among extract.attacks (unconditional, modes) or noise",
    ),
    (
        {"modes.noise_levels": "(0.1,)", "modes.last_noise": 0.01, "extract.attacks": "('unconditional','modes')"},
        "modes.noise_levels is (0.1,)",
        "also in the last round",
    ),
    (
        {"extract.attacks": "('extrapolate',)", "weak.step": 37},
        "weak.step is 37",
        "a multiple of train.checkpoint_every",
    ),
    (
        {"extract.attacks": "('extrapolate',)", "weak.step": 20, "train.checkpoint_every": 10},
        "train.keep_checkpoints is False",
        "only then is the checkpoint of that step kept",
    ),
    (
        {"extract.attacks": "('extrapolate',)", "weak.batch_size": 5000},
        "weak.batch_size is 5000",
        "at most synthesize.num_images",
    ),
    ({"black_box.genome": "prompt"}, "black_box.genome is 'prompt'", "one of noise, label"),
    (
        {"extract.attacks": "('black_box',)", "black_box.genome": "label"},
        "black_box.genome is 'label'",
        "noise, or empty: label embeddings are mixed of at least two labels, and the model has 0",
    ),
    ({"black_box.searches": 0}, "black_box.searches is 0", "at least 1"),
    ({"black_box.population": 0}, "black_box.population is 0", "at least 1"),
    (
        {"black_box.population": 50, "black_box.parents": 51},
        "black_box.parents is 51",
        "between 1 and black_box.population (50)",
    ),
    ({"black_box.crossover": 1.5}, "black_box.crossover is 1.5", "between 0 and 1"),
    ({"black_box.mutation": 0.0}, "black_box.mutation is 0.0", "above 0"),
    (
        {"extract.attacks": "('unconditional','black_box')", "sampler.eta": 1.0},
        "sampler.eta is 1.0",
        "0 with black_box, which searches starting noise",
    ),
    (
        {"extract.attacks": "('black_box',)", "black_box.searches": 300, "extract.num_images": 1499},
        "extract.num_images is 1499",
        "at least 1500 with black_box",
    ),
    ({"black_box_modes.last_steps": "(0,)"}, "black_box_modes.last_steps is (0,)", "at least 1"),
    ({"black_box_modes.rounds": "(0,)"}, "black_box_modes.rounds is (0,)", "at least 1"),
    ({"black_box_modes.rounds": "()"}, "black_box_modes.rounds is ()", "one or more different values"),
    (
        {
            "extract.attacks": "('unconditional','black_box_modes')",
            "sampler.num_steps": 4,
            "black_box_modes.last_steps": "(2,5)",
        },
        "black_box_modes.last_steps is (2, 5)",
        "at most sampler.num_steps (4)",
    ),
    (
        {"extract.attacks": "('black_box_modes',)"},
        "extract.attacks is ('black_box_modes',)",
        "with unconditional, from whose images black_box_modes starts",
    ),
    ({"label.rounds": -1}, "label.rounds is -1", "at least 0"),
    ({"label.noise": 0.0}, "label.noise is 0.0", "above 0"),
    ({"label.rounds": 1, "label.noise": 1e-4}, "label.noise is 0.0001", "the lowest noise of the model"),
    (
        {"extract.attacks": "('side_lora',)", "adapters.noise": 1e-4},
        "adapters.noise is 0.0001",
        "the lowest noise of the model",
    ),
    ({"adapters.rank": -1}, "adapters.rank is -1", "at least 0"),
    ({"adapters.kernels": "norms"}, "adapters.kernels is 'norms'", "all, convolution, dense, attention"),
    ({"adapters.keep": 0.0}, "adapters.keep is 0.0", "at most 1"),
    ({"adapters.scales": "(2.0,2.0)"}, "adapters.scales is (2.0, 2.0)", "different"),
    ({"adapters.scales": "(2.0,)", "adapters.dropout": 0.0}, "adapters.dropout is 0.0", "without a label too"),
    (
        {"extract.attacks": "('side_lora',)", "adapters.keep": 0.25},
        "adapters.batch_size is 64",
        "at most 32",
        "0.25 of 128 synthetic images",
    ),
    (
        {"extract.attacks": "('side_lora',)", "adapters.kernels": "attention", "model.add_attention": False},
        "adapters.kernels is 'attention'",
        "the model has no such kernels; choose another one of all, convolution",
    ),
    (
        {"extract.attacks": "('side_lora',)", "target.format": "object", "evaluate.divergence": False},
        "extract.attacks is ('side_lora',)",
        "without side_lora: a Python object has values",
    ),
    ({"weak.step": -1}, "weak.step is -1", "at least 0"),
    ({"extract.guidance_scales": (-1.0,)}, "guidance_scales is (-1.0,)", "at least 0"),
    ({"extract.guidance_scales": (3.0, 3.0)}, "guidance_scales is (3.0, 3.0)", "different"),
    ({"extract.guidance_scales": "()"}, "guidance_scales is ()", "one or more"),
    ({"extract.guidance_scales": "('a',)"}, "guidance_scales holds 'a'", "type float"),
    ({"evaluate.metrics": "('fid',)"}, "evaluate.metrics is 'fid'", "normalized_l2, rmse, tiled_l2, distance_ratio"),
    ({"evaluate.metrics": "('rmse','rmse')"}, "evaluate.metrics is ('rmse', 'rmse')", "different ones"),
    ({"evaluate.normalized_l2_neighbors": 65}, "neighbors is 65", "data.num_members (64)"),
    ({"evaluate.normalized_l2_neighbors": 65, "evaluate.metrics": "('rmse',)"}, "neighbors is 65", "at most 64"),
    ({"evaluate.normalized_l2_around": "both"}, "normalized_l2_around is 'both'", "generated, member"),
    ({"evaluate.metrics": "('tiled_l2',)", "evaluate.tiled_l2_grid": 3}, "tiled_l2_grid is 3", "(8 and 8)"),
    ({"evaluate.cosine_above": 1.0}, "cosine_above is 1.0", "between 0 and 1"),
    ({"evaluate.band_factors": "(1.5,1.25)"}, "band_factors is (1.5, 1.25)", "ascending numbers above 1"),
    ({"evaluate.false_match_rate": 0.0}, "false_match_rate is 0.0", "between 0 and 1"),
    ({"evaluate.label_images": 16}, "evaluate.label_images is 16", "an unconditional model has no labels to scan"),
    (
        {"condition.labels": "random", "condition.num_labels": 9, "evaluate.label_images": 15},
        "evaluate.label_images is 15",
        "at least 16",
    ),
    ({"evaluate.max_labels": 7}, "evaluate.max_labels is 7", "at least 8"),
    ({"evaluate.membership_timestep": 100}, "membership_timestep is 100", "diffusion.num_timesteps (100)"),
    ({"evaluate.divergence_epsilon": 0.0}, "divergence_epsilon is 0.0", "above 0"),
    ({"evaluate.divergence_draws": 1}, "divergence_draws is 1", "at least 2"),
    ({"evaluate.control_images": 0}, "control_images is 0", "at least 1"),
    ({"report.pairs": 2000}, "report.pairs is 2000", "between 0 and 1000"),
    ({"track.to": ("paper",)}, "track.to is 'paper'", "tensorboard, wandb"),
    ({"track.to": ("tensorboard", "tensorboard")}, "track.to is ('tensorboard', 'tensorboard')", "different ones"),
    ({"track.to": ("wandb",)}, "config.track.to holds wandb, which is not installed", "pip install 'side_jax[wandb]'"),
    ({"seed": -1}, "seed is -1", "at least 0"),
]


TWO_LEVELS = {
    "model.block_out_channels": (8, 16),
    "model.down_block_types": ("DownBlock2D",) * 2,
    "model.up_block_types": ("UpBlock2D",) * 2,
}


@pytest.mark.parametrize(("overrides", "words"), [(row[0], row[1:]) for row in VALUES], ids=lambda x: str(x)[:50])
def test_bad_value(tmp_path, capsys, nothing_heavy, overrides, words):
    workdir = tmp_path / "run"
    refused(capsys, runs.arguments(workdir, **TWO_LEVELS | overrides), *words)
    assert not (workdir / "config.json").exists()


COMMAND_LINES = [
    (["--config.train.num_stepz=3"], "num_stepz"),
    (["--config.train.num_steps=many"], "many"),
    (["--config.train.num_steps=2.5"], "2.5"),
    (["--colour=red"], "colour"),
    (["now"], "'now' is not an option"),
]


@pytest.mark.parametrize(("more", "word"), COMMAND_LINES, ids=[row[1] for row in COMMAND_LINES])
def test_bad_command_line(tmp_path, capsys, nothing_heavy, more, word):
    refused(capsys, runs.arguments(tmp_path / "run") + more, word, code=2)
    assert not (tmp_path / "run").exists()


def test_missing_workdir_flag(capsys, nothing_heavy):
    refused(capsys, [f"--config={runs.SMOKE}"], "--workdir=DIR is missing", code=2)


@pytest.mark.parametrize("name", ["configs/nothing.py", "typo", "typo:64"])
def test_missing_config_file(tmp_path, capsys, nothing_heavy, name):
    words = (repr(name), "not found", "celeba", "digits", "theory_gmm")
    refused(capsys, [f"--config={name}", f"--workdir={tmp_path}"], *words, code=2)


@pytest.mark.parametrize("text", ["def get_config(: pass", "import nowhere_to_be_found", "x = 1"])
def test_broken_config_file(tmp_path, capsys, nothing_heavy, text):
    path = tmp_path / "broken.py"
    path.write_text(text)
    refused(capsys, [f"--config={path}", f"--workdir={tmp_path / 'run'}"], "can't be read", code=2)


def test_config_file_with_an_unknown_section(tmp_path, capsys, nothing_heavy):
    path = tmp_path / "odd.py"
    path.write_text(
        "from side_jax.config import default_config\n"
        "def get_config():\n    c = default_config()\n    c.trane = {'steps': 3}\n    return c\n"
    )
    refused(capsys, [f"--config={path}", f"--workdir={tmp_path / 'run'}"], "config.trane is not a setting")


def test_no_config_at_all(tmp_path, capsys, nothing_heavy):
    refused(capsys, [f"--workdir={tmp_path / 'new'}"], "holds no config.json", "--config=NAME")


def test_unknown_stage(tmp_path, capsys, nothing_heavy):
    refused(capsys, runs.arguments(tmp_path / "run", "train,attack"), "'attack'", "choose from train, synthesize")


@pytest.mark.parametrize("stages", ["extract", "evaluate,report", "train,extract", "label"])
def test_stages_without_their_inputs(tmp_path, capsys, nothing_heavy, stages):
    refused(capsys, runs.arguments(tmp_path / "run", stages), "needs the output of stage", "run --stages=")


def test_workdir_of_another_model(workdir, capsys, nothing_heavy):
    words = ("another config", "train.num_steps 40 there and 50 here", "seed 0 there and 1 here", "new --workdir")
    refused(capsys, runs.arguments(workdir, train__num_steps=50, seed=1), *words)
    assert (workdir / "checkpoints" / "40").exists()


def test_workdir_below_a_file(tmp_path, capsys, nothing_heavy):
    (tmp_path / "file").write_text("")
    refused(capsys, runs.arguments(tmp_path / "file" / "run"), "can't be written", "Not a directory")


def test_workdir_without_permission(workdir, capsys, nothing_heavy, monkeypatch):
    """As root every folder is writable, so the system's answer is simulated."""
    monkeypatch.setattr(os, "access", lambda path, mode: "label" not in str(path))
    refused(capsys, runs.arguments(workdir, evaluate__rmse_below=0.2), "label can't be written", "permissions")


@pytest.fixture
def free(monkeypatch):
    """Says how many MiB the disk has left."""
    usage = namedtuple("usage", "total used free")

    def leave(mebibytes):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40 - 2**20, mebibytes * 2**20))

    return leave


def test_disk_too_small(tmp_path, capsys, nothing_heavy, free):
    free(1)
    refused(capsys, runs.arguments(tmp_path / "run"), "1 MiB free", "free some")


def test_disk_too_small_for_the_classifiers(tmp_path, capsys, nothing_heavy, free):
    """Two of 38 million parameters, each with moments and average, in three checkpoints: 48 bytes for each."""
    free(2000)
    refused(capsys, runs.arguments(tmp_path / "run", classifier__width=1024), "2,000 MiB free", "can need 3,")


def test_a_full_disk_and_nothing_left_to_write(workdir, nothing_heavy, free):
    free(0)
    assert runs.run(runs.arguments(workdir)) == 0


def test_a_full_disk_and_something_left_to_write(workdir, capsys, nothing_heavy, free):
    """Little is, but the network has been trained already; what small files take is allowed for."""
    (workdir / "extract" / "side_10" / "shard_00001.npz").unlink()
    free(0)
    refused(capsys, runs.arguments(workdir), "0 MiB free", "what is left of this run can need 50 MiB")


def test_disk_full_in_the_middle(workdir, capsys, monkeypatch):
    """The sentence says so, what was there stays, and once there is room the same command goes on."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device", "shard")

    argv = runs.arguments(workdir, "extract", extract__guidance_scales="(5.0,)")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(capsys, argv, "No space left on device", "kept")
    assert (workdir / "extract" / "side_10" / "shard_00000.npz").exists()
    assert runs.run(argv) == 0


def test_no_cluster_above_the_threshold(workdir, capsys, nothing_heavy):
    refused(capsys, runs.arguments(workdir, label__cohesion_threshold=0.9999), "cohesion_threshold = 0.9999", "lower")


@pytest.mark.parametrize("attack", ["conditional", "conditional_x0", "oracle"])
def test_one_label_is_none(tmp_path, capsys, nothing_heavy, attack):
    path = tmp_path / "images.npz"
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8), np.uint8)
    np.savez(path, images=images)
    data = {"data__name": "npz", "data__path": path, "extract__attacks": f"('unconditional','{attack}')"}
    refused(capsys, runs.arguments(tmp_path / "run", **data), attack, "labels, but all images have the same one")


EVERY, HALF = np.arange(1797), np.arange(1797, dtype=np.int32) % 2
LABELS = [
    ({"id": EVERY[:3], "label": HALF[:3]}, "has no label for", "of the 64 members"),
    ({"id": np.append(EVERY, EVERY), "label": np.append(HALF, HALF)}, "has several labels for image"),
    ({"id": EVERY, "label": HALF * 2}, "goes from 0 to 2", "condition.num_labels is 2"),
    ({"id": EVERY, "label": HALF - 1}, "goes from -1 to 0", "labels must be 0 to 1"),
    ({"id": EVERY, "label": HALF * 0}, "gives no member the label 1"),
    ({"id": EVERY, "label": HALF[:9]}, "`label` in the file", "shape (9,)"),
    ({"id": EVERY, "label": HALF.astype(np.float32)}, "has the type float32", "must be"),
    ({"id": EVERY}, "must hold the arrays `id` and `label`", "np.savez(path, id=..., label=...)"),
    ({"id": EVERY, "label": np.asarray([{}] * 1797, object)}, "can't be read as an NPZ of plain arrays"),
]


@pytest.mark.parametrize(("arrays", "words"), [(row[0], row[1:]) for row in LABELS], ids=[row[1] for row in LABELS])
def test_labels_of_a_file(tmp_path, capsys, nothing_heavy, arrays, words):
    path = tmp_path / "labels.npz"
    np.savez(path, **arrays)
    condition = {"condition__labels": "file", "condition__num_labels": 2, "condition__path": path}
    refused(capsys, runs.arguments(tmp_path / "run", **condition), "(config.condition.path)", *words)
    assert not (tmp_path / "run" / "config.json").exists()


def test_labels_for_a_model_from_elsewhere(tmp_path, capsys, nothing_heavy):
    write(tmp_path / "model")
    data = {"data__name": "folder", "data__path": "seen", "data__heldout_from": "unseen", "data__image_size": 8}
    labels = {"condition__labels": "single", "condition__num_labels": 1, "target__path": tmp_path / "model"}
    words = ("condition.labels is 'single'", "empty while target.path is set")
    refused(capsys, runs.arguments(tmp_path / "run", **data, **labels), *words)


def draw(workdir, images):
    """Puts images in the place of the synthetic ones."""
    for path in (workdir / "synthesize").glob("*.npz"):
        with np.load(path) as archive:
            arrays = dict(archive)
        np.savez(path, **arrays | {"images": images[arrays["index"]]})
    runs.sign(stage_table.unit(from_config(saved_config(workdir)), workdir, "synthesize"))


def test_a_model_that_draws_one_flat_colour(workdir, capsys, nothing_heavy):
    """No image has features, so there is nothing to cluster."""
    draw(workdir, np.full((128, 8, 8, 1), 7, np.uint8))
    argv = runs.arguments(workdir, label__num_clusters=5)
    refused(capsys, argv, "pixels features of all 128 images are zero", "choose other features")


def test_a_model_that_draws_three_images(workdir, capsys, nothing_heavy):
    """Five clusters of three different images: two are empty, the rest are kept; with one alone nothing can be done."""
    made = shards.read(shards.layout(workdir / "synthesize", 128, 32))["images"]
    draw(workdir, made[np.zeros(128, int)])
    few = runs.arguments(workdir, "label", label__num_clusters=5)
    refused(capsys, few, "1 of 5 clusters", "4 empty", "distinguish these")
    draw(workdir, made[np.arange(128) % 3])
    assert runs.run(runs.arguments(workdir, "label", label__num_clusters=5)) == 0
    manifest = json.loads((workdir / "label" / "manifest.json").read_text())
    assert (manifest["kept"], manifest["empty"]) == (3, 2)


def test_training_that_diverges(tmp_path, capsys):
    argv = runs.arguments(tmp_path / "run", "train", train__learning_rate=1e30, train__gradient_clip=1e30)
    refused(capsys, argv, "training diverged", "lower the learning_rate")


def spoil(folder, change):
    """Changes the content of every file of a folder that is large enough to hold arrays."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 4096:
            path.write_bytes(change(path.read_bytes()))


def flip_the_middle(content):
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 0x55 for byte in content[middle : middle + 64]) + content[middle + 64 :]


def again(workdir):
    """A command that must restore the DPM."""
    return runs.arguments(workdir, "extract", extract__guidance_scales="(7.0,)")


def test_truncated_checkpoint(workdir, capsys, nothing_heavy):
    spoil(workdir / "checkpoints" / "40" / "ema", lambda content: content[: len(content) // 2])
    refused(capsys, again(workdir), "checkpoints/40", "is damaged", "start over")


def test_altered_checkpoint(workdir, capsys, nothing_heavy):
    spoil(workdir / "checkpoints" / "40" / "ema", flip_the_middle)
    refused(capsys, again(workdir), "checkpoints/40", "delete that folder")


def test_exchanged_checkpoint(workdir, capsys, nothing_heavy):
    """A whole, undamaged EMA of another step is still not the one that meta describes."""
    shutil.rmtree(workdir / "checkpoints" / "40" / "ema")
    shutil.copytree(workdir / "checkpoints" / "30" / "ema", workdir / "checkpoints" / "40" / "ema")
    refused(capsys, again(workdir), "was altered", "its ema no longer match")


def test_missing_checkpoint(workdir, capsys, nothing_heavy):
    shutil.rmtree(workdir / "checkpoints")
    refused(capsys, again(workdir), "does not hold it", "run --stages=train,extract")


@pytest.mark.parametrize("name", ["synthesize/shard_00000.npz", "label/labels.npz", "train/split.json"])
def test_damaged_file(workdir, capsys, nothing_heavy, name):
    """Where the stage that would write it again is left out."""
    path = workdir / name
    path.write_bytes(path.read_bytes()[:50])
    unit = name.partition("/")[0]
    changed = {"synthesize": "label__num_clusters", "label": "surrogate__num_steps", "train": "conditional__num_steps"}
    stages = "label,surrogate" if unit == "synthesize" else "surrogate"
    refused(capsys, runs.arguments(workdir, stages, **{changed[unit]: 5}), name, "was changed after it was written")


def test_damaged_config(workdir, capsys, nothing_heavy):
    (workdir / "config.json").write_text("{")
    refused(capsys, runs.arguments(workdir), "config.json", "is damaged")


def test_missing_shard(workdir, capsys, nothing_heavy):
    (workdir / "extract" / "side_10" / "shard_00001.npz").unlink()
    again = runs.arguments(workdir, "evaluate", evaluate__rmse_below=0.2)
    refused(capsys, again, "side_10/shard_00001.npz is missing", "run the stage that writes it")


def test_exchanged_shard(workdir, capsys, nothing_heavy):
    folder = workdir / "extract" / "side_10"
    shutil.copy(folder / "shard_00000.npz", folder / "shard_00001.npz")
    again = runs.arguments(workdir, "evaluate", evaluate__rmse_below=0.2)
    refused(capsys, again, "side_10/shard_00001.npz was changed after it was written", "run the stage")
