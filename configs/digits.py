"""SIDE on scikit-learn's handwritten digits: the first audit, without downloads.

python -m side_jax.main --config=configs/digits.py --workdir=runs/digits

64 members of 8x8 pixels and a small network, so that the audit is short: some two minutes on two CPU cores.
docs/first_audit.md explains what it prints. Training stops at partial memorisation, so that guidance can increase
extraction. configs/digits_128.py has twice the members, a network of four times the parameters, and more attacks.
"""

import ml_collections

from side_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Overrides of the default settings."""
    config = default_config()
    config.name = "digits"
    config.data.num_members = 64
    config.data.num_heldout = 64
    config.model.block_out_channels = (16, 32)
    config.train.learning_rate = 2e-3
    config.train.num_steps = 450
    config.label.num_clusters = 50
    config.classifier.architecture = "half_unet"
    config.classifier.width = 24
    config.surrogate.num_steps = 800
    config.surrogate.learning_rate = 3e-3
    config.extract.attacks = ("unconditional", "side", "side_random", "modes")
    config.extract.guidance_scales = (3.0, 10.0)
    config.extract.num_steps = 10  # with guidance_interval: a fifth of the cost per member, see docs/results_cost.md
    config.extract.guidance_interval = (100, 899)
    return config
