r"""Your own model: audits an unconditional diffusers checkpoint (UNet2DModel); trains only the classifiers.

python -m side_jax.main --config=configs/diffusers.py --config.target.path=DIR --config.data.path=SEEN \
    --config.data.heldout_from=UNSEEN --config.data.image_size=32 --config.data.channels=3 --workdir=runs/mine

DIR is a local pipeline or unet folder with safetensors, SEEN a folder of images that the model was trained on, and
UNSEEN a folder of similar images that it never saw; without these, nothing distinguishes extraction from chance. All
images are used. The sections model and diffusion come from the checkpoint. For such a model of CIFAR-10, the paper
reports an AMS of 2.47% unconditional and 7.83% for SIDE. Needs an accelerator; for 32x32 images, less than an hour on
an H100 (calculated, not measured).
"""

import ml_collections

from side_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Overrides of the default settings."""
    config = default_config()
    config.name = "diffusers checkpoint"
    config.target.path = "model"
    config.data.name = "folder"
    config.data.path = "seen"
    config.data.heldout_from = "unseen"
    config.data.image_size = 32
    config.data.channels = 3
    config.sampler.num_steps = 50
    config.synthesize.num_images = 10_000
    config.label.num_clusters = 100
    config.classifier.stage_sizes = (2, 2, 2, 2)  # ResNet-18
    config.classifier.width = 64
    config.surrogate.num_steps = 20_000
    config.surrogate.learning_rate = 2e-4
    config.conditional.num_steps = 5_000
    config.conditional.learning_rate = 2e-4
    config.extract.attacks = ("unconditional", "side", "side_random", "modes")  # attacks without labels
    config.extract.num_images = 10_000
    config.evaluate.normalized_l2_neighbors = 50  # Carlini et al. 2023
    return config
