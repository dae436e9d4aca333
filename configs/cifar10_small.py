"""Mode seeking and SIDE on 200 CIFAR-10 images at 32x32 in colour, for two CPU cores and some hours.

python -m side_jax.main --config=configs/cifar10_small.py --config.data.path=DIR --workdir=runs/cifar10_small

DIR holds a folder of images for each class; the config needs 400 of them. Training ends when the monitor measures that
5% of the modes of the model have d1 / d2 < 1/3: the model is then partly memorised, and its plain samples are not yet
copies. docs/results_cifar10.md has the results of one seed, which trained for 9,500 steps.
"""

import ml_collections

from side_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Overrides of the default settings."""
    config = default_config()
    config.name = "cifar10_small"
    config.data.name = "folder"
    config.data.path = "cifar10"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.num_members = 200
    config.data.num_heldout = 200
    config.model.block_out_channels = (32, 64, 128, 128)
    config.model.down_block_types = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    config.model.up_block_types = ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
    config.train.num_steps = 40_000  # upper bound; the monitor stops training much earlier
    config.train.batch_size = 16
    config.monitor.every_steps = 500
    config.monitor.stop_at_modes_rate = 0.05
    config.synthesize.num_images = 1024
    config.label.num_clusters = 40
    config.classifier.architecture = "half_unet"
    config.surrogate.num_steps = 1500
    config.surrogate.batch_size = 32
    config.conditional.num_steps = 500
    config.extract.attacks = ("unconditional", "conditional_x0", "side", "modes")
    config.extract.num_images = 512
    config.extract.num_steps = 10
    config.extract.guidance_interval = (100, 899)
    config.extract.guidance_scales = (3.0, 10.0)
    return config
