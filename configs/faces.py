"""SIDE on the 100 faces of scikit-image (LFW) at 24x24: a second example without downloads.

pip install 'side_jax[faces]'
python -m side_jax.main --config=configs/faces.py --workdir=runs/faces

50 members and 50 held-out images. The identities are unknown, so the split is by image and there is no conditional
baseline, which needs labels. Training ends when the monitor measures d1 / d2 < 1/3 for 2% of its samples, a limit set
in advance. This is a small version of the paper's CelebA experiments. docs/results_faces.md has the results.
"""

import ml_collections

from side_jax.config import base_config


def get_config() -> ml_collections.ConfigDict:
    """Overrides of configs/orl_faces.py."""
    config = base_config(__file__, "orl_faces.py")
    config.name = "faces"
    config.data.name = "faces"
    config.data.path = ""
    config.data.split_by = "image"
    config.data.image_size = 24
    config.data.num_members = 50
    config.data.num_heldout = 50
    config.train.num_steps = 20_000  # upper bound; the monitor stops training much earlier
    config.label.num_clusters = 30
    config.classifier.architecture = "resnet"  # as in docs/results_faces.md
    config.surrogate.num_steps = 4000
    config.conditional.num_steps = 100
    config.conditional.batch_size = 32
    config.extract.attacks = ("unconditional", "side", "modes")
    return config
