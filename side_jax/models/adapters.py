"""Low-rank adapters of a U-Net and a table of labels, as a transformation of its parameters; no module changes.

A kernel [..., in, out] is a matrix W [k, out], with k the product of all axes but the last. Adapted, it is (Hu et al.
2022, LoRA, whose matrices are the transposes)

    W + (alpha / r) A B,   A [k, r] drawn with variance 1 / k,   B [r, out] from zero.                          (1)

The labels are those of the same U-Net with `num_labels` set: a row of a table is added to the time embedding. Each row
starts as what the target adds for an image without a label, which is zero for an unconditional one; the trained table
is added to it. Hence the adapted network begins as the target, whatever the label.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from side_jax.models.unet import UNet

KERNELS = ("all", "convolution", "dense", "attention")
FROZEN = "frozen"  # among the parameters of a training: what gets no gradient and no average

_Path = tuple[str, ...]


def unet_of(network: Any) -> UNet | None:
    """The U-Net in a network, whose wrappers hold it as `net`; None if its innermost network is another one."""
    while hasattr(network, "net"):
        network = network.net
    return network if isinstance(network, UNet) else None


def labelled(network: Any, num_labels: int) -> Any:
    """The same network with so many labels, and one more for none.

    Args:
      network: one in which unet_of finds a U-Net.
      num_labels: at least 1.
    """
    if isinstance(network, UNet):
        return network.clone(num_labels=num_labels, null_label=True)
    return network.clone(net=labelled(network.net, num_labels))


def ranks(network: Any, params: Any, rank: int, kernels: str = "all") -> dict[_Path, int]:
    """The rank of each adapted kernel, by its path in the U-Net's parameters: at most the kernel's smaller side.

    Args:
      network: of the target.
      params: of the target, arrays or their shapes.
      rank: r of equation (1); 0: no kernel is adapted.
      kernels: one of KERNELS: "convolution" and "dense" go by the kernel's shape, "attention" by the layer's name.
    """
    flat = traverse_util.flatten_dict(_core(network, params))
    chosen = {path: _matrix(leaf) for path, leaf in flat.items() if path[-1] == "kernel" and _is(kernels, path, leaf)}
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
    unet, flat = unet_of(network), traverse_util.flatten_dict(_core(network, params))
    assert unet
    pairs: dict[_Path, jax.Array] = {}
    for i, (path, own) in enumerate(ranks(network, params, rank, kernels).items()):
        k, out = _matrix(flat[path])
        pairs[*path, "a"] = jax.random.normal(jax.random.fold_in(key, i), (k, own), jnp.float32) / jnp.sqrt(float(k))
        pairs[*path, "b"] = jnp.zeros((own, out), jnp.float32)
    width = unet.time_embedding_dim or 4 * unet.block_out_channels[0]
    return {"kernels": traverse_util.unflatten_dict(pairs), "labels": jnp.zeros((num_labels + 1, width), jnp.float32)}


def merge(network: Any, params: Any, adapters: dict[str, Any], alpha: float) -> Any:
    """The parameters of `labelled(network, C)`, by equation (1).

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
    flat["class_embedding", "embedding"] = _no_label(network, flat, adapters["labels"]) + adapters["labels"]
    merged: Any = traverse_util.unflatten_dict(flat)
    return _wrapped(network, params, merged)


def _no_label(network: Any, flat: dict[_Path, jax.Array], table: jax.Array) -> jax.Array:
    """What the target adds to the time embedding of an image without a label, [1, e]."""
    unet = unet_of(network)
    if unet and unet.num_labels and unet.null_label:
        return flat["class_embedding", "embedding"][-1:]
    return jnp.zeros_like(table[:1])


def _is(kernels: str, path: _Path, leaf: Any) -> bool:
    kinds = {
        "all": True,
        "convolution": leaf.ndim > 2,
        "dense": leaf.ndim == 2,
        "attention": any(name.startswith("attentions_") for name in path),
    }
    return kinds[kernels]


def _matrix(kernel: Any) -> tuple[int, int]:
    """(k, out) of a kernel [..., in, out]."""
    return kernel.size // kernel.shape[-1], kernel.shape[-1]


def _core(network: Any, params: Any) -> Any:
    """The U-Net's part of a network's parameters."""
    while hasattr(network, "net"):
        network, params = network.net, params["net"]
    return params


def _wrapped(network: Any, params: Any, core: Any) -> Any:
    """The network's parameters with another U-Net's part."""
    if not hasattr(network, "net"):
        return core
    return dict(params) | {"net": _wrapped(network.net, params["net"], core)}
