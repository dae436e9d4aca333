"""Shared parts of the speed benchmarks: sizes, the same U-Net in PyTorch, and timing by turns."""

import argparse
import dataclasses
import importlib.util
import json
import os
import platform
import runpy
import shutil
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # read at JAX's first use; leaves memory for PyTorch

import jax

from side_jax import builders
from side_jax.config import default_config, from_config
from side_jax.devices import cpu
from side_jax.settings import Settings
from side_jax.targets import parameters

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings of their dependencies, by version
        import diffusers
        import torch
except ImportError:
    sys.exit("This benchmark compares with PyTorch, which is not installed: pip install 'side_jax[parity]'")

SEED = 0
# Sizes without a config: image size, batch size, and overrides of config.model; A marks levels with attention.
MODELS = {
    "colour": (32, 16, ((64, 128, 128), "DAD", "UAU", {"layers_per_block": 2, "norm_num_groups": 32})),
    "colour64": (64, 16, ((32, 64, 128, 128), "DDAD", "UAUU", {"layers_per_block": 2, "norm_num_groups": 32})),
    "full": (  # google/ddpm-cifar10-32, exactly
        *(32, 16),
        (
            *((128, 256, 256, 256), "DADD", "UUAU"),
            {"layers_per_block": 2, "attention_head_dim": 0, "norm_num_groups": 32, "norm_eps": 1e-6}
            | {"flip_sin_to_cos": False, "freq_shift": 1.0, "downsample_padding": 0},
        ),
    ),
}
SIZES = ("digits", "orl_faces", *MODELS)


def load_settings(size: str, batch_size: int, dtype: str) -> Settings:
    """The settings of one size, from its config or MODELS; batch_size 0 keeps the size's own."""
    if size in MODELS:
        config = default_config()
        config.data.image_size, own_batch, (channels, down, up, options) = MODELS[size]
        config.data.channels = 3
        config.train.batch_size = config.sampler.batch_size = own_batch
        config.model.update(options, block_out_channels=channels)
        config.model.down_block_types = tuple("AttnDownBlock2D" if c == "A" else "DownBlock2D" for c in down)
        config.model.up_block_types = tuple("AttnUpBlock2D" if c == "A" else "UpBlock2D" for c in up)
        config.classifier.architecture = "half_unet"
    else:
        config = runpy.run_path(str(Path(__file__).parents[1] / "configs" / f"{size}.py"))["get_config"]()
    config.train.batch_size = batch_size or config.train.batch_size
    config.sampler.batch_size = batch_size or config.sampler.batch_size
    config.data.num_members = config.data.num_heldout = max(config.data.num_members, 4 * config.train.batch_size)
    config.conditional.batch_size = config.train.batch_size
    config.model.dtype = dtype
    config.extract.guidance_interval = ()  # guide every step
    return from_config(config)


def make_unet(settings: Settings) -> Any:
    """The U-Net of diffusers with the same options and its own initialisation, whose last layer is not zero."""
    module = builders.build_network(settings)
    ours = ("dtype", "remat", "num_attention_heads", "timestep_scale")
    names = [field.name for field in dataclasses.fields(settings.model) if field.name not in ours]
    channels = settings.data.channels
    options = {name: getattr(module, name) for name in names} | {"sample_size": settings.data.image_size}
    torch.manual_seed(SEED)
    return diffusers.UNet2DModel(in_channels=channels, out_channels=channels, **options)


def converted(net: Any, module: Any, settings: Settings) -> Any:
    """The parameters of a PyTorch network, converted to our module."""
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    shapes = jax.eval_shape(builders.init_fn(module, settings, SEED))
    return parameters.from_state_dict(state, shapes, "the benchmark")


def why_not_compile(device: str) -> str:
    """Why torch.compile can't run here; empty if it can."""
    if device == "cpu":
        found = any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))
        return "" if found else "no C++ compiler (g++ or clang++) is on the path"
    return "" if importlib.util.find_spec("triton") else "triton is not installed"


def timed(contestant: Any, steps: int) -> float:
    """Seconds of `count` steps."""
    contestant.sync()
    start = time.perf_counter()
    for _ in range(steps):
        contestant.step()
    contestant.sync()
    return time.perf_counter() - start


def measure(contestants: dict[str, Any], batch_size: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Images per second of each contestant in each round; contestants take turns, so that disturbances affect all."""
    steps = {}
    for name, contestant in contestants.items():
        timed(contestant, 1)  # the first compiles
        steps[name] = max(1, round(seconds / timed(contestant, 1)))
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            rates[name].append(batch_size * steps[name] / timed(contestant, steps[name]))
    return rates


def summary(rates: dict[str, list[float]], ours: str) -> dict[str, Any]:
    """Medians, PyTorch's best contestant, and the ratio of our rate to it."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    theirs = {name: value for name, value in medians.items() if name.startswith("pytorch")}
    result = {"images_per_second": rates, "median": medians, "best_pytorch": max(theirs, key=theirs.get)}
    return result | {"ratio": {name: medians[ours] / value for name, value in theirs.items()}}


def text(result: dict[str, Any], not_compiled: str) -> list[str]:
    """The printed lines of a summary."""
    lines = []
    for name, values in result["images_per_second"].items():
        line = f"  {name:17} {result['median'][name]:9.1f} images/s ({min(values):.1f}..{max(values):.1f})"
        lines.append(line + (f"  ratio {result['ratio'][name]:.3f}" if name in result["ratio"] else ""))
    if not_compiled:
        lines.append(f"  pytorch compiled  skipped: {not_compiled}")
    best = result["best_pytorch"]
    return [*lines, f"  side_jax / best PyTorch ({best}): {result['ratio'][best]:.3f}"]


def parser(description: str, sizes: list[str]) -> argparse.ArgumentParser:
    """The options shared by the benchmarks."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", nargs="+", choices=SIZES, default=sizes)
    options.add_argument("--batch-size", type=int, default=0, help="instead of each size's own")
    options.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast there")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--seconds", type=float, default=2.0, help="of one contestant in one round, about")
    options.add_argument("--no-compile", action="store_true", help="leaves torch.compile out, which takes minutes")
    options.add_argument("--json", type=Path, help="a file for all numbers")
    return options


def start(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Checks that both libraries use devices of the same kind, and prints them; returns (device, about)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = [load_settings(size, options.batch_size, options.dtype) for size in options.sizes]
    cpu.prepare(one.sampler.batch_size for one in settings)  # as in the command line
    if (device == "cuda") != (jax.default_backend() == "gpu"):
        sys.exit(f"PyTorch is on {device} and JAX on {jax.default_backend()}; hide the GPU or install both for it.")
    if device == "cuda":
        if jax.device_count() > 1:
            sys.exit(f"JAX has {jax.device_count()} devices; leave it one, PyTorch uses one: CUDA_VISIBLE_DEVICES=0.")
        torch.set_float32_matmul_precision("high")  # TF32, the default of JAX
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    about = {"device": f"{device}: {name}", "cpus": os.cpu_count(), "pytorch_threads": torch.get_num_threads()}
    about |= {"jax_devices": jax.device_count()}
    about |= {"dtype": options.dtype, "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}
    about |= {module.__name__: module.__version__ for module in (jax, torch, diffusers)}
    print(json.dumps(about), flush=True)
    return device, about
