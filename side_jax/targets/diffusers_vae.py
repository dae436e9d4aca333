"""Reads the autoencoders of diffusers' latent models: AutoencoderKL and VQModel, config.json and weights."""

import json
import math
from pathlib import Path
from typing import Any

from side_jax.errors import InputError
from side_jax.models.autoencoders import Autoencoder
from side_jax.targets import parameters
from side_jax.targets.checkpoint_files import (
    REPLACE,
    check_levels,
    check_values,
    read_folder_weights,
    read_json,
    weight_files,
    whole_number,
)
from side_jax.targets.latents import autoencoder_shapes, latent_target
from side_jax.targets.target_model import Hints, Target

# diffusers' defaults of the options that both classes have, and of their own.
_OPTIONS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "mid_block_add_attention": True,
}
_OWN: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        "latent_channels": 4,
        "shift_factor": None,
        "latents_mean": None,
        "latents_std": None,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    },
    "VQModel": {"latent_channels": 3, "num_vq_embeddings": 256, "vq_embed_dim": None, "norm_type": "group"},
}
# Of a config that does not say it: as pipelines had it when such configs were written, and VQModels' did not scale.
_SCALING = {"AutoencoderKL": 0.18215, "VQModel": 1.0}
# Options that must have one of these values, since the module supports no other.
_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "norm_type": ("group",),
    "latents_mean": (None,),
    "latents_std": (None,),
}
_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}


def with_autoencoder(target: Target, folder: Path, hints: Hints) -> Target:
    """Puts the autoencoder of a folder around a model of latents.

    Raises:
      InputError: if a file is missing or damaged, or describes an unsupported autoencoder or another model's.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            f"{path} is missing; it should describe the autoencoder of the pipeline {folder.parent}, so put it there."
        )
    kind, options = _options(path)
    module = _module(path, kind, options)
    scale, notes = _scale(path, kind, options, hints)
    return latent_target(
        target,
        module,
        folder,
        weights=tuple(weight_files(folder)),
        read_params=lambda: _read_params(folder, module),
        notes=notes,
        scaling_factor=scale,
        unit_pixels=hints.target.pixels == "unit",
        shift_factor=_number(path, "shift_factor", options.get("shift_factor") or 0.0),
    )


def _options(path: Path) -> tuple[str, dict[str, Any]]:
    """(the class, its options)."""
    config = read_json(path)
    kind = config.get("_class_name")
    if kind not in [*_OWN]:
        raise InputError(
            f"{path} has _class_name = {json.dumps(kind)}, but only the autoencoders {' and '.join(_OWN)} are read; "
            "give a model with one of these."
        )
    options = _OPTIONS | _OWN[kind]
    options |= {name: config[name] for name in options if name in config}
    options["scaling_factor"] = config.get("scaling_factor")
    check_values(path, options, _FIXED)
    check_levels(path, options, _BLOCKS)
    if options["in_channels"] != options["out_channels"]:
        raise InputError(
            f"{path} has in_channels = {json.dumps(options['in_channels'])} and out_channels = "
            f"{json.dumps(options['out_channels'])}; give a model whose autoencoder decodes what it encodes."
        )
    return kind, options


def _module(path: Path, kind: str, options: dict[str, Any]) -> Autoencoder:
    """The autoencoder of options.

    Raises:
      InputError: if they describe none.
    """
    vq = kind == "VQModel"
    middle = "attention" if options["mid_block_add_attention"] else "plain"
    names = ("in_channels", "layers_per_block", "norm_num_groups", "latent_channels")
    numbers = {name: options[name] for name in names}
    numbers |= {f"{name} of a level": value for name, value in enumerate(options["block_out_channels"])}
    if vq:
        numbers["num_vq_embeddings"] = options["num_vq_embeddings"]
        numbers["vq_embed_dim"] = embedded = options["vq_embed_dim"] or options["latent_channels"]
    for name, value in numbers.items():
        whole_number(path, name, value)
    levels, layers, inner = len(options["block_out_channels"]), options["layers_per_block"], options["latent_channels"]
    if vq:
        around = {"latent_channels": embedded, "encoded_channels": inner, "decoded_channels": inner}
        around["codes"] = options["num_vq_embeddings"]
    else:  # the encoder's output has the means and the log-variances, of which only the means are computed
        around = {"latent_channels": inner, "encoded_channels": 2 * inner * bool(options["use_quant_conv"])}
        around["decoded_channels"] = inner * bool(options["use_post_quant_conv"])
    module = Autoencoder(
        channels=options["in_channels"],
        block_out_channels=tuple(options["block_out_channels"]),
        encoder_layers=(layers,) * levels,
        decoder_layers=(layers + 1,) * levels,
        encoder_attention=tuple(block.startswith("Attn") for block in options["down_block_types"]),
        decoder_attention=tuple(block.startswith("Attn") for block in options["up_block_types"]),
        encoder_middle=middle,
        decoder_middle=middle,
        norm_num_groups=options["norm_num_groups"],
        **around,
    )
    autoencoder_shapes(module, path)  # complains
    return module


def _scale(path: Path, kind: str, options: dict[str, Any], hints: Hints) -> tuple[float, tuple[str, ...]]:
    """(what latents are multiplied with, a note if the config does not say that)."""
    given, said = hints.target.latent_scale, options["scaling_factor"]
    if given:
        return given, (f"its latents are multiplied by {given:g}, as config.target.latent_scale says",)
    if said is not None:
        return _number(path, "scaling_factor", said, positive=True), ()
    usual = _SCALING[kind]
    note = f"{path.parent.name}/config.json has no scaling_factor; latents are multiplied by {usual:g}, as was usual"
    return usual, (f"{note}, and config.target.latent_scale sets it",)


def _number(path: Path, name: str, value: Any, *, positive: bool = False) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or (positive and value <= 0):
        raise InputError(f"{path} has {name} = {json.dumps(value)}, which is no scale of latents; {REPLACE}.")
    return float(value)


def _read_params(folder: Path, module: Autoencoder) -> Any:
    """Reads the parameters of an autoencoder.

    Raises:
      InputError: if tensors are missing, left over or of another shape.
    """
    state = read_folder_weights(folder)
    if not module.codes:
        last, means = "quant_conv" if module.encoded_channels else "encoder.conv_out", module.latent_channels
        names = [name for name in (f"{last}.weight", f"{last}.bias") if name in state]
        state |= {name: state[name][:means] for name in names if len(state[name]) == 2 * means}
    return parameters.from_state_dict(state, autoencoder_shapes(module, folder / "config.json"), str(folder))
