"""Generates images by mode seeking: from noise, or from stored images, in batches by a pmapped, jit-compiled loop."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.devices import placement
from side_jax.diffusion import mode_seeking, sampler
from side_jax.diffusion.pixel_range import to_float, to_uint8
from side_jax.diffusion.schedule import Schedule
from side_jax.diffusion.steps import StepTable
from side_jax.sampling.generation import ApplyFn, Generator

Starts = Callable[[np.ndarray], np.ndarray]  # global indices int64 [n] -> images uint8 [n, h, w, c]


class ModeProgram:
    """The compiled rounds. Noise levels are traced, so that only another number of rounds is compiled anew.

    Attributes:
      batch_size: images per batch.
      shape: of one image, (height, width, channels).
    """

    def __init__(
        self,
        *,
        denoise: ApplyFn,
        encode: Callable[[Any, jax.Array], jax.Array] = lambda params, images: images,
        decode: Callable[[Any, jax.Array], jax.Array] = lambda params, x: x,
        schedule: Schedule,
        shape: tuple[int, int, int],
        batch_size: int,
        clip: bool = True,
        from_noise: bool = False,
        random: bool = False,
        relaxation: float = 1.0,
        anderson: bool = False,
    ):
        """Prepares the compiled function.

        Args:
          denoise: the DPM, (params, x_t, t float32, indices) -> its prediction, of the schedule's prediction type.
          encode: (params, images float32 in [-1, 1]) -> what the model would sample for them.
          decode: (params, what it sampled) -> images in about [-1, 1].
          schedule: of the DPM.
          shape: (height, width, channels) of one image, or from noise, of what is sampled for it.
          batch_size: images per batch; divisible by the number of local devices.
          clip: whether what is sampled is clipped to [-1, 1].
          from_noise: whether to start from x_T instead of given images.
          random: whether each round adds noise first, from an image's own key.
          relaxation: see mode_seeking.seek_round.
          anderson: see there.
        """
        self.batch_size, self.shape = batch_size, shape

        def seek(params: Any, base: jax.Array, levels: jax.Array, index: jax.Array, images: jax.Array) -> jax.Array:
            keys = sampler.sample_keys(base, index)
            if from_noise:
                x = sampler.initial_noise(keys, shape)
                x = jnp.clip(x, -1.0, 1.0) if clip else x
            else:
                x = encode(params, to_float(images))
            denoiser = mode_seeking.from_network(lambda x, t: denoise(params, x, t, index), schedule, clip=clip)
            options = {"relaxation": relaxation, "anderson": anderson}
            found = mode_seeking.seek(denoiser, levels, x, keys if random else None, **options).x
            return to_uint8(decode(params, found))

        self.call = placement.pmap_batch(seek, batched=(False, False, False, True, True))


class RequestProgram:
    """The compiled rounds of an API that adds noise to an image and samples from there; their number is traced.

    What goes in and out of every round are images, as of any other request: uint8, decoded.

    Attributes:
      batch_size: images per batch.
      shape: of one image, (height, width, channels).
    """

    def __init__(
        self,
        *,
        denoise: ApplyFn,
        encode: Callable[[Any, jax.Array], jax.Array] = lambda params, images: images,
        decode: Callable[[Any, jax.Array], jax.Array] = lambda params, x: x,
        table: StepTable,
        shape: tuple[int, int, int],
        batch_size: int,
    ):
        """Prepares the compiled function.

        Args:
          denoise: the DPM, (params, x_t, t, indices) -> its prediction, of the table's prediction type.
          encode: (params, images float32 in [-1, 1]) -> what the model would sample for them.
          decode: (params, what it sampled) -> images in about [-1, 1].
          table: of the last steps of the sampler.
          shape: (height, width, channels) of one image.
          batch_size: images per batch; divisible by the number of local devices.
        """
        self.batch_size, self.shape = batch_size, shape

        def seek(params: Any, base: jax.Array, given: tuple, index: jax.Array, images: jax.Array) -> jax.Array:
            key, rounds = given  # a key of its own: `base` has drawn the noise that the images were sampled from

            def request(number: jax.Array, images: jax.Array) -> jax.Array:
                draws = sampler.sample_keys(jax.random.fold_in(key, number), index)
                x = encode(params, to_float(images))
                sampled = sampler.sample_again(lambda x, t: denoise(params, x, t, index), table, x, draws)
                return to_uint8(decode(params, sampled))

            return jax.lax.fori_loop(0, rounds, request, images)

        self.call = placement.pmap_batch(seek, batched=(False, False, False, True, True))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ModeGenerator:
    """Generates the images of given global indices, as generation.Generator does; an index always gives the same image.

    Attributes:
      program: the compiled rounds.
      rounds: float32 [rounds], sigma of each round; of a RequestProgram, (typed key, int32 number of rounds).
      starts: the images to start from; None: the program starts from noise.
    """

    program: ModeProgram | RequestProgram
    rounds: Any
    starts: Starts | None = None

    @property
    def batch_size(self) -> int:
        """Images per batch."""
        return self.program.batch_size

    def dispatch(self, params: Any, base: jax.Array, index: np.ndarray, labels: np.ndarray, scale: float) -> jax.Array:
        """As generation.Generator.dispatch; labels and scale have acted on the starting images, and are ignored."""
        given = self.starts(index) if self.starts else np.zeros((len(index), *self.program.shape), np.uint8)
        parts = placement.split(self.batch_size, np.asarray(index, np.uint32), given)
        return self.program.call(params, base, self.rounds, *parts)

    def __call__(self, params: Any, base: jax.Array, index: np.ndarray, labels: np.ndarray, scale: float) -> np.ndarray:
        """Images uint8 [n, h, w, c] of the global indices [n], n at most batch_size."""
        return placement.merge(self.dispatch(params, base, index, labels, scale))[: len(index)]


def draw(generator: Generator | ModeGenerator, params: Any, base: jax.Array, count: int, first: int = 0) -> np.ndarray:
    """The first images of a generator without guidance, uint8 [count - first, h, w, c], batch by batch.

    Args:
      generator: the unguided sampler, or mode seeking.
      params: the parameters of its network.
      base: the typed key of this set of images.
      count: number of images.
      first: the images before this one are left out.
    """
    index, label = np.arange(first, count), np.full(count, -1, np.int32)
    parts = [index[i : i + generator.batch_size] for i in range(0, len(index), generator.batch_size)]
    return np.concatenate([generator(params, base, part, label[part], 0.0) for part in parts])
