"""Reads checkpoints of torchcfm (flow matching): *.pt with net_model and ema_model, of which ema_model is taken.

Its network is guided-diffusion's U-Net, which predicts a velocity at times in [0, 1], where 1 is data.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from side_jax.models.continuous import Flow
from side_jax.settings import Diffusion
from side_jax.targets import adm
from side_jax.targets.target_model import Hints, Origin, Target
from side_jax.targets.unet_shapes import read_unet

FORMAT = "torchcfm"
# Noise over signal at the ends of the grid: times from 0.002 to 0.998, which flow matching itself continues to 0 and 1.
_ENDS = 0.002, 500.0


def matches(content: Any) -> bool:
    """Whether a file's content is of this format."""
    return isinstance(content, Mapping) and adm.matches(_inner(content.get("ema_model")))


def _inner(state: Any) -> Any:
    """The state dict, which a wrapper of the network may have given a prefix."""
    while isinstance(state, Mapping) and state and all(name.startswith(("module.", "model.")) for name in state):
        state = {name.partition(".")[2]: value for name, value in state.items()}
    return state


def read(path: Path, content: Any, hints: Hints) -> Target:
    """Reads a checkpoint.

    Raises:
      InputError: if tensors are missing or left over, or a setting is that the file does not replace.
    """
    state, unet = adm.read_network(_inner(content["ema_model"]), str(path), hints)
    network = Flow(net=unet, sigma_min=_ENDS[0], sigma_max=_ENDS[1])
    return Target(
        network=network,
        diffusion=Diffusion(trained_betas=network.betas, prediction_type="x0"),
        channels=unet.out_channels,
        num_labels=unet.num_labels,
        null_label=unet.null_label,
        origin=Origin(format=FORMAT, weights=(path,), read_params=lambda: {"net": read_unet(state, unet, str(path))}),
    )
