"""Pixels as features: each image minus its own mean, so that a cosine is a correlation of pixels."""

import numpy as np

from side_jax.features.extractors import Extractor


def extractor(batch_size: int) -> Extractor:
    """Features [n, h * w * c]; an image of one flat colour, which has no direction, becomes exactly zero."""

    def embed(images: np.ndarray, index: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), -1)
        return (flat - flat.mean(axis=1, keepdims=True)).astype(np.float32)  # in float64 until here

    return Extractor(identity={"name": "pixels"}, embed=embed, batch_size=batch_size)
