"""From features to pseudo-labels: k-means, the cohesion filter, and what becomes of the images of other clusters."""

import warnings
from typing import Any

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances, pairwise_distances_argmin

from side_jax.errors import InputError
from side_jax.settings import Label

DUPLICATE_BELOW = 1e-3  # the distance of two centroids that are one, where features have unit norm


def cohesion(features: np.ndarray, assigned: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Mean cosine similarity of each cluster's members to its centroid (Chen et al. 2024, section 3.2).

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
    """Clusters images and labels them by the clusters that cohere (Chen et al. 2024, section 3.2).

    A cluster is empty; or tiny, where it has fewer than label.min_cluster_size images; or rejected, where its cohesion
    is below label.cohesion_threshold; or a duplicate, where its centroid is within DUPLICATE_BELOW of an earlier kept
    one; or else kept. Images of kept clusters get its number among the kept, those of a duplicate the number of the
    cluster that it duplicates; images of the others go to the nearest kept centroid (label.assignment "reassign") or
    get -1 ("drop"). Images whose features are zero have no direction: they take no part and get -1 in any case.

    Args:
      features: float32 [n, d], each row of unit norm or zero.
      label: the settings named above, K, and above how many images k-means is by mini-batches.
      seed: of k-means.

    Returns:
      label int32 [n], 0..K'-1 or -1; cluster int32 [n], of k-means, -1 for an image without features; centroids float32
      [K, d]; cohesion float32 [K], -1 for an empty cluster; status, K strings as above; kept bool [K]; and counts, for
      a manifest: clusters of each status, cohesion of those that are not empty and sizes, the images of each label
      (both as [min, median, max]), and images: featureless, dropped (the featureless included) and reassigned.

    Raises:
      InputError: if features are not finite, are zero for all but fewer than K images, or keep fewer than two clusters.
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
            "have features that are not zero: lower it, or give it more images."
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
    """The pseudo-label whose centroid is nearest, int64 [n] in 0..K'-1: of rejected images, or of any others.

    Args:
      features: float32 [n, d].
      centroids: float32 [K, d].
      kept: bool [K].
    """
    return pairwise_distances_argmin(features, centroids[kept])


def _k_means(points: np.ndarray, label: Label, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The cluster of each point, and the centroids."""
    method = MiniBatchKMeans if len(points) > label.minibatch_above else KMeans
    with warnings.catch_warnings():
        # It warns of fewer different points than clusters; these are counted as empty clusters instead.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = method(label.num_clusters, n_init=4, random_state=seed % 2**32).fit(points)
    return fitted.labels_, fitted.cluster_centers_.astype(np.float32)


def _originals(centroids: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """For each cluster the earlier candidate that it, a candidate too, duplicates; itself where there is none."""
    distance = pairwise_distances(centroids)
    original = np.arange(len(centroids))
    for i in np.flatnonzero(candidates):
        earlier = np.flatnonzero(candidates[:i] & (original[:i] == np.arange(i)))
        if len(earlier) and distance[i, earlier].min() < DUPLICATE_BELOW:
            original[i] = earlier[distance[i, earlier].argmin()]
    return original


def _too_few(status: np.ndarray, scores: np.ndarray, label: Label) -> str:
    large = ~np.isin(status, ("empty", "tiny"))
    fix = "the features hardly tell these images apart, so choose other label.features."
    if (status == "rejected").any():
        fix = "lower the threshold, or raise label.num_clusters."
    elif (status == "tiny").any():
        fix = "lower label.num_clusters, or raise synthesize.num_images."
    without = ", ".join(f"{(status == name).sum()} {name}" for name in ("empty", "tiny", "duplicate"))
    return (
        f"{(status == 'kept').sum()} of {len(status)} clusters reach config.label.cohesion_threshold = "
        f"{label.cohesion_threshold} ({without}), and guidance needs two; the most cohesive "
        f"reaches {scores[large if large.any() else ...].max():.3f}: {fix}"
    )


def _spread(values: np.ndarray) -> list[float]:
    """[min, median, max]."""
    return [float(values.min()), float(np.median(values)), float(values.max())]
