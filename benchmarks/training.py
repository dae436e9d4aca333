"""Training speed against the same U-Net in PyTorch: python benchmarks/training.py --sizes digits orl_faces colour

Images per second of whole steps (placing the batch, forward, backward, clipping, AdamW, EMA), in one process, by turns.
Both start from the same weights and must first show the same losses and gradient norms on the same noise and timesteps;
otherwise there is no ratio. The machine must be idle, since PyTorch's threads wait for each other;
`taskset -c 0` before the command compares on one core, where others disturb little.
"""

import argparse
import copy
import dataclasses
import functools
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

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # read at JAX's first use: leaves PyTorch its memory

import jax
import jax.numpy as jnp
import numpy as np

from side_jax import builders, training
from side_jax.config import default_config, from_config
from side_jax.convert import parameters
from side_jax.diffusion import process
from side_jax.sampling import to_float
from side_jax.settings import Settings
from side_jax.stages.train import dpm_loss

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at import both warn of their dependencies' deprecations, by version
        import diffusers
        import torch
except ImportError:
    sys.exit("benchmarks/training.py compares with PyTorch, which is not installed: pip install 'side_jax[parity]'")

CHECKED_STEPS = 3  # of both trainings, on the same noise: the second and third also compare clipping, AdamW and EMA
SEED = 0
# Sizes without a config: what differs from the defaults of config.model; A marks the levels with attention.
MODELS = {
    "colour": ((64, 128, 128), "DAD", "UAU", {"layers_per_block": 2, "norm_num_groups": 32}),
    "full": (  # google/ddpm-cifar10-32, exactly
        *((128, 256, 256, 256), "DADD", "UUAU"),
        {"layers_per_block": 2, "attention_head_dim": 0, "norm_num_groups": 32, "norm_eps": 1e-6}
        | {"flip_sin_to_cos": False, "freq_shift": 1.0, "downsample_padding": 0},
    ),
}


def load_settings(size: str, batch_size: int, dtype: str) -> Settings:
    """The settings of one size: a config's own, or of MODELS; batch_size 0 keeps its own."""
    if size in MODELS:
        config = default_config()
        config.data.image_size, config.data.channels = 32, 3
        config.train.batch_size = 16
        channels, down, up, options = MODELS[size]
        config.model.update(options, block_out_channels=channels)
        config.model.down_block_types = tuple("AttnDownBlock2D" if c == "A" else "DownBlock2D" for c in down)
        config.model.up_block_types = tuple("AttnUpBlock2D" if c == "A" else "UpBlock2D" for c in up)
    else:
        config = runpy.run_path(str(Path(__file__).parents[1] / "configs" / f"{size}.py"))["get_config"]()
    config.train.batch_size = batch_size or config.train.batch_size
    config.data.num_members = config.data.num_heldout = max(config.data.num_members, 4 * config.train.batch_size)
    config.conditional.batch_size = config.train.batch_size
    config.model.dtype = dtype
    return from_config(config)


def make_unet(settings: Settings) -> Any:
    """The U-Net of diffusers with the same options, as diffusers initialises it: its last layer isn't zero then."""
    module = builders.build_unet(settings)
    names = [field.name for field in dataclasses.fields(settings.model) if field.name not in ("dtype", "remat")]
    channels = settings.data.channels
    options = {name: getattr(module, name) for name in names} | {"sample_size": settings.data.image_size}
    torch.manual_seed(SEED)
    return diffusers.UNet2DModel(in_channels=channels, out_channels=channels, **options)


