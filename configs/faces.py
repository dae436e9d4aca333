"""SIDE on the 100 faces of scikit-image (LFW), 24x24: a second example with nothing to download.

pip install 'side_jax[faces]'
python -m side_jax.main --config=configs/faces.py --workdir=runs/faces

50 members, 50 held out; nobody's identity is known, so the split is by image, and there is no conditional baseline,
which needs labels. Training ends when the monitor sees 2% of its samples with d1 / d2 < 1/3, a limit set beforehand.
The aim is the paper's claim on faces (its CelebA rows) in small. docs/results.md has what came out: more matches, from
fewer members. 21 minutes on two CPU cores.
"""

import ml_collections

from side_jax.config import base_config


def get_config() -> ml_collections.ConfigDict:
    """What differs from configs/orl_faces.py."""
    config = base_config(__file__, "orl_faces.py")
    config.name = "faces"
    config.data.name = "faces"
    config.data.path = ""
    config.data.split_by = "image"
    config.data.image_size = 24
    config.data.num_members = 50
    config.data.num_heldout = 50
    config.train.num_steps = 20_000  # the monitor ends it long before
    config.label.num_clusters = 30
    config.classifier.architecture = "resnet"  # docs/results.md's figures are of it
    config.surrogate.num_steps = 4000
    config.conditional.num_steps = 100
    config.conditional.batch_size = 32
    config.extract.attacks = ("unconditional", "side")
    return config
