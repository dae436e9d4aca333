"""Gives MONAI's attention the layers that diffusers' has: one each for queries, keys, values and the end."""

import numpy as np

from side_jax.targets.unet_shapes import State


def whole_attention(state: State) -> State:
    """Splits layers of all three, and adds what layers lack, so that they compute the same.

    Args:
      state: tensors by diffusers' names, but for the modules qkv.
    """
    whole = {}
    for name, value in state.items():
        if ".qkv." in name:  # one layer for the three, in thirds
            for one, part in zip(("to_q", "to_k", "to_v"), np.split(value, 3), strict=True):
                whole[name.replace(".qkv.", f".{one}.")] = part
        else:
            whole[name] = value
    # Without a last layer of its own, attention ends with the identity.
    for name in [name for name in whole if name.endswith(".to_q.weight")]:
        layer, width = name.removesuffix(".to_q.weight"), whole[name].shape[0]
        whole.setdefault(f"{layer}.to_out.0.weight", np.eye(width, dtype=np.float32))
        for one in ("to_q", "to_k", "to_v", "to_out.0"):
            whole.setdefault(f"{layer}.{one}.bias", np.zeros(width, np.float32))
    return whole
