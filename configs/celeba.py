"""CelebA at 128x128 (Chen et al. 2024, table 1): 5,120 generated images per guidance scale.

python -m side_jax.main --config=configs/celeba.py --workdir=runs/celeba            # 128x128, as in the paper
python -m side_jax.main --config=configs/celeba.py:64 --workdir=runs/celeba64       # cheaper

The paper reports an AMS of 1.95% unconditional, 4.68% conditional and 7.19% for SIDE, in its lowest SSCD band. Scores
here use pixels, so the levels can't be compared, and the ratios between attacks with care. The U-Net is that of
google/ddpm-celebahq-256 with 113.7 M parameters. The classes of the conditional baseline are the 8 combinations of
three attributes: male, smiling, young.

Prepare TFDS celeb_a once with `tfds build celeb_a --file_format=array_record`. The members are 81,000 images of the
training split, and equally many others are held out (the paper trains on all 162,770, which leaves none to hold out).
1,000 epochs are 3.0e19 floating-point operations, about 25 hours on an H100 at a third of its bfloat16 peak
(calculated). We have not run this config, for lack of an accelerator.
"""

import ml_collections

from side_jax.config import default_config


def get_config(resolution: str = "128") -> ml_collections.ConfigDict:
    """The config; `resolution` is the image size in pixels, a multiple of 32."""
    config = default_config()
    config.name = f"celeba {resolution}x{resolution}"
    config.data.name = "tfds"
    config.data.tfds_name = "celeb_a"
    config.data.image_size = int(resolution)
    config.data.channels = 3
    config.data.num_members = 81_000
    config.data.num_heldout = 81_000
    config.data.memory_limit_mb = 16_384
    config.model.block_out_channels = (128, 128, 256, 256, 512, 512)
    config.model.down_block_types = ("DownBlock2D",) * 4 + ("AttnDownBlock2D", "DownBlock2D")
    config.model.up_block_types = ("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * 4
    config.model.layers_per_block = 2
    config.model.attention_head_dim = 0
    config.model.norm_num_groups = 32
    config.model.norm_eps = 1e-6
    config.model.dtype = "bfloat16"
    config.train.num_steps = 1_265_000  # 1,000 epochs of batch 64
    config.train.learning_rate = 1e-4
    config.train.warmup_steps = 500
    config.train.ema_decay = 0.9999
    config.train.log_every = 500
    config.train.checkpoint_every = 10_000
    config.monitor.every_steps = 50_000
    config.sampler.num_steps = 50
    config.sampler.batch_size = 128
    config.synthesize.num_images = 50_000
    config.label.features = "denoiser"  # the paper: SSCD; --config.label.features=sscd --config.label.weights=FILE
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
    config.extract.num_images = 5_120
    config.extract.guidance_scales = (1.0, 5.0, 10.0, 15.0, 20.0, 30.0, 50.0)
    config.evaluate.normalized_l2_neighbors = 50  # Carlini et al. 2023
    return config
