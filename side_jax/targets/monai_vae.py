"""Reads 2-D AutoencoderKLs of MONAI, and of GenerativeModels before it, beside their diffusion model.

The network is diffusers' by other names: MONAI numbers all blocks of a half in one list. A file does not say the scale
of the latents, the groups of normalisations or the range of pixels; settings of the section target do.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from side_jax.errors import InputError
from side_jax.models.autoencoders import Autoencoder
from side_jax.targets import parameters
from side_jax.targets.checkpoint_files import arrays, load_state
from side_jax.targets.latents import autoencoder_shapes, latent_target
from side_jax.targets.monai_attention import whole_attention
from side_jax.targets.target_model import Hints, Target
from side_jax.targets.unet_shapes import State, has, numbers, rename

# Of MONAI's tutorials and of its model zoo's bundles.
AUTOENCODER_FILES = [
    f"{name}{end}" for name in ("autoencoder", "model_autoencoder") for end in (".safetensors", ".pt", ".pth")
]
_BLOCK = {"norm1": "norm1", "conv1.conv": "conv1", "norm2": "norm2", "conv2.conv": "conv2"}
_BLOCK |= {"nin_shortcut.conv": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm"} | {name: name for name in ("to_q", "to_k", "to_v", "qkv")}  # of GenerativeModels
_ATTENTION |= {f"attn.{name}": name for name in ("to_q", "to_k", "to_v", "qkv")}
_ATTENTION |= {"proj_attn": "to_out.0", "attn.out_proj": "to_out.0"}
_FIX = "give the file of a 2-D AutoencoderKL, as MONAI saves it"


class _Half(NamedTuple):
    """The encoder or the decoder: new names of its modules, and Autoencoder's attributes of it."""

    modules: dict[str, str]
    layers: tuple[int, ...]
    attention: tuple[bool, ...]
    middle: str


def beside(path: Path) -> Path | None:
    """The file of the autoencoder beside a diffusion model's; None: there is none."""
    return next((path.with_name(name) for name in AUTOENCODER_FILES if path.with_name(name).is_file()), None)


def with_autoencoder(target: Target, path: Path, hints: Hints) -> Target:
    """Puts the autoencoder of a file around a model of latents.

    Raises:
      InputError: if it is of volumes or no AutoencoderKL, or a setting is missing that the file does not replace.
    """
    (state, module), given = _read(path, hints), hints.target
    if not given.latent_scale:
        raise InputError(
            f"{path} does not say what its latents are multiplied with for the diffusion model; set "
            "config.target.latent_scale to the scale_factor of the LatentDiffusionInferer that trained it (1 over the "
            "standard deviation of the latents, in MONAI's tutorials and bundles)."
        )
    groups = "its autoencoder is taken to have 32 groups, MONAI's default; config.target.latent_groups sets it"
    pixels = "its autoencoder is taken to have pixels in [0, 1], as in MONAI's bundles; config.target.pixels sets it"
    return latent_target(
        target,
        module,
        path,
        weights=(path,),
        read_params=lambda: parameters.from_state_dict(
            state, autoencoder_shapes(module, path), str(path), model="the AutoencoderKL of their shapes", fix=_FIX
        ),
        notes=(*(() if given.latent_groups or given.norm_groups else (groups,)), *(() if given.pixels else (pixels,))),
        scaling_factor=given.latent_scale,
        unit_pixels=given.pixels != "signed",
    )


