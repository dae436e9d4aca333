"""Self-attention: jax.nn's, or on CPU one with the keys' axis first, which is faster with and without gradients."""

import jax
import jax.numpy as jnp


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Computes softmax(q k^T / sqrt(d)) v for each head (Vaswani et al. 2017, equation 1), with a float32 softmax.

    Args:
      q: [b, n, heads, d].
      k: [b, m, heads, d].
      v: [b, m, heads, d].

    Returns:
      [b, n, heads, d], with the dtype of q.
    """
    if jax.default_backend() == "cpu" and q.dtype == jnp.float32:
        return _keys_first(q, k, v)
    return jax.nn.dot_product_attention(q, k, v)


@jax.custom_vjp
def _keys_first(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Takes the softmax down the columns of [keys, queries], which XLA vectorises over queries."""
    return _forward(q, k, v)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    scores = jnp.einsum("bkhd,bqhd->bhkq", k, q * q.shape[-1] ** -0.5)
    weights = jax.nn.softmax(scores, axis=2)
    out = jnp.einsum("bhkq,bkhd->bqhd", weights, v)
    return out, (q, k, v, weights, out)


def _backward(saved: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Replaces the sum over keys in the softmax's gradient by one over a head's features (Dao et al. 2022, B.4)."""
    q, k, v, weights, out = saved
    d_weights = jnp.einsum("bkhd,bqhd->bhkq", v, gradient)
    inner = jnp.einsum("bqhd,bqhd->bhq", out, gradient)[:, :, None]
    d_scores = weights * (d_weights - inner) * q.shape[-1] ** -0.5
    d_q, d_k = (jnp.einsum(axes, d_scores, x) for axes, x in (("bhkq,bkhd->bqhd", k), ("bhkq,bqhd->bkhd", q)))
    return d_q, d_k, jnp.einsum("bhkq,bqhd->bkhd", weights, gradient)


_keys_first.defvjp(_forward, _backward)
