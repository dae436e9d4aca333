"""Generating images in batches by a pmapped, jit-compiled sampler, and writing them as shards.

On accelerators, and unguided on CPU, the whole trajectory is one compiled loop. Guided on CPU, one step is compiled and
dispatched from Python, because gradients of convolutions inside an XLA loop are many times slower there. Parameters,
keys, labels and the guidance scale are traced, so a sweep over scales compiles once.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax import files, parallel
from side_jax.diffusion import guidance, sampler
from side_jax.errors import InputError
from side_jax.progress import progress

ApplyFn = Callable[[Any, jax.Array, jax.Array], jax.Array]  # (all parameters, x_t, t) -> prediction


def to_uint8(x: jax.Array) -> jax.Array:
    """Images in [-1, 1] (clipped) to uint8 0..255."""
    return jnp.round((jnp.clip(x, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 0..255 to float32 in [-1, 1]; the inverse of to_uint8."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def target_labels(base: jax.Array, num_images: int, num_classes: int) -> np.ndarray:
    """A target class for each global index 0..num_images-1, uniform over num_classes: int32 [num_images]."""
    keys = sampler.sample_keys(jax.random.fold_in(base, 1), jnp.arange(num_images, dtype=jnp.uint32))
    draw = jax.vmap(lambda key: jax.random.randint(key, (), 0, num_classes))
    return np.asarray(draw(keys), np.int32)


class Generator:
    """Makes the images of given global indices; the same index always gives the same image."""

    def __init__(
        self,
        *,
        denoise: ApplyFn,
        table: sampler.StepTable,
        shape: tuple[int, int, int],
        batch_size: int,
        loop: str = "auto",
        log_prob: ApplyFn | None = None,
    ):
        """Prepares the compiled functions.

        Args:
          denoise: the DPM, (params, x_t, t) -> what the table's prediction type says.
          table: the sampler's coefficients.
          shape: of one image, (height, width, channels).
          batch_size: images made together; divisible by the number of local devices.
          loop: "scan", "dispatch" or "auto", see settings.Sampler.
          log_prob: for guided sampling, (params, x_t, t) -> log-probabilities of the classes.
        """
        if loop == "auto":
            loop = "dispatch" if log_prob is not None and jax.default_backend() == "cpu" else "scan"
        self.batch_size = batch_size
        self._loop = loop
        self._table = table
        self._log_prob = log_prob

        def bind(params: Any, labels: jax.Array) -> tuple[Callable, Callable | None]:
            def denoise_fn(x, t):
                return denoise(params, x, t)

            if log_prob is None:
                return denoise_fn, None
            return denoise_fn, guidance.classifier_gradient(lambda x, t: log_prob(params, x, t), labels)

        def start(base, index):
            return sampler.initial_noise(sampler.sample_keys(base, index), shape)

        def step(params, base, index, labels, scale, i, x):
            denoise_fn, gradient_fn = bind(params, labels)
            return sampler.sample_step(denoise_fn, table, i, x, sampler.sample_keys(base, index), gradient_fn, scale)

        def whole(params, base, index, labels, scale):
            denoise_fn, gradient_fn = bind(params, labels)
            keys = sampler.sample_keys(base, index)
            return to_uint8(sampler.sample(denoise_fn, table, keys, shape, gradient_fn, scale))

        self._start = parallel.pmap_batch(start, batched=(False, True))
        self._step = parallel.pmap_batch(step, batched=(False, False, True, True, False, False, True), donate=(6,))
        self._finish = parallel.pmap_batch(to_uint8, batched=(True,))
        self._whole = parallel.pmap_batch(whole, batched=(False, False, True, True, False))

    def __call__(self, params: Any, base: jax.Array, index: np.ndarray, labels: np.ndarray, scale: float) -> np.ndarray:
        """Images uint8 [n, h, w, c] of the global indices [n], n at most batch_size (a smaller batch is padded).

        Args:
          params: what denoise and log_prob take; see builders.build_generator.
          base: the typed key of this set of images.
          index: global indices, int [n].
          labels: target classes, int32 [n]; not used unguided.
          scale: the guidance scale lambda; not used unguided.
        """
        n = len(index)
        pad = self.batch_size - n
        index = parallel.split(np.pad(np.asarray(index, np.uint32), (0, pad), mode="edge"))
        labels = parallel.split(np.pad(np.asarray(labels, np.int32), (0, pad), mode="edge"))
        scale = np.float32(scale)
        if self._loop == "scan":
            return parallel.merge(self._whole(params, base, index, labels, scale))[:n]
        x = self._start(base, index)
        for i in range(self._table.num_steps):
            x = self._step(params, base, index, labels, scale, np.int32(i), x)
        return parallel.merge(self._finish(x))[:n]


def write_shards(
    generator: Generator,
    directory: Path,
    *,
    params: Any,
    base: jax.Array,
    num_images: int,
    description: str,
    num_classes: int = 0,
    scale: float = 0.0,
) -> None:
    """Makes the shards that are missing: one NPZ a batch, with images, index and label (-1 = none).

    Args:
      generator: makes the images.
      directory: for shard_00000.npz and so on.
      params: for the generator.
      base: the typed key of this set of images.
      num_images: in all.
      description: for the progress bar.
      num_classes: of the classifier whose classes are the targets; 0 where sampling is unguided.
      scale: the guidance scale lambda.
    """
    labels = target_labels(base, num_images, num_classes) if num_classes else np.full(num_images, -1, np.int32)
    starts = range(0, num_images, generator.batch_size)
    shards = [(directory / f"shard_{i:05d}.npz", start) for i, start in enumerate(starts)]
    todo = [(path, start) for path, start in shards if not path.exists()]
    done = len(shards) - len(todo)
    for path, start in progress(todo, total=len(shards), description=description, unit="batch", done=done):
        index = np.arange(start, min(start + generator.batch_size, num_images))
        images = generator(params, base, index, labels[index], scale)
        files.write_npz(path, images=images, index=index.astype(np.int64), label=labels[index])


def read_shards(directory: Path, num_images: int) -> dict[str, np.ndarray]:
    """All shards of a folder joined in index order: images uint8 [n, h, w, c], index int64 [n], label int32 [n].

    Raises:
      InputError: if a shard is missing or damaged.
    """
    parts = [files.read_npz(path) for path in sorted(directory.glob("shard_*.npz"))]
    joined = (
        {name: np.concatenate([part[name] for part in parts]) for name in ("images", "index", "label")} if parts else {}
    )
    if not joined or not np.array_equal(joined["index"], np.arange(num_images)):
        raise InputError(f"{directory} does not hold images 0..{num_images - 1}; run the stage that writes it again.")
    return joined
