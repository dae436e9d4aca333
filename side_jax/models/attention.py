"""Self-attention: jax.nn's, or on CPU one with the keys' axis first, which is faster with and without gradients.

Over many pixels, as in autoencoders of large images, queries are taken in parts: the weights of all would need more
memory than everything else.
"""

import jax
import jax.numpy as jnp

_MOST_WEIGHTS = 2**22  # of one head of one image that are held at once


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Computes softmax(q k^T / sqrt(d)) v for each head (Vaswani et al. 2017, equation 1), with a float32 softmax.

    Args:
      q: [b, n, heads, d].
      k: [b, m, heads, d].
      v: [b, m, heads, d].

    Returns:
      [b, n, heads, d], with the dtype of q.
    """
    b, n, heads, d = q.shape
    parts = _parts(n, k.shape[1])
    if parts == 1:
        return _whole(q, k, v)
    # Recomputed in the backward pass, which would otherwise keep the weights of all parts.
    part = jax.checkpoint(lambda queries: _whole(queries, k, v))
    return jax.lax.map(part, q.reshape(b, parts, n // parts, heads, d).swapaxes(0, 1)).swapaxes(0, 1).reshape(q.shape)


def _parts(n: int, m: int) -> int:
    """Into how many equal parts n queries of m keys are cut: the fewest with at most _MOST_WEIGHTS weights each."""
    least = -(-n * m // _MOST_WEIGHTS)
    return next((parts for parts in range(least, n) if n % parts == 0), n)


def _whole(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """All queries at once."""
    if jax.default_backend() == "cpu" and q.dtype == jnp.float32:
        return _keys_first(q, k, v)
    return jax.nn.dot_product_attention(q, k, v)


@jax.custom_jvp
def _keys_first(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Takes the softmax down the columns of [keys, queries], which XLA vectorises over queries."""
    return _forward(q, k, v)[1]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the weights [b, heads, m, n], the output)."""
    weights = jax.nn.softmax(jnp.einsum("bkhd,bqhd->bhkq", k, q * q.shape[-1] ** -0.5), axis=2)
    return weights, jnp.einsum("bhkq,bkhd->bqhd", weights, v)


@_keys_first.defjvp
def _jvp(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """Forward-mode derivatives; the likelihood's ODE needs them, training and guidance their transpose."""
    weights, out = _forward(*primals)
    return out, jax.custom_derivatives.linear_call(_push, _pull, (*primals, weights, out), tangents)


def _push(saved: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> jax.Array:
    """The derivative of the output along (d_q, d_k, d_v)."""
    q, k, v, weights, out = saved
    d_q, d_k, d_v = tangents
    d_scores = jnp.einsum("bkhd,bqhd->bhkq", d_k, q) + jnp.einsum("bkhd,bqhd->bhkq", k, d_q)
    d_weights = weights * d_scores * q.shape[-1] ** -0.5
    inner = d_weights.sum(axis=2).swapaxes(1, 2)[..., None]  # [b, q, h, 1]
    return jnp.einsum("bhkq,bkhd->bqhd", d_weights, v) - inner * out + jnp.einsum("bhkq,bkhd->bqhd", weights, d_v)


def _pull(saved: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The transpose; a sum over a head's features (Dao et al. 2022, B.4) replaces the softmax's sum over keys."""
    q, k, v, weights, out = saved
    d_weights = jnp.einsum("bkhd,bqhd->bhkq", v, gradient)
    inner = jnp.einsum("bqhd,bqhd->bhq", out, gradient)[:, :, None]
    d_scores = weights * (d_weights - inner) * q.shape[-1] ** -0.5
    d_q, d_k = (jnp.einsum(axes, d_scores, x) for axes, x in (("bhkq,bkhd->bqhd", k), ("bhkq,bqhd->bkhd", q)))
    return d_q, d_k, jnp.einsum("bhkq,bqhd->bkhd", weights, gradient)
