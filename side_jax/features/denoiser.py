"""Uses the target's own activations as features: those on a slightly noised image, averaged over pixels.

Denoisers learn representations without labels (Baranchuk et al. 2022; Xiang et al. 2023). The averages share a large
component that is the same for all images. With it, all cosines would be near 1 and every cluster would pass the
cohesion filter, so the mean over the set is subtracted.
"""

from typing import Any

import jax
import jax.numpy as jnp

from side_jax.diffusion import pixel_range
from side_jax.diffusion.process import q_sample
from side_jax.diffusion.sampler import initial_noise, sample_keys
from side_jax.features.extractors import Extractor, on_devices
from side_jax.settings import Label
from side_jax.targets.target_model import Target
from side_jax.workdir import files


def extractor(target: Target, params: Any, label: Label, *, seed: int, batch_size: int) -> Extractor:
    """Makes an extractor of features [n, c], where c is the block's number of channels.

    Args:
      target: the model.
      params: its parameters.
      label: denoiser_block, whose output is averaged, and denoiser_timestep, the noise level of the input.
      seed: seed of the noise; an image's noise depends on the seed and its index in the set alone.
      batch_size: images per call.
    """
    block, timestep = label.denoiser_block, label.denoiser_timestep

    def embed(params: Any, images: jax.Array, index: jax.Array) -> jax.Array:
        x0 = target.encode(params, pixel_range.to_float(images))
        noise = initial_noise(sample_keys(jax.random.key(seed), index), x0.shape[1:])
        t = jnp.full(len(x0), timestep, jnp.int32)
        h = target.activations(params, q_sample(target.schedule, x0, t, noise), t, target.default_labels(index), block)
        return h.astype(jnp.float32).mean(axis=(1, 2))

    identity = {
        "name": "denoiser",
        "weights_sha256": files.array_digest(jax.tree.leaves(jax.device_get(params))),
        "block": block,
        "timestep": timestep,
        "noise_seed": seed,
        "pooling": "mean",
        "centred": True,
    }
    return Extractor(identity=identity, embed=on_devices(embed, params, batch_size), batch_size=batch_size, centre=True)
