"""The likelihood of an audited DPM, imported or trained here: by its probability-flow ODE and by the variational bound.

python benchmarks/likelihood.py --workdir=runs/digits

Of a run whose train stage is done: bits for each of an image's values, of members and of as many held-out images. The
ODE's are of a density: that of the model's samples with the least noise that it knows, at the images plus that noise
(so blurred, an image's grey levels are no steps any more), by several tolerances of the solver and numbers of probes.
The bound is of the same density, and of the 256 grey levels themselves. A gap between members and held-out images is
what the model knows of the former alone.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from side_jax import builders
from side_jax.config import from_config
from side_jax.devices import cpu, placement
from side_jax.diffusion import likelihood, pixel_range
from side_jax.diffusion.sampler import initial_noise, sample_keys
from side_jax.pipeline import saved_config
from side_jax.settings import Settings, random_streams
from side_jax.stages import stage_inputs, stage_table

SOLVED = ((1e-3, 1), (1e-4, 1), (1e-3, 8))  # (tolerance, probes); the first is an audit's


def estimators(settings: Settings, base: jax.Array) -> dict[str, tuple[bool, Callable]]:
    """Kind: (whether of a density, (params, images uint8 [b, ...], index [b]) -> [b, 2], nats and network calls)."""
    schedule, denoise = builders.build_schedule(settings), builders.build_denoise(settings)
    std = float(np.sqrt((1 - schedule.alpha_bar[0]) / schedule.alpha_bar[0]))

    def solved(tolerance: float, probes: int) -> Callable:
        def fn(params: dict, images: jax.Array, index: jax.Array) -> jax.Array:
            keys, x = sample_keys(base, index), pixel_range.to_float(images)
            x = x + std * initial_noise(keys, x.shape[1:])
            own = (lambda x, t: denoise(params, x, t)), schedule, x, keys
            found = likelihood.ode_log_likelihood(*own, probes=probes, rtol=tolerance, atol=tolerance)
            return jnp.stack([-found.log_prob, found.evaluations.astype(jnp.float32)], axis=1)

        return fn

    def bound(decoder: str) -> Callable:
        def fn(params: dict, images: jax.Array, index: jax.Array) -> jax.Array:
            own = (lambda x, t: denoise(params, x, t)), schedule, pixel_range.to_float(images), sample_keys(base, index)
            nats = likelihood.variational_bound(*own, decoder=decoder).sum(axis=0)
            return jnp.stack([nats, jnp.full_like(nats, schedule.num_timesteps)], axis=1)

        return fn

    ode = {f"ODE, tolerance {of[0]:g}, probes: {of[1]}": (True, solved(*of)) for of in SOLVED}
    return ode | {"bound, density": (True, bound("density")), "bound, 256 levels": (False, bound("levels"))}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, help="of a run; nothing is written")
    parser.add_argument("--images", type=int, default=64, help="of each side")
    options = parser.parse_args()
    settings = from_config(saved_config.saved_config(options.workdir))
    cpu.prepare([settings.sampler.batch_size])
    sides = [side.images[: options.images] for side in stage_inputs.load_sides(settings, options.workdir)]
    train = stage_table.train_unit(settings, options.workdir)
    params = {"dpm": stage_inputs.restore_ema(settings, train, builders.build_unet(settings)).trees["ema"]}
    index = np.arange(options.images, dtype=np.uint32)
    print(f"bits per value: mean and standard error over {options.images} images\n")
    print("| | members | held-out | calls of the network |\n|---|---|---|---|")
    for kind, (density, fn) in estimators(settings, random_streams.stream_key(settings, "probe")).items():
        compute, cells, calls = placement.in_batches(fn, settings.sampler.batch_size), [], []
        for images in sides:
            nats, evaluations = compute(params, images, index[: len(images)]).T
            bits = likelihood.bits_per_dimension(nats.astype(np.float64), images[0].size, density=density)
            cells.append(f"{bits.mean():.3f} ({bits.std(ddof=1) / len(bits) ** 0.5:.3f})")
            calls.append(evaluations.mean())
        print(f"| {kind} | {' | '.join(cells)} | {np.mean(calls):.0f} |", flush=True)


if __name__ == "__main__":
    main()
