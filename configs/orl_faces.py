"""SIDE on the ORL faces (Samaria and Harter 1994), 16x16: 100 photographs of 10 people, held out are 10 others.

python -m side_jax.main --config=configs/orl_faces.py --config.data.path=DIR --workdir=runs/orl_faces

DIR holds the folders s1 to s40 with 10 grey photographs each. The split is by identity, so nobody is on both sides.
Training goes on until the monitor sees memorisation: 2% of its samples with d1 / d2 < 1/3, a limit set beforehand.
The question is the paper's CelebA-HQ-FI row (by pixels, not by SSCD): how much does SIDE add where faces are memorised
in part? docs/results.md has what came out, and the sweep that the surrogate's settings follow from.
"""

import ml_collections

from side_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """What differs from the defaults of settings."""
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
    config.train.num_steps = 40_000  # the monitor ends it long before
    config.train.batch_size = 32
    config.monitor.every_steps = 500
    config.monitor.stop_at_rate = 0.02
    config.label.num_clusters = 20
    config.classifier.architecture = "half_unet"
    config.surrogate.num_steps = 3200
    config.surrogate.learning_rate = 2e-3
    config.conditional.num_steps = 500
    config.extract.solver = "dpmpp_2m"  # these three: a fifth of the cost for each member, see docs/results.md
    config.extract.num_steps = 14
    config.extract.guidance_interval = (200, 799)
    config.extract.guidance_scales = (1.0, 3.0, 10.0, 20.0, 30.0)
    return config
