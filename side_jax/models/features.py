"""Feature extractors: uint8 images in, unit-norm float32 features out."""

import numpy as np


def pixel_features(images: np.ndarray) -> np.ndarray:
    """Centred pixels: each image minus its own mean, scaled to unit norm, so that a cosine is a correlation of pixels.

    Args:
      images: uint8 [n, h, w, c].

    Returns:
      float32 [n, h * w * c]; an image of one flat colour, which has no direction, becomes zero.
    """
    flat = images.reshape(len(images), -1).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, norm, out=np.zeros_like(flat), where=norm > 0)


EXTRACTORS = {"pixels": pixel_features}
