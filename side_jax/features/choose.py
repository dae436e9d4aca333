"""Builds the feature extractor or the teacher that the settings name."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from side_jax.features import onnx, pixels, sscd
from side_jax.features.extractors import Extractor, embed_all
from side_jax.settings import Settings


def modelless_extractors(settings: Settings, channels: int, cache: Path) -> dict[str, Callable[[], Extractor]]:
    """Extractors of label.features that need no target, by name. Converted weights are stored in `cache`."""
    label, batch = settings.label, {"batch_size": settings.sampler.batch_size}
    return {
        "pixels": lambda: pixels.extractor(**batch),
        "sscd": lambda: sscd.extractor(label, cache, **batch),
        "onnx": lambda: onnx.extractor(label, channels, **batch),
    }


def build_teacher(settings: Settings) -> Callable[[np.ndarray], np.ndarray]:
    """Loads the TDKD teacher: uint8 images [n, h, w, c] to log-probabilities, float32 [n, C].

    Raises:
      InputError: if the file of surrogate.teacher_path can't be used.
    """
    s = settings.surrogate
    label = dataclasses.replace(settings.label, weights=s.teacher_path, weights_sha256=s.teacher_sha256)
    model = onnx.extractor(label, settings.data.channels, batch_size=settings.sampler.batch_size)
    return lambda images: log_softmax(embed_all(model, images), axis=1).astype(np.float32)
