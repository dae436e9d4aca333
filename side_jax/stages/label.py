"""Stage label: clusters the synthetic images' features; cohesive clusters become pseudo-labels."""

import logging
from pathlib import Path
from typing import Any

from side_jax.devices import process_group
from side_jax.features import clustering
from side_jax.features.extractors import extract
from side_jax.progress import doing
from side_jax.report import plots
from side_jax.sampling import shards
from side_jax.settings import Settings, random_streams
from side_jax.stages import stage_inputs, stage_table
from side_jax.workdir import files, work_units

logger = logging.getLogger(__name__)


def run(settings: Settings, workdir: Path) -> None:
    """Writes label/labels.npz (index, label, features, centroids, cohesion, kept) and label/clusters.png."""
    if not settings.extract.needs_pseudo_labels:
        logger.info("label: skipped, since no attack in config.extract.attacks learns from synthetic images.")
        return
    work = stage_table.unit(settings, workdir, "label")
    if work.begin():
        content = _label(settings, workdir, work) if process_group.primary() else {}
        work.finish(**content)


def _label(settings: Settings, workdir: Path, work: work_units.Unit) -> dict[str, Any]:
    """Clusters the images and writes the files; returns the content of the manifest."""
    synthetic = shards.read(stage_table.synthetic_shards(settings, workdir))
    extractor = stage_inputs.build_extractor(settings, workdir)
    compared = stage_inputs.clustered(settings, workdir, synthetic["images"])
    features = extract(extractor, compared, workdir / "features")
    with doing("clustering the features"):
        result = clustering.pseudo_labels(features, settings.label, random_streams.stream_seed(settings, "label"))
    with doing("drawing the clusters"), files.atomic(work.directory / "clusters.png") as file:
        file.write(plots.clusters(synthetic["images"], features, result))
    contract = {name: result[name] for name in ("label", "centroids", "cohesion", "kept")}
    files.write_npz(work.directory / "labels.npz", index=synthetic["index"], features=features, **contract)
    return result["counts"] | {"features": extractor.identity}
