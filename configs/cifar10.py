"""CIFAR-10 at 32x32 (Chen et al. 2024, table 1): google/ddpm-cifar10-32's U-Net, 10,000 generated images a scale.

python -m side_jax.main --config=configs/cifar10.py --workdir=runs/cifar10

The paper: AMS 2.47% unconditional, 5.25% conditional, 7.83% SIDE in its lowest band of normalised L2 (with 50
neighbours, as here). TFDS cifar10 must have been prepared once: `tfds build cifar10 --file_format=array_record`. The
members are half of the training images, the others are held out; 35.7 M parameters. 2,048 epochs are 1.7e18
floating-point operations: 1.5 hours of an H100 at a third of its bfloat16 peak, by arithmetic, and more in practice,
since small convolutions reach less. A folder of classes does as well: --config.data.name=folder
--config.data.path=DIR, with num_members and num_heldout to suit. Not run by us: no accelerator was at hand.
"""

import ml_collections

from side_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """What differs from the defaults of settings."""
    config = default_config()
    config.name = "cifar10"
    config.data.name = "tfds"
    config.data.tfds_name = "cifar10"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.num_members = 24_000  # duplicates are left out on the way to 2 x 24,000
    config.data.num_heldout = 24_000
    config.model.block_out_channels = (128, 256, 256, 256)
    config.model.down_block_types = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")
    config.model.up_block_types = ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    config.model.layers_per_block = 2
    config.model.attention_head_dim = 0
    config.model.norm_num_groups = 32
    config.model.norm_eps = 1e-6
    config.model.flip_sin_to_cos = False
    config.model.freq_shift = 1.0
    config.model.downsample_padding = 0
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.train.num_steps = 768_000  # 2,048 epochs of batch 64
    config.train.learning_rate = 2e-4
    config.train.warmup_steps = 5_000
    config.train.ema_decay = 0.9999
    config.train.log_every = 500
    config.train.checkpoint_every = 10_000
    config.monitor.every_steps = 20_000
    config.sampler.num_steps = 50
    config.sampler.batch_size = 512
    config.synthesize.num_images = 50_000
    config.label.num_clusters = 100
    config.classifier.stage_sizes = (3, 4, 6, 3)  # ResNet-34
    config.classifier.width = 64
    for fit, steps in ((config.surrogate, 50_000), (config.conditional, 20_000)):
        fit.num_steps = steps
        fit.learning_rate = 1e-4
        fit.ema_decay = 0.999
        fit.log_every = 500
        fit.checkpoint_every = 5_000
    config.extract.num_images = 10_000
    config.extract.guidance_scales = (1.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0)
    config.evaluate.normalized_l2_neighbors = 50  # Carlini et al. 2023
    return config
