"""diffusers for these tests: its imports, configurations of its U-Net, random weights for them, folders as it has."""

import functools
import json
import os
import warnings

import jax
import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when diffusers is imported; these tests need no network

with warnings.catch_warnings():
    # At import, torch and diffusers warn of their own and of their dependencies' deprecations, by version.
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
    from diffusers.schedulers import scheduling_ddpm
    from diffusers.training_utils import EMAModel
    from safetensors.torch import load_file, save_file

__all__ = ["CONFIGS", "DDIMScheduler", "DDPMPipeline", "DDPMScheduler", "UNet2DModel", "scheduling_ddpm", "torch"]
__all__ += ["DPMSolverMultistepScheduler"]
__all__ += ["apply", "inputs", "nchw", "nhwc", "predict", "random_numbers", "random_unet", "relative_error", "save"]
__all__ += ["EMAModel", "diffusers", "load_file", "save_file"]

# Two threads that wait for each other after every small layer are 15 times slower than one where the CPUs are shared.
torch.set_num_threads(1)

# Of the public unconditional checkpoints; the other options of the published config.json are UNet2DModel's defaults.
_DDPM = {
    "act_fn": "silu",
    "attention_head_dim": None,
    "center_input_sample": False,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-6,
    "norm_num_groups": 32,
    "time_embedding_type": "positional",
}


def _levels(channels, down="", up="", **options):
    """A config; down and up say by A which blocks have attention, by D or U which don't."""
    names = {"D": "DownBlock2D", "U": "UpBlock2D"}
    return {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": channels,
        "down_block_types": tuple(names.get(letter, "AttnDownBlock2D") for letter in down),
        "up_block_types": tuple(names.get(letter, "AttnUpBlock2D") for letter in up),
        "sample_size": 16,
        "norm_num_groups": 8,
    } | options


CONFIGS = {
    # google/ddpm-cifar10-32, exactly.
    "ddpm_cifar10_32": _levels((128, 256, 256, 256), "DADD", "UUAU", **_DDPM, sample_size=32),
    # google/ddpm-celebahq-256, -church-256, -bedroom-256 and ddpm-ema-*, which are alike: a quarter of the channels.
    "ddpm_celebahq_256": _levels((32, 32, 64, 64, 128, 128), "DDDDAD", "UAUUUU", **_DDPM, sample_size=64),
    # The model of diffusers' tutorial on unconditional training: a quarter of its channels.
    "training_tutorial": _levels(
        (32, 32, 64, 64, 128, 128), "DDDDAD", "UAUUUU", sample_size=64, layers_per_block=2, norm_num_groups=32
    ),
    # UNet2DModel() itself, a seventh of its channels.
    "all_defaults": _levels((32, 64, 96, 128), "DAAA", "AAAU", norm_num_groups=32),
    "scale_shift": _levels((16, 32), "DA", "AU", resnet_time_scale_shift="scale_shift", layers_per_block=1),
    "scale_shift_attn_groups": _levels(
        (16, 32), "AD", "UA", resnet_time_scale_shift="scale_shift", attn_norm_num_groups=4, attention_head_dim=4
    ),
    "attn_groups_of_the_middle": _levels((16, 32), "DA", "AU", attn_norm_num_groups=2, norm_eps=1e-2),
    "mid_scale": _levels((8, 16, 16), "DDA", "UUU", mid_block_scale_factor=2**0.5, norm_num_groups=4),
    "no_middle_attention": _levels((16, 32), "DA", "AU", add_attention=False, attention_head_dim=4),
    "centered_time_dim": _levels((16, 16), "DD", "UU", center_input_sample=True, time_embedding_dim=24, freq_shift=0.5),
    "gray_single_level": _levels((16,), "A", "A", in_channels=1, out_channels=1, attention_head_dim=None),
    "not_square": _levels(
        (8, 16, 24), "DAD", "UAU", sample_size=(8, 24), layers_per_block=3, flip_sin_to_cos=False, downsample_padding=0
    ),
    "dropout_and_swish": _levels((16, 24), "AA", "AU", dropout=0.3, act_fn="swish", norm_eps=1e-3, layers_per_block=1),
}


def random_unet(config, seed=0):
    """UNet2DModel with the parameters of random_numbers."""
    return random_numbers(UNet2DModel(**config).eval(), seed)


def random_numbers(net, seed=0):
    """Random numbers in every parameter, of a size that keeps each layer's output near 1, so none hides another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.requires_grad:  # a table that is computed
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.2 * noise)
        for module in net.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.weight.add_(1.0)
    return net


def save(net, directory, layout="flat", scheduler=None, **options):
    """Writes a checkpoint and returns the folder to read.

    Layouts: "pipeline", a pipeline's folder; "flat", all in one folder; "neighbours", the folder unet beside scheduler.
    """
    scheduler = scheduler or DDPMScheduler()
    if layout == "pipeline":
        DDPMPipeline(unet=net, scheduler=scheduler).save_pretrained(directory, **options)
        return directory
    folder = directory if layout == "flat" else directory / "unet"
    net.save_pretrained(folder, **options)
    scheduler.save_pretrained(directory if layout == "flat" else directory / "scheduler")
    assert "_class_name" in json.loads((folder / "config.json").read_text())
    return folder


def inputs(config, seed=0, timesteps=(0, 417, 999)):
    """(images NHWC, timesteps), one image for each timestep, in numpy."""
    size = config["sample_size"]
    height, width = size if isinstance(size, tuple) else (size, size)
    x = np.random.default_rng(seed).standard_normal((len(timesteps), height, width, config["in_channels"]))
    return x.astype(np.float32), np.asarray(timesteps, np.int32)


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2)))


def nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def predict(net, x, t):
    """diffusers' prediction for NHWC images, NHWC."""
    with torch.no_grad():
        return nhwc(net(nchw(x), torch.from_numpy(np.asarray(t))).sample)


@functools.partial(jax.jit, static_argnums=0)
def apply(module, params, x, t, labels=None):
    return module.apply({"params": params}, x, t, labels=labels)


def relative_error(ours, theirs):
    """The largest difference over the largest value."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())
