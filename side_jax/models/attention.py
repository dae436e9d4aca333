"""Self-attention: jax.nn's, and on CPU one whose scores lie keys first: faster there, with gradient and without."""

import jax
import jax.numpy as jnp


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T / sqrt(d)) v for each head (Vaswani et al. 2017, equation 1); the softmax is in float32.

    Args:
      q: [b, n, heads, d].
      k: [b, m, heads, d].
      v: [b, m, heads, d].

    Returns:
      [b, n, heads, d], of q's dtype.
    """
    if jax.default_backend() == "cpu" and q.dtype == jnp.float32:
        return _keys_first(q, k, v)
    return jax.nn.dot_product_attention(q, k, v)


@jax.custom_vjp
def _keys_first(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The softmax goes down the columns of [keys, queries], so that XLA works on many queries at a time."""
    return _forward(q, k, v)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    scores = jnp.einsum("bkhd,bqhd->bhkq", k, q * q.shape[-1] ** -0.5)
    weights = jax.nn.softmax(scores, axis=2)
    out = jnp.einsum("bhkq,bkhd->bqhd", weights, v)
    return out, (q, k, v, weights, out)


def _backward(saved: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The sum over keys in the softmax's gradient is one over a head's features (Dao et al. 2022, appendix B.4)."""
    q, k, v, weights, out = saved
    of_weights = jnp.einsum("bkhd,bqhd->bhkq", v, gradient)
    inner = jnp.einsum("bqhd,bqhd->bhq", out, gradient)[:, :, None]
    of_scores = weights * (of_weights - inner) * q.shape[-1] ** -0.5
    of_q, of_k = (jnp.einsum(axes, of_scores, x) for axes, x in (("bhkq,bkhd->bqhd", k), ("bhkq,bqhd->bkhd", q)))
    return of_q, of_k, jnp.einsum("bhkq,bqhd->bkhd", weights, gradient)


_keys_first.defvjp(_forward, _backward)
