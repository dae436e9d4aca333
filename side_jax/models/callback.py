"""A network that is a Python function: its values are computed on the host, and nothing knows its derivatives."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# (x float32 [b, h, w, c], t int32 or float32 [b], labels int32 [b] or None) -> prediction float32 [b, h, w, c]
HostFn = Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray]
_FUNCTIONS: dict[str, HostFn] = {}


def register(digest: str, fn: HostFn) -> None:
    """Gives this process the function of a digest."""
    _FUNCTIONS[digest] = fn


def registered(digest: str) -> bool:
    """Whether this process has the function of a digest."""
    return digest in _FUNCTIONS


class Callback(nn.Module):
    """Calls a registered function.

    Attributes:
      digest: SHA-256 that identifies the function and its weights, in hexadecimal. It is the only parameter too, as 32
        numbers, so that checkpoints of different functions differ.
      num_labels: number of labels; 0: the function gets None.
      num_parameters: of the function, for the report; 0: not known.
    """

    digest: str
    num_labels: int = 0
    num_parameters: int = 0

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, deterministic: bool = True, labels: jax.Array | None = None
    ) -> jax.Array:
        """Returns the function's prediction, as UNet does. It has values alone: differentiating it is an error."""
        self.param("digest", nn.initializers.zeros, (32,))

        def on_host(x: np.ndarray, t: np.ndarray, *labels: np.ndarray) -> np.ndarray:
            given = np.asarray(labels[0]) if labels else None
            prediction = np.asarray(_FUNCTIONS[self.digest](np.asarray(x), np.asarray(t), given), np.float32)
            if prediction.shape != x.shape:
                raise ValueError(f"the function returned the shape {prediction.shape} for images of {x.shape}")
            return prediction

        if self.num_labels and labels is None:
            labels = jnp.full(x.shape[:1], -1, jnp.int32)
        arguments = (x, t, labels) if self.num_labels else (x, t)
        return jax.pure_callback(
            on_host, jax.ShapeDtypeStruct(x.shape, jnp.float32), *arguments, vmap_method="sequential"
        )
