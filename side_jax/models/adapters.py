"""Low-rank adapters of any network and a table of labels, as a transformation of its parameters; no module changes.

A kernel [..., in, out] is a matrix W [k, out], with k the product of all axes but the last. Adapted, it is (Hu et al.
2022, LoRA, whose matrices are the transposes)

    W + (alpha / r) A B,   A [k, r] drawn with variance 1 / k,   B [r, out] from zero.                          (1)

A label's row of the table is added to the time embedding (labelled.py); rows start from zero. Hence the adapted network
begins as the target, whatever the label.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from side_jax.models.labelled import TIME_LAYERS, innermost

KERNELS = ("all", "convolution", "dense", "attention")
FROZEN = "frozen"  # among the parameters of a training: what gets no gradient and no average, and is in no checkpoint
# The layers of attention by their names; the last two are of EDM's networks.
_ATTENTION = ("to_q", "to_k", "to_v", "to_out_0", "to_qkv", "to_out", "qkv", "proj")
_GATED = "net_0"  # of a transformer's feed-forward layer, which has a layer of the last name too
_OWN_LABELS = "map_label"  # the layer of EDM's labels, which an image without a label does not reach

_Path = tuple[str, ...]


def ranks(network: Any, params: Any, rank: int, kernels: str = "all") -> dict[_Path, int]:
    """The rank of each adapted kernel, at most the kernel's smaller side, by its path in the innermost network.

    Args:
      network: of the target.
      params: of the target, arrays or their shapes.
      rank: r of equation (1); 0: no kernel is adapted.
      kernels: one of KERNELS: "convolution" and "dense" go by the kernel's shape, "attention" by the layer's name.
    """
    flat = traverse_util.flatten_dict(_core(network, params))
    chosen = {path: _matrix(leaf) for path, leaf in flat.items() if _is(kernels, path, leaf)}
    return {path: min(rank, *chosen[path]) for path in sorted(chosen)} if rank else {}


def initial(
    network: Any, params: Any, num_labels: int, key: jax.Array, *, rank: int, kernels: str = "all"
) -> dict[str, Any]:
    """What is trained: {"kernels": the matrices A and B of each adapted kernel, "labels": float32 [C + 1, e]}.

    Args:
      network: of the target.
      params: of the target.
      num_labels: C; the last row of the table is for no label.
      key: of the drawn matrices A.
      rank: as in `ranks`.
      kernels: as there.
    """
    flat = traverse_util.flatten_dict(_core(network, params))
    pairs: dict[_Path, jax.Array] = {}
    for i, (path, own) in enumerate(ranks(network, params, rank, kernels).items()):
        k, out = _matrix(flat[path])
        pairs[*path, "a"] = jax.random.normal(jax.random.fold_in(key, i), (k, own), jnp.float32) / jnp.sqrt(float(k))
        pairs[*path, "b"] = jnp.zeros((own, out), jnp.float32)
    width = flat[*TIME_LAYERS[type(innermost(network)[0])], "bias"].size
    return {"kernels": traverse_util.unflatten_dict(pairs), "labels": jnp.zeros((num_labels + 1, width), jnp.float32)}


def merge(network: Any, params: Any, adapters: dict[str, Any], alpha: float) -> dict[str, Any]:
    """The parameters of Labelled(network), by equation (1).

    Args:
      network: of the target.
      params: of the target.
      adapters: as `initial` returns them.
      alpha: of equation (1), in which r is a kernel's own rank.
    """
    flat = dict(traverse_util.flatten_dict(_core(network, params)))
    pairs = traverse_util.flatten_dict(adapters["kernels"])
    for *path, _ in [name for name in pairs if name[-1] == "a"]:
        a, b, kernel = pairs[*path, "a"], pairs[*path, "b"], flat[tuple(path)]
        change = jnp.matmul(a, b, precision="float32") * (alpha / a.shape[1])
        flat[tuple(path)] = kernel + change.reshape(kernel.shape)
    merged: Any = traverse_util.unflatten_dict(flat)
    return {"net": _wrapped(network, params, merged), "label_embedding": adapters["labels"]}


def changing(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a training but for what stays as it is."""
    return {name: tree for name, tree in params.items() if name != FROZEN}


def _is(kernels: str, path: _Path, leaf: Any) -> bool:
    if path[-1] != "kernel" or _OWN_LABELS in path:
        return False
    kinds = {
        "all": True,
        "convolution": leaf.ndim > 2,
        "dense": leaf.ndim == 2,
        "attention": path[-2] in _ATTENTION and _GATED not in path,
    }
    return kinds[kernels]


def _matrix(kernel: Any) -> tuple[int, int]:
    """(k, out) of a kernel [..., in, out]."""
    return kernel.size // kernel.shape[-1], kernel.shape[-1]


def _core(network: Any, params: Any) -> Any:
    """The innermost network's part of a network's parameters."""
    for name in innermost(network)[1]:
        params = params[name]
    return params


def _wrapped(network: Any, params: Any, core: Any) -> Any:
    """The network's parameters with another innermost part."""
    if not hasattr(network, "net"):
        return core
    return dict(params) | {"net": _wrapped(network.net, params["net"], core)}
