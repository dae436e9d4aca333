"""Writes networks that are no plain U-Net as text in the settings, and builds them from it.

A run then knows its network without the checkpoint that it was read from, as it knows a U-Net by the section `model`.
"""

import dataclasses
import inspect
import json
from typing import Any

import flax.linen as nn

from side_jax.models.autoencoders import Autoencoder
from side_jax.models.callback import Callback
from side_jax.models.condition_unet import ConditionUNet
from side_jax.models.continuous import Edm, EdmVe, EdmVp, Flow, ScoreVe
from side_jax.models.dhariwal_unet import DhariwalUNet
from side_jax.models.latent import Latent
from side_jax.models.memory_unet import MemoryUNet
from side_jax.models.prompted import Prompted
from side_jax.models.score_unet import ScoreUNet
from side_jax.models.song_unet import SongUNet
from side_jax.models.unet import UNet
from side_jax.models.unit_pixels import UnitPixels

NETWORKS: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        *(UNet, MemoryUNet, SongUNet, DhariwalUNet, ScoreUNet, ConditionUNet, Prompted),
        *(Edm, EdmVp, EdmVe, Flow, ScoreVe, UnitPixels, Latent, Autoencoder, Callback),
    )
}
# How a network is computed, which the section `model` decides, and what every Flax module has.
_LEFT_OUT = ("dtype", "remat", "parent", "name")


def describe(network: nn.Module) -> str:
    """The text of a network: JSON with its class and options."""
    return json.dumps(_options(network))


def _options(value: Any) -> Any:
    if not isinstance(value, nn.Module):
        return value
    fields = (field.name for field in dataclasses.fields(value) if field.name not in _LEFT_OUT)
    return {"class": type(value).__name__} | {name: _options(getattr(value, name)) for name in fields}


def build(text: str, **computed: Any) -> nn.Module:
    """The network of a text.

    Args:
      text: as `describe` returns it.
      **computed: dtype and remat, for the networks that have them.
    """
    return _build(json.loads(text), computed)


def _build(value: Any, computed: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return tuple(_build(item, computed) for item in value)
    if not isinstance(value, dict):
        return value
    cls = NETWORKS[value["class"]]
    known = inspect.signature(cls).parameters
    options = {name: _build(item, computed) for name, item in value.items() if name != "class"}
    return cls(**options, **{name: item for name, item in computed.items() if name in known})
