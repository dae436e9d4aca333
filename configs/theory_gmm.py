"""Theorem 1 of Chen et al. 2024 in closed form: four Gaussians in the plane, and two readings of it that are wrong.

python -m side_jax.theory --config=configs/theory_gmm.py --workdir=runs/theory_gmm

No model is trained. For labels that name the Gaussian, M(D_i; p_i, eps) - M(D_i; p, eps) goes to -KL(p_i || p); for
random labels, to 0; for models that hold their images, to -log 4 whatever the labels. The spreads differ so that the
labels differ in what they tell. Two CPU cores, about half a minute.
"""

import ml_collections

from side_jax.config import default_config
from side_jax.settings.mixtures import Theory


def get_config() -> ml_collections.ConfigDict:
    """What differs from the defaults of settings/theory.py."""
    config = default_config(Theory)
    config.name = "theory_gmm"
    config.spreads = (0.5, 0.8, 1.0, 1.5)
    return config
