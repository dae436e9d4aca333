"""Reads CLIP's text encoder, transformers' CLIPTextModel, and embeds tokens with it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.errors import InputError
from side_jax.models.text_encoder import ACTIVATIONS, TextEncoder
from side_jax.progress import doing
from side_jax.targets import parameters
from side_jax.targets.checkpoint_files import (
    REPLACE,
    TRANSFORMERS,
    arrays,
    join_values,
    load_pickled,
    read_json,
    read_safetensors,
    weight_files,
)

_KIND, _CLASS = "clip_text_model", "CLIPTextModel"
# The module's numbers, as transformers calls them, and its defaults of CLIPTextConfig.
_NUMBERS = {
    "vocabulary": ("vocab_size", 49408),
    "positions": ("max_position_embeddings", 77),
    "width": ("hidden_size", 512),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 8),
    "mlp_width": ("intermediate_size", 2048),
}
_PREFIX = "text_model."  # of all names before transformers 5
_COMPUTED = "embeddings.position_ids"  # no weights: 0, 1, ...; in old files
_BATCH = 16  # texts that are embedded at once


def read_encoder(folder: Path) -> TextEncoder:
    """Reads the text encoder that config.json describes.

    Raises:
      InputError: if the file is missing, damaged, or describes another.
    """
    path = folder / "config.json"
    config = read_json(path)
    kind = config.get("model_type")
    classes = config.get("architectures") or [_CLASS]
    if kind != _KIND or classes != [_CLASS]:
        what = kind if kind != _KIND else ", ".join(map(str, classes))
        raise InputError(
            f"{path} describes a text encoder that is {json.dumps(what)}, but only {_CLASS} is read; give a model with "
            "that, such as one of Stable Diffusion 1 or 2."
        )
    activation, epsilon = config.get("hidden_act", ACTIVATIONS[0]), config.get("layer_norm_eps", 1e-5)
    if activation not in ACTIVATIONS:
        raise InputError(
            f"{path} has hidden_act = {json.dumps(activation)}, which is not supported; give a model with "
            f"{join_values(ACTIVATIONS)}."
        )
    if config.get("use_attention_mask"):  # by which pipelines leave padding out
        raise InputError(
            f"{path} has use_attention_mask = {json.dumps(config['use_attention_mask'])}, which is not supported; give "
            "a model without it, such as one of Stable Diffusion 1 or 2."
        )
    numbers = {field: (name, config.get(name, default)) for field, (name, default) in _NUMBERS.items()}
    for name, value in numbers.values():
        if type(value) is not int or value < 1:
            raise InputError(f"{path} has {name} = {json.dumps(value)}, which is no number of these; {REPLACE}.")
    if type(epsilon) not in (int, float) or not 0 < epsilon < 1:
        raise InputError(f"{path} has layer_norm_eps = {json.dumps(epsilon)}, which is no small number; {REPLACE}.")
    encoder = TextEncoder(
        activation=activation, epsilon=float(epsilon), **{field: value for field, (_, value) in numbers.items()}
    )
    if encoder.width % encoder.num_heads:
        raise InputError(
            f"{path} has hidden_size = {encoder.width}, which can't be cut into num_attention_heads = "
            f"{encoder.num_heads}; {REPLACE}."
        )
    return encoder


def encoder_files(folder: Path) -> tuple[Path, ...]:
    """The files that hold the weights of a text encoder."""
    return tuple(weight_files(folder, TRANSFORMERS))


def read_encoder_params(folder: Path, encoder: TextEncoder) -> Any:
    """The parameters of a text encoder.

    Raises:
      InputError: if tensors are missing, left over or of another shape.
    """
    state: dict[str, Any] = {}
    for path in encoder_files(folder):
        content = read_safetensors(path) if path.suffix == ".safetensors" else load_pickled(path)
        if not isinstance(content, Mapping):
            raise InputError(f"{path} is not a dict of tensors; {REPLACE}.")
        named = {str(name).removeprefix(_PREFIX): value for name, value in content.items()}
        named.pop(_COMPUTED, None)
        state |= arrays(named, str(path))
    tokens = jax.ShapeDtypeStruct((1, encoder.positions), jnp.int32)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), tokens)["params"]
    return parameters.from_state_dict(state, shapes, str(folder))


def embed(encoder: TextEncoder, params: Any, tokens: np.ndarray) -> np.ndarray:
    """Embeds texts: tokens int32 [n, m] to float32 [n, m, width]."""
    apply = jax.jit(lambda params, tokens: encoder.apply({"params": params}, tokens))
    count = len(tokens)
    tokens = np.concatenate([tokens, np.zeros((-count % min(_BATCH, count), tokens.shape[1]), np.int32)])
    with doing(f"embedding {count} prompts"):
        params = jax.device_put(params)
        parts = np.split(tokens, len(tokens) // min(_BATCH, count))
        return np.concatenate([np.asarray(apply(params, part)) for part in parts])[:count]