class Jax:
    """side_jax as the train stage runs it: the Stepper, its shuffle and its placing of a batch on the devices."""

    def __init__(self, settings: Settings, images: np.ndarray, net: Any):
        unet, self._images, self._fit = builders.build_unet(settings), images, settings.train
        self._schedule = builders.build_schedule(settings)
        state = {name: value.numpy() for name, value in net.state_dict().items()}
        shapes = jax.eval_shape(builders.init_fn(unet, settings, SEED))
        params = parameters.from_state_dict(state, shapes, "the benchmark")
        self.parameter_count = sum(leaf.size for leaf in jax.tree.leaves(params))
        loss_fn = functools.partial(dpm_loss, unet, self._schedule, settings.train.horizontal_flip)
        init_fn = functools.partial(jax.tree.map, jnp.asarray, params)
        self._stepper = training.Stepper(loss_fn, init_fn, settings.train, self._fetch(np.zeros(1, np.int64)))
        self._state, self._ema = self._stepper.initial()
        self._key, self._step = self._stepper.key(SEED), 0

    def _fetch(self, chosen: np.ndarray) -> tuple[np.ndarray]:
        return (self._images[chosen],)

    def draws(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(timesteps, noise NHWC) that the Stepper draws for a step."""
        chosen = training.batch_indices(SEED, step, len(self._images), self._fit.batch_size)
        position = jnp.arange(self._fit.batch_size, dtype=jnp.uint32)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(self._key, step), position)
        _, t, noise = jax.jit(functools.partial(process.diffuse, self._schedule))(to_float(self._images[chosen]), keys)
        return np.array(t), np.array(noise)

    def step(self) -> None:
        """One training step."""
        chosen = training.batch_indices(SEED, self._step, len(self._images), self._fit.batch_size)
        parts = self._stepper.load(self._fetch, chosen)
        self._state, self._ema = self._stepper(self._state, self._ema, parts, self._key)
        self._step += 1

    def sync(self) -> None:
        """Waits until all steps are done."""
        jax.block_until_ready((self._state, self._ema))

    def sums(self) -> tuple[float, float]:
        """The sums of the steps' losses and gradient norms, since the last multiple of log_every."""
        totals = jax.device_get(self._state["totals"])
        return float(totals["loss"][0]) / self._fit.batch_size, float(totals["gradient_norm"][0])


class Torch:
    """The same training as one would write it in PyTorch for speed: channels-last, fused AdamW, foreach otherwise."""

    def __init__(self, settings: Settings, images: np.ndarray, net: Any, device: str, compiled: bool):
        fit = self._fit = settings.train
        self._device, self._step, self._images = device, 0, images.transpose(0, 3, 1, 2)
        net = copy.deepcopy(net).to(device, memory_format=torch.channels_last).train()
        self._net = torch.compile(net) if compiled else net
        self._params = list(net.parameters())
        self._ema = [p.detach().clone() for p in self._params]
        self.parameter_count = sum(p.numel() for p in self._params)
        rates = {"lr": fit.learning_rate, "weight_decay": fit.weight_decay}
        self._optimizer = torch.optim.AdamW(self._params, **rates, fused=True)
        alpha_bar = torch.tensor(builders.build_schedule(settings).alpha_bar)
        scales = (a.sqrt().float().view(-1, 1, 1, 1).to(device) for a in (alpha_bar, 1.0 - alpha_bar))
        self._signal, self._sigma = scales
        self._autocast = torch.autocast(device, torch.bfloat16, enabled=settings.model.dtype == "bfloat16")
        self._totals = torch.zeros(2, device=device)

    def step(self, draws: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """One training step, on the batch that side_jax takes; draws its own timesteps and noise if none are given."""
        chosen = training.batch_indices(SEED, self._step, len(self._images), self._fit.batch_size)
        x0 = torch.from_numpy(self._images[chosen]).to(self._device, non_blocking=True) / 127.5 - 1.0
        x0 = x0.contiguous(memory_format=torch.channels_last)
        if draws is None:
            t, noise = torch.randint(len(self._signal), (len(x0),), device=self._device), torch.randn_like(x0)
        else:
            t, noise = (torch.from_numpy(draw).to(self._device) for draw in draws)
            t, noise = t.long(), noise.permute(0, 3, 1, 2)
        with self._autocast:
            output = self._net(self._signal[t] * x0 + self._sigma[t] * noise, t, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(output.float(), noise)
        self._optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._params, self._fit.gradient_clip, foreach=True)
        self._optimizer.step()
        decay = min(self._fit.ema_decay, (1.0 + self._step) / (10.0 + self._step))
        with torch.no_grad():
            torch._foreach_lerp_(self._ema, self._params, 1.0 - decay)
        self._totals += torch.stack([loss.detach(), norm])
        self._step += 1

    def sync(self) -> None:
        """Waits until all steps are done."""
        if self._device == "cuda":
            torch.cuda.synchronize()

    def sums(self) -> tuple[float, float]:
        """The sums of the steps' losses and gradient norms."""
        return tuple(self._totals.tolist())


def why_not_compile(device: str) -> str:
    """Why torch.compile can't run here, or nothing."""
    if device == "cpu":
        found = any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))
        return "" if found else "no C++ compiler (g++ or clang++) is on the path"
    return "" if importlib.util.find_spec("triton") else "triton is not installed"


def check_same(ours: Jax, theirs: Torch, tolerance: float) -> dict[str, Any]:
    """Trains both for CHECKED_STEPS on the same noise and timesteps, and exits where they differ."""
    if ours.parameter_count != theirs.parameter_count:
        sys.exit(f"side_jax has {ours.parameter_count} parameters and PyTorch {theirs.parameter_count}; no ratio.")
    sums = [[(0.0, 0.0)], [(0.0, 0.0)]]
    for step in range(CHECKED_STEPS):
        theirs.step(ours.draws(step))
        ours.step()
        sums[0].append(ours.sums())
        sums[1].append(theirs.sums())
    values = np.diff(np.asarray(sums), axis=1)  # [contestant, step, (loss, norm)]
    error = float((np.abs(values[0] - values[1]) / np.abs(values[1])).max())
    same = {"losses_and_norms": {"side_jax": values[0].tolist(), "pytorch": values[1].tolist()}}
    same |= {"parameters": ours.parameter_count, "relative_error": error, "tolerance": tolerance}
    if not error <= tolerance:
        sys.exit(f"side_jax and PyTorch don't compute the same, so there is no ratio: {json.dumps(same)}")
    return same


