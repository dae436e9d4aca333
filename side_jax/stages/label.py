"""Stage 3: clusters the synthetic images' features and keeps the cohesive clusters as pseudo-labels."""

import logging
from pathlib import Path

import ml_collections
import numpy as np
from sklearn.cluster import KMeans

from side_jax import builders, files, sampling
from side_jax.config import from_config
from side_jax.errors import InputError
from side_jax.manifest import unit
from side_jax.models.features import EXTRACTORS
from side_jax.settings import Label

logger = logging.getLogger(__name__)


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
    cosine = (features * directions[assigned]).sum(axis=1)
    counts = np.bincount(assigned, minlength=len(centroids))
    sums = np.bincount(assigned, weights=cosine, minlength=len(centroids))
    return np.where(counts > 0, sums / np.maximum(counts, 1), -1.0).astype(np.float32)


def pseudo_labels(features: np.ndarray, label: Label, seed: int) -> dict[str, np.ndarray]:
    """K-means, cohesion filter, pseudo-labels.

    Args:
      features: float32 [n, d], unit norm.
      label: K, the threshold tau, and what becomes of images in rejected clusters.
      seed: of k-means.

    Returns:
      label int32 [n] (0..K'-1, or -1 for a dropped image), centroids float32 [K, d], cohesion float32 [K] and kept
      bool [K]. Labels number the kept clusters in their order.

    Raises:
      InputError: if fewer than two clusters reach the threshold.
    """
    kmeans = KMeans(label.num_clusters, n_init=4, random_state=seed % 2**32).fit(features)
    centroids = kmeans.cluster_centers_.astype(np.float32)
    scores = cohesion(features, kmeans.labels_, centroids)
    kept = scores >= label.cohesion_threshold
    if kept.sum() < 2:
        raise InputError(
            f"{int(kept.sum())} of {label.num_clusters} clusters reach config.label.cohesion_threshold = "
            f"{label.cohesion_threshold}, and guidance needs two; the most cohesive reaches {scores.max():.3f}: lower "
            "the threshold, or raise label.num_clusters."
        )
    number = np.where(kept, np.cumsum(kept) - 1, -1)
    labels = number[kmeans.labels_]
    if label.assignment == "reassign":
        outside = labels < 0
        distance = ((features[outside, None, :] - centroids[None, kept, :]) ** 2).sum(axis=2)
        labels[outside] = distance.argmin(axis=1)
    return {"label": labels.astype(np.int32), "centroids": centroids, "cohesion": scores, "kept": kept}


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes label/labels.npz: index, label, features, centroids, cohesion, kept."""
    settings = from_config(config)
    if not settings.extract.needs_surrogate:
        logger.info("label: not needed, since config.extract.attacks does not ask for side.")
        return
    work = unit(settings, workdir, "label")
    if not work.begin():
        return
    made = sampling.read_shards(workdir / "synthesize", settings.synthesize.num_images)
    features = EXTRACTORS[settings.label.features](made["images"])
    result = pseudo_labels(features, settings.label, builders.stream_seed(settings, "label"))
    files.write_npz(work.directory / "labels.npz", index=made["index"], features=features, **result)
    kept, scores = result["kept"], result["cohesion"]
    logger.info(
        "label: kept %d of %d clusters; cohesion %.3f to %.3f.", kept.sum(), len(kept), scores.min(), scores.max()
    )
    work.finish(
        clusters=len(kept),
        kept=int(kept.sum()),
        cohesion=[float(scores.min()), float(np.median(scores)), float(scores.max())],
        dropped_images=int((result["label"] < 0).sum()),
    )
