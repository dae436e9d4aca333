"""Measures the likelihood of images under an audited DPM, by its probability-flow ODE and by the variational bound.

python benchmarks/likelihood.py --workdir=runs/digits

Needs a run whose train stage is done, with a trained or imported model. Prints bits per dimension for members and
equally many held-out images. The ODE gives the density of the model's samples at its lowest noise level, evaluated at
images with that noise, which smooths the steps between grey levels; several tolerances and numbers of probes are
compared. The variational bound is computed for the same density and for the 256 grey levels. A gap between members and
held-out images is information of the model about its members.
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
from side_jax.stages import stage_inputs

SOLVED = ((1e-3, 1), (1e-4, 1), (1e-3, 8))  # (tolerance, probes); an audit uses the first


def estimators(settings: Settings, base: jax.Array) -> dict[str, tuple[bool, Callable]]:
    """Maps each name to (is_density, (params, images uint8 [b, ...], index [b]) -> [b, 2], nats and network calls)."""
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
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, help="of a run; nothing is written")
    parser.add_argument("--images", type=int, default=64, help="of each side")
    options = parser.parse_args()
    settings = from_config(saved_config.saved_config(options.workdir))
    cpu.prepare([settings.sampler.batch_size])
    sides = [side.images[: options.images] for side in stage_inputs.load_sides(settings, options.workdir)]
    params = {"dpm": stage_inputs.load_target(settings, options.workdir).trees["ema"]}
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
