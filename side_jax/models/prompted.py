"""Makes a class-conditional model of a text-conditional one: a fixed list of prompts, whose numbers are labels."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Prompted(nn.Module):
    """Predicts as a ConditionUNet does, with the embedded prompt that a label names.

    The embeddings are a parameter, computed once by the text encoder, which is then not needed any more.

    Attributes:
      net: a ConditionUNet.
      num_labels: number of prompts. The table has one row more, the last: the empty prompt, of images without a label.
      tokens: of a prompt, padding included.
      width: of an embedded token.
    """

    net: Any
    num_labels: int
    tokens: int
    width: int

    @nn.compact
    def __call__(
        self, x: jax.Array, t: jax.Array, deterministic: bool = True, labels: jax.Array | None = None
    ) -> jax.Array:
        """The prediction, float32 with the shape of x; arguments as UNet's."""
        shape = (self.num_labels + 1, self.tokens, self.width)
        table = self.param("prompt_embedding", nn.initializers.zeros, shape)
        labels = jnp.full(x.shape[:1], -1, jnp.int32) if labels is None else labels
        return self.net(x, t, table[jnp.where(labels < 0, self.num_labels, labels)], deterministic)
