"""Says which pipelines of diffusers are text-conditional, and which of them are read."""

from pathlib import Path

from side_jax.errors import InputError
from side_jax.models.prompted import Prompted
from side_jax.targets.checkpoint_files import AUTOENCODERS, other_parts
from side_jax.targets.target_model import Target

FOLDERS = ("text_encoder", "tokenizer")
CHECKER = "safety_checker"
_READ = {*FOLDERS, AUTOENCODERS[0], CHECKER, "feature_extractor"}  # the last serves the checker


def is_text(folder: Path) -> bool:
    """Whether the pipeline around a U-Net has a text encoder."""
    return "text_encoder" in other_parts(folder)[1]


def has_prompts(target: Target) -> bool:
    """Whether a model's labels are prompts."""
    return isinstance(getattr(target.network, "net", None), Prompted)


def check(folder: Path, prompts: str) -> tuple[Path, tuple[str, ...]]:
    """Checks the parts of a text-conditional pipeline.

    Args:
      folder: of its U-Net.
      prompts: config.target.prompts.

    Returns:
      (the pipeline, notes on it, see Origin).

    Raises:
      InputError: if it has other parts than those of Stable Diffusion 1 and 2, or no prompts are given.
    """
    pipeline, others = other_parts(folder)
    if "text_encoder_2" in others:
        raise InputError(
            f"{pipeline} is a pipeline with several text encoders, such as Stable Diffusion XL; give one with a single "
            "text_encoder, such as of Stable Diffusion 1 or 2."
        )
    more = sorted({*others} - _READ)
    if more or AUTOENCODERS[0] not in others:
        fault = f"with {', '.join(more)} beside a text_encoder" if more else "with a text_encoder and without a vae"
        raise InputError(
            f"{pipeline} is a pipeline {fault}, which is not supported; give one of a unet, a scheduler, a vae, a "
            "text_encoder and a tokenizer."
        )
    if not prompts:
        raise InputError(
            f"{pipeline} is a pipeline with a text_encoder, whose images need prompts; set config.target.prompts to a "
            "text file that lists them, one a line, such as the captions of the training images."
        )
    ignored = f"its {CHECKER} is ignored: no image is blanked"
    return pipeline, (ignored,) if CHECKER in others else ()
