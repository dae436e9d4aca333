"""The table of label embeddings inside a conditional network: mixed to new embeddings, and asked for by them.

A label is a row t_k of a table of C rows, one vector, or as many as a prompt has tokens. A mixture has a weight for
every label, and the weights sum to 1. Of C numbers g, its genome, they are

    w_k = g_k / sqrt(C) + (1 - sum_j g_j / sqrt(C)) / C
    embedding = sum_k w_k t_k = mean + sum_k g_k (t_k - mean) / sqrt(C)

so that sqrt(C) times the k-th unit vector is label k itself, and embeddings of g ~ N(0, I), the law that the search's
operators keep, have the mean and the covariance (over C) of the table's rows, as labels drawn at random have. They lie
in the span of the labels about their mean, of at most C - 1 dimensions: the same number added to all of g changes
nothing.

No module changes: a batch of b mixtures is asked of the same network with b labels, whose table holds the mixtures.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from side_jax.models.prompted import Prompted
from side_jax.models.unet import UNet

# The networks whose labels are rows of a table: the table's place among their parameters.
TABLES: dict[type, tuple[str, ...]] = {UNet: ("class_embedding", "embedding"), Prompted: ("prompt_embedding",)}


def predict(network: Any, params: Any, x: jax.Array, t: jax.Array, genomes: jax.Array) -> jax.Array:
    """The network's prediction for images of mixed labels, float32 with the shape of x.

    Args:
      network: a conditional one of TABLES, or a wrapper whose `net` is one.
      params: of the network.
      x: float32 [b, h, w, c].
      t: int32 or float32 [b].
      genomes: genomes of the mixtures, float32 [b, C].
    """
    own, replaced = _replaced(network, params, genomes)
    return own.apply({"params": replaced}, x, t, labels=jnp.arange(len(x), dtype=jnp.int32))


def of_labels(labels: jax.Array, count: int) -> jax.Array:
    """The genomes of labels themselves, int32 [b] of so many: float32 [b, count]."""
    return jnp.float32(math.sqrt(count)) * jax.nn.one_hot(labels, count, dtype=jnp.float32)


def mixed(rows: jax.Array, genomes: jax.Array) -> jax.Array:
    """The embeddings of genomes [b, C], float32 [b, ...], by the table's rows [C, ...]."""
    labels = genomes.shape[1]
    scaled = genomes / jnp.float32(math.sqrt(labels))
    weights = scaled + (1.0 - scaled.sum(axis=1, keepdims=True)) / labels
    return jnp.tensordot(weights, rows, axes=1, precision="float32")


def _replaced(network: Any, params: Any, genomes: jax.Array) -> tuple[Any, Any]:
    """The network with a label for each genome, and its parameters; rows after those of labels, of none, stay."""
    if path := TABLES.get(type(network)):
        table = params
        for name in path:
            table = table[name]
        count = network.num_labels
        table = jnp.concatenate([mixed(table[:count], genomes), table[count:]])
        return network.clone(num_labels=len(genomes)), _with(params, path, table)
    own, replaced = _replaced(network.net, params["net"], genomes)
    return network.clone(net=own), _with(params, ("net",), replaced)


def _with(params: Any, path: tuple[str, ...], value: Any) -> Any:
    """The parameters with another value at a path."""
    if not path:
        return value
    return dict(params) | {path[0]: _with(params[path[0]], path[1:], value)}
