"""SIDE on scikit-learn's handwritten digits: the default audit, with nothing to download.

python -m side_jax.main --config=configs/digits.py --workdir=runs/digits

200 members of 8x8 pixels. Training stops where memorisation is partial: 1,024 unguided samples match a member (
normalised L2 below 0.8) at about 2%, while guided ones still can do better; at 3,200 steps it is 10%, and by 100% there
is nothing left to show. The surrogate is trained long: at 1,500 steps it doubles the rate, at 4,000 it quadruples it.
"""

import ml_collections

from side_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """What differs from the defaults of settings.py."""
    config = default_config()
    config.name = "digits"
    config.train.num_steps = 2100
    config.surrogate.num_steps = 4000
    config.surrogate.learning_rate = 2e-3
    config.conditional.num_steps = 500
    return config
