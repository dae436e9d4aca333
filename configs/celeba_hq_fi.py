"""CelebA-HQ-FI (Chen et al. 2024, table 1): a subset by identity, 128x128, 51,200 generated images for each scale.

python -m side_jax.main --config=configs/celeba_hq_fi.py --config.data.path=DIR --workdir=runs/celeba_hq_fi

The paper: AMS 11.7% unconditional, 15.0% conditional, 23.3% SIDE in its lowest SSCD band (by pixels here), from 5,478
images of the 307 identities that have 15 and more. DIR holds CelebA-HQ's images in a folder for each identity (its
CelebA-HQ-to-CelebA mapping and CelebA's identity file say which). Identities are split, so that no person is on both
sides: half of the paper's images are members. 3,000 epochs: 3 hours of an H100 by configs/celeba.py's arithmetic, and
about 5 for the images. Not run by us: neither an accelerator nor the images were at hand.
"""

import ml_collections

from side_jax.config import base_config


def get_config() -> ml_collections.ConfigDict:
    """What differs from configs/celeba.py."""
    config = base_config(__file__, "celeba.py")
    config.name = "celeba_hq_fi"
    config.data.name = "folder"
    config.data.path = "celeba_hq_identities"
    config.data.split_by = "identity"
    config.data.min_per_label = 15
    config.data.num_members = 2_700
    config.data.num_heldout = 2_700
    config.train.num_steps = 128_000  # 3,000 epochs of batch 64
    config.extract.num_images = 51_200
    return config
