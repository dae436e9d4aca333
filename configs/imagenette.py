"""ImageNette at 256x256, after the paper's ImageNet row (Chen et al. 2024, table 1), 2,560 generated images a scale.

python -m side_jax.main --config=configs/imagenette.py --workdir=runs/imagenette

The paper trains on all of ImageNet and scores on ImageNette: AMS 0% unconditional, 0.15% conditional, 0.44% SIDE in its
lowest SSCD band. Here the model itself is trained on half of ImageNette (ten classes), so more is memorised: an upper
end, not that row. TFDS imagenette/full-size-v2 must have been prepared once: `tfds build imagenette/full-size-v2
--file_format=array_record`. google/ddpm-bedroom-256's U-Net, 113.7 M parameters, rematerialised, each batch of 64 in
two parts. 500,000 steps: 53 hours of an H100 by configs/celeba.py's arithmetic. Not run by us: no accelerator was at
hand.
"""

import ml_collections

from side_jax.config import base_config


def get_config() -> ml_collections.ConfigDict:
    """What differs from configs/celeba.py."""
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
