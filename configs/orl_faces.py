"""SIDE on the ORL faces (Samaria and Harter 1994) at 16x16: 100 photographs of 10 people, 10 others held out.

python -m side_jax.main --config=configs/orl_faces.py --config.data.path=DIR --workdir=runs/orl_faces

DIR holds the folders s1 to s40 with 10 grey photographs each. The split is by identity, so no person is on both sides.
Training ends when the monitor measures d1 / d2 < 1/3 for 2% of its samples, a limit set in advance. As in the paper's
CelebA-HQ-FI row (but by pixels, not SSCD), the question is how much SIDE adds where faces are partly memorised.
docs/results_faces.md has the results, docs/results_surrogate.md the sweep that determined the surrogate's settings.
"""

import ml_collections

from side_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Overrides of the default settings."""
    config = default_config()
    config.name = "orl_faces"
    config.data.name = "folder"
    config.data.path = "orl_faces"
    config.data.split_by = "identity"
    config.data.image_size = 16
    config.data.num_members = 100
    config.data.num_heldout = 100
    config.model.block_out_channels = (32, 64, 64)
    config.model.down_block_types = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D")
    config.model.up_block_types = ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
    config.train.num_steps = 40_000  # upper bound; the monitor stops training much earlier
    config.train.batch_size = 32
    config.monitor.every_steps = 500
    config.monitor.stop_at_rate = 0.02
    config.label.num_clusters = 20
    config.classifier.architecture = "half_unet"
    config.surrogate.num_steps = 3200
    config.surrogate.learning_rate = 2e-3
    config.conditional.num_steps = 500
    config.extract.solver = "dpmpp_2m"  # with num_steps and guidance_interval: a fifth of the cost per member
    config.extract.num_steps = 14
    config.extract.guidance_interval = (200, 799)
    config.extract.guidance_scales = (1.0, 3.0, 10.0, 20.0, 30.0)
    return config
