"""CelebA-25000 (Chen et al. 2024, section 4): 25,000 faces, 50,000 generated images for each guidance scale.

python -m side_jax.main --config=configs/celeba.py --workdir=runs/celeba            # 64x64
python -m side_jax.main --config=configs/celeba.py:128 --workdir=runs/celeba128     # the paper's 128x128

For one or more GPUs, or a TPU; never for a CPU. The dataset is TFDS celeb_a, which must have been prepared once with
`tfds build celeb_a --file_format=array_record`. Not run by us yet: no accelerator was at hand. The paper reports, at
128x128 and by SSCD rather than by pixels, AMS 5.0% unconditional, 8.7% conditional and 20.5% SIDE in its lowest band.
The conditional baseline's classes are the 8 combinations of three attributes: male, smiling, young.
"""

import ml_collections

from side_jax.config import default_config


def get_config(resolution: str = "64") -> ml_collections.ConfigDict:
    """`resolution` is the image size in pixels, a multiple of 16."""
    config = default_config()
    config.name = f"celeba {resolution}x{resolution}"
    config.data.name = "tfds"
    config.data.tfds_name = "celeb_a"
    config.data.image_size = int(resolution)
    config.data.channels = 3
    config.data.num_members = 25_000
    config.data.num_heldout = 25_000
    config.model.block_channels = (128, 128, 256, 256, 512)
    config.model.layers_per_block = 2
    config.model.attention = (False, False, False, True, False)
    config.model.num_heads = 8
    config.model.num_groups = 32
    config.train.num_steps = 390_000  # 1,000 epochs of batch 64, as in the paper
    config.train.learning_rate = 1e-4
    config.train.warmup_steps = 500
    config.train.ema_decay = 0.9999
    config.train.log_every = 500
    config.train.checkpoint_every = 10_000
    config.sampler.num_steps = 50
    config.sampler.batch_size = 128
    config.synthesize.num_images = 50_000
    config.label.num_clusters = 100
    config.classifier.stage_sizes = (3, 4, 6, 3)  # ResNet-34
    config.classifier.width = 64
    config.classifier.stem_stride = 2
    for fit, steps in ((config.surrogate, 50_000), (config.conditional, 20_000)):
        fit.num_steps = steps
        fit.learning_rate = 1e-4
        fit.ema_decay = 0.999
        fit.log_every = 500
        fit.checkpoint_every = 5_000
    config.extract.num_images = 50_000
    config.extract.guidance_scales = (1.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0)
    config.evaluate.normalized_l2_neighbors = 50  # Carlini et al. 2023
    return config
