"""CelebA-HQ-FI (Chen et al. 2024, table 1): faces by identity at 128x128, 51,200 generated images per guidance scale.

python -m side_jax.main --config=configs/celeba_hq_fi.py --config.data.path=DIR --workdir=runs/celeba_hq_fi

The paper reports an AMS of 11.7% unconditional, 15.0% conditional and 23.3% for SIDE, in its lowest SSCD band (here by
pixels), on 5,478 images of the 307 identities with at least 15 images. DIR holds CelebA-HQ's images in one folder per
identity, as given by its CelebA-HQ-to-CelebA mapping and CelebA's identity file. The split is by identity, so that no
person is on both sides; half of the paper's images are members. 3,000 epochs take 3 hours on an H100 and the images
about 5 more, calculated as in configs/celeba.py. We have not run this config, for lack of an accelerator and of the
images.
"""

import ml_collections

from side_jax.config import base_config


def get_config() -> ml_collections.ConfigDict:
    """Overrides of configs/celeba.py."""
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
