"""Compares training speed with the same U-Net in PyTorch: python benchmarks/training.py --sizes digits orl_faces colour

Measures images per second of whole steps (placing the batch, forward, backward, clipping, AdamW, EMA), in one process,
by turns. Both start from the same weights and must first show the same losses and gradient norms on the same noise and
timesteps; otherwise no ratio is printed. The machine must be idle, since PyTorch's threads wait for each other;
`taskset -c 0` before the command compares on one core, where disturbances matter less.
"""

import argparse
import copy
import functools
import json
import sys
from typing import Any

import contest
import jax
import jax.numpy as jnp
import numpy as np
from contest import SEED, torch

from side_jax import builders
from side_jax.diffusion import process
from side_jax.diffusion.pixel_range import to_float
from side_jax.settings import Settings
from side_jax.training import trainer
from side_jax.training.losses import dpm_loss

CHECKED_STEPS = 3  # of both trainings, on the same noise: the second and third also compare clipping, AdamW and EMA


class Jax:
    """side_jax as in the train stage: the Stepper, its shuffle, and its placement of batches on the devices."""

    def __init__(self, settings: Settings, images: np.ndarray, net: Any):
        unet, self._images, self._fit = builders.build_network(settings), images, settings.train
        self._schedule = builders.build_schedule(settings)
        params = contest.converted(net, unet, settings)
        self.parameter_count = sum(leaf.size for leaf in jax.tree.leaves(params))
        loss_fn = functools.partial(dpm_loss, unet, self._schedule, settings.train.horizontal_flip)
        init_fn = functools.partial(jax.tree.map, jnp.asarray, params)
        self._stepper = trainer.Stepper(loss_fn, init_fn, settings.train, self._fetch(np.zeros(1, np.int64)))
        self._state, self._ema = self._stepper.initial()
        self._key, self._step = self._stepper.key(SEED), 0

    def _fetch(self, chosen: np.ndarray) -> tuple[np.ndarray]:
        return (self._images[chosen],)

    def draws(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(timesteps, noise NHWC) that the Stepper draws at a step."""
        chosen = trainer.batch_indices(SEED, step, len(self._images), self._fit.batch_size)
        position = jnp.arange(self._fit.batch_size, dtype=jnp.uint32)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.fold_in(self._key, step), position)
        _, t, noise = jax.jit(functools.partial(process.diffuse, self._schedule))(to_float(self._images[chosen]), keys)
        return np.array(t), np.array(noise)

    def step(self) -> None:
        """One training step."""
        chosen = trainer.batch_indices(SEED, self._step, len(self._images), self._fit.batch_size)
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
    """The same training in PyTorch, written for speed: channels-last, fused AdamW, foreach operations otherwise."""

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
        """One training step on the batch of side_jax; draws its own timesteps and noise if none are given."""
        chosen = trainer.batch_indices(SEED, self._step, len(self._images), self._fit.batch_size)
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


def check_same(ours: Jax, theirs: Torch, tolerance: float) -> dict[str, Any]:
    """Trains both for CHECKED_STEPS on the same noise and timesteps, and exits if they differ."""
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


def run_size(size: str, options: argparse.Namespace, device: str) -> dict[str, Any]:
    """All measurements of one size."""
    settings = contest.load_settings(size, options.batch_size, options.dtype)
    shape = settings.data.num_members, *builders.image_shape(settings)
    images = np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)  # what is on them doesn't change the time
    net = contest.make_unet(settings)
    ours = Jax(settings, images, net)
    eager = Torch(settings, images, net, device, compiled=False)
    exact = device == "cpu" and options.dtype == "float32"
    check = check_same(ours, eager, 1e-4 if exact else 2e-2)  # TF32 and bfloat16 keep 10 and 8 bits
    contestants = {"side_jax": ours, "pytorch eager": eager}
    skipped = "--no-compile was given" if options.no_compile else contest.why_not_compile(device)
    if not skipped:
        contestants["pytorch compiled"] = Torch(settings, images, net, device, compiled=True)
    rates = contest.measure(contestants, batch_size := settings.train.batch_size, options.rounds, options.seconds)
    result = {"size": size, "image": shape[1:], "batch_size": batch_size, "same": check, "not_compiled": skipped}
    return result | contest.summary(rates, "side_jax")


def main() -> None:
    """Runs the command line."""
    options = contest.parser(__doc__, ["digits", "orl_faces", "colour"]).parse_args()
    device, about = contest.start(options)
    results = []
    for size in dict.fromkeys(options.sizes):
        results.append(run_size(size, options, device))
        result, same = results[-1], results[-1]["same"]
        print(
            f"{size}: {'x'.join(map(str, result['image']))}, batch {result['batch_size']}, {same['parameters']} "
            f"parameters; {CHECKED_STEPS} steps' losses and gradient norms agree to {same['relative_error']:.1e} "
            f"(tolerance {same['tolerance']:g})"
        )
        print("\n".join(contest.text(result, result["not_compiled"])), flush=True)
        if options.json:
            options.json.write_text(json.dumps(about | {"sizes": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
