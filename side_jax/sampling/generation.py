"""Generates images in batches by a pmapped, jit-compiled sampler.

On accelerators, and for unguided sampling on CPU, the whole trajectory is one compiled loop. Guided sampling on CPU
compiles one step and dispatches it from Python, because gradients of convolutions inside an XLA loop are many times
slower on CPU. Parameters, keys, labels and the guidance scale are traced, so a sweep over scales compiles once.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.devices import placement
from side_jax.diffusion import sampler
from side_jax.diffusion.guidance import Guidance
from side_jax.diffusion.pixel_range import to_uint8
from side_jax.diffusion.steps import StepTable

# (all parameters, x_t, t, the images' global indices [b], and in some cases their labels [b]) -> prediction
ApplyFn = Callable[..., jax.Array]

# (all parameters, global indices [b], labels [b], scale) -> guidance
GuideFn = Callable[[Any, jax.Array, jax.Array, jax.Array], Guidance]


def drawn_labels(base: jax.Array, index: jax.Array, num_classes: int) -> jax.Array:
    """A uniform random class for each global index [b], int32 [b]."""
    keys = sampler.sample_keys(jax.random.fold_in(base, 1), index)
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, num_classes))(keys)


def target_labels(base: jax.Array, num_images: int, num_classes: int) -> np.ndarray:
    """A uniform random target class for each global index 0..num_images-1, int32 [num_images]."""
    return np.asarray(drawn_labels(base, jnp.arange(num_images, dtype=jnp.uint32), num_classes), np.int32)


class Generator:
    """Generates the images of given global indices; an index always gives the same image.

    Attributes:
      batch_size: images per batch.
      loop: "scan" (the whole trajectory is one program) or "dispatch" (one step is).
    """

    def __init__(
        self,
        *,
        denoise: ApplyFn,
        decode: Callable[[Any, jax.Array], jax.Array] = lambda params, x: x,
        table: StepTable,
        shape: tuple[int, int, int],
        batch_size: int,
        loop: str = "auto",
        guide: GuideFn | None = None,
        labelled: bool = False,
    ):
        """Prepares the compiled functions.

        Args:
          denoise: the DPM, (params, x_t, t, indices) -> its prediction, of the table's prediction type.
          decode: (params, what was sampled) -> images in about [-1, 1]; by default, images are sampled.
          table: the sampler's coefficients.
          shape: of what is sampled for one image, (height, width, channels).
          batch_size: images per batch; divisible by the number of local devices.
          loop: "scan", "dispatch" or "auto"; see settings.Sampler.
          guide: for guided sampling, (params, indices, labels, scale) -> the guidance of a step.
          labelled: whether denoise takes the labels too, behind the indices.
        """
        if loop == "auto":
            loop = "dispatch" if guide is not None and jax.default_backend() == "cpu" else "scan"
        self.batch_size = batch_size
        self.loop = loop
        self._table, self._segments = table, list(table.segments(guide is not None))

        def start(base, index):
            return sampler.start(sampler.sample_keys(base, index), shape)

        def bind(guided, params, index, labels, scale):
            guidance = guide(params, index, labels, scale) if guided else None
            return (lambda x, t: denoise(params, x, t, index, *((labels,) if labelled else ()))), guidance

        def step(guided, params, base, index, labels, scale, at, state):
            denoise_fn, guidance = bind(guided, params, index, labels, scale)
            return sampler.sample_step(denoise_fn, at, state, sampler.sample_keys(base, index), guidance)

        def whole(params, base, index, labels, scale):
            denoise_fn, guidance = bind(guide is not None, params, index, labels, scale)
            sampled = sampler.sample(denoise_fn, table, sampler.sample_keys(base, index), shape, guidance)
            return to_uint8(decode(params, sampled))

        def mapped_step(guided: bool) -> Callable:
            batched = (False, False, True, True, False, False, True)
            return placement.pmap_batch(functools.partial(step, guided), batched=batched, donate=(6,))

        self._start = placement.pmap_batch(start, batched=(False, True))
        self._step = {guided: mapped_step(guided) for guided in (False, True)}
        self._finish = placement.pmap_batch(
            lambda params, state: to_uint8(decode(params, state.x)), batched=(False, True)
        )
        self._whole = placement.pmap_batch(whole, batched=(False, False, True, True, False))

    def dispatch(self, params: Any, base: jax.Array, index: np.ndarray, labels: np.ndarray, scale: float) -> jax.Array:
        """As __call__, but returns before the images are computed; placement.merge waits for them."""
        parts = placement.split(self.batch_size, np.asarray(index, np.uint32), np.asarray(labels, np.int32))
        scale = np.float32(scale)
        if self.loop == "scan":
            return self._whole(params, base, *parts, scale)
        # Copy the arguments to the devices once, rather than at every step.
        params, base, scale = placement.place((params, base, scale), placement.local_mesh())
        parts = placement.place_split(parts, placement.local_mesh())
        state = self._start(base, parts[0])
        for first, last, guided in self._segments:
            for i in range(first, last):
                state = self._step[guided](params, base, *parts, scale, self._table[i], state)
        return self._finish(params, state)

    def __call__(self, params: Any, base: jax.Array, index: np.ndarray, labels: np.ndarray, scale: float) -> np.ndarray:
        """Images uint8 [n, h, w, c] of the global indices [n], n at most batch_size (a smaller batch is padded).

        Args:
          params: the parameters of denoise and guide; see builders.build_generator.
          base: the typed key of this set of images.
          index: global indices, int [n].
          labels: target classes, int32 [n]; ignored by unguided sampling.
          scale: the guidance scale lambda; ignored by unguided sampling.
        """
        return placement.merge(self.dispatch(params, base, index, labels, scale))[: len(index)]
