"""SIDE on scikit-learn's handwritten digits: the default audit, with nothing to download.

python -m side_jax.main --config=configs/digits.py --workdir=runs/digits
"""

import ml_collections

from side_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """128 members of 8x8 pixels, trained until memorisation is partial."""
    config = default_config()
    config.name = "digits"
    config.data.num_members = 128
    config.data.num_heldout = 128
    config.train.num_steps = 1700
    config.surrogate.num_steps = 1500
    config.conditional.num_steps = 300
    return config
