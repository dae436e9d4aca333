"""SIDE on 128 of scikit-learn's handwritten digits: the config of most tables in docs/, without downloads.

python -m side_jax.main --config=configs/digits_128.py --workdir=runs/digits_128

128 members of 8x8 pixels; docs/results.md lists the expected numbers. configs/digits.py is a shorter audit. Training
stops at partial memorisation, so that guidance can increase extraction: 1 to 4% of the unguided samples match a member
(normalised L2 below 0.8). Compare with the paper's CIFAR-10 row (Chen et al. 2024, table 1), where SIDE matches 3.2
times as often as unguided sampling.
"""

import ml_collections

from side_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Overrides of the default settings."""
    config = default_config()
    config.name = "digits_128"
    config.data.num_members = 128
    config.data.num_heldout = 128
    config.train.num_steps = 1050
    config.label.num_clusters = 50
    config.classifier.architecture = "half_unet"
    config.surrogate.num_steps = 3200
    config.surrogate.learning_rate = 2e-3
    config.conditional.num_steps = 500
    config.extract.num_steps = 10  # with guidance_interval: a sixth of the cost per member, see docs/results_cost.md
    config.extract.guidance_interval = (100, 899)
    return config
