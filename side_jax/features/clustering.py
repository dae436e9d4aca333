"""Makes pseudo-labels from features: k-means, then the cohesion filter."""

import warnings
from typing import Any

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances, pairwise_distances_argmin

from side_jax.errors import InputError
from side_jax.settings import Label

DUPLICATE_BELOW = 1e-3  # centroids of unit-norm features closer than this are duplicates


def cohesion(features: np.ndarray, assigned: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Computes each cluster's mean cosine similarity to its centroid (Chen et al. 2024, section 3.2).

    Args:
      features: float32 [n, d], unit norm.
      assigned: int [n], the cluster of each image.
      centroids: float32 [K, d], of any norm.

    Returns:
      float32 [K], each in [-1, 1]; -1 for a cluster without images.
    """
    directions = centroids / np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
    cosine = np.einsum("nd,nd->n", features, directions[assigned])
    counts = np.bincount(assigned, minlength=len(centroids))
    sums = np.bincount(assigned, weights=cosine, minlength=len(centroids))
    return np.where(counts > 0, np.clip(sums / np.maximum(counts, 1), -1, 1), -1.0).astype(np.float32)


def pseudo_labels(features: np.ndarray, label: Label, seed: int) -> dict[str, Any]:
    """Clusters images and gives pseudo-labels to the cohesive clusters (Chen et al. 2024, section 3.2).

    Each cluster has one status:
      empty: no images.
      tiny: fewer than label.min_cluster_size images.
      rejected: cohesion below label.cohesion_threshold.
      duplicate: centroid within DUPLICATE_BELOW of an earlier kept one.
      kept: all others.

    A kept cluster's pseudo-label is its number among the kept clusters; a duplicate has the label of the cluster that
    it duplicates. Images of other clusters get the label of the nearest kept centroid (label.assignment "reassign") or
    -1 ("drop"). Images with zero features have no direction: they are not clustered and get -1.

    Args:
      features: float32 [n, d], each row of unit norm or zero.
      label: the settings above, the number of clusters K, and the number of images above which k-means uses
        mini-batches.
      seed: seed of k-means.

    Returns:
      A dict with
        label: int32 [n], 0..K'-1 or -1.
        cluster: int32 [n], the k-means cluster, -1 for an image without features.
        centroids: float32 [K, d].
        cohesion: float32 [K], -1 for an empty cluster.
        status: K strings as above.
        kept: bool [K].
        counts: for the manifest: the number of clusters with each status; the [min, median, max] cohesion of non-empty
          clusters and number of images per label; the number of featureless, dropped (with the featureless) and
          reassigned images.

    Raises:
      InputError: if features are not finite, fewer than K images have non-zero features, or fewer than two clusters are
        kept.
    """
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise InputError(
            f"config.label.features = {label.features!r} gives numbers that are not finite for {(~finite).sum()} of "
            f"{len(features)} images, first for image {finite.argmin()}: check its weights, or choose other features."
        )
    used = features.any(axis=1)
    if used.sum() < label.num_clusters:
        raise InputError(
            f"config.label.num_clusters is {label.num_clusters}, but only {used.sum()} of {len(features)} images "
            "have non-zero features: lower it, or use more images."
        )
    points = features[used]
    assigned, centroids = _k_means(points, label, seed)
    scores = cohesion(points, assigned, centroids)
    sizes = np.bincount(assigned, minlength=len(centroids))
    status = np.full(len(centroids), "kept", "<U9")
    status[scores < label.cohesion_threshold] = "rejected"
    status[sizes < label.min_cluster_size] = "tiny"
    status[sizes == 0] = "empty"
    original = _originals(centroids, status == "kept")
    status[original != np.arange(len(centroids))] = "duplicate"
    kept = status == "kept"
    if kept.sum() < 2:
        raise InputError(_too_few(status, scores, label))
    number = np.where(np.isin(status, ("kept", "duplicate")), (np.cumsum(kept) - 1)[original], -1)
    labels = number[assigned]
    outside = labels < 0
    if label.assignment == "reassign" and outside.any():
        labels[outside] = nearest_label(points[outside], centroids, kept)
    whole, cluster = np.full((2, len(features)), -1, np.int32)
    whole[used], cluster[used] = labels, assigned
    counts = {
        "clusters": len(centroids),
        "kept": int(kept.sum()),
        "rejected_by_cohesion": int((status == "rejected").sum()),
        **{name: int((status == name).sum()) for name in ("empty", "tiny", "duplicate")},
        "cohesion": _spread(scores[sizes > 0]),
        "sizes": _spread(np.bincount(whole[whole >= 0])),
        "featureless": int((~used).sum()),
        "dropped_images": int((whole < 0).sum()),
        "reassigned_images": int(outside.sum()) if label.assignment == "reassign" else 0,
    }
    result = {"label": whole, "cluster": cluster, "centroids": centroids, "cohesion": scores}
    return result | {"status": status, "kept": kept, "counts": counts}


def nearest_label(features: np.ndarray, centroids: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Returns the pseudo-label of the nearest kept centroid, int64 [n] in 0..K'-1, for any images.

    Args:
      features: float32 [n, d].
      centroids: float32 [K, d].
      kept: bool [K].
    """
    return pairwise_distances_argmin(features, centroids[kept])


def _k_means(points: np.ndarray, label: Label, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cluster of each point, and the centroids."""
    method = MiniBatchKMeans if len(points) > label.minibatch_above else KMeans
    with warnings.catch_warnings():
        # It warns of fewer distinct points than clusters; these clusters are counted as empty instead.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = method(label.num_clusters, n_init=4, random_state=seed % 2**32).fit(points)
    return fitted.labels_, fitted.cluster_centers_.astype(np.float32)


def _originals(centroids: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Returns, for each cluster, the earlier candidate that it duplicates, or itself. Only candidates are compared."""
    distance = pairwise_distances(centroids)
    original = np.arange(len(centroids))
    for i in np.flatnonzero(candidates):
        earlier = np.flatnonzero(candidates[:i] & (original[:i] == np.arange(i)))
        if len(earlier) and distance[i, earlier].min() < DUPLICATE_BELOW:
            original[i] = earlier[distance[i, earlier].argmin()]
    return original


def _too_few(status: np.ndarray, scores: np.ndarray, label: Label) -> str:
    large = ~np.isin(status, ("empty", "tiny"))
    fix = "the features barely distinguish these images, so choose other label.features."
    if (status == "rejected").any():
        fix = "lower the threshold, or raise label.num_clusters."
    elif (status == "tiny").any():
        fix = "lower label.num_clusters, or raise synthesize.num_images."
    others = ", ".join(f"{(status == name).sum()} {name}" for name in ("empty", "tiny", "duplicate"))
    return (
        f"{(status == 'kept').sum()} of {len(status)} clusters reach config.label.cohesion_threshold = "
        f"{label.cohesion_threshold} ({others}), and guidance needs two; the most cohesive "
        f"reaches {scores[large if large.any() else ...].max():.3f}: {fix}"
    )


def _spread(values: np.ndarray) -> list[float]:
    """Returns [min, median, max]."""
    return [float(values.min()), float(np.median(values)), float(values.max())]
