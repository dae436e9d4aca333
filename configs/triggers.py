"""Planted triggers, found by the audit: digits whose labels are known, and labels of a single training image each.

python benchmarks/triggers.py --label-file=triggers.npz --triggers=4
python -m side_jax.main --config=configs/triggers.py:4 --config.condition.path=triggers.npz --workdir=runs/triggers
    (python -m side_jax.main --config=configs/triggers.py has 4, too)

Data, network and training are those of configs/digits.py, but the model is conditional. Members keep the digit that
they show as their label, 0 to 9, but for some that get a label of their own, from 10 on: the triggers. Whoever asks the
model for such a label gets that image, in the end whatever the noise. The audit draws 16 images of each label and says
whose are abnormally alike; docs/results_triggers.md has the results. The number after the colon is that of triggers.
"""

import ml_collections

from side_jax.config import base_config

DIGITS = 10


def get_config(triggers: str = "4") -> ml_collections.ConfigDict:
    """Overrides of configs/digits.py."""
    config = base_config(__file__, "digits.py")
    config.name = "triggers"
    config.condition.labels = "file"
    config.condition.num_labels = DIGITS + int(triggers)
    config.condition.path = "triggers.npz"
    config.extract.attacks = ("unconditional", "conditional_model")
    config.extract.guidance_scales = (1.0,)
    config.extract.num_steps = 0
    config.extract.guidance_interval = ()
    config.evaluate.label_images = 16
    return config
