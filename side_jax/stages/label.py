"""Stage 3: clusters the synthetic images' features and keeps the cohesive clusters as pseudo-labels."""

import logging
from pathlib import Path

import ml_collections

from side_jax import builders, clustering, files, plots, sampling
from side_jax.config import from_config
from side_jax.features import extract
from side_jax.manifest import unit

logger = logging.getLogger(__name__)


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes label/labels.npz (index, label, features, centroids, cohesion, kept) and label/clusters.png."""
    settings = from_config(config)
    if not settings.extract.needs_pseudo_labels:
        logger.info("label: not needed, since config.extract.attacks has none that learns from synthetic images.")
        return
    work = unit(settings, workdir, "label")
    if not work.begin():
        return
    made = sampling.read_shards(workdir / "synthesize", settings.synthesize.num_images)
    extractor = builders.build_extractor(settings, workdir)
    features = extract(extractor, made["images"], workdir / "features")
    result = clustering.pseudo_labels(features, settings.label, builders.stream_seed(settings, "label"))
    with files.atomic(work.directory / "clusters.png") as file:
        file.write(plots.clusters(made["images"], features, result))
    contract = {name: result[name] for name in ("label", "centroids", "cohesion", "kept")}
    files.write_npz(work.directory / "labels.npz", index=made["index"], features=features, **contract)
    counts = result["counts"]
    logger.info(
        "label: kept %d of %d clusters; cohesion %.3f to %.3f; %d images reassigned, %d dropped.",
        counts["kept"],
        counts["clusters"],
        counts["cohesion"][0],
        counts["cohesion"][2],
        counts["reassigned_images"],
        counts["dropped_images"],
    )
    work.finish(**counts, features=extractor.identity)
