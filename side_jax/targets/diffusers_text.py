"""Reads text-conditional pipelines of diffusers, such as Stable Diffusion 1 and 2, as models of classes.

A text file lists prompts; a prompt's number is its label, and the empty prompt is that of images without a label.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from side_jax.errors import InputError
from side_jax.models.condition_unet import ConditionUNet
from side_jax.models.prompted import Prompted
from side_jax.models.text_encoder import TextEncoder
from side_jax.targets import clip_text, diffusers_vae, parameters, text_parts
from side_jax.targets.checkpoint_files import REPLACE, read_folder_weights, weight_files
from side_jax.targets.clip_tokens import Tokenizer, read_prompts
from side_jax.targets.condition_unets import read_condition_unet
from side_jax.targets.schedules import read_noise
from side_jax.targets.target_model import Hints, Origin, Target
from side_jax.targets.unets import image_size, smallest_size

FORMAT = "diffusers"
_SHOWN = 5  # lines that a note lists


def read(folder: Path, hints: Hints) -> Target:
    """Reads the pipeline around a U-Net.

    Args:
      folder: of the U-Net.
      hints: with the prompts.

    Raises:
      InputError: if a file is missing or damaged, or the pipeline or the prompts can't be used.
    """
    pipeline, notes = text_parts.check(folder, hints.target.prompts)
    if hints.target.null_label >= 0:
        raise InputError(
            f"config.target.null_label is {hints.target.null_label}, but without a label {pipeline} has the empty "
            "prompt; set it to -1."
        )
    encoder_folder, tokenizer_folder = (pipeline / name for name in text_parts.FOLDERS)
    module, width = read_condition_unet(folder)
    noise, size = read_noise(folder, latent=True), image_size(folder, module)
    encoder, tokenizer = clip_text.read_encoder(encoder_folder), Tokenizer(tokenizer_folder)
    if encoder.width != width:
        raise InputError(
            f"the text encoder in {encoder_folder} embeds tokens in {encoder.width} numbers, but the U-Net in {folder} "
            f"takes {width}; take both from the same checkpoint."
        )
    prompts, length = read_prompts(Path(hints.target.prompts)), tokenizer.length(encoder.positions)
    if length < 3:
        raise InputError(f"{tokenizer_folder} cuts prompts to {length} tokens, which leaves no word; {REPLACE}.")
    tokens, cut = tokenizer.encode([*prompts, ""], length)
    if tokens.max() >= encoder.vocabulary:
        raise InputError(
            f"the tokenizer in {tokenizer_folder} has the token {tokens.max()}, but the text encoder in "
            f"{encoder_folder} knows {encoder.vocabulary}; take both from the same checkpoint."
        )
    weights = (*weight_files(folder), *clip_text.encoder_files(encoder_folder), *tokenizer.files)
    target = Target(
        network=Prompted(net=module, num_labels=len(prompts), tokens=length, width=width),
        diffusion=noise,
        channels=module.out_channels,
        num_labels=len(prompts),
        size=size,
        origin=Origin(
            format=FORMAT,
            weights=weights,
            read_params=functools.partial(_read_params, folder, module, width, encoder_folder, encoder, tokens),
            notes=(*notes, *_cut_note(cut, length)),
        ),
    )
    return diffusers_vae.with_autoencoder(target, pipeline / "vae", hints)


def _cut_note(cut: list[int], length: int) -> tuple[str, ...]:
    """The note on prompts, by their numbers, that were cut."""
    if not cut:
        return ()
    lines = ", ".join(str(number + 1) for number in cut[:_SHOWN]) + (", ..." if len(cut) > _SHOWN else "")
    what = f"{len(cut)} prompt{'s are' if len(cut) > 1 else ' is'} longer than the model's {length} tokens and cut"
    return (f"{what} there (line{'s' * (len(cut) > 1)} {lines})",)


def _read_params(
    folder: Path, module: ConditionUNet, width: int, encoder_folder: Path, encoder: TextEncoder, tokens: np.ndarray
) -> Any:
    """The parameters of a Prompted network; the text encoder is used here and left behind."""
    where, context = str(folder / "config.json"), jax.ShapeDtypeStruct((1, 1, width), jnp.float32)
    shapes = parameters.described_shapes(where, module, module.out_channels, smallest_size(module), context)
    net = parameters.from_state_dict(read_folder_weights(folder), shapes, str(folder))
    table = clip_text.embed(encoder, clip_text.read_encoder_params(encoder_folder, encoder), tokens)
    return {"net": net, "prompt_embedding": table}
