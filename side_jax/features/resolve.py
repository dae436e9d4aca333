"""The local files that label.features and the TDKD teacher read: checked and hashed before anything heavy."""

from pathlib import Path

import ml_collections

from side_jax.config import from_config
from side_jax.features import onnx, sscd, weights


def resolve(config: ml_collections.ConfigDict, workdir: Path) -> ml_collections.ConfigDict:
    """Fills in label.weights_sha256 and surrogate.teacher_sha256 where the run reads such files.

    A file whose hash is recorded may be gone, as long as no stage needs it any more.

    Args:
      config: of the run, with what a foreign target says (foreign.resolve) already in it.
      workdir: of the run, where converted weights may be; nothing is written.

    Raises:
      InputError: if the config is invalid, or a file is missing, not the one used before, or can't be used.
    """
    settings = from_config(config)
    label, surrogate = settings.label, settings.surrogate
    if not (settings.extract.clusters_images or settings.uses_features):
        return config
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if label.features in ("sscd", "onnx"):
            config.label.weights_sha256 = weights.digest(label.weights, label.weights_sha256, "label.weights")
            if Path(label.weights).is_file():
                if label.features == "sscd":
                    sscd.read(label, workdir / "features")
                else:
                    onnx.encoder(label, settings.data.channels)
        if surrogate.objective == "tdkd" and surrogate.teacher_path:
            path, recorded = surrogate.teacher_path, surrogate.teacher_sha256
            config.surrogate.teacher_sha256 = weights.digest(path, recorded, "surrogate.teacher_path")
            if Path(path).is_file():
                onnx.OnnxModel(path)
    return config.lock()
