"""Handwritten digits with a class-conditional target: measures extraction by the model's own labels, without downloads.

python -m side_jax.main --config=configs/digits_conditional.py --workdir=runs/digits_conditional

Data, network and training are those of configs/digits_128.py, but nine of ten training images are shown with their
class. The attack is classifier-free guidance (Ho and Salimans 2022): scale 1 is the conditional model itself, and every
step is guided, with as many steps as unguided sampling. The paper has no such experiment; the question is which scale
extracts most. To separate the meaning of the labels from their mere presence, run it again with
--config.condition.labels=random in another workdir.
"""

import ml_collections

from side_jax.config import base_config


def get_config() -> ml_collections.ConfigDict:
    """Overrides of configs/digits_128.py."""
    config = base_config(__file__, "digits_128.py")
    config.name = "digits_conditional"
    config.condition.labels = "true"
    config.condition.num_labels = 10
    config.extract.attacks = ("unconditional", "conditional_model")
    config.extract.guidance_scales = (1.0, 2.0, 4.0)
    config.extract.num_steps = 0
    config.extract.guidance_interval = ()
    return config