def _read(path: Path, hints: Hints) -> tuple[State, Autoencoder]:
    """(the weights by diffusers' names, the autoencoder)."""
    content = load_state(path)
    if not (
        isinstance(content, Mapping)
        and {"encoder.blocks.0.conv.weight", "quant_conv_mu.conv.weight", "decoder.blocks.0.conv.weight"} <= {*content}
        and all(hasattr(value, "dtype") for value in content.values())
    ):
        raise InputError(f"{path} holds no AutoencoderKL of MONAI; {_FIX}.")
    state = arrays({name: value for name, value in content.items() if "quant_conv_log_sigma" not in name}, str(path))
    if state["encoder.blocks.0.conv.weight"].ndim != 4:
        raise InputError(f"{path} is an autoencoder of volumes; only models of 2-D images are read; {_FIX}.")
    if any(".deconv." in name for name in state):
        raise InputError(f"{path} doubles sizes by transposed convolutions, which are not read; {_FIX}.")
    down, up = (_half(state, half, str(path)) for half in ("encoder", "decoder"))
    around = {"quant_conv_mu.conv": "quant_conv", "post_quant_conv.conv": "post_quant_conv"}
    state = whole_attention(rename(state, down.modules | up.modules | around))
    try:
        firsts = [f"encoder.down_blocks.{i}.resnets.0.conv1.weight" for i in range(len(down.layers))]
        channels = tuple(state[name].shape[0] for name in firsts)
        latents, encoded = state["quant_conv.weight"].shape[:2]
        decoded = state["post_quant_conv.weight"].shape[0]
    except KeyError as error:
        raise InputError(
            f"the weights in {path} are not those of an AutoencoderKL: they lack {error}; {_FIX}."
        ) from None
    return state, Autoencoder(
        channels=state["encoder.conv_in.weight"].shape[1],
        latent_channels=latents,
        block_out_channels=channels,
        encoder_layers=down.layers,
        decoder_layers=up.layers,
        encoder_attention=down.attention,
        decoder_attention=up.attention,
        encoder_middle=down.middle,
        decoder_middle=up.middle,
        encoded_channels=encoded,
        decoded_channels=decoded,
        final_silu=False,
        norm_num_groups=_groups(channels, str(path), hints),
    )


def _half(state: State, half: str, where: str) -> _Half:
    """Takes the list of one half's blocks apart."""
    found = [f"{half}.blocks.{i}" for i in numbers(state, f"{half}.blocks")]
    first, *blocks, norm, last = found if len(found) > 3 else [""] * 3
    modules = {f"{first}.conv": f"{half}.conv_in", norm: f"{half}.conv_norm_out", f"{last}.conv": f"{half}.conv_out"}
    down = half == "encoder"
    name, resizer = ("down_blocks", "downsamplers") if down else ("up_blocks", "upsamplers")
    levels: list[list[str]] = [[]]
    for block in blocks:
        convs = [f"{block}.{conv}" for conv in ("conv.conv", "postconv.conv") if has(state, f"{block}.{conv}")]
        if convs:  # what changes the size ends a level
            modules[convs[0]] = f"{half}.{name}.{len(levels) - 1}.{resizer}.0.conv"
            levels.append([])
        else:
            levels[-1].append(block)
    residual = {block for block in blocks if has(state, f"{block}.norm1")}
    # A level has residual blocks alone, or one attention layer after each. The lowest may have a residual block,
    # attention and a residual block more, and then has more residual blocks than attention layers.
    lowest = levels[-1 if down else 0]
    count = sum(block in residual for block in lowest)
    middle = 0 < len(lowest) - count < count
    if middle:
        three = slice(-3, None) if down else slice(3)
        for block, new in zip(lowest[three], ("resnets.0", "attentions.0", "resnets.1"), strict=True):
            modules |= _module_names(block, f"{half}.mid_block.{new}", block in residual)
        del lowest[three]
    attention = tuple(not residual.issuperset(level) for level in levels)
    for i, (level, attend) in enumerate(zip(levels, attention, strict=True)):
        if not level or any((block in residual) != (not attend or j % 2 == 0) for j, block in enumerate(level)):
            raise InputError(
                f"the weights in {where} are of an autoencoder whose {half} has, in level {i}, neither residual blocks "
                f"alone nor attention after each; {_FIX}."
            )
        for j, block in enumerate(level):
            part, number = ("resnets" if block in residual else "attentions"), j // (1 + attend)
            modules |= _module_names(block, f"{half}.{name}.{i}.{part}.{number}", block in residual)
    layers = tuple(sum(block in residual for block in level) for level in levels)
    return _Half(modules, layers, attention, "attention" if middle else "")


def _module_names(old: str, new: str, residual: bool) -> dict[str, str]:
    """The names of a residual block's modules, or of an attention layer's."""
    return {f"{old}.{name}": f"{new}.{renamed}" for name, renamed in (_BLOCK if residual else _ATTENTION).items()}


def _groups(channels: tuple[int, ...], where: str, hints: Hints) -> int:
    """The groups of every normalisation."""
    groups = hints.target.latent_groups or hints.target.norm_groups or 32
    if any(count % groups for count in channels):
        raise InputError(
            f"{where} does not say how many groups its normalisations have, and {groups} does not divide its channels, "
            f"{', '.join(map(str, channels))}; set config.target.latent_groups to what it was trained with "
            "(norm_num_groups)."
        )
    return groups
