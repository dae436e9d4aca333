"""Computes all distributional measures of an audit, which complement extraction but do not replace it.

They compare sets of features. Each can miss copying that extraction finds image by image (Stein et al. 2023, "Exposing
flaws of generative model evaluation metrics"), and none identifies an image. Read them only next to their controls.
"""

import dataclasses
from typing import Any

import numpy as np

from side_jax.memorization.distribution.auth_pct import auth_pct
from side_jax.memorization.distribution.c_t_statistic import c_t
from side_jax.memorization.distribution.feature_rows import check_rows, subsample
from side_jax.memorization.distribution.fld_density_gap import fld_gap
from side_jax.memorization.distribution.frechet import frechet_distance


def summary(generated: np.ndarray, members: np.ndarray, heldout: np.ndarray, seed: int) -> dict[str, Any]:
    """Computes every measure and its control, ready for JSON: finite numbers, or None for a C_T without a cell.

    Args:
      generated: float32 [n, d], n >= 2.
      members: float32 [l, d], l >= 3.
      heldout: float32 [m, d], m >= 3; use as many as members, or the controls are not comparable.
      seed: of random draws.

    Returns:
      auth_pct (low: copying) and auth_pct_heldout, against held-out images; c_t (far below 0: copying), the attributes
      of c_t_statistic.CellTest; fld_gap (far below 0: copying) and fld_gap_heldout, with members and held-out images
      exchanged; frechet_members, frechet_heldout and their floor frechet_members_heldout, all with equal numbers of
      images; n, the numbers of images: generated, members, heldout, and frechet (used from each set for the latter).

    Raises:
      ValueError: if a set has too few rows or the rows do not match (see check_rows).
    """
    (generated,) = check_rows(2, generated=generated)
    members, heldout = check_rows(3, members=members, heldout=heldout)
    counts = {"generated": len(generated), "members": len(members), "heldout": len(heldout)}
    equal = min(counts.values())
    some, some_members, some_heldout = (subsample(rows, equal, seed) for rows in (generated, members, heldout))
    return {
        "auth_pct": auth_pct(generated, members),
        "auth_pct_heldout": auth_pct(generated, heldout),
        "c_t": dataclasses.asdict(c_t(members, heldout, generated, seed=seed)),
        "fld_gap": fld_gap(members, heldout, generated, seed=seed),
        "fld_gap_heldout": fld_gap(heldout, members, generated, seed=seed),
        "frechet_members": frechet_distance(some, some_members),
        "frechet_heldout": frechet_distance(some, some_heldout),
        "frechet_members_heldout": frechet_distance(some_members, some_heldout),
        "n": {**counts, "frechet": equal},
    }
