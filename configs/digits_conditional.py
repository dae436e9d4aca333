"""The handwritten digits with a class-conditional target: what its own labels bring out, with nothing to download.

python -m side_jax.main --config=configs/digits_conditional.py --workdir=runs/digits_conditional

Data, network and training of configs/digits.py, but each digit is shown with its class, for nine images in ten. The
attack is classifier-free guidance (Ho and Salimans 2022): scale 1 is the conditional model as it is, and all steps are
guided, as many as without guidance. No figure of a paper: which scale brings out most is what is asked. Whether that is
the labels' meaning, or just that there are labels, --config.condition.labels=random in another workdir tells.
"""

import ml_collections

from side_jax.config import base_config


def get_config() -> ml_collections.ConfigDict:
    """What differs from configs/digits.py."""
    config = base_config(__file__, "digits.py")
    config.name = "digits_conditional"
    config.condition.labels = "true"
    config.condition.num_labels = 10
    config.extract.attacks = ("unconditional", "conditional_model")
    config.extract.guidance_scales = (1.0, 2.0, 4.0)
    config.extract.num_steps = 0
    config.extract.guidance_interval = ()
    return config
