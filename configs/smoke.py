"""The whole pipeline in about a minute on a laptop CPU: checks that everything works, without meaningful results.

python -m side_jax.main --config=configs/smoke.py --workdir=runs/smoke

A tiny U-Net is trained on 64 digits for 60 steps and learns nothing worth extracting; expect 0% matches everywhere. CI
and the tests use this config, the latter with even smaller settings.
"""

import ml_collections

from side_jax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """Every stage, as small as possible."""
    config = default_config()
    config.name = "smoke"
    config.data.num_members = 64
    config.data.num_heldout = 64
    config.diffusion.num_timesteps = 100
    config.diffusion.beta_end = 0.2
    config.model.block_out_channels = (8, 16)
    config.model.norm_num_groups = 4
    config.classifier.stage_sizes = (1,)
    config.classifier.width = 8
    for fit, steps in ((config.train, 60), (config.surrogate, 40), (config.conditional, 20)):
        fit.num_steps = steps
        fit.batch_size = 32
        fit.log_every = 10
        fit.checkpoint_every = 10
    config.sampler.num_steps = 5
    config.sampler.batch_size = 32
    config.synthesize.num_images = 128
    config.label.num_clusters = 4
    config.label.cohesion_threshold = 0.0  # samples of an untrained model have little in common
    config.extract.num_images = 96
    config.extract.guidance_scales = (1.0, 10.0)
    return config
