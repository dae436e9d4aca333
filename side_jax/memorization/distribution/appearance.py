"""What images look like from afar: brightness, contrast and roughness of their parts, to compare kinds of images."""

import numpy as np

GRID = 4  # parts along each side, or as many as there are pixels


def appearance(images: np.ndarray) -> np.ndarray:
    """The mean of each part, its standard deviation, and its mean difference of neighbouring pixels.

    Blurred, noisy, inverted, shifted or empty images differ in one of these from images of the data's kind, however few
    pixels equal.

    Args:
      images: uint8 [n, h, w, c].

    Returns:
      float32 [n, 3 * g * g * c] with g at most GRID: for pixels in [-1, 1].
    """
    n, height, width, _ = images.shape
    pixels = images.astype(np.float32) / 127.5 - 1
    rough = np.zeros_like(pixels)
    for axis in (1, 2):
        if images.shape[axis] > 1:
            rough += np.abs(np.diff(pixels, axis=axis, append=np.take(pixels, [-2], axis=axis)))
    down, right = (np.arange(min(GRID, side)) * side // min(GRID, side) for side in (height, width))
    area = np.outer(np.diff(down, append=height), np.diff(right, append=width))[:, :, None]

    def means(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.add.reduceat(values, down, axis=1), right, axis=2) / area

    mean = means(pixels)
    spread = np.sqrt(np.maximum(means(np.square(pixels)) - np.square(mean), 0))
    return np.concatenate([part.reshape(n, -1) for part in (mean, spread, means(rough))], axis=1).astype(np.float32)
