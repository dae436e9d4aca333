"""Uses pixels as features: each image minus its own mean, so that the cosine of two images is their correlation."""

import numpy as np

from side_jax.features.extractors import Extractor


def extractor(batch_size: int) -> Extractor:
    """Makes an extractor of features [n, h * w * c]. An image of one value has no direction and becomes zero."""

    def embed(images: np.ndarray, index: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), -1)
        return (flat - flat.mean(axis=1, keepdims=True)).astype(np.float32)  # computed in float64

    return Extractor(identity={"name": "pixels"}, embed=embed, batch_size=batch_size)
