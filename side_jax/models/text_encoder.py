"""CLIP's text encoder (Radford et al. 2021), with the names of transformers' CLIPTextModel."""

import flax.linen as nn
import jax

ACTIVATIONS = ("quick_gelu", "gelu")


class _Embeddings(nn.Module):
    """Learned embeddings of tokens and of their positions."""

    vocabulary: int
    positions: int
    width: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """tokens: int32 [b, n]; returns [b, n, width]."""
        position = nn.Embed(self.positions, self.width, name="position_embedding").embedding[: tokens.shape[1]]
        return nn.Embed(self.vocabulary, self.width, name="token_embedding")(tokens) + position[None]


class _CausalAttention(nn.Module):
    """Attention of each token to itself and to those before it."""

    num_heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, n, c], returned in the same shape."""
        b, n, c = x.shape
        if c % self.num_heads:
            raise ValueError(f"{c} channels can't be cut into {self.num_heads} heads")

        def heads(name: str) -> jax.Array:
            return nn.Dense(c, name=name)(x).reshape(b, n, self.num_heads, c // self.num_heads)

        y = jax.nn.dot_product_attention(heads("q_proj"), heads("k_proj"), heads("v_proj"), is_causal=True)
        return nn.Dense(c, name="out_proj")(y.reshape(b, n, c))


class _Mlp(nn.Module):
    """A layer of another width, and one back."""

    width: int
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, n, c], returned in the same shape."""
        h = nn.Dense(self.width, name="fc1")(x)
        h = h * nn.sigmoid(1.702 * h) if self.activation == "quick_gelu" else nn.gelu(h, approximate=False)
        return nn.Dense(x.shape[-1], name="fc2")(h)


class _Layer(nn.Module):
    """Attention and a multi-layer perceptron, each behind a norm and beside a skip."""

    num_heads: int
    mlp_width: int
    activation: str
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, n, c], returned in the same shape."""
        h = nn.LayerNorm(epsilon=self.epsilon, use_fast_variance=False, name="layer_norm1")(x)
        x = x + _CausalAttention(self.num_heads, name="self_attn")(h)
        h = nn.LayerNorm(epsilon=self.epsilon, use_fast_variance=False, name="layer_norm2")(x)
        return x + _Mlp(self.mlp_width, self.activation, name="mlp")(h)


class _Layers(nn.Module):
    """One layer after the other."""

    num_layers: int
    num_heads: int
    mlp_width: int
    activation: str
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [b, n, c], returned in the same shape."""
        for i in range(self.num_layers):
            x = _Layer(self.num_heads, self.mlp_width, self.activation, self.epsilon, name=f"layers_{i}")(x)
        return x


class TextEncoder(nn.Module):
    """Embeds texts: for each token, a vector of what it and the tokens before it say.

    Attributes:
      vocabulary: number of tokens that there are.
      positions: the most tokens of a text.
      width: of the embedding.
      num_layers: of the transformer.
      num_heads: of every attention layer.
      mlp_width: of every multi-layer perceptron.
      activation: "quick_gelu" (OpenAI's CLIP, Stable Diffusion 1) or "gelu" (OpenCLIP, Stable Diffusion 2).
      epsilon: of every normalisation.
    """

    vocabulary: int
    positions: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """tokens: int32 [b, n], n at most `positions`; returns float32 [b, n, width]."""
        x = _Embeddings(self.vocabulary, self.positions, self.width, name="embeddings")(tokens)
        options = (self.num_layers, self.num_heads, self.mlp_width, self.activation, self.epsilon)
        x = _Layers(*options, name="encoder")(x)
        return nn.LayerNorm(epsilon=self.epsilon, use_fast_variance=False, name="final_layer_norm")(x)
