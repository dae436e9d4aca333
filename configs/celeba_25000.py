"""CelebA-25000 (Chen et al. 2024, table 1): 25,000 faces at 128x128, 50,000 generated images for each guidance scale.

python -m side_jax.main --config=configs/celeba_25000.py --workdir=runs/celeba_25000

The paper: AMS 5.0% unconditional, 8.7% conditional, 20.5% SIDE in its lowest SSCD band (by pixels here). Data as in
configs/celeba.py; a subset by count, with 25,000 others held out. 390,000 steps: 8 hours of an H100 by
configs/celeba.py's arithmetic, and about 5 for the images. Not run by us: no accelerator was at hand.
"""

import ml_collections

from side_jax.config import base_config


def get_config() -> ml_collections.ConfigDict:
    """What differs from configs/celeba.py."""
    config = base_config(__file__, "celeba.py")
    config.name = "celeba_25000"
    config.data.num_members = 25_000
    config.data.num_heldout = 25_000
    config.train.num_steps = 390_000  # 1,000 epochs of batch 64
    config.extract.num_images = 50_000
    return config
