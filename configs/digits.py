"""SIDE on scikit-learn's handwritten digits: the default audit, with nothing to download.

python -m side_jax.main --config=configs/digits.py --workdir=runs/digits

docs/results.md holds the numbers to expect. 128 members of 8x8 pixels. Training stops where memorisation is partial, so
that there is something for guidance to gain: 1 to 4% of the unguided samples match a member (normalised L2 below 0.8).
The figure to compare is the paper's CIFAR-10 row (Chen et al. 2024, table 1): SIDE matches 3.2 times as often as no
guidance. Two CPU cores, five to fifteen minutes, by what else they do.
"""

import ml_collections

from side_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """What differs from the defaults of settings.py."""
    config = default_config()
    config.name = "digits"
    config.data.num_members = 128
    config.data.num_heldout = 128
    config.train.num_steps = 1050
    config.label.num_clusters = 50
    config.classifier.architecture = "half_unet"
    config.surrogate.num_steps = 3200
    config.surrogate.learning_rate = 2e-3
    config.conditional.num_steps = 500
    config.extract.num_steps = 10  # these two: a fifth of the cost for each member, see docs/results.md
    config.extract.guidance_interval = (100, 899)
    return config
