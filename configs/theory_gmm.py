"""Theorem 1 of Chen et al. 2024 in closed form, for four Gaussians in the plane, and two incorrect readings of it.

python -m side_jax.theory --config=configs/theory_gmm.py --workdir=runs/theory_gmm

Trains no model. For labels that identify the Gaussian, M(D_i; p_i, eps) - M(D_i; p, eps) tends to -KL(p_i || p); for
random labels it tends to 0; for models that memorise their images it tends to -log 4 with any labels. The spreads
differ, so that the labels differ in information. Takes about half a minute on two CPU cores.
"""

import ml_collections

from side_jax.config import default_config
from side_jax.settings.mixtures import Theory


def get_config() -> ml_collections.ConfigDict:
    """Overrides of the defaults of settings/mixtures.py."""
    config = default_config(Theory)
    config.name = "theory_gmm"
    config.spreads = (0.5, 0.8, 1.0, 1.5)
    return config
