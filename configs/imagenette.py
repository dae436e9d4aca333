"""ImageNette at 256x256, after the paper's ImageNet row (Chen et al. 2024, table 1): 2,560 generated images per scale.

python -m side_jax.main --config=configs/imagenette.py --workdir=runs/imagenette

The paper trains on all of ImageNet, scores on ImageNette, and reports an AMS of 0% unconditional, 0.15% conditional and
0.44% for SIDE, in its lowest SSCD band. Here the model is trained on half of ImageNette (ten classes), so more is
memorised; the result is an upper bound rather than a reproduction. Prepare TFDS imagenette/full-size-v2 once with `tfds
build imagenette/full-size-v2 --file_format=array_record`. The U-Net is that of google/ddpm-bedroom-256 with 113.7 M
parameters, rematerialised, with each batch of 64 in two parts. 500,000 steps take 53 hours on an H100, calculated as in
configs/celeba.py. We have not run this config, for lack of an accelerator.
"""

import ml_collections

from side_jax.config import base_config


def get_config() -> ml_collections.ConfigDict:
    """Overrides of configs/celeba.py."""
    config = base_config(__file__, "celeba.py", "256")
    config.name = "imagenette"
    config.data.tfds_name = "imagenette/full-size-v2"
    config.data.num_members = 4_600
    config.data.num_heldout = 4_600
    config.model.remat = True
    config.train.num_steps = 500_000
    config.train.accumulate = 2
    config.sampler.batch_size = 64
    config.extract.num_images = 2_560
    return config
