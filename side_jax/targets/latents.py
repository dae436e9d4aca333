"""Makes a model of latents from a model of what an autoencoder encodes, whatever files both are from."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from side_jax.errors import InputError
from side_jax.models.autoencoders import Autoencoder
from side_jax.models.latent import Latent
from side_jax.targets.checkpoint_files import REPLACE
from side_jax.targets.target_model import Target


def latent_target(
    target: Target,
    autoencoder: Autoencoder,
    where: Path,
    *,
    weights: tuple[Path, ...],
    read_params: Callable[[], Any],
    notes: tuple[str, ...] = (),
    **options: Any,
) -> Target:
    """Puts an autoencoder around a model.

    Args:
      target: the model, whose images are latents.
      autoencoder: of the images.
      where: its file or folder, for messages.
      weights: the files of its weights.
      read_params: reads its parameters.
      notes: on it, see Origin.
      **options: attributes of Latent.

    Raises:
      InputError: if the autoencoder has other latents than the model.
    """
    if target.channels != autoencoder.latent_channels:
        raise InputError(
            f"the autoencoder in {where} has latents of {autoencoder.latent_channels} channels, but the diffusion "
            f"model beside it is of {target.channels}; take both from the same checkpoint."
        )
    origin = target.origin
    return dataclasses.replace(
        target,
        network=Latent(net=target.network, autoencoder=autoencoder, **options),
        channels=autoencoder.channels,
        size=target.size and tuple(side * autoencoder.factor for side in target.size),
        origin=dataclasses.replace(
            origin,
            weights=(*origin.weights, *weights),
            read_params=lambda: {"net": origin.read_params(), "autoencoder": read_params()},
            notes=(*origin.notes, *notes),
        ),
    )


def autoencoder_shapes(autoencoder: Autoencoder, where: Path) -> Any:
    """The tree of an autoencoder's parameters, of shapes alone.

    Raises:
      InputError: if there is no such autoencoder.
    """
    try:
        return _shapes(autoencoder)
    except (ValueError, TypeError, ArithmeticError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{where} describes no autoencoder that can be built ({reason}); {REPLACE}.") from None


@functools.lru_cache(maxsize=8)  # traced once for a model that is read
def _shapes(autoencoder: Autoencoder) -> Any:
    images = jax.ShapeDtypeStruct((1, autoencoder.factor, autoencoder.factor, autoencoder.channels), jnp.float32)
    return jax.eval_shape(autoencoder.init, jax.random.key(0), images)["params"]
