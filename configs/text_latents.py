r"""A text-conditional latent model, such as Stable Diffusion 1 or 2 at 512x512: prompts are its labels; trains nothing.

python -m side_jax.main --config=configs/text_latents.py --config.target.path=DIR --config.target.prompts=PROMPTS \
    --config.data.path=SEEN --config.data.heldout_from=UNSEEN --workdir=runs/text

DIR is a local pipeline folder or hf://OWNER/NAME, PROMPTS a text file of prompts, one a line (the captions of the
members, where you have them), SEEN a folder of images that the model was trained on, and UNSEEN one of similar images
that it never saw. The sections model, diffusion and condition come from the checkpoint. Needs side_jax[text].

Calculated for Stable Diffusion 1 from the numbers of its parameters and calls, not measured: 943 M parameters, of the
U-Net and the autoencoder, are 3.8 GB in float32 on the device, and 0.24 MB for each prompt; XLA plans 0.9 GB more for a
call on 8 latents and 3.3 GB for 4 decoded images (for CPUs, in float32). So 8 GB are the least, and 16 GB leave room;
checkpoints take 7.6 GB of disk. With 1,000 members and 1,000 held-out images, the attacks make 163,840 calls and the
evaluation 60,000, of 0.71 TFLOP each; 4,096 images are decoded for 2.5 TFLOP each: 1.7e17 floating-point operations in
all, 0.15 hours on an H100 at a third of its bfloat16 peak, without compiling and comparing. We have not run this config
on any real model, nor at this size.
"""

import ml_collections

from side_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Overrides of the default settings."""
    config = default_config()
    config.name = "text-conditional latent model"
    config.target.path = "model"
    config.target.prompts = "prompts.txt"
    config.data.name = "folder"
    config.data.path = "seen"
    config.data.heldout_from = "unseen"
    config.data.image_size = 512
    config.data.channels = 3
    config.model.dtype = "bfloat16"
    config.sampler.num_steps = 50
    config.sampler.batch_size = 8
    config.extract.attacks = ("unconditional", "conditional_model", "modes")
    config.extract.num_images = 1_024
    config.extract.guidance_scales = (7.5,)
    config.modes.starts = ("unconditional", "conditional_model")
    config.evaluate.normalized_l2_neighbors = 50  # Carlini et al. 2023
    config.evaluate.divergence = False  # an ODE in 16,384 dimensions for each point
    return config
