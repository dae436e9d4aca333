"""CIFAR-10 at 32x32 (Chen et al. 2024, table 1): google/ddpm-cifar10-32's U-Net, 10,000 generated images per scale.

python -m side_jax.main --config=configs/cifar10.py --workdir=runs/cifar10

The paper reports an AMS of 2.47% unconditional, 5.25% conditional and 7.83% for SIDE, in its lowest band of normalised
L2 (with 50 neighbours, as here). Prepare TFDS cifar10 once with `tfds build cifar10 --file_format=array_record`. Half
of the training images are members, the others are held out; the U-Net has 35.7 M parameters. 2,048 epochs are 1.7e18
floating-point operations, 1.5 hours on an H100 at a third of its bfloat16 peak (calculated); small convolutions are
less efficient in practice. A folder of classes works too: --config.data.name=folder --config.data.path=DIR, with
num_members and num_heldout adapted. We have not run this config, for lack of an accelerator.
"""

import ml_collections

from side_jax.config import base_config


def get_config() -> ml_collections.ConfigDict:
    """Overrides of configs/celeba.py."""
    config = base_config(__file__, "celeba.py", "32")
    config.name = "cifar10"
    config.data.tfds_name = "cifar10"
    config.data.num_members = 24_000  # fewer than half of 50,000, since duplicates are excluded
    config.data.num_heldout = 24_000
    config.data.memory_limit_mb = 4096
    config.model.block_out_channels = (128, 256, 256, 256)
    config.model.down_block_types = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")
    config.model.up_block_types = ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    config.model.flip_sin_to_cos = False
    config.model.freq_shift = 1.0
    config.model.downsample_padding = 0
    config.model.dropout = 0.1
    config.train.num_steps = 768_000  # 2,048 epochs of batch 64
    config.train.learning_rate = 2e-4
    config.train.warmup_steps = 5_000
    config.monitor.every_steps = 20_000
    config.sampler.batch_size = 512
    config.classifier.stem_stride = 1
    config.extract.num_images = 10_000
    return config
