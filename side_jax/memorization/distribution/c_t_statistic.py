"""C_T: are generated images nearer to the members than held-out images are? A three-sample rank test, cell by cell.

Meehan, Chaudhuri and Dasgupta 2020, "A Non-Parametric Test to Detect Data-Copying in Generative Models" (4).
The space is cut into cells by k-means of the members. L(x) is the distance of x to its nearest member. In a cell with
n held-out and m generated images, R the rank of a generated image's L among all n + m (ties: mean ranks):

    U   = sum over generated of R - m (m + 1) / 2                                                   (1)
    Z   = (U - n m / 2) / sqrt( tau n m (n + m + 1) / 12 )                                          (2)
    tau = 1 - sum over ties of (t^3 - t) / ((n + m)^3 - (n + m))                                    (3)
    C_T = sum over cells kept of share Z / sum over cells kept of share                             (4)

share is the cell's share of the held-out images; kept are cells with enough generated images. (2) is the normal
approximation of Mann and Whitney (1947), (3) its correction for ties. If generated and held-out follow one law, Z is
standard normal (C_T is narrower: a mean of such); C_T << 0 is copying, C_T >> 0 underfitting. Its size grows with the
numbers of images: compare at equal numbers.

Differences from the authors' program: no continuity correction, which shifts a signed statistic to one side; ties are
corrected for; a cell with just the minimum is kept; L looks for the nearest of all members, not of those in the same
cell, so that a copy which noise took over a boundary is still near what it copies.
"""

import dataclasses
import warnings

import numpy as np
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning

from side_jax.memorization.distribution.feature_rows import checked
from side_jax.memorization.neighbors import exact_search

DIMENSIONS = 64  # more features are reduced to so many, as the public programs do


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of the partition.

    Attributes:
      share: of the held-out images, in [0, 1].
      heldout: their number, n.
      generated: the number m.
      z: equation (2); None for a cell that is not kept.
    """

    share: float
    heldout: int
    generated: int
    z: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellTest:
    """The outcome of c_t.

    Attributes:
      value: equation (4); None where no cell is kept.
      used: the number of cells kept.
      cells: all of them, kept or not.
    """

    value: float | None
    used: int
    cells: tuple[Cell, ...]


def z_score(generated: np.ndarray, heldout: np.ndarray) -> float:
    """Equation (2) of two samples of distances, [m] and [n]: below 0 where the generated are the nearer.

    0 where all n + m distances are equal: nothing speaks for either side.
    """
    m, n = len(generated), len(heldout)
    ranks = stats.rankdata(np.concatenate([generated, heldout]))
    u = ranks[:m].sum() - m * (m + 1) / 2
    variance = stats.tiecorrect(ranks) * n * m * (n + m + 1) / 12
    return float((u - n * m / 2) / np.sqrt(variance)) if variance > 0 else 0.0


def c_t(
    members: np.ndarray, heldout: np.ndarray, generated: np.ndarray, cells: int = 3, minimum: int = 20, seed: int = 0
) -> CellTest:
    """Equation (4), after a principal component analysis of the members where there are more than 64 features.

    The defaults are those of the public programs that compute C_T of image features.

    Args:
      members: float32 [l, d].
      heldout: float32 [n, d].
      generated: float32 [m, d].
      cells: k of k-means, from 1 to l.
      minimum: generated images that a cell must have to be kept, 1 or more; it must also have a held-out one.
      seed: of k-means and of the principal component analysis.

    Raises:
      ValueError: if cells or minimum is out of its range, or the rows do not compare (see rows.checked).
    """
    members, heldout, generated = checked(1, members=members, heldout=heldout, generated=generated)
    if not 1 <= cells <= len(members):
        raise ValueError(f"cells must be between 1 and the {len(members)} members, got {cells}")
    if minimum < 1:
        raise ValueError(f"minimum must be 1 or more, got {minimum}")
    if members.shape[1] > DIMENSIONS:
        reduce = PCA(min(DIMENSIONS, len(members)), random_state=seed).fit(members).transform
        members, heldout, generated = reduce(members), reduce(heldout), reduce(generated)
    with warnings.catch_warnings():
        # Fewer different members than cells: those that are left over stay empty, which the result says.
        warnings.simplefilter("ignore", ConvergenceWarning)
        partition = KMeans(cells, n_init=10, random_state=seed).fit(members)
    cell_h, cell_g = partition.predict(heldout), partition.predict(generated)
    near_h, near_g = (exact_search.nearest(rows, members, 1)[0][:, 0] for rows in (heldout, generated))
    found = []
    for cell in range(cells):
        h, g = near_h[cell_h == cell], near_g[cell_g == cell]
        z = z_score(g, h) if len(g) >= minimum and len(h) else None
        found.append(Cell(share=len(h) / len(heldout), heldout=len(h), generated=len(g), z=z))
    kept = [cell for cell in found if cell.z is not None]
    value = float(np.average([cell.z for cell in kept], weights=[cell.share for cell in kept])) if kept else None
    return CellTest(value=value, used=len(kept), cells=tuple(found))
