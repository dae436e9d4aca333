"""A text-conditional pipeline as diffusers and transformers write it, tiny and of random numbers; needs no PyTorch."""

import json

import jax
import numpy as np
from safetensors.numpy import save_file

from side_jax.models.autoencoders import Autoencoder
from side_jax.models.condition_unet import ConditionUNet
from side_jax.models.text_encoder import TextEncoder
from side_jax.targets import parameters
from side_jax.targets.latents import autoencoder_shapes

POSITIONS, WIDTH = 8, 4
# Bytes as CLIP's tokenizer spells them, here those of ASCII that print; then two merges and the markers.
LETTERS = [chr(code) for code in range(33, 127)]
WORDS = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
VOCABULARY = {word: number for number, word in enumerate(WORDS)}
MERGES = "#version: 0.2\nc a\nca t</w>\n"

NET = ConditionUNet(
    out_channels=2,
    block_out_channels=(4,),
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    num_heads=(2,),
    transformer_layers_per_block=(1,),
    layers_per_block=1,
    norm_num_groups=2,
)
UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 4,
    "in_channels": 2,
    "out_channels": 2,
    "block_out_channels": [4],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
    "attention_head_dim": 2,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "cross_attention_dim": WIDTH,
    "use_linear_projection": True,
}
ENCODER = TextEncoder(
    vocabulary=len(WORDS), positions=POSITIONS, width=WIDTH, num_layers=1, num_heads=2, mlp_width=6, activation="gelu"
)
TEXT = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": len(WORDS),
    "hidden_size": WIDTH,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
    "hidden_act": "gelu",
}
_HALVES = {"encoder_layers": (1, 1), "decoder_layers": (2, 2), "norm_num_groups": 2}
_HALVES |= {"encoder_attention": (False, False), "decoder_attention": (False, False)}
AUTOENCODER = Autoencoder(
    channels=1, latent_channels=2, encoded_channels=4, decoded_channels=2, block_out_channels=(4, 4), **_HALVES
)
VAE = {
    "_class_name": "AutoencoderKL",
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 2,
    "block_out_channels": [4, 4],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "scaling_factor": 0.5,
}
NOISE = {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "num_train_timesteps": 50}
TOKENIZER = {"tokenizer_class": "CLIPTokenizer", "model_max_length": POSITIONS, "pad_token": "<|endoftext|>"}
CONFIGS = {
    "unet/config.json": UNET,
    "text_encoder/config.json": TEXT,
    "vae/config.json": VAE,
    "scheduler/scheduler_config.json": NOISE | {"beta_start": 0.01, "beta_end": 0.2},
    "tokenizer/tokenizer_config.json": TOKENIZER,
    "tokenizer/special_tokens_map.json": {"pad_token": "!"},  # of Stable Diffusion 2
    "tokenizer/vocab.json": VOCABULARY,
    "model_index.json": {
        "_class_name": "StableDiffusionPipeline",
        "requires_safety_checker": True,
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": [None, None],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    },
}


def random_params(shapes, seed=0):
    """Numbers about 1 as scales, and of half that size elsewhere."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        return ((path[-1].key == "scale") + 0.5 * rng.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree.map_with_path(draw, shapes)


def net_params():
    x, t, context = np.ones((1, 4, 4, 2), np.float32), np.ones(1, np.int32), np.ones((1, 1, WIDTH), np.float32)
    return random_params(jax.eval_shape(NET.init, jax.random.key(0), x, t, context)["params"])


def encoder_params():
    tokens = np.ones((1, POSITIONS), np.int32)
    return random_params(jax.eval_shape(ENCODER.init, jax.random.key(0), tokens)["params"], seed=1)


def write(folder):
    """Writes the pipeline's folder; returns it."""
    for name, content in CONFIGS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    (folder / "tokenizer" / "merges.txt").write_text(MERGES)
    autoencoder = random_params(autoencoder_shapes(AUTOENCODER, folder), seed=2)
    last = autoencoder["quant_conv"]  # log-variances follow the means
    autoencoder["quant_conv"] = {name: np.concatenate([leaf, 7 * leaf], axis=-1) for name, leaf in last.items()}
    text = {f"text_model.{name}": value for name, value in parameters.to_state_dict(encoder_params()).items()}
    text["text_model.embeddings.position_ids"] = np.arange(POSITIONS)[None]  # as old files have it
    save_file(parameters.to_state_dict(net_params()), folder / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(parameters.to_state_dict(autoencoder), folder / "vae" / "diffusion_pytorch_model.safetensors")
    save_file(text, folder / "text_encoder" / "model.safetensors")
    return folder
