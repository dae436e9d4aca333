"""Gives any network labels: rows of a table, added to its time embedding, without a change of its modules.

Every network has a dense layer that ends its time embedding. A label's row is added to what this layer returns for an
image, as if it were a part of the layer's bias. The network's own labels, or prompts, stay beside it.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from side_jax.models.condition_unet import ConditionUNet
from side_jax.models.dhariwal_unet import DhariwalUNet
from side_jax.models.memory_unet import MemoryUNet
from side_jax.models.score_unet import ScoreUNet
from side_jax.models.song_unet import SongUNet
from side_jax.models.unet import UNet

# The layer that ends the time embedding of each class of networks, by its path in their parameters.
TIME_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    UNet: ("time_embedding", "linear_2"),
    ConditionUNet: ("time_embedding", "linear_2"),
    ScoreUNet: ("time_embedding", "linear_2"),
    MemoryUNet: ("time_2",),
    SongUNet: ("map_layer1",),
    DhariwalUNet: ("map_layer1",),
}


def innermost(network: Any) -> tuple[Any, tuple[str, ...]]:
    """(the network in a network's wrappers, which hold it as `net`; the path of its parameters)."""
    path: tuple[str, ...] = ()
    while hasattr(network, "net"):
        network, path = network.net, (*path, "net")
    return network, path


class Labelled(nn.Module):
    """Predicts as a network does whose time embedding has a label's row added.

    Its parameters are {"net": the network's, "label_embedding": the table, float32 [num_labels + 1, e]}.

    Attributes:
      net: the network, called as UNet is; its innermost one is in TIME_LAYERS.
      num_labels: number of labels. The table has one row more, the last, for images without a label.
    """

    net: Any
    num_labels: int

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        deterministic: bool = True,
        labels: jax.Array | None = None,
        own: jax.Array | None = None,
    ) -> jax.Array:
        """The prediction, float32 with the shape of x.

        Args:
          x: as UNet's.
          t: as UNet's.
          deterministic: as UNet's.
          labels: int32 [b], in 0..num_labels-1, or -1 for no label; None: no image has one.
          own: the network's own labels, as UNet's.
        """
        core, inside = innermost(self)
        layer = (*self.path, *inside, *TIME_LAYERS[type(core)])
        labels = jnp.full(x.shape[:1], -1, jnp.int32) if labels is None else labels

        def add(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            out = call(*args, **kwargs)
            if context.module.path != layer:
                return out
            table = self.param("label_embedding", nn.initializers.zeros, (self.num_labels + 1, out.shape[-1]))
            return out + table[jnp.where(labels < 0, self.num_labels, labels)].astype(out.dtype)

        with nn.intercept_methods(add):
            return self.net(x, t, deterministic, own)
