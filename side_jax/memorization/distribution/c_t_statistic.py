"""C_T: a three-sample rank test, cell by cell, of whether generated images are nearer to members than held-out ones.

Meehan, Chaudhuri and Dasgupta 2020, "A Non-Parametric Test to Detect Data-Copying in Generative Models" (4).
k-means of the members cuts the space into cells. L(x) is the distance of x to its nearest member. For a cell with n
held-out and m generated images, let R be the rank of a generated image's L among all n + m (ties: mean ranks):

    U   = sum over generated of R - m (m + 1) / 2                                                   (1)
    Z   = (U - n m / 2) / sqrt( tau n m (n + m + 1) / 12 )                                          (2)
    tau = 1 - sum over ties of (t^3 - t) / ((n + m)^3 - (n + m))                                    (3)
    C_T = sum over cells kept of share Z / sum over cells kept of share                             (4)

A cell's share is its share of the held-out images; cells with enough generated images are kept. (2) is the normal
approximation of Mann and Whitney (1947), (3) its correction for ties. If generated and held-out images have one law, Z
is standard normal (C_T, a mean of such, is narrower). C_T << 0 is copying, C_T >> 0 underfitting. Its magnitude grows
with the numbers of images: compare at equal numbers.

Differences from the authors' program: no continuity correction, which shifts a signed statistic to one side; a
correction for ties; a cell with exactly the minimum is kept; L considers all members, not only those of the same cell,
so that a copy moved over a boundary by noise is still near its original.
"""

import dataclasses
import warnings

import numpy as np
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning

from side_jax.memorization.distribution.feature_rows import check_rows
from side_jax.memorization.neighbors import exact_search

DIMENSIONS = 64  # features above this number are reduced to it, as in the public programs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of the partition.

    Attributes:
      share: share of the held-out images, in [0, 1].
      heldout: their number n.
      generated: the number m of generated images.
      z: equation (2); None if the cell is not kept.
    """

    share: float
    heldout: int
    generated: int
    z: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellTest:
    """The result of c_t.

    Attributes:
      value: equation (4); None if no cell is kept.
      used: number of cells kept.
      cells: all cells, kept or not.
    """

    value: float | None
    used: int
    cells: tuple[Cell, ...]


def z_score(generated: np.ndarray, heldout: np.ndarray) -> float:
    """Computes equation (2) for two samples of distances, [m] and [n]: below 0 if generated images are nearer.

    0 if all n + m distances are equal.
    """
    m, n = len(generated), len(heldout)
    ranks = stats.rankdata(np.concatenate([generated, heldout]))
    u = ranks[:m].sum() - m * (m + 1) / 2
    variance = stats.tiecorrect(ranks) * n * m * (n + m + 1) / 12
    return float((u - n * m / 2) / np.sqrt(variance)) if variance > 0 else 0.0


def c_t(
    members: np.ndarray, heldout: np.ndarray, generated: np.ndarray, cells: int = 3, minimum: int = 20, seed: int = 0
) -> CellTest:
    """Computes equation (4), after a principal component analysis of the members if there are more than 64 features.

    The defaults are those of the public programs that compute C_T of image features.

    Args:
      members: float32 [l, d].
      heldout: float32 [n, d].
      generated: float32 [m, d].
      cells: k of k-means, from 1 to l.
      minimum: generated images needed to keep a cell, 1 or more; a kept cell also has a held-out image.
      seed: of k-means and of the principal component analysis.

    Raises:
      ValueError: if cells or minimum is out of its range, or the rows do not match (see check_rows).
    """
    members, heldout, generated = check_rows(1, members=members, heldout=heldout, generated=generated)
    if not 1 <= cells <= len(members):
        raise ValueError(f"cells must be between 1 and the {len(members)} members, got {cells}")
    if minimum < 1:
        raise ValueError(f"minimum must be 1 or more, got {minimum}")
    if members.shape[1] > DIMENSIONS:
        reduce = PCA(min(DIMENSIONS, len(members)), random_state=seed).fit(members).transform
        members, heldout, generated = reduce(members), reduce(heldout), reduce(generated)
    with warnings.catch_warnings():
        # With fewer distinct members than cells, the surplus cells stay empty, which the result shows.
        warnings.simplefilter("ignore", ConvergenceWarning)
        partition = KMeans(cells, n_init=10, random_state=seed).fit(members)
    cell_h, cell_g = partition.predict(heldout), partition.predict(generated)
    near_h, near_g = (exact_search.nearest(rows, members, 1)[0][:, 0] for rows in (heldout, generated))
    results = []
    for cell in range(cells):
        h, g = near_h[cell_h == cell], near_g[cell_g == cell]
        z = z_score(g, h) if len(g) >= minimum and len(h) else None
        results.append(Cell(share=len(h) / len(heldout), heldout=len(h), generated=len(g), z=z))
    used = [cell for cell in results if cell.z is not None]
    value = float(np.average([cell.z for cell in used], weights=[cell.share for cell in used])) if used else None
    return CellTest(value=value, used=len(used), cells=tuple(results))
