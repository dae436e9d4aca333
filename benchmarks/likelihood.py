"""The likelihood of an audited DPM, imported or trained here: by its probability-flow ODE and by the variational bound.

python benchmarks/likelihood.py --workdir=runs/digits

Of a run whose train stage is done: bits for each of an image's values, of members and of as many held-out images. The
ODE's are of a density: that of the model's samples with the least noise that it knows, at the images plus that noise
(so blurred, an image's grey levels are no steps any more). The bound is of the same density, with means as they are,
and of the 256 grey levels themselves. A gap between members and held-out images is what the model knows of the former
alone.
"""

import argparse
from pathlib import Path

import numpy as np

from side_jax import builders, cpu, parallel, sampling, workdir
from side_jax.config import from_config
from side_jax.diffusion import likelihood
from side_jax.diffusion.sampler import initial_noise, sample_keys
from side_jax.evidence import Witness


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, type=Path, help="of a run; nothing is written")
    parser.add_argument("--images", type=int, default=64, help="of each side")
    options = parser.parse_args()
    settings = from_config(workdir.saved_config(options.workdir))
    cpu.prepare([settings.sampler.batch_size])
    members, heldout = builders.load_sides(settings, options.workdir)
    schedule, denoise = builders.build_schedule(settings), builders.build_denoise(settings)
    params = builders.restore_ema(
        settings, builders.train_unit(settings, options.workdir), builders.build_unet(settings)
    ).trees["ema"]
    base, witness = builders.base_key(settings, "probe"), Witness(settings, options.workdir)
    std = float(np.sqrt((1 - schedule.alpha_bar[0]) / schedule.alpha_bar[0]))

    def bound(decoder: str):
        def fn(params, images, index):
            keys = sample_keys(base, index)
            own = (lambda x, t: denoise({"dpm": params}, x, t)), schedule, sampling.to_float(images), keys
            return likelihood.variational_bound(*own, decoder=decoder).sum(axis=0)

        return parallel.in_batches(fn, settings.sampler.batch_size)

    print(f"least noise {std:.3g}; mean and standard error over {options.images} images of each side, bits per value\n")
    print("| | members | held-out |\n|---|---|---|")
    rows: dict[str, list[str]] = {}
    for name, side in (("members", members), ("heldout", heldout)):
        images = side.images[: options.images]
        index = np.arange(len(images), dtype=np.uint32)
        size = images[0].size
        x = sampling.to_float(images)
        blurred = x + std * np.asarray(initial_noise(sample_keys(base, index), x.shape[1:]))
        found = {
            "ODE, density": (-witness.log_prob(blurred, f"divergence/{name}"), True),
            "bound, density": (bound("density")(params, images, index), True),
            "bound, 256 levels": (bound("levels")(params, images, index), False),
        }
        for kind, (nats, density) in found.items():
            bits = np.asarray(likelihood.bits_per_dimension(nats, size, density=density), np.float64)
            rows.setdefault(kind, []).append(f"{bits.mean():.3f} ({bits.std(ddof=1) / len(bits) ** 0.5:.3f})")
    for kind, cells in rows.items():
        print(f"| {kind} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