def timed(contestant: Any, steps: int) -> float:
    """Seconds of so many steps."""
    contestant.sync()
    start = time.perf_counter()
    for _ in range(steps):
        contestant.step()
    contestant.sync()
    return time.perf_counter() - start


def measure(contestants: dict[str, Any], batch_size: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Images per second of each contestant in each round; they take turns, so what else the machine does hits all."""
    steps = {}
    for name, contestant in contestants.items():
        timed(contestant, 3)  # the first compiles
        steps[name] = max(1, round(seconds * 3 / timed(contestant, 3)))
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            rates[name].append(batch_size * steps[name] / timed(contestant, steps[name]))
    return rates


def run_size(size: str, options: argparse.Namespace, device: str) -> dict[str, Any]:
    """All that is measured of one size."""
    settings = load_settings(size, options.batch_size, options.dtype)
    shape = settings.data.num_members, *builders.image_shape(settings)
    images = np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)  # what is on them doesn't change the time
    net = make_unet(settings)
    ours = Jax(settings, images, net)
    eager = Torch(settings, images, net, device, compiled=False)
    exact = device == "cpu" and options.dtype == "float32"
    check = check_same(ours, eager, 1e-4 if exact else 2e-2)  # TF32 and bfloat16 keep 10 and 8 bits
    contestants = {"side_jax": ours, "pytorch eager": eager}
    skipped = "--no-compile was given" if options.no_compile else why_not_compile(device)
    if not skipped:
        contestants["pytorch compiled"] = Torch(settings, images, net, device, compiled=True)
    rates = measure(contestants, batch_size := settings.train.batch_size, options.rounds, options.seconds)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    theirs = {name: value for name, value in medians.items() if name != "side_jax"}
    best = max(theirs, key=theirs.get)
    result = {"size": size, "image": shape[1:], "batch_size": batch_size, "same": check, "not_compiled": skipped}
    result |= {"images_per_second": rates, "median": medians, "best_pytorch": best}
    return result | {"ratio": {name: medians["side_jax"] / value for name, value in theirs.items()}}


def text(result: dict[str, Any]) -> str:
    """What is printed of one size."""
    same = result["same"]
    lines = [
        f"{result['size']}: {'x'.join(map(str, result['image']))}, batch {result['batch_size']}, {same['parameters']} "
        f"parameters; {CHECKED_STEPS} steps' losses and gradient norms agree to {same['relative_error']:.1e} "
        f"(tolerance {same['tolerance']:g})"
    ]
    for name, values in result["images_per_second"].items():
        line = f"  {name:17} {result['median'][name]:9.1f} images/s ({min(values):.1f}..{max(values):.1f})"
        lines.append(line + (f"  ratio {result['ratio'][name]:.3f}" if name in result["ratio"] else ""))
    if result["not_compiled"]:
        lines.append(f"  pytorch compiled  skipped: {result['not_compiled']}")
    best = result["best_pytorch"]
    return "\n".join([*lines, f"  side_jax / best PyTorch ({best}): {result['ratio'][best]:.3f}"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = ("digits", "orl_faces", *MODELS)
    parser.add_argument("--sizes", nargs="+", choices=sizes, default=["digits", "orl_faces", "colour"])
    parser.add_argument("--full", action="store_true", help="adds the size full: google/ddpm-cifar10-32")
    parser.add_argument("--batch-size", type=int, default=0, help="instead of each size's own")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: autocast there")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one contestant in one round, about")
    parser.add_argument("--no-compile", action="store_true", help="leaves torch.compile out, which takes minutes")
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if (device == "cuda") != (jax.default_backend() == "gpu"):
        sys.exit(f"PyTorch is on {device} and JAX on {jax.default_backend()}; hide the GPU or install both for it.")
    if jax.device_count() > 1:
        sys.exit(f"JAX has {jax.device_count()} devices; leave it one, PyTorch uses one: CUDA_VISIBLE_DEVICES=0.")
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as JAX has it by default
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    about = {"device": f"{device}: {name}", "cpus": os.cpu_count(), "pytorch_threads": torch.get_num_threads()}
    about |= {"dtype": options.dtype, "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}
    about |= {module.__name__: module.__version__ for module in (jax, torch, diffusers)}
    print(json.dumps(about), flush=True)
    results = []
    for size in dict.fromkeys([*options.sizes, *(["full"] if options.full else [])]):
        results.append(run_size(size, options, device))
        print(text(results[-1]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(about | {"sizes": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
